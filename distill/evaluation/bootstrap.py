"""95% intervals of means over documents, of other functions of sums, of shares, of differences.

Legend: N tokens or texts, G documents, R resamples, K sums.

Tokens of one document depend on each other, so whole documents are drawn. An interval says nothing
with too few of them, so below `MIN_DOCUMENTS` there is none. Above it, two models that are equally
good are called different in about 5% of comparisons (tests/distill/evaluation/test_intervals.py
simulates it): the resampled means are divided by their own standard errors, by the jackknife,
before percentiles are taken (bootstrap-t; the symmetric interval and the equal-tailed one of Hall,
1988, together), since percentiles of the means alone make intervals that are too narrow (14% with 8
documents of unequal length).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

MIN_DOCUMENTS = 8
NUMBERS_AT_ONCE = 2_000_000  # drawn documents that are in memory at a time


def groups_of(arrays: Mapping[str, np.ndarray]) -> int:
    """Number of documents in arrays over tokens or texts."""
    return len(np.unique(arrays["document"]))


def interval(arrays: Mapping[str, np.ndarray], name: str, resamples: int) -> list[float] | None:
    """95% interval of the mean over tokens, by a bootstrap over documents.

    None with fewer than `MIN_DOCUMENTS` documents, where a value is not finite, and where all but a
    few documents have one and the same value.
    """
    values = arrays[name].astype(np.float64)
    _, index = np.unique(arrays["document"], return_inverse=True)
    sums_G, counts_G = np.bincount(index, weights=values), np.bincount(index).astype(np.float64)
    if len(sums_G) < MIN_DOCUMENTS or not np.isfinite(sums_G).all():
        return None
    mean, error = _mean_and_error(sums_G[None], counts_G[None])
    resampled = (
        _mean_and_error(sums_G[draws_RG], counts_G[draws_RG])
        for draws_RG in _draws(len(sums_G), resamples)
    )
    return _studentised(float(mean[0]), float(error[0]), resampled, resamples)


def _studentised(
    value: float,
    error: float,
    resampled: Iterable[tuple[np.ndarray, np.ndarray]],
    resamples: int,
) -> list[float] | None:
    """The interval around a value with its standard error, from values and errors of resamples.

    None where 95% of the resamples are not within any number of their own standard errors.
    """
    found: list[np.ndarray] = []
    for values_R, errors_R in resampled:
        gaps_R = values_R - value
        with np.errstate(divide="ignore", invalid="ignore"):
            found.append(np.where(gaps_R != 0, gaps_R / errors_R, 0.0))
    gaps_R = np.sort(np.concatenate(found))
    both = np.sort(np.abs(gaps_R))[int(np.ceil(0.95 * resamples)) - 1]
    tail = int(0.025 * resamples)
    below, above = max(both, -gaps_R[tail]), max(both, gaps_R[-1 - tail])
    with np.errstate(invalid="ignore"):
        bounds = [float(value - error * above), float(value + error * below)]
    return bounds if np.isfinite(bounds).all() else None


def _draws(number: int, resamples: int) -> Iterator[np.ndarray]:
    """Numbers of the documents of each resample (R, G), in pieces; the same for every model."""
    dice, rows = np.random.default_rng(0), max(1, NUMBERS_AT_ONCE // number)
    for start in range(0, resamples, rows):
        yield dice.integers(0, number, (min(rows, resamples - start), number))


def _mean_and_error(sums_RG: np.ndarray, counts_RG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over tokens, and their standard errors by leaving out one document at a time."""
    all_R1, tokens_R1 = sums_RG.sum(1, keepdims=True), counts_RG.sum(1, keepdims=True)
    means_R1 = all_R1 / tokens_R1
    without_RG = (all_R1 - sums_RG) / (tokens_R1 - counts_RG)
    number = sums_RG.shape[1]
    squares_R = ((without_RG - means_R1) ** 2).sum(1)
    return means_R1[:, 0], np.sqrt((number - 1) / number * squares_R)


# Functions of sums -------------------------------------------------------------------------------


class SumStatistic(NamedTuple):
    """A number that is a function of sums over texts, and that no number of copies changes.

    parts: what is summed, (N, K), from arrays over texts. value: the number of sums (R, K), as
    (values (R), their slopes along each sum (R, K)).
    """

    parts: Callable[[Mapping[str, np.ndarray]], np.ndarray]
    value: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

    def of(self, arrays: Mapping[str, np.ndarray]) -> float:
        """The number of all texts."""
        return float(self.value(self.parts(arrays).sum(0, keepdims=True))[0][0])


