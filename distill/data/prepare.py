"""Examples on disk: rows tokenised, labelled, keyed by content, and a part held out; made once.

Legend: T tokens of an example.

`labels[t]` is the id that follows position t, or -100 where that prediction does not count
(`tokenizing.py`). The teacher's signal at t belongs to the same prediction.
"""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from attar.errors import DataError
from attar.files import fingerprint, read_json, staged_folder, write_json
from distill.data.config import DataConfig, source_stamp, sources_of
from distill.data.examples import key_of
from distill.data.reader import Documents, Reader, ReadExamples
from distill.data.sources import load_rows
from distill.data.tokenize import CUT, IGNORE

log = logging.getLogger(__name__)


# Preparing -------------------------------------------------------------------------------------


def _documents(
    reader: Reader,
    tokenizer: Any,
    config: DataConfig,
    sources: list[str],
    split: str,
    seed: int,
    tally: Counter[str],
) -> tuple[int, Iterator[ReadExamples]]:
    """(number of documents, their examples in an order drawn from the seed)."""
    tables = [load_rows(source, split, config.name) for source in sources]
    readings = reader.open(tokenizer, config, tables, sources)
    order = [(t, i) for t, table in enumerate(tables) for i in range(len(table))]
    random.Random(seed).shuffle(order)
    return len(order), (readings[t](tables[t][i], tally) for t, i in order)


def describe_skipped(tally: Counter[str], section: str) -> str:
    """How many rows were cut, and how many left out and why; empty where none was."""
    return "; ".join(
        f"{count} {reason.format(section)}{'' if reason == CUT else ', and are left out'}"
        for reason, count in tally.items()
        if count
    )


class _Writer:
    """Collects examples of one split into an Arrow file, up to a number of counted tokens."""

    SCHEMA = pa.schema(
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

    def __init__(self, path: Path, limit: int | None, avoid: set[str]) -> None:
        self._file = pa.OSFile(str(path), "wb")
        self._stream = pa.ipc.new_stream(self._file, self.SCHEMA)
        self._rows: list[dict[str, Any]] = []
        self._limit, self._avoid = limit, avoid
        self.keys: set[str] = set()
        self.tokens = self.examples = self.dropped = 0

    @property
    def full(self) -> bool:
        return self._limit is not None and self.tokens >= self._limit

    def add(self, document: int, examples: ReadExamples) -> None:
        for ids, labels, *more in examples:
            types = more[0] if more else None
            key = key_of(ids, labels, types)
            if self.full or key in self._avoid:
                self.dropped += key in self._avoid
                continue
            count = sum(label != IGNORE for label in labels)
            values = (key, document, len(ids), count, ids, labels, types)
            self._rows.append(dict(zip(self.SCHEMA.names, values, strict=True)))
            self.keys.add(key)
            self.tokens += count
            self.examples += 1
        if len(self._rows) >= 1000:
            self.flush()

    def flush(self) -> None:
        self._stream.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=self.SCHEMA))
        self._rows = []

    def close(self) -> dict[str, int]:
        self.flush()
        self._stream.close()
        self._file.close()
        return {"examples": self.examples, "tokens": self.tokens}


def prepare(
    config: DataConfig,
    tokenizer: Any,
    tokenizer_id: str,
    seed: int,
    folder: Path,
    reader: Reader | None = None,
) -> Path:
    """Tokenise into `folder` unless what is there was made from the same; returns the folder.

    Leaves train.arrow, held_out.arrow and stats.json. Raises `DataError` where a split is empty.
    """
    reader = reader or Documents()
    sources = source_stamp(config)
    wanted = fingerprint([config.model_dump(), tokenizer_id, seed, sources, *reader.stamp])
    if (folder / "stats.json").exists():
        if read_json(folder / "stats.json").get("inputs") == wanted:
            return folder
    with staged_folder(folder) as aside:
        stats = _prepare(reader, config, tokenizer, seed, aside)
        write_json(aside / "stats.json", {"inputs": wanted, **stats})
    return folder


