"""What an arm takes in a cell, before any was timed."""

from __future__ import annotations

import math

import torch

from attar.models.loading import load_config
from attar.models.task_heads import auto_class_of
from distill.comparison.arms import ARMS_COMPARED
from distill.comparison.cells import Cell, Comparison
from distill.comparison.race import PROCESS_SECONDS
from distill.comparison.starts import student_source
from distill.planning.model_cost import EFFICIENCY, flops_per_second, model_cost

LETTERS_A_TOKEN = 4.0
SAMPLE = 200  # rows whose letters are counted


class Estimator:
    """Seconds of arms in cells, from the model's size and the letters of the rows."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        rows = comparison.parts.train[:SAMPLE]
        names = comparison.parts.columns or tuple(rows[0])
        letters = sum(len(str(row.get(name, ""))) for row in rows for name in names)
        self._row = max(1.0, letters / len(rows) / LETTERS_A_TOKEN)
        self._speed = EFFICIENCY * flops_per_second(torch.float32)
        source, teacher = student_source(comparison), comparison.recipe.teacher
        model = teacher.model if isinstance(source, dict) else source
        config = load_config(model, trust_remote_code=teacher.trust_remote_code)
        self._cost = model_cost(config, auto_class_of(config))

    def __call__(self, arm: str, cell: Cell) -> float:
        """Seconds of learning and measuring."""
        comparison, kind = self._comparison, ARMS_COMPARED[arm]
        if kind.family == "baseline":
            return PROCESS_SECONDS
        measured = len(comparison.measured_rows)
        if kind.family == "prompting":
            read = measured * (1 + kind.passes * comparison.config.shots)
        else:
            train = comparison.recipe.train
            steps = math.ceil(cell.labels / (train.batch_size * train.accumulate))
            epochs = max(train.epochs, math.ceil(comparison.config.least_steps / steps))
            read = measured + kind.passes * cell.labels * (epochs if kind.passes > 1 else 1)
        return 2 * PROCESS_SECONDS + self._cost.forward(read * self._row) / self._speed
