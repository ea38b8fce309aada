"""What a task must provide: the protocol `Task`, and the registry of tasks.

The stages, the training loop and the cache are the same for all tasks; they ask the task for what
differs, such as its models, its examples and its metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import nn

from attar.errors import RecipeError
from attar.models.task_heads import auto_class_of, is_reward_model
from attar.registry import Registry
from distill.data.batching import Batching
from distill.data.config import DataConfig
from distill.data.examples import Example, Examples
from distill.data.reader import Reader
from distill.evaluation.job import EvaluateConfig, TaskMetrics
from distill.objective.model_outputs import Readout
from distill.recipe.schema import Recipe
from distill.report.task_report import TaskReport
from teachers.cache.config import CacheConfig
from teachers.load import TeacherConfig
from teachers.runners.request import Request, Runner


class TaskContext(Protocol):
    """What a task needs to know of the run it works for: its recipe, models, tokenizer and data."""

    recipe: Recipe

    @property
    def teacher(self) -> TeacherConfig:
        """The teacher that gives signals: the adapted one where the recipe adapts it."""

    @property
    def teacher_config(self) -> Any:
        """The teacher's `PretrainedConfig`."""

    @property
    def student_config(self) -> Any:
        """The student's `PretrainedConfig`."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the data."""

    @property
    def fresh_values(self) -> dict[str, Any]:
        """The keys of a student with random weights."""

    @property
    def vocabulary(self) -> int:
        """V: the number of ids that the tokenizer knows."""

    @property
    def classes(self) -> list[str]:
        """Names of the classes of labelled texts."""

    def training_examples(self) -> Examples:
        """The training examples."""


@dataclass(frozen=True)
class SearchMeasure:
    """What shapes of students are compared by: a loss of the registry between student and teacher,
    the codec that keeps the teacher's signals for it (almost) exactly, and its name in tables.

    on_pairs: whether it reads both answers of a pair; else the preferred texts are read.
    """

    loss: str
    codec: dict[str, Any]
    name: str
    on_pairs: bool = False


# KL(teacher || student) of every counted token, from the teacher's final hidden states.
TOKEN_KL = SearchMeasure("forward_kl", {"name": "final_hidden", "kl": 1e-6}, "KL")


class Task(Protocol):
    """Everything in which one task differs from another; stages call it, and never ask which it is.

    auto: the class of `transformers` that loads the task's models with their head.
    batching: how its examples become batches.
    packs: whether several examples may share a row.
    defaults: values by section of the recipe for keys that the recipe leaves out.
    metrics: what is measured of its models.
    report: how the report presents those measurements.
    search: what shapes of students are compared by.
    label_loss: by which models learn without a teacher; that of control arms.
    """

    auto: ClassVar[str]
    batching: ClassVar[Batching]
    packs: ClassVar[bool]
    defaults: ClassVar[dict[str, dict[str, Any]]]
    metrics: ClassVar[TaskMetrics]
    report: ClassVar[TaskReport]
    search: ClassVar[SearchMeasure]
    label_loss: ClassVar[str]

    # Checks

    def check_recipe(self, recipe: Recipe) -> None:
        """Raise `ValueError` for a key that this task cannot serve; asked of the recipe alone."""

    def check(self, context: TaskContext) -> None:
        """Raise an error for what the models' configurations or the data show to be wrong."""

    # Data and evaluation

    def reader(self, config: Any, adapted: bool, seed: int) -> Reader | None:
        """How rows of data become examples for a teacher with this `PretrainedConfig`.

        adapted: whether the teacher will first be fine-tuned on the task. seed: of what is drawn,
        such as masks. None: rows are texts and conversations, which `prepare` reads itself.
        """

    def measure_inputs(
        self, tokenizer: Any, data: DataConfig, evaluate: EvaluateConfig, model: str, folder: Path
    ) -> dict[str, Any]:
        """What the metrics need beside the held-out examples (`MeasureJob.task_inputs`).

        model: the teacher. folder: where files that the metrics read may be written.
        """

    # Models

    def load(self, context: TaskContext, source: str, trust_remote_code: bool) -> nn.Module:
        """A pretrained model in float32, with the head that the task needs."""

    def load_teacher(self, context: TaskContext) -> nn.Module:
        """The teacher in float32, for students to be cut from it."""

    def fresh_student(self, context: TaskContext) -> nn.Module:
        """A student with random weights, by the configuration in the recipe."""

    def write_extra_files(self, context: TaskContext, folder: Path) -> None:
        """Add to a saved model the files that its users need beside the checkpoint."""

    # Pruning

    def removal_order(
        self, context: TaskContext, model: nn.Module, count: int, tokens: int
    ) -> list[int]:
        """Numbers of `count` blocks in the order of greedy removal.

        At each step the block goes whose absence changes the model least on training text of about
        `tokens` tokens.
        """

    def keep_by_influence(
        self, context: TaskContext, model: nn.Module, keep: int, tokens: int
    ) -> list[int]:
        """Numbers of the `keep` blocks that turn the residual stream most on such text."""

    # Signals and learning

    def runner(self, context: TaskContext) -> Runner:
        """The loaded teacher, ready to be run for the cache."""

    def runner_of(self, context: TaskContext, model: nn.Module, config: CacheConfig) -> Runner:
        """A model that is loaded already, ready to be run for a cache with this configuration."""

    def cached_tokens(self, context: TaskContext, examples: Examples) -> np.ndarray:
        """The number of tokens of each example whose signals the cache keeps, (examples,)."""

    def request(self, context: TaskContext, example: Example) -> Request:
        """What the teacher is asked for one example: its ids, and the positions that are kept."""

    def signal_identity(self, context: TaskContext) -> dict[str, Any]:
        """Settings beside the teacher's weights that change its signals; a cache must agree."""

    def model_outputs(self, context: TaskContext) -> Readout | None:
        """How training terms get the student's outputs.

        None: they are logits over the vocabulary, from the head, at every counted position.
        """


TASKS: Registry[type[Task]] = Registry("task")


def task_of_model(config: Any) -> str:
    """Name of the task that a checkpoint's head is for, by its `PretrainedConfig`."""
    auto, gives_rewards = auto_class_of(config), is_reward_model(config)
    fitting = (
        name
        for name, task in TASKS.items()
        if task.auto == auto and (name == "reward") == gives_rewards  # classifiers share a class
    )
    return next(fitting, "causal-lm")


def check_next_tokens(recipe: Recipe, command: str) -> None:
    """Raise `RecipeError` where a command that needs next tokens gets a recipe of another task."""
    if recipe.task != "causal-lm":
        raise RecipeError(
            f"`{command}` works with next tokens (`task: causal-lm`); this recipe has `task: "
            f"{recipe.task}`."
        )


def refuse_keys(section: Any, path: str, keys: Sequence[str], task: str) -> None:
    """Raise `ValueError` for a key that is not at its default and has no effect on a task."""
    for key in keys:
        default = type(section).model_fields[key].get_default(call_default_factory=True)
        if getattr(section, key) != default:
            raise ValueError(f"`{path}.{key}` has no effect with `task: {task}`; leave it out")