def prepare_whole(
    config: DataConfig, tokenizer: Any, seed: int, folder: Path, reader: Reader | None = None
) -> Path:
    """Tokenise all of `train` as held-out examples, for measuring on it; returns the folder.

    Raises `DataError` where nothing counts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held, tally = _Writer(folder / "held_out.arrow", config.held_out_tokens, set()), Counter[str]()
    sources = sources_of(config)
    reader = reader or Documents()
    number, documents = _documents(reader, tokenizer, config, sources, config.split, seed, tally)
    _fill(held, limit_held_out(reader, documents, number, config))
    if held.close()["examples"] == 0:
        told = describe_skipped(tally, config.section)
        why = told and f" ({told})"
        raise DataError(f"No row of {', '.join(sources)} has a token to measure{why}.")
    return folder


def _prepare(
    reader: Reader, config: DataConfig, tokenizer: Any, seed: int, aside: Path
) -> dict[str, Any]:
    held = _Writer(aside / "held_out.arrow", config.held_out_tokens, set())
    sources, tally = sources_of(config), Counter[str]()
    number, documents = _documents(reader, tokenizer, config, sources, config.split, seed, tally)
    if number == 0:
        raise DataError(f"`{config.section}.train` ({', '.join(sources)}) has no rows.")
    if isinstance(config.held_out, str):
        split, other = config.split, [config.held_out]
        if config.held_out.startswith("split:"):
            split, other = config.held_out[6:], sources
        count, others = _documents(reader, tokenizer, config, other, split, seed, tally)
        _fill(held, limit_held_out(reader, others, count, config))
    else:
        documents = _hold_out(reader, held, documents, number, config)
    train = _Writer(aside / "train.arrow", config.train_tokens, held.keys)
    _fill(train, enumerate(documents))
    if told := describe_skipped(tally, config.section):
        log.warning("data: of the rows, %s", told)
    if train.dropped:
        log.info("%d training examples also stand in the held-out part: left out", train.dropped)
    stats = {"train": train.close(), "held_out": held.close()}
    for name, source in (("train", sources), ("held_out", config.held_out)):
        if stats[name]["examples"] == 0:
            raise DataError(
                f"No example of `{config.section}.{name}` ({source}) has a token to learn: all its "
                "rows are empty after tokenising, or stand in the other "
                f"part{told and f' ({told})'}."
            )
    more = reader.finish(aside / "train.arrow", aside / "held_out.arrow")
    return {"documents": number, **stats, **more}


def _fill(writer: _Writer, documents: Iterable[tuple[int, ReadExamples]]) -> None:
    for i, examples in documents:
        if writer.full:
            return
        writer.add(i, examples)


def _hold_out(
    reader: Reader,
    held: _Writer,
    documents: Iterator[ReadExamples],
    number: int,
    config: DataConfig,
) -> Iterator[ReadExamples]:
    """Write a share of the documents to `held`; gives the others. At least one on each side.

    Of a single long document, the last windows are held out.
    """
    assert isinstance(config.held_out, float)
    if number == 1:
        examples = next(documents)
        kept = len(examples) - max(1, math.ceil(config.held_out * len(examples)))
        held.add(0, examples[kept:])
        return iter([examples[:kept]])
    chosen = min(number - 1, max(1, math.ceil(config.held_out * number)))
    first = [next(documents) for _ in range(chosen)]
    _fill(held, limit_held_out(reader, first, chosen, config))
    return documents


def limit_held_out(
    reader: Reader, documents: Iterable[ReadExamples], number: int, config: DataConfig
) -> Iterator[tuple[int, ReadExamples]]:
    """Documents with their numbers, so that a limit on held-out tokens still sees all of them.

    Cut short where it is known what a window counts; else each gives one example in turn.
    """
    if config.held_out_tokens is None:
        return enumerate(documents)
    if not reader.counts_all:
        return round_robin(documents)
    windows_wanted = config.held_out_tokens / (config.max_length - 1)
    share = max(1, math.ceil(windows_wanted / max(1, number)))
    return ((i, document[:share]) for i, document in enumerate(documents))


def round_robin(documents: Iterable[ReadExamples]) -> Iterator[tuple[int, ReadExamples]]:
    waiting: list[tuple[int, ReadExamples]] = []
    for i, document in enumerate(documents):
        yield i, document[:1]
        waiting += [(i, document[1:])] if len(document) > 1 else []
    while waiting:
        yield from ((i, document[:1]) for i, document in waiting)
        waiting = [(i, document[1:]) for i, document in waiting if len(document) > 1]
