"""The recipe's section `compare`: which ways to do the task are compared, on how many labels."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from attar.config import Section
from distill.evaluation.downstream.config import TaskConfig
from distill.recipe.budgets import Duration


class ForgetConfig(Section):
    """What a model could do before it learned the task, measured again afterwards."""

    text: str = Field(description="file of general text, whose perplexity is measured")
    tokens: int = Field(4096, ge=64, description="tokens of it, at most")
    task: TaskConfig | None = Field(
        None, description="another task, with the keys of `evaluate.tasks`, asked before and after"
    )


class CompareConfig(Section):
    """Arms of a comparison, the sizes of the training data, seeds and the budget."""

    arms: list[str] | None = Field(
        None, min_length=1, description="names of arms; all that fit the recipe when absent"
    )
    labels: list[int | Literal["all"]] | None = Field(
        None,
        min_length=1,
        description="training rows of each point of the learning curves; a sixteenth, a quarter "
        "and all of them when absent",
    )
    seeds: list[int] = Field(
        default=[0], min_length=1, description="of the rows that are drawn, and of every training"
    )
    budget: Duration | None = Field(
        None, description="time for all arms: seconds, `90s`, `30m` or `2h`; no limit when absent"
    )
    drop: bool = Field(
        True, description="whether an arm that fell behind the leader is left out with more rows"
    )
    test: int = Field(400, ge=8, description="rows that are reported on, at most")
    selection: int = Field(
        200, ge=8, description="rows by which arms are compared and dropped, at most"
    )
    validation: int = Field(
        100,
        ge=8,
        description="rows by which an arm chooses for itself, its best step or prompt, at most",
    )
    least_steps: int = Field(
        30,
        ge=1,
        description="of a training: with few rows it takes more epochs than `train.epochs`",
    )
    settings: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="keys of one arm's training, by the arm's name: `{lora: {lr: 1e-3, rank: 8}}`",
    )
    shots: int = Field(4, ge=1, description="demonstrations of the arms with a few of them")
    forget: ForgetConfig | None = None
    elsewhere: str | None = Field(
        None, description="labelled rows of another source than the training's, measured too"
    )

    @field_validator("labels")
    @classmethod
    def _rising(cls, value: list[int | Literal["all"]] | None) -> list[int | Literal["all"]] | None:
        numbers = [one for one in value or [] if one != "all"]
        if any(number < 1 for number in numbers if isinstance(number, int)):
            raise ValueError("numbers of rows are 1 or more")
        if value and (numbers != sorted(set(numbers)) or "all" in value[:-1]):
            raise ValueError("write rising numbers of rows, each once, and `all` last")
        return value

    @model_validator(mode="after")
    def _each_seed_once(self) -> CompareConfig:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("`seeds` names one of them twice")
        return self
