"""The schedule of the learning rate, a function of the step alone."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine", "wsd"]


WSD_DECAY = 0.2  # share of the steps in which a warm-up-stable-decay rate falls (2404.06395)


def warmup_steps(warmup: float, total: int) -> int:
    """Steps of `total` in which the rate rises: a share of them below 1, else a number of steps."""
    return round(warmup * total) if warmup < 1 else int(warmup)


def learning_rate_factor(
    step: int, total: int, schedule: Schedule, warmup: float, floor: float
) -> float:
    """Return the factor on the peak rate at `step` of `total`, from 0.

    `floor` is the factor at the end.
    """
    warm = warmup_steps(warmup, total)
    if step < warm:
        return (step + 1) / (warm + 1)
    if schedule == "constant":
        return 1.0
    progress = (step - warm) / max(1, total - warm)
    if schedule == "linear":
        falling = 1 - progress
    elif schedule == "cosine":
        falling = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        falling = min(1.0, (1 - progress) / WSD_DECAY)
    return floor + (1 - floor) * falling
