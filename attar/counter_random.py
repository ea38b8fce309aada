"""Random numbers that depend on a counter alone: not on the order, batch or process of a draw."""

from __future__ import annotations

import numpy as np


def uniforms(seeds_N: np.ndarray, count: int, stream: int) -> np.ndarray:
    """Uniform float64 numbers (N, count) in [0, 1): splitmix64 of seed, stream and column.

    Counter-based (Steele, Lea, Flood 2014), so a number depends only on its own seed and column.
    """
    columns = np.arange(count, dtype=np.uint64) + np.uint64((stream << 32) + 1)
    with np.errstate(over="ignore"):
        bits = _mix(_mix(seeds_N)[:, None] + columns * np.uint64(0x9E3779B97F4A7C15))
    return (bits >> np.uint64(11)).astype(np.float64) / (1 << 53)


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))  # type: ignore[no-any-return]
