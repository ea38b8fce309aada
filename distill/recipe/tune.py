"""The recipe's section `tune`: which keys of a training are searched, and how long."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from attar.config import Section
from distill.recipe.budgets import Rungs
from distill.training.candidates import Candidate

OWN_KEYS = [name for name in Candidate.model_fields if name not in ("arm", "name")]
OBJECTIVE = "train.objective."
TunedArm = Literal["distill", "finetune"]


class Range(Section):
    """Where a number is searched: from `low` to `high`, evenly or by its logarithm."""

    low: float
    high: float
    log: bool = Field(False, description="evenly by factors, as suits learning rates")

    @model_validator(mode="after")
    def _rises(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"`low` ({self.low:g}) must be below `high` ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError("`log` needs a `low` above 0")
        return self


class TuneConfig(Section):
    """The keys that `distill tune` searches for each arm, on the validation part."""

    over: dict[str, Range | list[Any]] = Field(
        description="by path of a recipe key, a range of numbers or a list of values"
    )
    trials: int = Field(20, ge=1, description="trainings of each arm, at most as long as the run's")
    arms: list[TunedArm] | None = Field(
        None, min_length=1, description="`distill` and, where `train.arms` has it, `finetune`"
    )
    rungs: Rungs = Field(
        [0.2, 0.5, 1.0], description="shares of the steps after which trials are compared"
    )
    halve: int = Field(3, ge=2, description="at each rung one of so many trials goes on")

    @field_validator("over", mode="before")
    @classmethod
    def _with_dots(cls, value: Any) -> Any:
        """Paths with the numbers of items behind dots: `train.objective[0].temperature` too."""
        if not isinstance(value, dict):
            return value
        return {re.sub(r"\[(\d+)\]", r".\1", str(path)): one for path, one in value.items()}

    @field_validator("over")
    @classmethod
    def _can_be_tuned(cls, value: dict[str, Range | list[Any]]) -> dict[str, Range | list[Any]]:
        if not value:
            raise ValueError(
                "it names no key; write e.g. `{train.lr: {low: 1e-5, high: 1e-3, log: true}}`"
            )
        for path, choices in value.items():
            if path.removeprefix("train.") not in OWN_KEYS and not path.startswith(OBJECTIVE):
                known = ", ".join(f"train.{name}" for name in OWN_KEYS)
                raise ValueError(
                    f"`{path}` cannot be tuned; known are {known} and keys of terms, as "
                    "`train.objective.0.temperature`"
                )
            if isinstance(choices, list) and len(choices) < 2:
                raise ValueError(f"`{path}` has nothing to choose from; give two values or more")
        return value

    @model_validator(mode="after")
    def _each_arm_has_keys(self) -> TuneConfig:
        if "finetune" in (self.arms or []) and not self.over_of("finetune"):
            raise ValueError(
                "`over` names only keys of the objective, of which `finetune` has none; add "
                "`train.lr`, or write `arms: [distill]`"
            )
        return self

    def over_of(self, arm: str) -> dict[str, Range | list[Any]]:
        """What is searched for an arm: keys of terms are those of the distilled student alone."""
        return {
            path: choices
            for path, choices in self.over.items()
            if arm == "distill" or not path.startswith(OBJECTIVE)
        }
