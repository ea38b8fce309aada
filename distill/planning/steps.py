"""Optimiser steps of a training, of them those of warm-up: counted, or estimated from the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from distill.planning.data_counts import DataCounts
from distill.run.context import Run
from distill.stages.training_steps import data_of, packs, processes, training_steps
from distill.training.config import LoopConfig
from distill.training.lr_schedule import warmup_steps

FEW_STEPS = 20  # below it, a learning rate has hardly risen and fallen


@dataclass(frozen=True)
class Steps:
    """Steps of the training by the section `path`. rows: of one step, a packed row being one.

    counted: whether the data are prepared, so that the number is exact.
    """

    path: str
    total: int
    warmup: int
    rows: int
    packed: bool
    counted: bool

    def note(self) -> str:
        """The number of steps, for the plan's table."""
        about = "" if self.counted else "about "
        return f"{about}{self.total:,} steps ({self.warmup:,} warm-up)"

    def warning(self) -> str | None:
        """A sentence where there are few steps, with the keys that give more; else None."""
        if self.total >= FEW_STEPS:
            return None
        about = "" if self.counted else "about "
        rows = "rows packed up to `max_length`" if self.packed else "texts"
        return (
            f"`{self.path}` has {about}{self.total} optimiser steps, each of {self.rows} {rows}: "
            f"hardly enough to learn. Raise `{self.path}.epochs`, or lower "
            f"`{self.path}.batch_size` or `{self.path}.accumulate`."
        )


def planned_steps(run: Run, path: str, config: LoopConfig, counts: DataCounts) -> Steps:
    """The steps of a section's training on data of which `counts` are known."""
    counted, packed, world = counts.known == "counted", packs(run, config), processes()
    if counted:
        total = training_steps(run, config)
    else:
        filled = counts.length / data_of(run, config).max_length
        rows = counts.train * min(1.0, filled) if packed else counts.train
        micro_batches = math.ceil(math.ceil(rows) / config.batch_size)
        total = math.ceil(micro_batches / (config.accumulate * world)) * config.epochs
        total = total if config.max_steps is None else min(total, config.max_steps)
    warmup = min(total, warmup_steps(config.warmup, total))
    a_step = config.batch_size * config.accumulate * world * (1 if packed else counts.rows)
    return Steps(path, total, warmup, a_step, packed, counted)
