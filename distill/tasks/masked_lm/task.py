"""Task `masked-lm`: masked tokens of plain texts are predicted; gives encoders for later tasks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from attar.errors import RecipeError
from attar.models.head_check import check_head
from attar.models.masked_lm import load_masked_lm
from attar.models.structure import head_of, run_body
from attar.models.task_heads import MASKED, auto_class_of
from distill.data.batching import MASKED_BATCHING, Batch, Batching, collate_masked
from distill.data.config import DataConfig
from distill.data.examples import Example, Examples
from distill.data.masked_texts import MaskedTexts, check_masks
from distill.data.tokenize import IGNORE
from distill.evaluation.job import EvaluateConfig, TaskMetrics
from distill.objective.model_outputs import Readout
from distill.recipe.schema import Recipe
from distill.report.task_report import TaskReport
from distill.tasks.masked_lm.metrics import MaskedLMMetrics
from distill.tasks.masked_lm.report import MaskedLMReport
from distill.tasks.served_losses import refuse_others_losses
from distill.tasks.task import TASKS, TOKEN_KL, SearchMeasure, TaskContext, refuse_keys
from distill.tasks.whole_texts import (
    batches_by_length,
    check_artifacts,
    chosen_texts,
    order_by_change,
    refuse_next_tokens,
)
from students.fresh import fresh_model
from students.pruning.depth import keep_by_influence
from students.pruning.output_change import kl
from teachers.cache.config import CacheConfig
from teachers.codecs.codec import TEXT_CODECS
from teachers.load import load_teacher
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request

log = logging.getLogger(__name__)
NAME = "masked-lm"
NO_EFFECT_KEYS = ["pair_column", "label_column", "label_names", "pooling", "normalize"]


@TASKS.add(NAME)
class MaskedLM:
    """Models of `transformers` that predict masked tokens by a head over the vocabulary."""

    auto: ClassVar[str] = MASKED
    batching: ClassVar[Batching] = MASKED_BATCHING
    packs: ClassVar[bool] = False
    defaults: ClassVar[dict[str, dict[str, Any]]] = {}
    metrics: ClassVar[TaskMetrics] = MaskedLMMetrics()
    report: ClassVar[TaskReport] = MaskedLMReport()
    search: ClassVar[SearchMeasure] = TOKEN_KL
    label_loss: ClassVar[str] = "cross_entropy"

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse the keys that serve only models predicting the next token."""
        refuse_next_tokens(recipe, NAME)
        refuse_keys(recipe.data, "data", NO_EFFECT_KEYS, NAME)
        refuse_keys(recipe.evaluate, "evaluate", ["pairs", "baselines"], NAME)
        if recipe.specialize is not None:
            raise ValueError(
                f"`specialize` is for models that predict the next token; with `task: {NAME}` a "
                "student learns in `train` alone: leave it out"
            )
        if recipe.cache.codec.name in TEXT_CODECS:
            raise ValueError(
                f"`cache.codec: {recipe.cache.codec.name}` holds one signal a text; for masked "
                "tokens use `topk`, `hybrid`, or `final_hidden`"
            )
        check_artifacts(recipe, NAME)
        refuse_others_losses(recipe, NAME)

    def check(self, context: TaskContext) -> None:
        """Check that the teacher predicts masked tokens, and that its tokenizer has a mask."""
        check_masks(context.tokenizer)
        config = context.teacher_config
        if auto_class_of(config) != MASKED and context.recipe.teacher.adapt is None:
            raise RecipeError(
                f"`teacher.model` ({context.recipe.teacher.model}) was saved without a head over "
                f"masked tokens ({', '.join(config.architectures or ['no architecture named'])}); "
                "train one first with `teacher.adapt: {}`, or name a checkpoint ...ForMaskedLM."
            )

    def reader(self, config: Any, adapted: bool, seed: int) -> MaskedTexts:
        """Texts, with masks drawn from the seed."""
        return MaskedTexts(seed)

    def measure_inputs(
        self, tokenizer: Any, data: DataConfig, evaluate: EvaluateConfig, model: str, folder: Path
    ) -> dict[str, Any]:
        """Return no extra inputs: the held-out examples are all that the metrics need."""
        return {}

    def signal_identity(self, context: TaskContext) -> dict[str, Any]:
        """Return no settings: masks are part of the examples."""
        return {}

    def load(self, context: TaskContext, source: str, trust_remote_code: bool) -> nn.Module:
        """Any encoder, in float32; a head that it lacks gets random weights."""
        torch.manual_seed(context.recipe.seed)
        return load_masked_lm(source, trust_remote_code=trust_remote_code)

    def load_teacher(self, context: TaskContext) -> nn.Module:
        """The teacher's checkpoint, in float32."""
        return self.load(context, context.teacher.model, context.teacher.trust_remote_code)

    def fresh_student(self, context: TaskContext) -> nn.Module:
        """A masked language model with random weights, by the configuration in the recipe."""
        config = context.recipe.student.from_
        assert isinstance(config, dict)
        model = fresh_model(config, context.teacher_config, context.recipe.seed, auto=MASKED)
        check_head(model)
        return model

    def write_extra_files(self, context: TaskContext, folder: Path) -> None:
        """Write no files: the checkpoint is complete."""

    def removal_order(
        self, context: TaskContext, model: nn.Module, count: int, tokens: int
    ) -> list[int]:
        """Rank blocks by the KL at masked positions that removing them causes."""
        batches = _calibration(context, model, tokens)
        return order_by_change(model, batches, count, self._read(context), kl, "KL to the teacher")

    def keep_by_influence(
        self, context: TaskContext, model: nn.Module, keep: int, tokens: int
    ) -> list[int]:
        """Keep the blocks whose output has the lowest cosine with their input."""
        batches = _calibration(context, model, tokens)
        return keep_by_influence(model, [batch.model_inputs() for batch in batches], keep)

    def _read(self, context: TaskContext) -> Callable[[Any, Batch], Tensor]:
        def read(model: Any, batch: Batch) -> Tensor:
            hidden_NH = run_body(model, batch.model_inputs())[batch.labels_BT != IGNORE]
            return head_of(model, context.vocabulary).logits(hidden_NH).log_softmax(-1)

        return read

    def runner(self, context: TaskContext) -> TeacherRunner:
        """The teacher up to its output map, and the map over the tokenizer's ids."""
        return self.runner_of(context, load_teacher(context.teacher), context.recipe.cache)

    def runner_of(
        self, context: TaskContext, model: nn.Module, config: CacheConfig
    ) -> TeacherRunner:
        """The same of a model that is loaded already."""
        return TeacherRunner(model, context.vocabulary, config)

    def cached_tokens(self, context: TaskContext, examples: Examples) -> np.ndarray:
        """The masked tokens."""
        return examples.counts

    def request(self, context: TaskContext, example: Example) -> Request:
        """The example's ids; signals are kept at its masked positions."""
        labels = example.counted_labels
        return Request(example.key, example.input_ids, example.counted, labels=labels)

    def model_outputs(self, context: TaskContext) -> Readout | None:
        """None: terms read logits of the masked tokens from the head."""
        return None


def _calibration(context: TaskContext, model: nn.Module, tokens: int) -> list[Batch]:
    """Batches of training texts from all over the data, about `tokens` tokens in all."""
    return _batches(context, chosen_texts(context.training_examples(), tokens), model)


def _batches(context: TaskContext, chosen: np.ndarray, model: nn.Module) -> list[Batch]:
    """The chosen training texts in batches, on the model's device."""
    device = next(model.parameters()).device
    return [
        collate_masked(rows).to(device)
        for rows in batches_by_length(context.training_examples(), chosen, 16)
    ]
