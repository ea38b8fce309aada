"""`full` and `head`: the student's own weights learn; what is left is a student, no adapter."""

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
    """What both have in common: the result is the student itself."""

    leaves: ClassVar[Leaves] = "weights"
    merges: ClassVar[bool] = True
    prepends: ClassVar[bool] = False
    base: ClassVar[Quantization] = "none"


@METHODS.add("full")
class Full(WeightTuning):
    """Every weight of the student learns, or the parts that `trainable` names."""

    method: Literal["full"] = "full"
    trainable: Trainable = Field("all", description="which parts: words, or a list of them")
    reinitialize: Reinitialized = Field(None, description="blocks or head that start afresh")

    def check(self, config: Any) -> None:
        """Raise `RecipeError` where the student has not what is to learn or to start afresh."""
        model = skeleton(config, CAUSAL)
        if model is not None:
            prepare_learning(model, self.trainable, self.reinitialize, 0, "specialize.")

    def attach(self, model: Any, seed: int) -> nn.Module:
        """The student itself; what starts afresh is drawn from the seed."""
        prepare_learning(model, self.trainable, self.reinitialize, seed)
        return model  # type: ignore[no-any-return]


@METHODS.add("head")
class HeadOnly(WeightTuning):
    """The map to logits alone learns; where it is tied to the embedding, that changes too."""

    method: Literal["head"] = "head"

    def check(self, config: Any) -> None:
        """Nothing: every student has a head."""

    def attach(self, model: Any, seed: int) -> nn.Module:
        """The student itself; nothing is drawn."""
        choose_trainable(model, "head")
        return model  # type: ignore[no-any-return]
