"""How much text each part of the data has: counted where it is prepared, else estimated.

An estimate tokenises a sample of rows of each source, and divides as `distill.data.split` does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from attar.files import read_json
from distill.data.bad_rows import BadRows
from distill.data.config import DataConfig, sources_of
from distill.data.documents import documents_in_share
from distill.data.examples import Example, Examples, example_of
from distill.data.labelled_texts import LabelledTexts
from distill.data.placed import DATA_PARTS, part_file
from distill.data.prepare import data_faults
from distill.data.reader import Reader
from distill.data.reward_pairs import RewardPairs
from distill.data.sources import load_rows
from distill.data.teacher_prompts import as_teacher_reads

SAMPLE_ROWS = 50  # of each source


@dataclass(frozen=True)
class DataCounts:
    """Numbers of examples in each part, means of one example, and how they are known.

    held_out_documents: before the data are prepared as many as its examples, which are no fewer.
    texts: that a model reads for one example: 2 of a pair of answers, whose length, counted and
    kept tokens are those of both. outputs: numbers that a teacher gives for a text: its classes, 1
    of a reward; None where it gives some for every token.
    """

    train: int
    validation: int
    held_out: int
    length: float  # tokens
    counted: float  # tokens whose prediction counts; 1 of a text that counts once
    kept: float  # tokens whose layers the cache keeps
    outputs: int | None
    known: str
    held_out_documents: int
    texts: float = 1.0
    rejected: float = 0.0  # of the counted tokens, those of a pair's rejected answer
    of_teacher: float | None = None  # tokens as the teacher reads it, where it has its own prompts

    @property
    def teacher_length(self) -> float:
        """Tokens of one example as the teacher reads it."""
        return self.length if self.of_teacher is None else self.of_teacher

    @property
    def rows(self) -> int:
        """The most rows that one example takes in a micro-batch."""
        return math.ceil(self.texts)

    @property
    def of_one_text(self) -> DataCounts:
        """The same where of each pair the chosen text alone is read; prompts are the uncounted."""
        counted = self.counted - self.rejected
        length = (self.length - self.counted) / self.texts + counted
        kept = self.kept * counted / self.counted if self.counted else self.kept
        return replace(self, length=length, counted=counted, kept=kept, texts=1.0, rejected=0.0)

    @property
    def cached(self) -> int:
        """Examples whose signals the cache holds."""
        return self.train + self.validation


@dataclass(frozen=True)
class Sample:
    """Rows of some sources: how many there are and were read, and the examples in those."""

    rows: int
    read: int
    lengths: np.ndarray
    counts: np.ndarray
    num_texts: np.ndarray
    rejected: np.ndarray
    of_teacher: float | None

    @property
    def examples(self) -> float:
        """Examples in all rows, as far as those that were read can say."""
        return self.rows * len(self.lengths) / max(1, self.read)


def prepared_counts(folder: Path, kept_of: Callable[[Any], np.ndarray]) -> DataCounts | None:
    """Counts of the data that `prepare` left in `folder`; None where it left none, or they changed.

    kept_of: number of tokens of each example whose layers the cache keeps.
    """
    if not (folder / "stats.json").exists() or data_faults(folder):
        return None
    stats = read_json(folder / "stats.json")
    numbers = {part: stats[part]["examples"] for part in DATA_PARTS}
    outputs = len(stats["classes"]) if "classes" in stats else stats.get("outputs")
    train = Examples(part_file(folder, "train"))
    return DataCounts(
        train=numbers["train"],
        validation=numbers["validation"],
        held_out=numbers["held_out"],
        **_means(train, kept_of),
        of_teacher=_mean_of_teacher([train[i] for i in range(min(len(train), SAMPLE_ROWS))]),
        outputs=outputs,
        known="counted",
        held_out_documents=stats["held_out"]["documents"],
    )


def estimated_counts(
    config: DataConfig, reader: Reader, tokenizer: Any, kept_of: Callable[[Any], np.ndarray]
) -> DataCounts:
    """Counts by a sample of rows of each source. Raises `DataError` for data that cannot be read.

    kept_of: number of tokens of each example whose layers the cache keeps.
    """
    sample = _sample(config, reader, tokenizer, sources_of(config), config.split)
    means = _means(sample, kept_of)

    each = sample.examples / max(1, sample.rows)  # examples of a document

    def drawn(part: float | str, left: float) -> float:
        """Examples of a part before its limit, where this many examples are left to draw from."""
        if isinstance(part, float):
            documents = round(left / each) if each else 0
            return documents_in_share(part, documents) * each if documents > 1 else part * left
        split = part.removeprefix("split:")
        if split != part:
            return _sample(config, reader, tokenizer, sources_of(config), split).examples
        return _sample(config, reader, tokenizer, [part], config.split).examples

    def limited(examples: float, tokens: int | None) -> float:
        return examples if tokens is None else min(examples, math.ceil(tokens / means["counted"]))

    left = sample.examples
    held_out = drawn(config.held_out, left)
    left -= held_out if isinstance(config.held_out, float) else 0
    validation = limited(drawn(config.validation, left), config.validation_tokens)
    left -= validation if isinstance(config.validation, float) else 0
    held_out_examples = round(limited(held_out, config.held_out_tokens))
    return DataCounts(
        train=round(limited(left, config.train_tokens)),
        validation=round(validation),
        held_out=held_out_examples,
        **means,
        of_teacher=sample.of_teacher,
        outputs=_outputs(reader),
        known=f"estimated from {sample.read} rows",
        held_out_documents=held_out_examples,
    )


def _outputs(reader: Reader) -> int | None:
    """How many numbers a teacher gives for a text; None where it gives some for every token."""
    if isinstance(reader, LabelledTexts):
        return len(reader.names)
    return reader.outputs if isinstance(reader, RewardPairs) else None


def _means(examples: Any, kept_of: Callable[[Any], np.ndarray]) -> dict[str, float]:
    """Means of examples, or of a sample of them."""
    arrays = {
        "length": examples.lengths,
        "counted": examples.counts,
        "kept": kept_of(examples),
        "texts": examples.num_texts,
    }
    rejected = np.where(examples.num_texts > 1, examples.rejected, 0)
    means = {name: float(np.mean(a)) if len(a) else 1.0 for name, a in arrays.items()}
    return {**means, "rejected": float(np.mean(rejected)) if len(rejected) else 0.0}


def _sample(
    config: DataConfig, reader: Reader, tokenizer: Any, sources: list[str], split: str
) -> Sample:
    tables = [load_rows(source, split, config.name) for source in sources]
    readings = reader.open(tokenizer, config, tables, sources)
    bad = BadRows()
    for table, source in zip(tables, sources, strict=True):
        bad.expect(source, len(table))
    found = [
        example_of(*example)
        for table, source, read in zip(tables, sources, readings, strict=True)
        for i in range(min(len(table), SAMPLE_ROWS))
        for example in bad.try_row(
            table,
            source,
            i,
            lambda row, read=read: read(row, Counter()),  # type: ignore[misc]
        )
        or []
    ]
    bad.finish(config.section)
    numbers = [_numbers(example) for example in found]
    lengths, counts, num_texts, rejected = np.asarray(numbers, np.int64).reshape(-1, 4).T
    rows = [len(table) for table in tables]
    read = sum(min(n, SAMPLE_ROWS) for n in rows)
    of_teacher = _mean_of_teacher(found)
    return Sample(sum(rows), read, lengths, counts, num_texts, rejected, of_teacher)


def _mean_of_teacher(examples: Sequence[Example]) -> float | None:
    """Mean tokens of examples as the teacher reads them; None where it reads the same prompts."""
    lengths = [
        len(as_teacher_reads(one).input_ids) for one in examples if one.teacher_prompt is not None
    ]
    return float(np.mean(lengths)) if lengths else None


def _numbers(example: Example) -> tuple[int, int, int, int]:
    """(tokens, counted tokens, texts, counted tokens of a rejected answer) of an example."""
    texts = example.texts
    return (
        sum(len(text.input_ids) for text in texts),
        sum(len(text.counted) for text in texts),
        len(texts),
        sum(len(text.counted) for text in texts[1:]),
    )
