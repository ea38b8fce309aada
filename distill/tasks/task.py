"""Kinds of task: what differs between predicting the next token and labelling a text.

The stages, the loop and the cache are the same for all; they ask a task for what is its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import nn

from attar.errors import RecipeError
from attar.models.task_heads import auto_class_of
from attar.registry import Registry
from distill.data.batching import Batching
from distill.data.config import DataConfig
from distill.data.examples import Example, Examples
from distill.data.reader import Reader
from distill.evaluation.job import EvaluateConfig, TaskMetrics
from distill.objective.model_outputs import Readout
from distill.recipe.schema import Recipe
from distill.report.task_report import TaskReport
from students.pruning.divergence import PruningObjective
from teachers.load import TeacherConfig
from teachers.runners.request import Request, Runner


class TaskContext(Protocol):
    """What a task may ask of the run that it serves."""

    recipe: Recipe

    @property
    def teacher(self) -> TeacherConfig:
        """The teacher as used: the adapted one where the recipe adapts it."""

    @property
    def teacher_config(self) -> Any:
        """The teacher's `PretrainedConfig`."""

    @property
    def student_config(self) -> Any:
        """The student's `PretrainedConfig`."""

    @property
    def tokenizer(self) -> Any:
        """The teacher's tokenizer."""

    @property
    def vocabulary(self) -> int:
        """V: ids the tokenizer knows."""

    @property
    def classes(self) -> list[str]:
        """Names of the classes, of labelled texts."""

    def training_examples(self) -> Examples:
        """The examples that are learned from."""


class Task(Protocol):
    """What a task has of its own. `auto`: transformers' class of its models. `packs`: whether
    several examples may share a row. `defaults`: keys by section that the recipe need not name.
    `metrics`: what is measured of its models; `report`: how the report presents it.
    """

    auto: ClassVar[str]
    batching: ClassVar[Batching]
    packs: ClassVar[bool]
    defaults: ClassVar[dict[str, dict[str, Any]]]
    metrics: ClassVar[TaskMetrics]
    report: ClassVar[TaskReport]

    def check_recipe(self, recipe: Recipe) -> None:
        """Raise `ValueError` for a key that this task cannot serve."""

    def check(self, context: TaskContext) -> None:
        """Raise an error for what is known to be wrong before any work."""

    def reader(self, config: Any, adapted: bool, seed: int) -> Reader | None:
        """How rows become examples for a teacher of this `PretrainedConfig`, which learns the task
        first where it is adapted; masks are drawn from the seed. None: as texts and conversations,
        `prepare`'s own.
        """

    def about(
        self, tokenizer: Any, data: DataConfig, evaluate: EvaluateConfig, model: str, folder: Path
    ) -> dict[str, Any]:
        """What the metrics must know beside the held-out examples, for a teacher `model`; what it
        takes is left in `folder`.
        """

    def load(self, context: TaskContext, source: str, trust_remote_code: bool) -> nn.Module:
        """A pretrained model in float32, with the head that the task needs."""

    def teacher(self, context: TaskContext) -> nn.Module:
        """The teacher as used, in float32: what students are cut from."""

    def fresh(self, context: TaskContext) -> nn.Module:
        """A student of random weights, from the recipe's configuration."""

    def removal_order(
        self, context: TaskContext, model: nn.Module, count: int, tokens: int
    ) -> list[int]:
        """Numbers of so many blocks in the order in which they go best: greedily, by what their
        absence does on training text of so many tokens.
        """

    def keep_by_influence(
        self, context: TaskContext, model: nn.Module, keep: int, tokens: int
    ) -> list[int]:
        """Numbers of so many blocks that turn the residual stream most, there."""

    def pruning_objective(
        self, context: TaskContext, teacher: nn.Module, tokens: int, heals: bool
    ) -> PruningObjective:
        """How far students are from a model on the last training text, `tokens` in all; with as
        much again to heal on. Raises `RecipeError` where there is too little text for both.
        """

    def runner(self, context: TaskContext) -> Runner:
        """The teacher, loaded, to be run for the cache."""

    def kept(self, context: TaskContext, examples: Examples) -> np.ndarray:
        """How many tokens of each example the cache keeps signals of."""

    def request(self, context: TaskContext, example: Example) -> Request:
        """What the teacher is asked of an example."""

    def identity(self, context: TaskContext) -> dict[str, Any]:
        """What the teacher's signals depend on beside its weights; must agree with the cache's."""

    def finish(self, context: TaskContext, folder: Path) -> None:
        """Add to a saved model what its users need beside the checkpoint."""

    def readout(self, context: TaskContext) -> Readout | None:
        """How terms get the student's logits; None: from the head, next token by next token."""


TASKS: Registry[type[Any]] = Registry("task")  # of Tasks


def task_of_model(config: Any) -> str:
    """Name of the task that a checkpoint's head is for, by its `PretrainedConfig`."""
    auto = auto_class_of(config)
    return next((name for name, task in TASKS.items() if task.auto == auto), "causal-lm")


def check_next_tokens(recipe: Recipe, command: str) -> None:
    """Raise `RecipeError` for a command that is about next tokens, on a recipe of another task."""
    if recipe.task != "causal-lm":
        raise RecipeError(
            f"`{command}` is about next tokens (`task: causal-lm`); this recipe has `task: "
            f"{recipe.task}`."
        )


def refuse_keys(section: Any, path: str, keys: Sequence[str], task: str) -> None:
    """Raise `ValueError` for a key with a value of its own that a task has no use for."""
    for key in keys:
        default = type(section).model_fields[key].get_default(call_default_factory=True)
        if getattr(section, key) != default:
            raise ValueError(f"`{path}.{key}` has no effect with `task: {task}`; leave it out")
