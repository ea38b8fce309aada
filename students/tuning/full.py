"""`full` and `head`: train the student's own weights; the result is a student, not an adapter."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from attar.config import Section
from attar.models.loading import Quantization, skeleton
from attar.models.task_heads import CAUSAL
from students.tuning.method import METHODS, Leaves
from students.tuning.trainable import Reinitialized, Trainable, choose_trainable, prepare_learning


class WeightTuning(Section):
    """Traits of both: the result is the student itself."""

    leaves: ClassVar[Leaves] = "weights"
    merges: ClassVar[bool] = True
    prepends: ClassVar[bool] = False
    base: ClassVar[Quantization] = "none"


@METHODS.add("full")
class Full(WeightTuning):
    """Trains every weight of the student, or the parts that `trainable` names."""

    method: Literal["full"] = "full"
    trainable: Trainable = Field("all", description="the parts that are trained, or a list of them")
    reinitialize: Reinitialized = Field(
        None, description="blocks or head that start from random weights"
    )

    def check(self, config: Any) -> None:
        """Raise `RecipeError` if the student lacks a part to train or reinitialise."""
        model = skeleton(config, CAUSAL)
        if model is not None:
            prepare_learning(model, self.trainable, self.reinitialize, 0, "specialize.")

    def attach(self, model: Any, seed: int) -> nn.Module:
        """Choose the trained parts of the student, and draw reinitialised ones from the seed."""
        prepare_learning(model, self.trainable, self.reinitialize, seed)
        return model  # type: ignore[no-any-return]


@METHODS.add("head")
class HeadOnly(WeightTuning):
    """Trains only the output head; if it is tied to the embedding, that changes too."""

    method: Literal["head"] = "head"

    def check(self, config: Any) -> None:
        """Accept every student: each has a head."""

    def attach(self, model: Any, seed: int) -> nn.Module:
        """Choose the head; the seed is not used."""
        choose_trainable(model, "head")
        return model  # type: ignore[no-any-return]
