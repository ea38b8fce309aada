"""Task `sequence-classification`: one class a text, or a pair of texts; encoders and decoders."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from attar.errors import RecipeError
from attar.models.loading import load_model, resolve_precision
from attar.models.task_heads import (
    CLASSIFIER,
    class_names,
    give_padding,
    is_classifier,
    load_classifier,
)
from distill.data.batching import TEXT_BATCHING, Batching
from distill.data.config import DataConfig
from distill.data.examples import Example, Examples
from distill.data.labelled_texts import LabelledTexts
from distill.evaluation.job import EvaluateConfig, TaskMetrics
from distill.objective.model_outputs import ClassReadout
from distill.recipe.schema import Recipe
from distill.report.task_report import TaskReport
from distill.tasks.sequence_classification.metrics import METRICS
from distill.tasks.sequence_classification.report import REPORT
from distill.tasks.task import TASKS, TaskContext, refuse_keys
from distill.tasks.whole_texts import (
    calibration_texts,
    check_text_task,
    order_by_change,
    pruning_texts,
    text_request,
    texts_kept,
)
from students.fresh import fresh_model
from students.pruning.depth import keep_by_influence
from students.pruning.divergence import PruningObjective
from students.pruning.output_change import class_logprobs, kl
from teachers.runners.request import Request
from teachers.runners.whole_text import TextRunner

log = logging.getLogger(__name__)
NAME = "sequence-classification"


@TASKS.add(NAME)
class SequenceClassification:
    """Classes of texts, by any model of transformers with a head over them."""

    auto: ClassVar[str] = CLASSIFIER
    batching: ClassVar[Batching] = TEXT_BATCHING
    packs: ClassVar[bool] = False
    defaults: ClassVar[dict[str, dict[str, Any]]] = {"cache": {"codec": "classes"}}
    metrics: ClassVar[TaskMetrics] = METRICS
    report: ClassVar[TaskReport] = REPORT

    def check_recipe(self, recipe: Recipe) -> None:
        """What only language models have is refused, in a sentence each."""
        kept = "a text's few classes are kept in full by `classes`"
        check_text_task(recipe, NAME, "classes", kept)
        refuse_keys(recipe.data, "data", ["masking", "pooling", "normalize"], NAME)
        refuse_keys(recipe.evaluate, "evaluate", ["pairs"], NAME)

    def check(self, context: TaskContext) -> None:
        """The teacher classifies, or is taught to."""
        if context.recipe.teacher.adapt is None and not is_classifier(context.teacher_config):
            raise RecipeError(
                f"`teacher.model` ({context.recipe.teacher.model}) has no head over classes; fine-tune "
                "it first with `teacher.adapt: {}`, or name a fine-tuned classifier."
            )

    def reader(self, config: Any, adapted: bool, seed: int) -> LabelledTexts:
        """Labelled texts, in the classes of a teacher that knows them already."""
        return LabelledTexts(None if adapted else class_names(config))

    def about(
        self, tokenizer: Any, data: DataConfig, evaluate: EvaluateConfig, model: str, folder: Path
    ) -> dict[str, Any]:
        """Nothing: models say how many classes there are."""
        return {}

    def load(self, context: TaskContext, source: str, trust_remote_code: bool) -> nn.Module:
        """Any encoder or decoder, with a head over the data's classes."""
        torch.manual_seed(context.recipe.seed)  # a new head is drawn from it
        padding = context.tokenizer.pad_token_id
        return load_classifier(
            source, context.classes, padding, trust_remote_code=trust_remote_code
        )

    def teacher(self, context: TaskContext) -> nn.Module:
        """The fine-tuned classifier."""
        return self._teacher(context, torch.float32)

    def _teacher(self, context: TaskContext, dtype: torch.dtype) -> nn.Module:
        model = load_model(
            context.teacher.model,
            auto=CLASSIFIER,
            dtype=dtype,
            trust_remote_code=context.teacher.trust_remote_code,
        )
        give_padding(model, context.tokenizer.pad_token_id)
        return model

    def fresh(self, context: TaskContext) -> nn.Module:
        """Of the recipe's configuration, and the data's classes."""
        config = context.recipe.student.from_
        assert isinstance(config, dict)
        labels = {
            "id2label": dict(enumerate(context.classes)),
            "label2id": {name: i for i, name in enumerate(context.classes)},
        }
        wanted = {**config, **labels}
        model = fresh_model(wanted, context.teacher_config, context.recipe.seed, auto=CLASSIFIER)
        give_padding(model, context.tokenizer.pad_token_id)
        return model

    def removal_order(
        self, context: TaskContext, model: nn.Module, count: int, tokens: int
    ) -> list[int]:
        """By KL of the classes."""
        texts = calibration_texts(context.training_examples(), tokens, model)
        return order_by_change(model, texts, count, class_logprobs, kl, "KL to the teacher")

    def keep_by_influence(
        self, context: TaskContext, model: nn.Module, keep: int, tokens: int
    ) -> list[int]:
        """By the cosine of what enters a block and what leaves it."""
        return keep_by_influence(
            model, calibration_texts(context.training_examples(), tokens, model), keep
        )

    def pruning_objective(
        self, context: TaskContext, teacher: nn.Module, tokens: int, heals: bool
    ) -> PruningObjective:
        """KL of the classes."""
        texts = pruning_texts(context.training_examples(), tokens, heals, teacher)

        def apart(_student: Any, theirs_BC: Tensor, ours_BC: Tensor) -> Tensor:
            return kl(theirs_BC, ours_BC).sum()

        return PruningObjective(teacher, class_logprobs, apart, *texts)

    def runner(self, context: TaskContext) -> TextRunner:
        """The whole classifier."""
        model = self._teacher(context, resolve_precision(context.teacher.dtype))
        return TextRunner(model.requires_grad_(False), context.recipe.cache)

    def kept(self, context: TaskContext, examples: Examples) -> np.ndarray:
        """All, where layers are compared; else one stands for the text."""
        return texts_kept(context, examples)

    def request(self, context: TaskContext, example: Example) -> Request:
        """Its ids, and token types of a pair."""
        return text_request(context, example)

    def identity(self, context: TaskContext) -> dict[str, Any]:
        """Nothing."""
        return {}

    def finish(self, context: TaskContext, folder: Path) -> None:
        """Nothing."""

    def readout(self, context: TaskContext) -> ClassReadout:
        """Logits of the classes."""
        return ClassReadout()
