"""95% intervals of means over documents, of shares, and of differences of shares.

Legend: G documents, R resamples.

Tokens of one document depend on each other, so whole documents are drawn. An interval says nothing
with too few of them, so below `MIN_DOCUMENTS` there is none. Above it, two models that are equally
good are called different in about 5% of comparisons (tests/distill/evaluation/test_intervals.py
simulates it): the resampled means are divided by their own standard errors, by the jackknife,
before percentiles are taken (bootstrap-t; the symmetric interval and the equal-tailed one of Hall,
1988, together), since percentiles of the means alone make intervals that are too narrow (14% with 8
documents of unequal length).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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
    below, above = _studentised_bounds(sums_G, counts_G, mean[0], resamples)
    bounds = [float(mean[0] - error[0] * above), float(mean[0] + error[0] * below)]
    return bounds if np.isfinite(bounds).all() else None


def _studentised_bounds(
    sums_G: np.ndarray, counts_G: np.ndarray, mean: float, resamples: int
) -> tuple[float, float]:
    """How many standard errors 95% of the resampled means are at most below and above the mean."""
    found: list[np.ndarray] = []
    for draws_RG in _draws(len(sums_G), resamples):
        means_R, errors_R = _mean_and_error(sums_G[draws_RG], counts_G[draws_RG])
        gaps_R = means_R - mean
        with np.errstate(divide="ignore", invalid="ignore"):
            found.append(np.where(gaps_R != 0, gaps_R / errors_R, 0.0))
    gaps_R = np.sort(np.concatenate(found))
    both = np.sort(np.abs(gaps_R))[int(np.ceil(0.95 * resamples)) - 1]
    tail = int(0.025 * resamples)
    return float(max(both, -gaps_R[tail])), float(max(both, gaps_R[-1 - tail]))


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


# Shares ------------------------------------------------------------------------------------------


def proportion_interval(right: int, examples: int) -> tuple[float, float]:
    """95% interval of a share by Wilson's score, valid for few examples and for 0% or 100%."""
    z = 1.96
    share = right / examples
    middle = (share + z * z / (2 * examples)) / (1 + z * z / examples)
    spread = share * (1 - share) / examples + (z / (2 * examples)) ** 2
    half = z / (1 + z * z / examples) * spread**0.5
    return middle - half, middle + half


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
