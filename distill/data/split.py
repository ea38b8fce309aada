"""The three parts of the data, each an Arrow file of examples in one folder.

train.arrow       what is learned from
validation.arrow  what chooses: a training's best step, the way of merging an adapter
held_out.arrow    what is reported; only the evaluate stage reads it

Parts are drawn by document. The held-out documents come first, so that the share taken for
validation does not change them. An example that stands in two of the documents is kept in one
part alone: in the held-out part, else in the validation part.
"""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from attar.errors import DataError
from distill.data.bad_rows import BadRows
from distill.data.config import DataConfig, sources_of
from distill.data.examples import key_of
from distill.data.reader import Reader, ReadExamples
from distill.data.sources import load_rows
from distill.data.tokenize import IGNORE, LEFT_OUT

log = logging.getLogger(__name__)

DATA_PARTS = ("train", "validation", "held_out")
EXAMPLE_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "document": pa.int64(),
        "length": pa.int32(),
        "count": pa.int32(),
        "input_ids": pa.list_(pa.int32()),
        "labels": pa.list_(pa.int32()),
        "token_types": pa.list_(pa.int8()),
    }
)
ROWS_A_BATCH = 1000  # examples that wait in memory to be written together


def part_file(folder: Path, part: str) -> Path:
    """The file of one of the `DATA_PARTS` in a folder that `prepare` made."""
    return folder / f"{part}.arrow"


class PartWriter:
    """Writes examples to an Arrow file until they hold `limit` counted tokens.

    taken: keys of examples that stand in other parts; they are left out and counted in `dropped`.
    """

    def __init__(self, path: Path, limit: int | None, taken: Set[str] = frozenset()) -> None:
        self._file = pa.OSFile(str(path), "wb")
        self._stream = pa.ipc.new_stream(self._file, EXAMPLE_SCHEMA)
        self._rows: list[dict[str, Any]] = []
        self._limit, self._taken = limit, taken
        self.keys: set[str] = set()
        self.tokens = self.examples = self.dropped = 0

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self._limit is not None and self.tokens >= self._limit

    def fill(self, documents: Iterable[tuple[int, ReadExamples]]) -> None:
        """Write numbered documents until the limit is reached; no further one is read then."""
        for number, examples in documents:
            self.add(number, examples)
            if self.full:
                return

    def add(self, document: int, examples: ReadExamples) -> None:
        """Write the examples of one document, as far as the limit allows."""
        for ids, labels, *more in examples:
            types = more[0] if more else None
            key = key_of(ids, labels, types)
            if key in self._taken:
                self.dropped += 1
            elif not self.full:
                count = sum(label != IGNORE for label in labels)
                values = (key, document, len(ids), count, ids, labels, types)
                self._rows.append(dict(zip(EXAMPLE_SCHEMA.names, values, strict=True)))
                self.keys.add(key)
                self.tokens += count
                self.examples += 1
        if len(self._rows) >= ROWS_A_BATCH:
            self._flush()

    def _flush(self) -> None:
        self._stream.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=EXAMPLE_SCHEMA))
        self._rows = []

    def close(self) -> None:
        """Finish the file."""
        self._flush()
        self._stream.close()
        self._file.close()


def documents_in_share(share: float, documents: int) -> int:
    """Number of documents in a share of some: at least one, and at least one is left over."""
    return min(documents - 1, max(1, math.ceil(share * documents)))


class DocumentQueue:
    """Documents that no part has taken yet; each is read when it is taken."""

    def __init__(self, documents: Iterable[ReadExamples], number: int) -> None:
        self._documents, self.left = iter(documents), number

    def __iter__(self) -> Iterator[ReadExamples]:
        return self

    def __next__(self) -> ReadExamples:
        document = next(self._documents)
        self.left -= 1
        return document

    def take_last_windows(self, share: float) -> ReadExamples:
        """The last windows of the next document, at least one; its other windows stay."""
        document = next(self._documents)
        kept = len(document) - max(1, math.ceil(share * len(document)))
        self._documents = iter([document[:kept], *self._documents])
        return document[kept:]


