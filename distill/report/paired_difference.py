"""Two models of a run compared prediction by prediction, and the comparison in words."""

from __future__ import annotations

import numpy as np

from distill.evaluation.bootstrap import interval
from distill.evaluation.job import Numbers
from distill.report.task_report import Measurements

CLOSENESS = {  # of a student, by the direction of the difference of its KL to the teacher
    "lower": "closer to the teacher",
    "higher": "further from the teacher",
    "not distinguishable": "as close to the teacher",
}


def paired_difference(measured: Measurements, name: str, a: str, b: str) -> Numbers:
    """Mean of a number of model `a` minus that of `b`, by token or text, with its 95% interval."""
    arrays = [np.load(measured.folder / f"{model}.npz") for model in (a, b)]
    values = arrays[0][name].astype(np.float64) - arrays[1][name]
    bounds = interval({**arrays[0], name: values}, name, measured.resamples)
    return {"difference": float(values.mean()), "interval": bounds}


def direction(difference: Numbers) -> str:
    """Whether a difference is `lower` or `higher` than zero, or `not distinguishable` from it."""
    low, high = difference["interval"]
    return "lower" if high < 0 else "higher" if low > 0 else "not distinguishable"


def against_fine_tuning(difference: Numbers, better: str) -> str:
    """How distilling did against plain fine-tuning; `better`: the direction that is good."""
    found = direction(difference)
    if found == "not distinguishable":
        return "cannot be distinguished from plain fine-tuning"
    return f"{'beat' if found == better else 'did worse than'} plain fine-tuning"
