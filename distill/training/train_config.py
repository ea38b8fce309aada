"""The section `train` of a recipe."""

from __future__ import annotations

from pydantic import Field

from distill.objective.terms import AnyTerm
from distill.training.arms import ControlArm
from distill.training.config import LoopConfig
from students.tuning.trainable import Reinitialized, Trainable


class TrainConfig(LoopConfig):
    """How the student is trained, and which control arms are trained beside it."""

    objective: list[AnyTerm] = Field(
        default_factory=lambda: [{"loss": "forward_kl"}], min_length=1, validate_default=True
    )
    trainable: Trainable = "all"
    reinitialize: Reinitialized = Field(
        None, description="blocks or head that start from random weights"
    )
    arms: list[ControlArm] = Field(default=["finetune"])
