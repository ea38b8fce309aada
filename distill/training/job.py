"""What a training is given, how far it has come, and what it leaves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.data.batching import TOKEN_BATCHING, Collate
from distill.data.examples import Examples
from distill.objective.objective import Learner
from distill.training.batch_source import BatchSource
from distill.training.config import LoopConfig
from distill.training.teacher_signals import TeacherSignals


@dataclass
class Job:
    """One training: what learns, from what, and where its checkpoints go.

    validation: examples on which the objective is evaluated, and by which the best weights are
    chosen; `signals` and `collate` are theirs. unit: what is counted, in the plural. section: the
    recipe's, whose keys an error names.
    passing: whether nothing is kept but what the learner learned: no evaluation, no checkpoint,
    and one process alone does it; for the short trainings of a search.
    until: pause after this step, with a checkpoint from which the training goes on; None: train to
    the end.
    """

    name: str
    learner: Learner
    config: LoopConfig
    source: BatchSource
    validation: Examples
    signals: TeacherSignals
    folder: Path
    seed: int
    collate: Collate = TOKEN_BATCHING.collate
    unit: str = TOKEN_BATCHING.unit
    section: str = "train"
    passing: bool = False
    until: int | None = None


@dataclass
class Progress:
    """How far a training has come; saved in every checkpoint.

    best: the lowest objective on the validation examples. tokens: counted so far. world: number of
    processes. peak: bytes of memory at most.
    """

    world: int
    step: int = 0
    tokens: int = 0
    best: float = math.inf
    best_step: int = 0
    seconds: float = 0.0
    peak: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass
class Result:
    """What a training left: its numbers, and its history for the report's curves.

    steps: how many were done; fewer than the training has where it was paused.
    rounds: the numbers of each round that the student wrote; none where it wrote none.
    """

    steps: int
    tokens: int
    seconds: float
    best_step: int
    peak_memory_bytes: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
