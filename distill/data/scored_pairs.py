"""Pairs of texts that people scored for similarity, to measure a sentence encoder on.

Legend: P pairs.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from attar.config import Section
from attar.errors import DataError
from attar.models.encoder_texts import EncoderTexts
from distill.data.bad_rows import BadRows, RowError
from distill.data.labelled_texts import tokenize_labelled
from distill.data.row_formats import choose_column, plain_text
from distill.data.sources import load_rows
from distill.data.tokenize import CUT

log = logging.getLogger(__name__)
FIRST_COLUMNS, SECOND_COLUMNS = ("sentence1", "first", "text1"), ("sentence2", "second", "text2")
SCORE_COLUMNS = ("score", "similarity_score", "label")


class PairsConfig(Section):
    """Pairs of texts with a score: the higher, the more similar."""

    source: str = Field(description="hub id, folder, or file of any kind of rows")
    split: str = Field("train", description="split of a hub data set or saved folder")
    first_column: str | None = None
    second_column: str | None = None
    score_column: str | None = None


def load_pairs(config: PairsConfig) -> list[tuple[str, str, float]]:
    """(first text, second text, score) of P rows.

    Rows that cannot be used are left out and named in the log. Raises `DataError` for a missing
    column, for many such rows, and for scores that are all equal, which correlate with nothing.
    """
    table = load_rows(config.source, config.split, None)
    first, second, score = (
        choose_column(
            table.features,
            getattr(config, key),
            usual,
            source=config.source,
            key=f"evaluate.pairs.{key}",
            holds=holds,
        )
        for key, usual, holds in (
            ("first_column", FIRST_COLUMNS, "first texts"),
            ("second_column", SECOND_COLUMNS, "second texts"),
            ("score_column", SCORE_COLUMNS, "scores"),
        )
    )

    def read(row: Mapping[str, Any]) -> tuple[str, str, float]:
        texts = plain_text(row[first], first), plain_text(row[second], second)
        return *texts, _number(row[score], score)

    bad = BadRows()
    bad.expect(config.source, len(table))
    tried = (bad.try_row(table, config.source, i, read) for i in range(len(table)))
    pairs = [pair for pair in tried if pair is not None]
    bad.finish("evaluate.pairs")
    different = len({number for *_, number in pairs})
    if different < 2:
        raise DataError(
            f"`{score}` of `evaluate.pairs` ({config.source}) holds {different} different "
            "scores; a correlation needs two or more."
        )
    return pairs


def read_pairs(
    config: PairsConfig, tokenizer: Any, max_length: int, encoder: EncoderTexts | None = None
) -> dict[str, Any]:
    """`first` and `second`: ids of P texts each; `score`: P numbers. Plain values, for JSON.

    encoder: how texts are read before they are tokenised; absent: as they are.

    Raises `DataError` as `load_pairs` does.
    """
    pairs = load_pairs(config)
    tally, encoder = Counter[str](), encoder or EncoderTexts()

    def read(side: int) -> list[list[int]]:
        texts = [encoder.read(str(pair[side])) for pair in pairs]
        return [tokenize_labelled(tokenizer, [t], 0, max_length, tally)[0] for t in texts]

    found = {"first": read(0), "second": read(1), "score": [number for *_, number in pairs]}
    if tally[CUT]:
        log.warning("evaluate.pairs: of their texts, %d %s", tally[CUT], CUT.format("data"))
    return found


def _number(value: Any, column: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not np.isfinite(number):
        raise RowError(f"hold {value!r} in `{column}`; a score is a number")
    return number


# Rank correlation ------------------------------------------------------------------------------


def ranks(values_P: np.ndarray) -> np.ndarray:
    """Rank of each value from 0; equal values have the mean of their ranks."""
    _, place_P, counts = np.unique(values_P, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[place_P]


def spearman(one_P: np.ndarray, other_P: np.ndarray) -> float:
    """Spearman's correlation: Pearson's of the ranks; 0 where all values of one side are equal."""
    sides = [ranks(side) - (len(side) - 1) / 2 for side in (one_P, other_P)]
    norms = float(np.linalg.norm(sides[0]) * np.linalg.norm(sides[1]))
    return float(sides[0] @ sides[1]) / norms if norms else 0.0


def spearman_draws(cosine_P: np.ndarray, score_P: np.ndarray, resamples: int) -> np.ndarray:
    """Correlations of bootstrap resamples of the pairs; every model has the same resamples."""
    draws = np.random.default_rng(0).integers(0, len(score_P), (resamples, len(score_P)))
    return np.array([spearman(cosine_P[draw], score_P[draw]) for draw in draws])
