"""The three parts of the data, each an Arrow file of examples in one folder.

train.arrow       what is learned from
validation.arrow  what chooses: a training's best step, the way of merging an adapter
held_out.arrow    what is reported; only the evaluate stage reads it

Parts are drawn by document. The held-out documents come first, so that the share taken for
validation does not change them. A text that stands in two of the documents is kept in one part
alone: in the held-out part, else in the validation part. Where a run has other data as well, a text
keeps the part that it has there (`Placed`).
"""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from attar.errors import DataError
from distill.data.bad_rows import BadRows
from distill.data.config import DataConfig, sources_of
from distill.data.documents import Apart, Document, DocumentQueue, documents_in_share
from distill.data.part_writer import PartWriter, numbers_of, read_part, write_part
from distill.data.placed import DATA_PARTS, Placed, Row, RowsOfPrompt, part_file, together
from distill.data.reader import Reader
from distill.data.sources import load_rows
from distill.data.tokenize import LEFT_OUT

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """The data of a section of the recipe, and what its rows are read with.

    skipped: number of rows that were cut or left out, by reason. bad: those that cannot be used.
    placed: where texts stand in the run's other data.
    """

    config: DataConfig
    reader: Reader
    tokenizer: Any
    seed: int
    skipped: Counter[str] = field(default_factory=Counter)
    bad: BadRows = field(default_factory=BadRows)
    placed: Placed = field(default_factory=Placed)

    def training(self) -> DocumentQueue:
        """All documents of the training sources, in an order drawn from the seed."""
        rows = self._open(sources_of(self.config), self.config.split)
        return self.placed.queue(rows)

    def named(self, source: str) -> DocumentQueue:
        """Documents of `split:NAME` of the training sources, or of another source."""
        rows = self._named_rows(source)
        return DocumentQueue((row.document() for row in rows), len(rows))

    def _named_rows(self, source: str) -> list[Row | RowsOfPrompt]:
        if source.startswith("split:"):
            return self._open(sources_of(self.config), source.removeprefix("split:"))
        return self._open([source], self.config.split)

    def documents_of(self, parts: Iterable[str]) -> Iterator[Document]:
        """All documents of the sources that parts are drawn from; in one order with any tokenizer,
        and of as many rows, but not divided into parts.
        """
        return (row.document() for row in self.rows_of(parts))

    def rows_of(self, parts: Iterable[str]) -> Iterator[Row | RowsOfPrompt]:
        """The rows of these documents, in the same order."""
        config, named, is_drawn = self.config, [], False
        for part in parts:
            source = None if part == "train" else getattr(config, part)
            if isinstance(source, str):
                named.append(source)
            else:
                is_drawn = True
        if is_drawn:
            yield from self._open(sources_of(config), config.split)
        for source in named:
            yield from self._named_rows(source)

    def _open(self, sources: list[str], split: str) -> list[Row | RowsOfPrompt]:
        tables = [load_rows(source, split, self.config.name) for source in sources]
        readings = self.reader.open(self.tokenizer, self.config, tables, sources)
        for table, source in zip(tables, sources, strict=True):
            self.bad.expect(source, len(table))
        rows = [
            Row(table, source, i, reading, self.skipped, self.bad)
            for table, source, reading in zip(tables, sources, readings, strict=True)
            for i in range(len(table))
        ]
        random.Random(self.seed).shuffle(rows)
        return together(rows)

    def left_out(self) -> list[str]:
        """What of the rows read so far was cut or left out, a sentence a reason."""
        return [
            *sentences_of(self.skipped, self.config.section),
            *(f"left out: {one}" for one in self.bad.sentences()),
        ]

    def spread(
        self, documents: Iterable[Document], number: int, limit: int | None
    ) -> Iterator[tuple[int, Document]]:
        """Numbered documents, cut so that a limit on their tokens is spread over all of them.

        Where every token of a window counts, each document first gives as many windows as all must
        give, were they full; elsewhere each gives one example. Then each gives one more in turn.
        """
        if limit is None:
            return enumerate(documents)
        each = 1
        if self.reader.counts_all:
            each = max(1, math.ceil(limit / (self.config.max_length - 1) / max(1, number)))
        return round_robin(documents, each, limit)


