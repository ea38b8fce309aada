"""Task `causal-lm`: every counted token is predicted from the tokens before it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from attar.errors import RecipeError
from attar.models.head_check import check_head
from attar.models.loading import load_causal_lm
from attar.models.structure import num_layers
from attar.models.task_heads import CAUSAL, auto_class_of
from distill.data.batching import TOKEN_BATCHING, Batching
from distill.data.calibration import calibration_rows
from distill.data.config import DataConfig
from distill.data.examples import Example, Examples
from distill.data.reader import Reader
from distill.data.teacher_prompts import as_teacher_reads
from distill.evaluation.job import EvaluateConfig, TaskMetrics
from distill.objective.model_outputs import Readout
from distill.recipe.schema import Recipe
from distill.report.task_report import TaskReport
from distill.tasks.causal_lm.metrics import CausalLMMetrics
from distill.tasks.causal_lm.report import CausalLMReport
from distill.tasks.served_losses import refuse_others_losses
from distill.tasks.task import (
    TASKS,
    TOKEN_KL,
    SearchMeasure,
    TaskContext,
    refuse_keys,
    task_of_model,
)
from students.fresh import fresh_model
from students.pruning.depth import keep_by_influence, keep_greedily, next_token_loss, rows_as_texts
from teachers.cache.config import CacheConfig
from teachers.codecs.codec import TEXT_CODECS
from teachers.load import load_teacher
from teachers.remote.client import Client
from teachers.remote.probe import connect
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request, Runner

log = logging.getLogger(__name__)


@TASKS.add("causal-lm")
class CausalLM:
    """Models that predict the next token of texts and conversations."""

    auto: ClassVar[str] = CAUSAL
    batching: ClassVar[Batching] = TOKEN_BATCHING
    packs: ClassVar[bool] = True
    defaults: ClassVar[dict[str, dict[str, Any]]] = {}
    metrics: ClassVar[TaskMetrics] = CausalLMMetrics()
    report: ClassVar[TaskReport] = CausalLMReport()
    search: ClassVar[SearchMeasure] = TOKEN_KL
    label_loss: ClassVar[str] = "cross_entropy"

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse the keys of labelled texts, which have no effect here, codecs of texts, and losses
        of other tasks.
        """
        no_effect = ["pair_column", "masking", "pooling", "normalize"]
        refuse_keys(recipe.data, "data", no_effect, recipe.task)
        refuse_keys(recipe.evaluate, "evaluate", ["pairs", "baselines"], recipe.task)
        if recipe.cache.codec.name in TEXT_CODECS:
            raise ValueError(
                f"`cache.codec: {recipe.cache.codec.name}` holds one signal a text; for the "
                "next token use `topk`, `hybrid`, or `final_hidden`"
            )
        refuse_others_losses(recipe, recipe.task)

    def check(self, context: TaskContext) -> None:
        """Check that the teacher predicts the next token, and so does a student with a name."""
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
        """None: rows are texts and conversations, which `prepare` reads itself."""
        return None

    def measure_inputs(
        self, tokenizer: Any, data: DataConfig, evaluate: EvaluateConfig, model: str, folder: Path
    ) -> dict[str, Any]:
        """Return no extra inputs: the held-out examples are all that the metrics need."""
        return {}

    def load(self, context: TaskContext, source: str, trust_remote_code: bool) -> nn.Module:
        """Any causal language model whose head can be applied by itself, in float32."""
        model = load_causal_lm(source, dtype=torch.float32, trust_remote_code=trust_remote_code)
        check_head(model, source)
        return model

    def load_teacher(self, context: TaskContext) -> nn.Module:
        """The teacher's checkpoint, in float32."""
        return self.load(context, context.teacher.model, context.teacher.trust_remote_code)

    def fresh_student(self, context: TaskContext) -> nn.Module:
        """A causal language model with random weights, by the configuration in the recipe."""
        model = fresh_model(context.fresh_values, context.teacher_config, context.recipe.seed)
        check_head(model, "student.from")
        return model

    def removal_order(
        self, context: TaskContext, model: nn.Module, count: int, tokens: int
    ) -> list[int]:
        """Rank blocks by how much the loss on the next token grows without them."""
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
        """Keep the blocks whose output has the lowest cosine with their input."""
        return keep_by_influence(model, rows_as_texts(_rows(context, model, tokens)), keep)

    def runner(self, context: TaskContext) -> Runner:
        """The teacher's body, and its head over the tokenizer's ids; or the server that runs it,
        probed.
        """
        server, recipe = context.teacher.server, context.recipe
        if server is not None:
            lengths = (recipe.data_of(path).max_length for path in recipe.learning())
            longest = max(lengths, default=recipe.data.max_length)
            tokenizer, vocabulary = context.tokenizer, context.vocabulary
            return connect(Client(server), tokenizer, vocabulary, recipe.cache, longest)
        return self.runner_of(context, load_teacher(context.teacher), context.recipe.cache)

    def runner_of(
        self, context: TaskContext, model: nn.Module, config: CacheConfig
    ) -> TeacherRunner:
        """The same of a model that is loaded already."""
        return TeacherRunner(model, context.vocabulary, config)

    def cached_tokens(self, context: TaskContext, examples: Examples) -> np.ndarray:
        """The counted tokens."""
        return examples.counts

    def request(self, context: TaskContext, example: Example) -> Request:
        """The ids that the teacher reads; signals are kept at the counted positions."""
        read = as_teacher_reads(example)
        return Request(read.key, read.input_ids, read.counted, labels=read.counted_labels)

    def signal_identity(self, context: TaskContext) -> dict[str, Any]:
        """Return no settings: signals depend on the teacher's weights alone."""
        return {}

    def write_extra_files(self, context: TaskContext, folder: Path) -> None:
        """Write no files: the checkpoint is complete."""

    def model_outputs(self, context: TaskContext) -> Readout | None:
        """None: terms read logits of the next token from the head."""
        return None


def _rows(context: TaskContext, model: nn.Module, tokens: int) -> Tensor:
    """Calibration rows (B, T) on the model's device."""
    rows_BT = calibration_rows(context.training_examples(), tokens)
    return rows_BT.to(next(model.parameters()).device)
