"""Examples on disk: rows tokenised, labelled, keyed by content, and a part held out; made once.

Legend: T tokens of an example.

`labels[t]` is the id that follows position t, or -100 where that prediction does not count
(`tokenizing.py`). The teacher's signal at t belongs to the same prediction.
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from attar.errors import DataError
from attar.files import fingerprint, read_json, staged_folder, stamp_of_files, write_json
from attar.pooling import Mode
from distill.layouts import RowOptions
from distill.masking import MaskingConfig
from distill.readers import Documents, Found, Reader
from distill.sources import load_rows, local_files
from distill.tokenizing import CUT
from distill.tokenizing import IGNORE as IGNORE

log = logging.getLogger(__name__)


class DataConfig(RowOptions):
    """What is learned from, what is held out, and how text becomes examples."""

    train: str | list[str] = Field(description="hub id, saved folder, or json/jsonl/parquet/txt")
    name: str | None = Field(None, description="configuration of a hub data set")
    split: str = Field("train", description="split of a hub data set or saved folder")
    held_out: float | str = Field(
        0.02, description="share of the documents, another source, or `split:NAME` of the same"
    )
    max_length: int = Field(1024, ge=2)
    packing: bool = Field(True, description="several examples a row; attention stays inside each")
    append_eos: bool = Field(True, description="end each text with the end-of-sequence token")
    train_tokens: int | None = Field(None, ge=1, description="stop at this many counted tokens")
    held_out_tokens: int | None = Field(None, ge=1, description="spread over its documents")
    masking: MaskingConfig = Field(default_factory=MaskingConfig)
    pooling: Mode | None = Field(
        None, description="of a text's vector, for `task: embedding`; as the teacher's files say"
    )
    normalize: bool | None = Field(
        None, description="whether vectors have length 1; as the teacher's files say"
    )

    @field_validator("held_out")
    @classmethod
    def _share(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not 0 < value < 1:
            raise ValueError("a share lies between 0 and 1, e.g. 0.02")
        return value


@dataclass(frozen=True)
class Example:
    """One window, conversation or labelled text: ids and labels of shape (T,), int64.

    token_types: of a pair of texts, which of the two an id belongs to.
    """

    key: str
    input_ids: np.ndarray
    labels: np.ndarray
    token_types: np.ndarray | None = None

    @property
    def counted(self) -> np.ndarray:
        """Positions whose prediction counts."""
        return np.flatnonzero(self.labels != IGNORE)


class Examples:
    """Examples on disk, memory-mapped by `datasets`, with their lengths and counts at hand."""

    def __init__(self, path: Path) -> None:
        import datasets

        self._rows = datasets.Dataset.from_file(str(path))
        self.keys: list[str] = self._rows["key"][:]
        self.lengths = np.asarray(self._rows["length"][:], np.int64)
        self.counts = np.asarray(self._rows["count"][:], np.int64)
        self.documents = np.asarray(self._rows["document"][:], np.int64)

    def among(self, keys: Container[str]) -> Examples:
        """Only the examples with these keys."""
        chosen = [i for i, key in enumerate(self.keys) if key in keys]
        part = copy(self)
        part._rows = self._rows.select(chosen)
        part.keys = [self.keys[i] for i in chosen]
        for name in ("lengths", "counts", "documents"):
            setattr(part, name, getattr(self, name)[chosen])
        return part

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> Example:
        row = self._rows[i]
        ids, labels = (np.asarray(row[name], np.int64) for name in ("input_ids", "labels"))
        types = row.get("token_types")
        return Example(row["key"], ids, labels, None if types is None else np.asarray(types))

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    @property
    def num_tokens(self) -> int:
        """Tokens whose prediction counts."""
        return int(self.counts.sum())

    def fingerprint(self) -> str:
        """Changes with the set of examples, not with their order."""
        return fingerprint(sorted(set(self.keys)))


def first_examples(examples: Examples, tokens: int) -> list[int]:
    """Numbers of the first examples that hold at least so many counted tokens, or of all."""
    enough = int(np.searchsorted(np.cumsum(examples.counts), tokens)) + 1
    return list(range(min(enough, len(examples))))


# Preparing -------------------------------------------------------------------------------------


def _documents(
    reader: Reader,
    tokenizer: Any,
    config: DataConfig,
    sources: list[str],
    split: str,
    seed: int,
    tally: Counter[str],
) -> tuple[int, Iterator[Found]]:
    """(number of documents, their examples in an order drawn from the seed)."""
    tables = [load_rows(source, split, config.name) for source in sources]
    readings = reader.open(tokenizer, config, tables, sources)
    order = [(t, i) for t, table in enumerate(tables) for i in range(len(table))]
    random.Random(seed).shuffle(order)
    return len(order), (readings[t](tables[t][i], tally) for t, i in order)


def _told(tally: Counter[str], section: str) -> str:
    """How many rows were cut, and how many left out and why; empty where none was."""
    return "; ".join(
        f"{count} {reason.format(section)}{'' if reason == CUT else ', and are left out'}"
        for reason, count in tally.items()
        if count
    )


def key_of(ids: list[int], labels: list[int], token_types: list[int] | None = None) -> str:
    """Content address of an example: its ids, which of its predictions count, its token types."""
    digest = hashlib.blake2b(np.asarray(ids, np.int32).tobytes(), digest_size=16)
    digest.update(np.packbits(np.asarray(labels) != IGNORE).tobytes())
    if token_types is not None:
        digest.update(np.asarray(token_types, np.int8).tobytes())
    return digest.hexdigest()


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

    def add(self, document: int, examples: Found) -> None:
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


def sources_of(config: DataConfig) -> list[str]:
    """The training sources as a list."""
    return [config.train] if isinstance(config.train, str) else config.train


def check_sources(config: DataConfig) -> None:
    """Raise `DataError` at once for a local file that is not there."""
    for source in _all_sources(config):
        local_files(source)


def _all_sources(config: DataConfig) -> list[str]:
    """Training sources, and the held-out one where it is a source of its own."""
    sources = sources_of(config)
    if isinstance(config.held_out, str) and not config.held_out.startswith("split:"):
        return [*sources, config.held_out]
    return sources


def source_stamp(config: DataConfig) -> list[list[str]]:
    """`stamp_of` what is learned from and held out."""
    return stamp_of(_all_sources(config))


def stamp_of(sources: Sequence[str]) -> list[list[str]]:
    """`stamp_of_files` of the local ones. Raises `DataError` where one is not there."""
    return stamp_of_files(
        file for source in sources for path in local_files(source) for file in _walk(path)
    )


def _walk(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


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
    _fill(held, _spread(reader, documents, number, config))
    if held.close()["examples"] == 0:
        told = _told(tally, config.section)
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
        _fill(held, _spread(reader, others, count, config))
    else:
        documents = _hold_out(reader, held, documents, number, config)
    train = _Writer(aside / "train.arrow", config.train_tokens, held.keys)
    _fill(train, enumerate(documents))
    if told := _told(tally, config.section):
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


def _fill(writer: _Writer, documents: Iterable[tuple[int, Found]]) -> None:
    for i, examples in documents:
        if writer.full:
            return
        writer.add(i, examples)


def _hold_out(
    reader: Reader, held: _Writer, documents: Iterator[Found], number: int, config: DataConfig
) -> Iterator[Found]:
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
    _fill(held, _spread(reader, first, chosen, config))
    return documents


def _spread(
    reader: Reader, documents: Iterable[Found], number: int, config: DataConfig
) -> Iterator[tuple[int, Found]]:
    """Documents with their numbers, so that a limit on held-out tokens still sees all of them.

    Cut short where it is known what a window counts; else each gives one example in turn.
    """
    if config.held_out_tokens is None:
        return enumerate(documents)
    if not reader.counts_all:
        return _in_turns(documents)
    windows_wanted = config.held_out_tokens / (config.max_length - 1)
    share = max(1, math.ceil(windows_wanted / max(1, number)))
    return ((i, document[:share]) for i, document in enumerate(documents))


def _in_turns(documents: Iterable[Found]) -> Iterator[tuple[int, Found]]:
    waiting: list[tuple[int, Found]] = []
    for i, document in enumerate(documents):
        yield i, document[:1]
        waiting += [(i, document[1:])] if len(document) > 1 else []
    while waiting:
        yield from ((i, document[:1]) for i, document in waiting)
        waiting = [(i, document[1:]) for i, document in waiting if len(document) > 1]