def round_robin(
    documents: Iterable[Document], first: int, limit: int
) -> Iterator[tuple[int, Document]]:
    """The first examples of every numbered document, then one more of every one, and so on.

    limit: counted tokens beyond which no document is kept in memory.
    """
    waiting: list[tuple[int, Document]] = []
    for i, document in enumerate(documents):
        yield i, document.some(0, first)
        if len(document) > first:
            waiting.append((i, document.some(first, first + limit)))
    while waiting:
        yield from ((i, document.some(0, 1)) for i, document in waiting)
        waiting = [(i, document.some(1)) for i, document in waiting if len(document) > 1]


# The parts ---------------------------------------------------------------------------------------


def write_parts(corpus: Corpus, folder: Path) -> dict[str, Any]:
    """Write the three parts; the numbers of each, where the validation part comes from, and in
    sentences what of the rows is left out.

    Raises `DataError` where a part would be empty.
    """
    config, training, placed = corpus.config, corpus.training(), corpus.placed.parts
    documents = training.left
    if documents == 0 and not training.kept:
        raise DataError(f"`{config.section}.train` ({', '.join(sources_of(config))}) has no rows.")
    held_out = _write_held_out(corpus, training, folder)
    taken = held_out.written | placed["held_out"]
    validation = _write_validation(corpus, training, folder, taken)
    taken = taken | validation.written | placed["validation"]
    train = PartWriter(part_file(folder, "train"), config.train_tokens, taken)
    train.fill(enumerate(training))
    train.close()
    origin = _origin(config.validation)
    repeated = _repeated({"validation": validation.dropped, "train": train.dropped})
    for sentence in repeated:
        log.info("data: %s", sentence)
    if origin == "documents" and 0 in (train.examples, validation.examples):
        origin = _validate_on_training_windows(config, folder)
    numbers = {part: numbers_of(part_file(folder, part)) for part in DATA_PARTS}
    _refuse_empty(corpus, numbers)
    corpus.bad.finish(config.section)
    return {
        "documents": documents,
        **numbers,
        "validation_from": origin,
        "left_out": [*corpus.left_out(), *repeated],
    }


def _write_held_out(corpus: Corpus, training: DocumentQueue, folder: Path) -> PartWriter:
    """Take the held-out part from a source of its own, or from the training documents.

    Documents that are held out beyond the limit on tokens are in no part. Where no other document
    has an example to learn, one is given back, or the last windows of the only one are held out.
    """
    config = corpus.config
    # Models are measured as they are used, by the prompts of the rows.
    writer = PartWriter(part_file(folder, "held_out"), config.held_out_tokens, asks_teacher=False)
    if isinstance(config.held_out, str):
        _fill_from_source(corpus, writer, config.held_out, config.held_out_tokens)
    else:
        drawn = training.draw(
            "held_out", config.held_out, Apart(), section=config.section, learned=config.reported
        )
        documents = [document for document in drawn if len(document)]
        if (rest := training.next_filled()) is not None:
            training.give_back(rest)
        elif len(documents) > 1:
            training.give_back(documents.pop())
        elif documents:
            (only,) = documents
            begin = only.last_windows(config.held_out)
            documents = [only.between(begin, 1.0)]
            training.give_back(only.between(0.0, begin))
        writer.fill(corpus.spread(documents, len(documents), config.held_out_tokens))
    writer.close()
    return writer


