"""Two models of a run compared prediction by prediction."""

from __future__ import annotations

from typing import Any

import numpy as np

from distill.evaluation.bootstrap import interval
from distill.report.task_report import Measurements


def difference(found: Measurements, name: str, a: str, b: str) -> dict[str, Any]:
    """Mean of a number of model `a` minus that of `b`, by token or text, with its 95% interval."""
    arrays = [np.load(found.folder / f"{model}.npz") for model in (a, b)]
    values = arrays[0][name].astype(np.float64) - arrays[1][name]
    bounds = interval({**arrays[0], name: values}, name, found.resamples)
    return {"difference": float(values.mean()), "interval": bounds}


def side(found: dict[str, Any]) -> str:
    """Whether a difference is `lower` or `higher` than zero, or `not distinguishable` from it."""
    low, high = found["interval"]
    return "lower" if high < 0 else "higher" if low > 0 else "not distinguishable"
