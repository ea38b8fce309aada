"""The section `train` of a recipe."""

from __future__ import annotations

from pydantic import Field, model_validator

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
    max_steps: int | None = Field(
        None,
        ge=0,
        description="0: the student stays as it was built, for `specialize` to begin from",
    )
    arms: list[ControlArm] = Field(default=["finetune"])

    @property
    def learns(self) -> bool:
        """Whether the student is trained at all."""
        return self.max_steps != 0

    @model_validator(mode="after")
    def _nothing_to_train(self) -> TrainConfig:
        if self.learns:
            return self
        if self.arms:
            raise ValueError(
                f"`max_steps: 0` trains nothing, and the control arms ({', '.join(self.arms)}) "
                "would be the same student; write `arms: []`"
            )
        for key in ("reinitialize", "rollouts"):
            if getattr(self, key) is not None:
                raise ValueError(f"`{key}` has no effect with `max_steps: 0`; leave it out")
        return self