def ratio_of(name: str, unit: str) -> SumStatistic:
    """The sum of one array over the sum of another: a mean by the other's unit."""

    def parts(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.stack([arrays[name], arrays[unit]], axis=1).astype(np.float64)

    def value(sums_R2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        units_R = sums_R2[:, 1]
        ratio_R = sums_R2[:, 0] / units_R
        return ratio_R, np.stack([1 / units_R, -ratio_R / units_R], axis=1)

    return SumStatistic(parts, value)


def statistic_interval(
    statistic: SumStatistic, models: Sequence[Mapping[str, np.ndarray]], resamples: int
) -> list[float] | None:
    """95% interval of a model's number, or of one model's minus another's on the same texts.

    As `interval`, with standard errors from the slopes (the infinitesimal jackknife). None with
    fewer than `MIN_DOCUMENTS` documents, and where all but a few documents count the same.
    """
    _, index = np.unique(models[0]["document"], return_inverse=True)
    documents = int(index.max()) + 1 if len(index) else 0
    if documents < MIN_DOCUMENTS:
        return None
    sums_GK = [_sums(statistic.parts(arrays), index, documents) for arrays in models]
    value, error = _value_and_error(statistic, sums_GK, np.ones((1, documents)))
    if error[0] == 0 and value[0] != 0:
        return None  # all right, say: that no text differs does not make the number certain
    resampled = (
        _value_and_error(statistic, sums_GK, _times_drawn(draws_RG))
        for draws_RG in _draws(documents, resamples)
    )
    return _studentised(float(value[0]), float(error[0]), resampled, resamples)


def _sums(parts_NK: np.ndarray, index: np.ndarray, documents: int) -> np.ndarray:
    sums_GK = np.zeros((documents, parts_NK.shape[1]))
    np.add.at(sums_GK, index, parts_NK)
    return sums_GK


def _times_drawn(draws_RG: np.ndarray) -> np.ndarray:
    """How often each resample holds each document, (R, G)."""
    rows, documents = draws_RG.shape
    places = draws_RG + documents * np.arange(rows)[:, None]
    counts = np.bincount(places.ravel(), minlength=rows * documents)
    return counts.reshape(rows, documents).astype(np.float64)


def _value_and_error(
    statistic: SumStatistic, sums_GK: Sequence[np.ndarray], times_RG: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The number of each resample (of the first model minus the second's) and its standard error.

    A document moves the number by its sums along the slopes; over a resample these add up to 0.
    """
    values_R, moves_RG = np.zeros(len(times_RG)), np.zeros_like(times_RG)
    for sign, own_GK in zip((1, -1), sums_GK, strict=False):
        own_R, slopes_RK = statistic.value(times_RG @ own_GK)
        values_R += sign * own_R
        moves_RG += sign * (slopes_RK @ own_GK.T)
    number = times_RG.shape[1]
    squares_R = (times_RG * moves_RG**2).sum(1)
    squares_R[squares_R < 1e-24] = 0.0  # rounding
    return values_R, np.sqrt(number / (number - 1) * squares_R)


# Shares ------------------------------------------------------------------------------------------


def proportion_interval(right: int, examples: int) -> tuple[float, float]:
    """95% interval of a share by Wilson's score, valid for few examples and for 0% or 100%."""
    z = 1.96
    share = right / examples
    middle = (share + z * z / (2 * examples)) / (1 + z * z / examples)
    spread = share * (1 - share) / examples + (z / (2 * examples)) ** 2
    half = z / (1 + z * z / examples) * spread**0.5
    return middle - half, middle + half


def proportions_difference_interval(
    one: tuple[float, float, float], other: tuple[float, float, float]
) -> list[float]:
    """95% interval of one share minus another, from each share and its Wilson interval (Newcombe
    1998, method 10); where both are of the same examples it is wider than need be.
    """
    (share, low, high), (before, before_low, before_high) = one, other
    below = ((share - low) ** 2 + (before_high - before) ** 2) ** 0.5
    above = ((high - share) ** 2 + (before - before_low) ** 2) ** 0.5
    return [share - before - below, share - before + above]


def share_difference_interval(
    arrays: Mapping[str, np.ndarray], name: str, resamples: int
) -> list[float] | None:
    """95% interval of the mean of values -1, 0 and 1: a difference of two shares on the same texts.

    It holds the percentiles of a bootstrap over documents, and the exact interval of the documents
    on which the two differ (McNemar's test), without which a handful of them would make a
    difference. None with fewer than `MIN_DOCUMENTS` documents.
    """
    _, index = np.unique(arrays["document"], return_inverse=True)
    sums_G = np.bincount(index, weights=arrays[name].astype(np.float64))
    counts_G = np.bincount(index)
    if len(sums_G) < MIN_DOCUMENTS:
        return None
    draws = _draws(len(sums_G), resamples)
    means_R = np.concatenate([sums_G[one].sum(1) / counts_G[one].sum(1) for one in draws])
    found = [float(bound) for bound in np.percentile(means_R, [2.5, 97.5])]
    up, differing = int((sums_G > 0).sum()), int((sums_G != 0).sum())
    scale = float(np.abs(sums_G).sum()) / len(index)
    low, high = _exact_bounds(up, differing) if differing else (0.5, 0.5)
    return [min(found[0], (2 * low - 1) * scale), max(found[1], (2 * high - 1) * scale)]


def _exact_bounds(right: int, examples: int) -> tuple[float, float]:
    """95% interval of a share by Clopper and Pearson: never too narrow."""
    low = _share_with_tail(examples - right, examples)
    return 1 - low, _share_with_tail(right, examples)


def _share_with_tail(right: int, examples: int) -> float:
    """The share under which `right` or fewer of the examples have a probability of 2.5%."""
    if right == examples:
        return 1.0
    steps = np.arange(1, examples + 1)
    ways = np.concatenate([[0.0], np.cumsum(np.log(examples + 1 - steps) - np.log(steps))])
    numbers = np.arange(right + 1)
    low, high = 0.0, 1.0
    for _ in range(50):
        share = (low + high) / 2
        logs = ways[: right + 1] + numbers * np.log(share)
        tail = float(np.exp(logs + (examples - numbers) * np.log1p(-share)).sum())
        low, high = (share, high) if tail > 0.025 else (low, share)
    return (low + high) / 2
