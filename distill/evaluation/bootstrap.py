"""95% intervals: of means by a bootstrap over documents, and of shares."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

MIN_DOCUMENTS = 8  # for a bootstrap over documents; with fewer, windows are drawn


def interval(arrays: Mapping[str, np.ndarray], name: str, resamples: int) -> list[float]:
    """95% bootstrap interval of the mean over tokens, resampling whole documents.

    Tokens of one document depend on each other, so whole documents are drawn. With fewer than eight
    documents their windows are drawn, which makes the interval too narrow.
    """
    groups = arrays["document"]
    if len(np.unique(groups)) < MIN_DOCUMENTS:
        groups = arrays["example"]
    _, index = np.unique(groups, return_inverse=True)
    sums = np.bincount(index, weights=arrays[name].astype(np.float64))
    counts = np.bincount(index).astype(np.float64)
    draws = np.random.default_rng(0).integers(0, len(sums), (resamples, len(sums)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    return [float(x) for x in np.percentile(means, [2.5, 97.5])]


def proportion_interval(right: int, examples: int) -> tuple[float, float]:
    """95% interval of a share by Wilson's score, valid for few examples and for 0% or 100%."""
    z = 1.96
    share = right / examples
    middle = (share + z * z / (2 * examples)) / (1 + z * z / examples)
    spread = share * (1 - share) / examples + (z / (2 * examples)) ** 2
    half = z / (1 + z * z / examples) * spread**0.5
    return middle - half, middle + half