@dataclass(frozen=True)
class Corpus:
    """The data of a section of the recipe, and what its rows are read with.

    skipped: number of rows that were cut or left out, by reason. bad: those that cannot be used.
    """

    config: DataConfig
    reader: Reader
    tokenizer: Any
    seed: int
    skipped: Counter[str] = field(default_factory=Counter)
    bad: BadRows = field(default_factory=BadRows)

    def training(self) -> DocumentQueue:
        """All documents of the training sources, in an order drawn from the seed."""
        return self._open(sources_of(self.config), self.config.split)

    def named(self, source: str) -> DocumentQueue:
        """Documents of `split:NAME` of the training sources, or of another source."""
        if source.startswith("split:"):
            return self._open(sources_of(self.config), source.removeprefix("split:"))
        return self._open([source], self.config.split)

    def _open(self, sources: list[str], split: str) -> DocumentQueue:
        tables = [load_rows(source, split, self.config.name) for source in sources]
        readings = self.reader.open(self.tokenizer, self.config, tables, sources)
        order = [(t, i) for t, table in enumerate(tables) for i in range(len(table))]
        random.Random(self.seed).shuffle(order)
        for table, source in zip(tables, sources, strict=True):
            self.bad.expect(source, len(table))

        def read(t: int, i: int) -> ReadExamples:
            def reading(row: Any) -> ReadExamples:
                return readings[t](row, self.skipped)

            return self.bad.try_row(tables[t], sources[t], i, reading) or []

        return DocumentQueue((read(t, i) for t, i in order), len(order))

    def spread(
        self, documents: Iterable[ReadExamples], number: int, limit: int | None
    ) -> Iterator[tuple[int, ReadExamples]]:
        """Numbered documents, cut so that a limit on their tokens is spread over all of them.

        Where every token of a window counts, each document gives its first windows, as many as it
        takes; elsewhere each gives one example in turn.
        """
        if limit is None:
            return enumerate(documents)
        if not self.reader.counts_all:
            return round_robin(documents)
        windows = limit / (self.config.max_length - 1)
        each = max(1, math.ceil(windows / max(1, number)))
        return ((i, document[:each]) for i, document in enumerate(documents))


def round_robin(documents: Iterable[ReadExamples]) -> Iterator[tuple[int, ReadExamples]]:
    """The first example of every numbered document, then the second of every one, and so on."""
    waiting: list[tuple[int, ReadExamples]] = []
    for i, document in enumerate(documents):
        yield i, document[:1]
        waiting += [(i, document[1:])] if len(document) > 1 else []
    while waiting:
        yield from ((i, document[:1]) for i, document in waiting)
        waiting = [(i, document[1:]) for i, document in waiting if len(document) > 1]


# The parts ---------------------------------------------------------------------------------------


def write_parts(corpus: Corpus, folder: Path) -> dict[str, Any]:
    """Write the three parts; the numbers of each, and where the validation part comes from.

    Raises `DataError` where a part would be empty.
    """
    config, training = corpus.config, corpus.training()
    documents = training.left
    if documents == 0:
        raise DataError(f"`{config.section}.train` ({', '.join(sources_of(config))}) has no rows.")
    held_out = _write_held_out(corpus, training, folder)
    validation = _write_validation(corpus, training, folder, held_out.keys)
    taken = held_out.keys | validation.keys
    train = PartWriter(part_file(folder, "train"), config.train_tokens, taken)
    train.fill(enumerate(training))
    train.close()
    _log_dropped("validation", validation, "held-out part")
    _log_dropped("training", train, "validation or held-out part")
    origin = _origin(config.validation)
    if origin == "documents" and 0 in (train.examples, validation.examples):
        origin = _validate_on_training_windows(config, folder)
    numbers = {part: numbers_of(part_file(folder, part)) for part in DATA_PARTS}
    _refuse_empty(corpus, numbers)
    corpus.bad.finish(config.section)
    return {"documents": documents, **numbers, "validation_from": origin}


