"""A teacher's distributions, carried to the student's positions of the same bytes.

Legend: n tokens of a side, N wanted tokens of the student, K entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from teachers.codecs.top_entries import TopEntries
from teachers.transport.token_map import TokenMap

ALIGNED, INSIDE, SPANS, UNSERVED = range(4)


@dataclass(frozen=True)
class TokenizedText:
    """One side's tokens of some bytes.

    ids: int64 (n,). ends: int64 (n,), the byte at which each token ends; it starts where the one
    before ends, so a token without text, as at an answer's end, has an empty range. rows: int64
    (n,); of the teacher, the row of entries that predicts the token, -1 where there is none; of the
    student, its number among the wanted tokens, -1 where it is not wanted.
    """

    ids: np.ndarray
    ends: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class Transported:
    """Distributions over the student's ids at its wanted tokens.

    ids_NK: int64. logprobs_NK: float32, by falling probability, -inf marks an unused slot. tail_N:
    float32, log of the mass outside the entries. label_logprob_N: float32, log-probability of the
    student's own token; NaN where the token is not served. case_N: uint8, `ALIGNED` (the token
    starts where one of the teacher's does), `INSIDE` (it starts within one), `SPANS` (it starts
    with one and covers several, in whole or in part) or `UNSERVED` (no entries, tail 0).
    """

    ids_NK: np.ndarray
    logprobs_NK: np.ndarray
    tail_N: np.ndarray
    label_logprob_N: np.ndarray
    case_N: np.ndarray


def transport_text(
    token_map: TokenMap,
    raw: bytes,
    teacher: TokenizedText,
    entries: TopEntries,
    label_logprobs: np.ndarray | None,
    student: TokenizedText,
    k: int,
) -> Transported:
    """The teacher's distributions at the student's wanted tokens of a text.

    entries: of the teacher's rows, at temperature 1. label_logprobs: float (rows,), of the
    teacher's own next token at each row; None: they are read from the entries where they are among
    them.
    """
    raise NotImplementedError
