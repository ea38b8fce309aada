"""Expected calibration error of predictions that are right or wrong, with its interval.

Legend: N predictions, B bins, R resamples, K sums of a statistic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from distill.evaluation.bootstrap import SumStatistic, statistic_interval

CONFIDENCE_BINS = 15  # as is usual (Guo et al. 2017, 1706.04599)


def calibration_error(confidence_N: np.ndarray, correct_N: np.ndarray) -> float:
    """Expected calibration error: |confidence - accuracy| in bins of confidence, by their share."""
    return CALIBRATION_ERROR.of({"confidence": confidence_N, "correct": correct_N})


def _confidence_gaps(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Of each prediction, confidence minus rightness in its bin, and 1, (N, bins + 1)."""
    confidence_N, correct_N = arrays["confidence"], arrays["correct"].astype(np.float64)
    bins_N = np.minimum((confidence_N * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
    parts = np.zeros((len(bins_N), CONFIDENCE_BINS + 1))
    parts[np.arange(len(bins_N)), bins_N] = confidence_N - correct_N
    parts[:, -1] = 1.0
    return parts


def _calibration_error_of_gaps(sums_RK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gaps_RB, texts_R1 = sums_RK[:, :-1], sums_RK[:, -1:]
    error_R1 = np.abs(gaps_RB).sum(1, keepdims=True) / texts_R1
    slopes_RK = np.concatenate([np.sign(gaps_RB) / texts_R1, -error_R1 / texts_R1], axis=1)
    return error_R1[:, 0], slopes_RK


CALIBRATION_ERROR = SumStatistic(_confidence_gaps, _calibration_error_of_gaps)


def calibration_interval(
    models: Sequence[Mapping[str, np.ndarray]], resamples: int
) -> list[float] | None:
    """95% interval of a model's calibration error, or of one model's minus another's.

    It holds what chance may have added to either: no measured gap is below 0, so that of the better
    calibrated of two models may be the larger one.
    """
    found = statistic_interval(CALIBRATION_ERROR, models, resamples)
    if found is None:
        return None
    low, high = found[0] - _gap_by_chance(models[0]), found[1]
    return [max(low, 0.0), high] if len(models) == 1 else [low, high + _gap_by_chance(models[1])]


def _gap_by_chance(arrays: Mapping[str, np.ndarray]) -> float:
    """What noise adds to a calibration error on average, where true gaps are two of their standard
    deviations smaller than measured: sum over bins of E|N(gap, deviation)| - gap.
    """
    confidence_N = arrays["confidence"]
    gaps_B = np.abs(_confidence_gaps(arrays)[:, :-1].sum(0))
    bins_N = np.minimum((confidence_N * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
    spread_B = np.sqrt(
        np.bincount(bins_N, confidence_N * (1 - confidence_N), minlength=CONFIDENCE_BINS)
    )
    added = 0.0
    for gap, spread in zip(gaps_B, spread_B, strict=True):
        if spread > 0:
            x = max(gap / spread - 2, 0.0)
            normal = math.sqrt(2 / math.pi) * math.exp(-x * x / 2)
            added += spread * (normal - x * math.erfc(x / math.sqrt(2)))
    return added / len(confidence_N)
