"""Task `sequence-classification`: one class for a text or a pair; encoders and decoders."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from attar.errors import RecipeError
from attar.models.loading import load_model
from attar.models.task_heads import (
    CLASSIFIER,
    check_single_label,
    class_names,
    is_classifier,
    load_classifier,
    set_padding_id,
)
from attar.models.tokenizers import padding_id
from distill.data.batching import TEXT_BATCHING, Batching
from distill.data.config import DataConfig
from distill.data.examples import Example, Examples
from distill.data.labelled_texts import LabelledTexts
from distill.evaluation.job import EvaluateConfig, TaskMetrics
from distill.objective.model_outputs import ClassReadout
from distill.recipe.schema import Recipe
from distill.report.task_report import TaskReport
from distill.tasks.sequence_classification.metrics import ClassificationMetrics
from distill.tasks.sequence_classification.report import ClassificationReport
from distill.tasks.served_losses import refuse_others_losses
from distill.tasks.task import TASKS, SearchMeasure, TaskContext, refuse_keys
from distill.tasks.whole_texts import (
    cached_text_tokens,
    calibration_texts,
    check_text_task,
    order_by_change,
    text_request,
)
from students.fresh import fresh_model
from students.pruning.depth import keep_by_influence
from students.pruning.output_change import class_logprobs, kl
from teachers.cache.config import CacheConfig
from teachers.load import teacher_dtype
from teachers.runners.request import Request
from teachers.runners.whole_text import TextRunner

log = logging.getLogger(__name__)
NAME = "sequence-classification"


@TASKS.add(NAME)
class SequenceClassification:
    """Models of `transformers` with a head over classes of texts."""

    auto: ClassVar[str] = CLASSIFIER
    batching: ClassVar[Batching] = TEXT_BATCHING
    packs: ClassVar[bool] = False
    defaults: ClassVar[dict[str, dict[str, Any]]] = {"cache": {"codec": "classes"}}
    metrics: ClassVar[TaskMetrics] = ClassificationMetrics()
    report: ClassVar[TaskReport] = ClassificationReport()
    search: ClassVar[SearchMeasure] = SearchMeasure("forward_kl", {"name": "classes"}, "KL")
    label_loss: ClassVar[str] = "cross_entropy"

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse the keys that serve only language models."""
        kept = "a text's few classes are kept in full by `classes`"
        check_text_task(recipe, NAME, "classes", kept)
        refuse_keys(recipe.data, "data", ["masking", "pooling", "normalize"], NAME)
        refuse_keys(recipe.evaluate, "evaluate", ["pairs"], NAME)
        refuse_others_losses(recipe, NAME)

    def check(self, context: TaskContext) -> None:
        """Check that the teacher is a classifier, or is fine-tuned to be one."""
        if context.recipe.teacher.adapt is None and not is_classifier(context.teacher_config):
            raise RecipeError(
                f"`teacher.model` ({context.recipe.teacher.model}) has no head over classes; "
                "fine-tune it first with `teacher.adapt: {}`, or name a fine-tuned classifier."
            )
        if context.recipe.teacher.adapt is None:
            check_single_label(context.teacher_config, context.recipe.teacher.model)

    def reader(self, config: Any, adapted: bool, seed: int) -> LabelledTexts:
        """Labelled texts, with the classes of a teacher that is a classifier already."""
        return LabelledTexts(None if adapted else class_names(config))

    def measure_inputs(
        self, tokenizer: Any, data: DataConfig, evaluate: EvaluateConfig, model: str, folder: Path
    ) -> dict[str, Any]:
        """Return no extra inputs: the model knows its classes."""
        return {}

    def load(self, context: TaskContext, source: str, trust_remote_code: bool) -> nn.Module:
        """Any encoder or decoder in float32, with a head over the data's classes."""
        torch.manual_seed(context.recipe.seed)  # for the weights of a new head
        padding = padding_id(context.tokenizer)
        return load_classifier(
            source, context.classes, padding, trust_remote_code=trust_remote_code
        )

    def load_teacher(self, context: TaskContext) -> nn.Module:
        """The fine-tuned classifier, in float32."""
        return self._load_teacher(context, torch.float32)

    def _load_teacher(self, context: TaskContext, dtype: torch.dtype) -> nn.Module:
        model = load_model(
            context.teacher.model,
            auto=CLASSIFIER,
            dtype=dtype,
            trust_remote_code=context.teacher.trust_remote_code,
        )
        set_padding_id(model, padding_id(context.tokenizer))
        return model

    def fresh_student(self, context: TaskContext) -> nn.Module:
        """A classifier with random weights, by the recipe, for the data's classes."""
        config = context.recipe.student.from_
        assert isinstance(config, dict)
        labels = {
            "id2label": dict(enumerate(context.classes)),
            "label2id": {name: i for i, name in enumerate(context.classes)},
        }
        wanted = {**config, **labels}
        model = fresh_model(wanted, context.teacher_config, context.recipe.seed, auto=CLASSIFIER)
        set_padding_id(model, padding_id(context.tokenizer))
        return model

    def removal_order(
        self, context: TaskContext, model: nn.Module, count: int, tokens: int
    ) -> list[int]:
        """Rank blocks by the KL over the classes that removing them causes."""
        texts = calibration_texts(context.training_examples(), tokens, model)
        return order_by_change(model, texts, count, class_logprobs, kl, "KL to the teacher")

    def keep_by_influence(
        self, context: TaskContext, model: nn.Module, keep: int, tokens: int
    ) -> list[int]:
        """Keep the blocks whose output has the lowest cosine with their input."""
        return keep_by_influence(
            model, calibration_texts(context.training_examples(), tokens, model), keep
        )

    def runner(self, context: TaskContext) -> TextRunner:
        """The classifier with its head."""
        model = self._load_teacher(context, teacher_dtype(context.teacher))
        return self.runner_of(context, model.requires_grad_(False), context.recipe.cache)

    def runner_of(self, context: TaskContext, model: nn.Module, config: CacheConfig) -> TextRunner:
        """The same of a model that is loaded already."""
        return TextRunner(model, config)

    def cached_tokens(self, context: TaskContext, examples: Examples) -> np.ndarray:
        """All tokens where layers are compared; else one, for the text's class."""
        return cached_text_tokens(context, examples)

    def request(self, context: TaskContext, example: Example) -> Request:
        """The text's ids, and the token types of a pair."""
        return text_request(context, example)

    def signal_identity(self, context: TaskContext) -> dict[str, Any]:
        """Return no settings: signals depend on the teacher's weights alone."""
        return {}

    def write_extra_files(self, context: TaskContext, folder: Path) -> None:
        """Write no files: the checkpoint is complete."""

    def model_outputs(self, context: TaskContext) -> ClassReadout:
        """Logits over the classes."""
        return ClassReadout()
