"""Held-out text for models of several tokenizers: the same bytes of the same documents for all.

A limit on tokens, and windows of so many tokens, hold other text for every tokenizer. So the first
tokenizer chooses the text, as for models that share one; each other one then takes its windows of
the same documents up to the same byte. Tokens beyond that byte do not count, nor do those that
begin before the first token of a text ends, which is read and not predicted, in any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from attar.errors import DataError
from attar.models.token_bytes import TokenBytes
from attar.word_lists import listed
from distill.data.examples import ALONE, Examples, example_key
from distill.data.part_writer import EXAMPLE_SCHEMA, read_part, write_part
from distill.data.tokenize import IGNORE
from distill.evaluation.predictions import spread_examples

# Bytes by which the ends of one text may differ: spaces that tokenizers add or leave out.
SLACK_BYTES = 8


@dataclass(frozen=True)
class HeldOut:
    """Held-out documents as a tokenizer cuts them.

    file: Arrow, with the same document numbers whatever the tokenizer. name: of the model whose
    tokenizer it is. begins: by document whose first example does not begin with its text, the byte
    of it at which its first counted token stands.
    """

    file: Path
    tokenizer: Any
    name: str
    begins: Mapping[int, int] = field(default_factory=dict)

    @cached_property
    def bytes_of(self) -> list[bytes]:
        """The bytes that each id stands for. Raises `ModelError` where they are not known."""
        return TokenBytes(self.tokenizer, self.name).bytes_of


class _Row(NamedTuple):
    """A row of a part, and the bytes of its document's text from which and up to which each counted
    token stands.
    """

    values: dict[str, Any]
    starts: np.ndarray
    ends: np.ndarray


Documents = dict[int, list[_Row]]


def write_same_text(held_out: Sequence[HeldOut], tokens: int, folder: Path) -> list[Path]:
    """Write, for each tokenizer, the held-out examples that are measured; returns the files.

    The first one's examples hold about `tokens` counted tokens, from as many documents as can be.
    Raises `DataError` where there is no text that all can read.
    """
    first, *others = held_out
    tables = [read_part(one.file) for one in held_out]
    chosen = spread_examples(Examples(first.file), tokens)
    found = [_documents(tables[0].take(chosen), first, {})]
    reached = {number: _reached(rows) for number, rows in found[0].items()}
    for one, table in zip(others, tables[1:], strict=True):
        found.append(_documents(table, one, reached))
    cut: list[list[dict[str, Any]]] = [[] for _ in held_out]
    for number in found[0]:
        versions = [documents.get(number, []) for documents in found]
        same = _same_answers(versions) if _is_judged(versions[0]) else _same_bytes(versions)
        if all(same):
            for rows, more in zip(cut, same, strict=True):
                rows += more
    if not cut[0]:
        names = listed([one.name for one in held_out])
        raise DataError(f"There is no document of which the tokenizers of {names} read a token.")
    files = [folder / f"held_out-{i}.arrow" for i in range(len(held_out))]
    for file, rows in zip(files, cut, strict=True):
        write_part(file, pa.Table.from_pylist(rows, schema=EXAMPLE_SCHEMA))
    return files


def _documents(table: pa.Table, held_out: HeldOut, wanted: dict[int, int]) -> Documents:
    """The rows of each document in the order of its text, each window once: of the `wanted`
    documents up to these bytes of their texts, where any are given.
    """
    numbers, begins, roles = (np.asarray(table[name]) for name in ("document", "begin", "role"))
    order = np.lexsort((np.arange(len(table)), np.where(roles == ALONE, begins, 0.0), numbers))
    found: Documents = {}
    seen: set[tuple[int, float]] = set()
    reached: dict[int, int] = {}
    for i in order.tolist():
        number, window = int(numbers[i]), (int(numbers[i]), float(begins[i]))
        rows, alone = found.setdefault(number, []), roles[i] == ALONE
        if (wanted and number not in wanted) or (alone and window in seen):
            continue
        start = reached.get(number, held_out.begins.get(number)) if alone else 0
        if wanted and start is not None and start > wanted.get(number, 0) + SLACK_BYTES:
            continue
        seen.add(window)
        values = table.slice(i, 1).to_pylist()[0]
        rows.append(_row(values, held_out.bytes_of, start))
        reached[number] = _reached(rows[-1:])
    return found


def _row(values: dict[str, Any], bytes_of: Sequence[bytes], start: int | None) -> _Row:
    """A window that starts at a byte of its text; None: the first one of a text."""
    labels = np.asarray(values["labels"])
    pieces = [bytes_of[i] for i in labels[labels != IGNORE]]
    if start is None:
        read = bytes_of[values["input_ids"][0]] if labels[0] != IGNORE else b""
        first = next(filter(None, [read, *pieces]), b"")
        start = len(read) - (len(first) - len(first.lstrip()))  # some put a space before a text
    ends = start + np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    starts = np.concatenate([[start], ends[:-1]]).astype(np.int64)[: len(ends)]
    return _Row(values, np.maximum(starts, 0), ends)


def _reached(rows: Iterable[_Row]) -> int:
    return max((int(row.ends[-1]) for row in rows if len(row.ends)), default=0)


def _is_judged(rows: Sequence[_Row]) -> bool:
    return bool(rows) and rows[0].values["role"] != ALONE


def _same_answers(versions: Sequence[list[_Row]]) -> list[list[dict[str, Any]]]:
    """Judged answers to a prompt, as many as all tokenizers have, whole."""
    number = min(map(len, versions))
    kept = [[row.values for row in rows[:number]] for rows in versions]
    roles = [[(row["role"], row["margin"]) for row in rows] for rows in kept]
    return kept if all(one == roles[0] for one in roles) else [[] for _ in versions]


def _same_bytes(versions: Sequence[list[_Row]]) -> list[list[dict[str, Any]]]:
    """The windows of a text, of which tokens count from the first byte that all predict up to the
    last one that all have.
    """
    if not all(versions):
        return [[] for _ in versions]
    first = max(int(rows[0].starts[0]) for rows in versions)
    ends = [_reached(rows) for rows in versions]
    last = max(ends) if max(ends) - min(ends) <= SLACK_BYTES else min(ends)
    return [[one for row in rows if (one := _between(row, first, last))] for rows in versions]


def _between(row: _Row, first: int, last: int) -> dict[str, Any] | None:
    """A row of which only tokens between two bytes count; None where none is left."""
    values, labels = row.values, np.asarray(row.values["labels"])
    counted = np.flatnonzero(labels != IGNORE)
    labels[counted[(row.starts < first) | (row.ends > last)]] = IGNORE
    left = int((labels != IGNORE).sum())
    if left == len(counted):
        return values
    key = example_key(values["input_ids"], labels.tolist(), values["token_types"])
    return {**values, "key": key, "labels": labels.tolist(), "count": left} if left else None
