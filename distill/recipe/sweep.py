"""The recipe's section `sweep`: which students are tried, and how the weak ones are left behind."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from attar.config import Section
from attar.errors import RecipeError
from distill.recipe.budgets import Duration, Rungs
from students.artifacts.artifact import ARTIFACTS

SWEPT = ("student", "train", "specialize", "export")  # sections that trials may differ in
SHARED = (
    "trials share the teacher, its cache and the data: sweep over keys of "
    f"{', '.join(f'`{name}`' for name in SWEPT)}"
)
Axis = Literal["quality", "bytes", "latency"]


class SweepConfig(Section):
    """The grid of students that `distill sweep` tries, and the rungs on which it compares them."""

    over: dict[str, list[Any]] = Field(
        description="values by path of a recipe key; every combination is a trial"
    )
    artifacts: list[str] | None = Field(
        None, description="made of every finalist; those of `export` when absent"
    )
    rungs: Rungs = Field(
        [0.11, 0.33, 1.0], description="shares of the steps after which trials are compared"
    )
    halve: int = Field(3, ge=2, description="at each rung one of so many trials goes on")
    front: list[Axis] = Field(
        ["quality", "bytes", "latency"], description="what the survivors of a rung are best in"
    )
    keep_front: bool = Field(
        False, description="every trial that no other one beats goes on, however many there are"
    )
    budget: Duration | None = Field(
        None, description="time for everything, as `90m` or `2h`; without it no limit"
    )

    @field_validator("over")
    @classmethod
    def _has_choices(cls, value: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if not value:
            raise ValueError("it names no key; write for example `{train.lr: [1e-4, 4e-4]}`")
        for path, choices in value.items():
            section = path.split(".")[0]
            if path in ("export.artifacts", "export"):
                raise ValueError(
                    f"`{path}` is no choice between trials, since all artifacts are made of every "
                    "finalist; write them at `sweep.artifacts`"
                )
            if section not in SWEPT or path in ("train.arms", "student.tokenizer"):
                raise ValueError(f"`{path}` cannot differ between trials: {SHARED}")
            if not choices:
                raise ValueError(f"`{path}` has no values; write two or more, or leave it out")
            if len(choices) == 1:
                raise ValueError(
                    f"`{path}` has one value; write it at `{path}` itself, or give a second one"
                )
            doubled = next((one for i, one in enumerate(choices) if one in choices[:i]), None)
            if doubled is not None:
                raise ValueError(f"`{path}` has the value {doubled!r} twice; leave one out")
        return value

    @field_validator("artifacts")
    @classmethod
    def _are_known(cls, value: list[str] | None) -> list[str] | None:
        if value == []:
            raise ValueError("it is empty; name an artifact such as `bf16`, or leave it out")
        for name in value or []:
            try:
                ARTIFACTS[name]
            except RecipeError as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("front")
    @classmethod
    def _weighs_quality(cls, value: list[Axis]) -> list[Axis]:
        if "quality" not in value or len(value) < 2 or len(set(value)) < len(value):
            raise ValueError(
                "must have `quality` and what that is weighed against: `bytes`, `latency`, or both"
            )
        return value
