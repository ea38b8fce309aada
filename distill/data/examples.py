"""Examples on disk, keyed by content."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attar.files import fingerprint
from distill.data.tokenize import IGNORE


@dataclass(frozen=True)
class Example:
    """One window, conversation or labelled text: ids and labels of shape (T,), int64.

    token_types: which text of a pair an id belongs to, 0 or 1; None of a single text.
    """

    key: str
    input_ids: np.ndarray
    labels: np.ndarray
    token_types: np.ndarray | None = None

    @property
    def counted(self) -> np.ndarray:
        """Positions whose prediction counts."""
        return np.flatnonzero(self.labels != IGNORE)

    @property
    def counted_labels(self) -> np.ndarray:
        """The ids predicted at the counted positions, (N,)."""
        labels: np.ndarray = self.labels[self.counted]
        return labels


class Examples:
    """Examples on disk, memory-mapped by `datasets`; lengths and counts are in memory."""

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
    """Numbers of the first examples that hold at least `tokens` counted tokens, or of all."""
    enough = int(np.searchsorted(np.cumsum(examples.counts), tokens)) + 1
    return list(range(min(enough, len(examples))))


def spread_examples(examples: Examples, tokens: int) -> list[int]:
    """Numbers of examples that hold at least `tokens` counted tokens, from as many documents as can
    be: the first of every document, then the second of every one, and so on.
    """
    by_document = np.argsort(examples.documents, kind="stable")
    _, sizes = np.unique(examples.documents, return_counts=True)
    turn = np.empty(len(examples), np.int64)
    turn[by_document] = np.concatenate([np.arange(size) for size in sizes] or [np.arange(0)])
    order = np.argsort(turn, kind="stable")
    enough = int(np.searchsorted(np.cumsum(examples.counts[order]), tokens)) + 1
    return sorted(int(i) for i in order[:enough])


def key_of(ids: list[int], labels: list[int], token_types: list[int] | None = None) -> str:
    """Hash of an example's ids, of which predictions count, and of its token types."""
    digest = hashlib.blake2b(np.asarray(ids, np.int32).tobytes(), digest_size=16)
    digest.update(np.packbits(np.asarray(labels) != IGNORE).tobytes())
    if token_types is not None:
        digest.update(np.asarray(token_types, np.int8).tobytes())
    return digest.hexdigest()
