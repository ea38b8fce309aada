"""Task `causal-lm`: every counted token is predicted from those before it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from attar.errors import RecipeError
from attar.models.loading import load_causal_lm
from attar.models.structure import Head, head_of, num_layers, run_body
from attar.models.task_heads import CAUSAL, auto_class_of
from distill.data.batching import TOKEN_BATCHING, Batching
from distill.data.calibration import calibration_rows, split_for_healing
from distill.data.config import DataConfig
from distill.data.examples import Example, Examples
from distill.data.reader import Reader
from distill.evaluation.job import EvaluateConfig, TaskMetrics
from distill.objective.model_outputs import Readout
from distill.recipe.schema import Recipe
from distill.report.task_report import TaskReport
from distill.tasks.causal_lm.metrics import METRICS
from distill.tasks.causal_lm.report import REPORT
from distill.tasks.task import TASKS, TaskContext, refuse_keys, task_of_model
from students.fresh import fresh_model
from students.layer_inputs import ROWS
from students.pruning.depth import keep_by_influence, keep_greedily, next_token_loss, rows_as_texts
from students.pruning.divergence import PruningObjective
from teachers.codecs.codec import TEXT_CODECS
from teachers.load import load_teacher
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request

log = logging.getLogger(__name__)
ROWS_AT_ONCE = 256  # rows whose logits are in memory at once


@TASKS.add("causal-lm")
class CausalLM:
    """Next tokens of texts and conversations."""

    auto: ClassVar[str] = CAUSAL
    batching: ClassVar[Batching] = TOKEN_BATCHING
    packs: ClassVar[bool] = True
    defaults: ClassVar[dict[str, dict[str, Any]]] = {}
    metrics: ClassVar[TaskMetrics] = METRICS
    report: ClassVar[TaskReport] = REPORT

    def check_recipe(self, recipe: Recipe) -> None:
        """Keys of labelled texts have no effect here."""
        elsewhere = ["pair_column", "masking", "pooling", "normalize"]
        refuse_keys(recipe.data, "data", elsewhere, recipe.task)
        refuse_keys(recipe.evaluate, "evaluate", ["pairs"], recipe.task)
        if recipe.cache.codec.name in TEXT_CODECS:
            raise ValueError(
                f"`cache.codec: {recipe.cache.codec.name}` holds one signal a text; for the "
                "next token use `topk`, `hybrid`, or `hidden`"
            )

    def check(self, context: TaskContext) -> None:
        """The teacher predicts the next token, and so does a student that is named."""
        named = {"teacher.model": (context.recipe.teacher.model, context.teacher_config)}
        student = context.recipe.student.from_
        if isinstance(student, str) and student != "teacher":
            named["student.from"] = student, context.student_config
        for key, (model, config) in named.items():
            if not model.endswith(".gguf") and auto_class_of(config) != CAUSAL:
                raise RecipeError(
                    f"`{key}` ({model}) was saved as {', '.join(config.architectures)}, which does "
                    f"not predict the next token; write `task: {task_of_model(config)}`, or name a "
                    "causal language model."
                )

    def reader(self, config: Any, adapted: bool, seed: int) -> Reader | None:
        """Texts and conversations: `prepare`'s own."""
        return None

    def about(
        self, tokenizer: Any, data: DataConfig, evaluate: EvaluateConfig, model: str, folder: Path
    ) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load(self, context: TaskContext, source: str, trust_remote_code: bool) -> nn.Module:
        """Any causal language model."""
        return load_causal_lm(source, dtype=torch.float32, trust_remote_code=trust_remote_code)

    def teacher(self, context: TaskContext) -> nn.Module:
        """As it is."""
        return self.load(context, context.teacher.model, context.teacher.trust_remote_code)

    def fresh(self, context: TaskContext) -> nn.Module:
        """Of the recipe's configuration."""
        config = context.recipe.student.from_
        assert isinstance(config, dict)
        return fresh_model(config, context.teacher_config, context.recipe.seed)

    def removal_order(
        self, context: TaskContext, model: nn.Module, count: int, tokens: int
    ) -> list[int]:
        """By the loss on the next token."""
        order: list[int] = []

        def on_removal(block: int, loss: float) -> None:
            order.append(block)
            log.info("build: block %d removed, calibration loss %.3f nats a token", block, loss)

        loss_of = next_token_loss(_rows(context, model, tokens))
        keep_greedily(model, loss_of, num_layers(model) - count, on_removal)
        return order

    def keep_by_influence(
        self, context: TaskContext, model: nn.Module, keep: int, tokens: int
    ) -> list[int]:
        """By the cosine of what enters a block and what leaves it."""
        return keep_by_influence(model, rows_as_texts(_rows(context, model, tokens)), keep)

    def pruning_objective(
        self, context: TaskContext, teacher: nn.Module, tokens: int, heals: bool
    ) -> PruningObjective:
        """KL on every next token."""
        rows_BT = _rows(context, teacher, (1 + heals) * tokens, last=True)
        held_BT, healing_BT = split_for_healing(rows_BT, heals)
        healing = healing_BT.split(ROWS) if heals else ()  # nothing would be split into one
        theirs = head_of(teacher, context.vocabulary)

        def read(model: Any, ids_BT: Tensor) -> Tensor:
            return run_body(model, {"input_ids": ids_BT, "attention_mask": None}).flatten(0, 1)

        def apart(student: Any, theirs_NH: Tensor, ours_NH: Tensor) -> Tensor:
            return divergence(theirs, theirs_NH, head_of(student, context.vocabulary), ours_NH)

        return PruningObjective(teacher, read, apart, held_BT.split(ROWS), healing)

    def runner(self, context: TaskContext) -> TeacherRunner:
        """The teacher's body and its head over the tokenizer's ids."""
        return TeacherRunner(
            load_teacher(context.teacher), context.vocabulary, context.recipe.cache
        )

    def kept(self, context: TaskContext, examples: Examples) -> np.ndarray:
        """The counted ones."""
        return examples.counts

    def request(self, context: TaskContext, example: Example) -> Request:
        """Its counted positions."""
        return Request(example.key, example.input_ids, example.counted)

    def identity(self, context: TaskContext) -> dict[str, Any]:
        """Nothing."""
        return {}

    def finish(self, context: TaskContext, folder: Path) -> None:
        """Nothing."""

    def readout(self, context: TaskContext) -> Readout | None:
        """The learner's own."""
        return None


def _rows(context: TaskContext, model: nn.Module, tokens: int, *, last: bool = False) -> Tensor:
    """Calibration rows (B, T) where the model is."""
    rows_BT = calibration_rows(context.training_examples(), tokens, last=last)
    return rows_BT.to(next(model.parameters()).device)


def divergence(theirs: Head, theirs_NH: Tensor, ours: Head, ours_NH: Tensor) -> Tensor:
    """KL(teacher || student) summed over N, from final states; few rows' logits exist at once."""
    total = ours_NH.new_zeros((), dtype=torch.float32)
    for one, other in zip(theirs_NH.split(ROWS_AT_ONCE), ours_NH.split(ROWS_AT_ONCE), strict=True):
        with torch.no_grad():  # the head is the teacher's, alive
            wanted_NV = theirs.logits(one).log_softmax(-1)
        found_NV = ours.logits(other).log_softmax(-1)
        total = total + (wanted_NV.exp() * (wanted_NV - found_NV)).sum()
    return total