def _write_validation(
    corpus: Corpus, training: DocumentQueue, folder: Path, held_out: Apart
) -> PartWriter:
    """Take the validation part from a source of its own, or from the next training documents.

    Documents that the limit on tokens does not reach stay with the training part. The part stays
    empty where there is no document to spare.
    """
    config = corpus.config
    writer = PartWriter(part_file(folder, "validation"), config.validation_tokens, held_out)
    if isinstance(config.validation, str):
        _fill_from_source(corpus, writer, config.validation, config.validation_tokens)
    elif training.left > 1 or training.kept.get("validation"):
        number = documents_in_share(config.validation, training.left)
        documents = training.draw("validation", config.validation, held_out, section=config.section)
        writer.fill(corpus.spread(documents, number, config.validation_tokens))
    writer.close()
    return writer


def _fill_from_source(corpus: Corpus, writer: PartWriter, source: str, limit: int | None) -> None:
    documents = corpus.named(source)
    writer.fill(corpus.spread(documents, documents.left, limit))


def _origin(validation: float | str) -> str:
    """What the validation part is drawn from, as stats.json says it."""
    if isinstance(validation, float):
        return "documents"
    return "split" if validation.startswith("split:") else "source"


def _validate_on_training_windows(config: DataConfig, folder: Path) -> str:
    """Make a validation part of the last training examples, where documents are too few for one.

    A single training example stands in both parts. Gives what the part was drawn from.
    """
    assert isinstance(config.validation, float)
    files = part_file(folder, "validation"), part_file(folder, "train")
    examples = pa.concat_tables([read_part(file) for file in files])  # one of them is empty
    examples = examples.sort_by([("document", "ascending"), ("begin", "ascending")])
    windows = list(
        zip(*(examples[name].to_pylist() for name in ("document", "begin")), strict=True)
    )
    if len(set(windows)) < 2:
        for file in files:
            write_part(file, examples)
        log.warning(
            "data: there is only one training example, so it is the validation part too: what is "
            "chosen by validation is chosen on text that was learned"
        )
        return "training examples"
    number = max(1, math.ceil(config.validation * len(examples)))
    if config.validation_tokens is not None:
        counts = examples["count"].to_pylist()[::-1]
        while number > 1 and sum(counts[: number - 1]) >= config.validation_tokens:
            number -= 1
    kept = windows.index(windows[-number]) or windows.count(windows[0])  # a window stays whole
    number = len(examples) - kept
    write_part(part_file(folder, "train"), examples.slice(0, kept))
    write_part(part_file(folder, "validation"), examples.slice(kept))
    log.warning(
        "data: there are too few documents for a validation part, so it is the last %d of %d "
        "training examples; they are not learned from",
        number, len(examples),
    )  # fmt: skip
    return "windows"


def describe_skipped(skipped: Counter[str], section: str) -> str:
    """How many rows were cut, and how many left out and why; empty where none was."""
    return "; ".join(sentences_of(skipped, section))


def sentences_of(skipped: Counter[str], section: str) -> list[str]:
    """The same, one a reason."""
    return [
        f"{count} {reason.format(section)}{', and are left out' if reason in LEFT_OUT else ''}"
        for reason, count in skipped.items()
        if count
    ]


def _repeated(dropped: dict[str, int]) -> list[str]:
    """How many examples were left out of a part since they stand in one before it."""
    others = {"validation": "held-out part", "train": "validation or held-out part"}
    return [
        f"{number} {'training' if part == 'train' else part} examples also stand in the "
        f"{others[part]} and are left out"
        for part, number in dropped.items()
        if number
    ]


def _refuse_empty(corpus: Corpus, numbers: dict[str, dict[str, int]]) -> None:
    """Raise `DataError` for a part without examples."""
    config = corpus.config
    reasons = describe_skipped(corpus.skipped, config.section)
    parts = DATA_PARTS if config.reported else DATA_PARTS[:2]
    for part in parts:
        if numbers[part]["examples"] == 0:
            source = sources_of(config) if part == "train" else getattr(config, part)
            raise DataError(
                f"No example of `{config.section}.{part}` ({source}) has a token to learn: all its "
                "rows are empty after tokenising, or stand in another "
                f"part{reasons and f' ({reasons})'}."
            )