def _write_held_out(corpus: Corpus, training: DocumentQueue, folder: Path) -> PartWriter:
    """Take the held-out part from a source of its own, or from the training documents.

    Documents that are held out beyond the limit on tokens are in no part.
    """
    config = corpus.config
    writer = PartWriter(part_file(folder, "held_out"), config.held_out_tokens)
    if isinstance(config.held_out, str):
        _fill_from_source(corpus, writer, config.held_out, config.held_out_tokens)
    elif training.left == 1:
        writer.add(0, training.take_last_windows(config.held_out))
    else:
        number = documents_in_share(config.held_out, training.left)
        documents = list(islice(training, number))
        writer.fill(corpus.spread(documents, number, config.held_out_tokens))
    writer.close()
    return writer


def _write_validation(
    corpus: Corpus, training: DocumentQueue, folder: Path, held_out: Set[str]
) -> PartWriter:
    """Take the validation part from a source of its own, or from the next training documents.

    Documents that the limit on tokens does not reach stay with the training part. The part stays
    empty where there is no document to spare.
    """
    config = corpus.config
    writer = PartWriter(part_file(folder, "validation"), config.validation_tokens, held_out)
    if isinstance(config.validation, str):
        _fill_from_source(corpus, writer, config.validation, config.validation_tokens)
    elif training.left > 1:
        number = documents_in_share(config.validation, training.left)
        documents = islice(training, number)
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
    examples = pa.concat_tables([_read_table(file) for file in files])  # one of them is empty
    if len(examples) < 2:
        for file in files:
            _write_table(file, examples)
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
    kept = len(examples) - number
    _write_table(part_file(folder, "train"), examples.slice(0, kept))
    _write_table(part_file(folder, "validation"), examples.slice(kept))
    log.warning(
        "data: there are too few documents for a validation part, so it is the last %d of %d "
        "training examples; they are not learned from",
        number, len(examples),
    )  # fmt: skip
    return "windows"


def _read_table(file: Path) -> pa.Table:
    """All examples of a part, in memory, so that the file can be written again."""
    with pa.OSFile(str(file)) as source:
        return pa.ipc.open_stream(source).read_all()


def _write_table(file: Path, examples: pa.Table) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, EXAMPLE_SCHEMA) as stream:
        stream.write_table(examples)


def numbers_of(file: Path) -> dict[str, int]:
    """Number of examples and of counted tokens of a part."""
    with pa.memory_map(str(file)) as source:
        counts = pa.ipc.open_stream(source).read_all()["count"]
        return {"examples": len(counts), "tokens": pc.sum(counts).as_py() or 0}


def describe_skipped(skipped: Counter[str], section: str) -> str:
    """How many rows were cut, and how many left out and why; empty where none was."""
    return "; ".join(
        f"{count} {reason.format(section)}{', and are left out' if reason in LEFT_OUT else ''}"
        for reason, count in skipped.items()
        if count
    )


def _log_dropped(name: str, writer: PartWriter, others: str) -> None:
    if writer.dropped:
        log.info(
            "%d %s examples also stand in the %s and are left out", writer.dropped, name, others
        )


def _refuse_empty(corpus: Corpus, numbers: dict[str, dict[str, int]]) -> None:
    """Raise `DataError` for a part without examples."""
    config = corpus.config
    reasons = describe_skipped(corpus.skipped, config.section)
    for part in DATA_PARTS:
        if numbers[part]["examples"] == 0:
            source = sources_of(config) if part == "train" else getattr(config, part)
            raise DataError(
                f"No example of `{config.section}.{part}` ({source}) has a token to learn: all its "
                "rows are empty after tokenising, or stand in another "
                f"part{reasons and f' ({reasons})'}."
            )
