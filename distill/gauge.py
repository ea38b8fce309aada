"""How models of a task are measured: what the process of `distill/evaluate.py` calls.

A gauge is made of functions of modules, so that it travels to that process by their names. Legend:
batches are numbers of held-out examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from distill.data import Examples
    from distill.evaluate import EvaluateConfig, MeasureJob

Batches = Sequence[Sequence[int]]
Arrays = dict[str, np.ndarray]
Measured = dict[str, Any]  # numbers of one model


def nothing_more(
    runtime: Any, examples: Examples, job: MeasureJob, config: EvaluateConfig
) -> Measured:
    """{}: no numbers beside those of the held-out examples."""
    return {}


@dataclass(frozen=True)
class Gauge:
    """What a task measures of a loaded model.

    speed: timings, taken first, as memory is the model's own then. arrays: numbers by held-out
    token or text, with `example` and `document`; of a teacher they leave its signals in the job's
    `keep`. summary: means and intervals of these. more: numbers that other inputs give.
    """

    speed: Callable[[Any, Examples, Batches, MeasureJob, EvaluateConfig], Measured]
    arrays: Callable[[Any, Examples, Batches, MeasureJob], Arrays]
    summary: Callable[[Arrays, EvaluateConfig], Measured]
    more: Callable[[Any, Examples, MeasureJob, EvaluateConfig], Measured] = nothing_more
