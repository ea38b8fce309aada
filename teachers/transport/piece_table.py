"""The student's pieces of every token of a teacher, as arrays.

Legend: V the teacher's vocabulary, P pieces of all its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MASK_BITS = 64


@dataclass(frozen=True)
class PieceTable:
    """The student's pieces of each of the teacher's tokens.

    starts_V: where a token's pieces start in the two arrays of pieces, with the end of the last.
    ids_P, ends_P: the pieces' ids, and the byte of the token at which each ends. first_V, second_V:
    ids of the first two pieces, -1 where there is none. first_end_V: where the first ends.
    boundaries_V: bit b is set where a piece ends at byte b of the token. whole_V: whether the
    pieces are all of the token's bytes.
    """

    starts_V: np.ndarray
    ids_P: np.ndarray
    ends_P: np.ndarray
    first_V: np.ndarray
    second_V: np.ndarray
    first_end_V: np.ndarray
    boundaries_V: np.ndarray
    whole_V: np.ndarray

    def pieces(self, token: int) -> tuple[list[int], list[int]]:
        """(ids, ends) of the pieces of a token."""
        start, stop = self.starts_V[token], self.starts_V[token + 1]
        return self.ids_P[start:stop].tolist(), self.ends_P[start:stop].tolist()

    def piece_counts(self) -> np.ndarray:
        """Number of pieces of each token, int64 (V,)."""
        return np.diff(self.starts_V)

    def may_end_at(self, tokens: np.ndarray, byte: int) -> np.ndarray:
        """Whether a piece of each of these tokens ends at a byte; True where it is not known."""
        if byte >= MASK_BITS:
            return np.ones(len(tokens), bool)
        found: np.ndarray = (self.boundaries_V[tokens] >> np.uint64(byte)) & np.uint64(1) == 1
        return found


def piece_table(
    pieces: Sequence[tuple[Sequence[int], Sequence[int]]], lengths_V: np.ndarray
) -> PieceTable:
    """The table of (ids, ends) of each token's pieces. lengths_V: bytes of each token."""
    counts = np.array([len(ids) for ids, _ in pieces], np.int64)
    starts_V = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    ids_P = np.array([i for ids, _ in pieces for i in ids], np.int64)
    ends_P = np.array([end for _, ends in pieces for end in ends], np.int64)
    first_V, second_V = np.full((2, len(pieces)), -1)
    first_end_V = np.zeros(len(pieces), np.int64)
    last_end_V = np.zeros(len(pieces), np.int64)
    has, two = counts > 0, counts > 1
    first_V[has], first_end_V[has] = ids_P[starts_V[:-1][has]], ends_P[starts_V[:-1][has]]
    second_V[two] = ids_P[starts_V[:-1][two] + 1]
    last_end_V[has] = ends_P[starts_V[1:][has] - 1]
    boundaries_V = np.zeros(len(pieces), np.uint64)
    owners = np.repeat(np.arange(len(pieces)), counts)
    fits = ends_P < MASK_BITS
    bits = np.uint64(1) << ends_P[fits].astype(np.uint64)
    np.bitwise_or.at(boundaries_V, owners[fits], bits)
    whole_V = has & (last_end_V == lengths_V)
    return PieceTable(
        starts_V, ids_P, ends_P, first_V, second_V, first_end_V, boundaries_V, whole_V
    )
