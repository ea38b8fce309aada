"""Task `sequence-classification`: one class a text, or a pair of texts; encoders and decoders."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from attar.anatomy import num_layers
from attar.errors import RecipeError
from attar.heads import (
    CLASSIFIER,
    class_names,
    give_padding,
    is_classifier,
    load_classifier,
)
from attar.loading import load_model, resolve_precision
from distill.account import Account
from distill.batches import OF_TEXTS, Batching
from distill.class_metrics import GAUGE
from distill.class_report import ACCOUNT
from distill.data import DataConfig, Example, Examples
from distill.gauge import Gauge
from distill.labelled import LabelledTexts
from distill.readouts import ClassReadout
from distill.task import TASKS, refuse_keys
from distill.text_tasks import calibration_texts, check_text_task, text_request, texts_kept
from students.build import LayersConfig, fresh_model
from students.depth import keep_evenly
from students.text_depth import keep_by_classes, keep_by_cosine
from teachers.runner import Request
from teachers.text_runner import TextRunner

if TYPE_CHECKING:
    from distill.evaluate import EvaluateConfig
    from distill.recipe import Recipe
    from distill.run import Run

log = logging.getLogger(__name__)
NAME = "sequence-classification"


@TASKS.add(NAME)
class SequenceClassification:
    """Classes of texts, by any model of transformers with a head over them."""

    auto: ClassVar[str] = CLASSIFIER
    batching: ClassVar[Batching] = OF_TEXTS
    packs: ClassVar[bool] = False
    defaults: ClassVar[dict[str, dict[str, Any]]] = {"cache": {"codec": "classes"}}
    gauge: ClassVar[Gauge] = GAUGE
    account: ClassVar[Account] = ACCOUNT

    def check_recipe(self, recipe: Recipe) -> None:
        """What only language models have is refused, in a sentence each."""
        kept = "a text's few classes are kept in full by `classes`"
        check_text_task(recipe, NAME, "classes", kept)
        refuse_keys(recipe.data, "data", ["masking", "pooling", "normalize"], NAME)
        refuse_keys(recipe.evaluate, "evaluate", ["pairs"], NAME)

    def check(self, run: Run) -> None:
        """The teacher classifies, or is taught to."""
        if run.recipe.teacher.adapt is None and not is_classifier(run.teacher_config):
            raise RecipeError(
                f"`teacher.model` ({run.recipe.teacher.model}) has no head over classes; fine-tune "
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

    def load(self, run: Run, source: str, trust_remote_code: bool) -> nn.Module:
        """Any encoder or decoder, with a head over the data's classes."""
        torch.manual_seed(run.recipe.seed)  # a new head is drawn from it
        padding = run.tokenizer.pad_token_id
        return load_classifier(source, run.classes, padding, trust_remote_code=trust_remote_code)

    def teacher(self, run: Run) -> nn.Module:
        """The fine-tuned classifier."""
        return self._teacher(run, torch.float32)

    def _teacher(self, run: Run, dtype: torch.dtype) -> nn.Module:
        model = load_model(
            run.teacher.model,
            auto=CLASSIFIER,
            dtype=dtype,
            trust_remote_code=run.teacher.trust_remote_code,
        )
        give_padding(model, run.tokenizer.pad_token_id)
        return model

    def fresh(self, run: Run) -> nn.Module:
        """Of the recipe's configuration, and the data's classes."""
        config = run.recipe.student.from_
        assert isinstance(config, dict)
        labels = {
            "id2label": dict(enumerate(run.classes)),
            "label2id": {name: i for i, name in enumerate(run.classes)},
        }
        wanted = {**config, **labels}
        model = fresh_model(wanted, run.teacher_config, run.recipe.seed, auto=CLASSIFIER)
        give_padding(model, run.tokenizer.pad_token_id)
        return model

    def choose_blocks(self, run: Run, teacher: nn.Module, layers: LayersConfig) -> list[int]:
        """By what a block's absence does to the classes of training texts."""
        depth, keep = num_layers(teacher), layers.keep
        if isinstance(keep, list):
            return keep
        if layers.by == "even":
            return keep_evenly(depth, keep)
        texts = calibration_texts(run.data()[0], layers.calibration_tokens, teacher)
        if layers.by == "influence":
            return keep_by_cosine(teacher, texts, keep)

        def on_removal(block: int, loss: float) -> None:
            log.info("build: block %d removed, KL to the teacher %.4f nats a text", block, loss)

        return keep_by_classes(teacher, texts, keep, on_removal)

    def runner(self, run: Run) -> TextRunner:
        """The whole classifier."""
        model = self._teacher(run, resolve_precision(run.teacher.dtype))
        return TextRunner(model.requires_grad_(False), run.recipe.cache)

    def kept(self, run: Run, examples: Examples) -> np.ndarray:
        """All, where layers are compared; else one stands for the text."""
        return texts_kept(run, examples)

    def request(self, run: Run, example: Example) -> Request:
        """Its ids, and token types of a pair."""
        return text_request(run, example)

    def identity(self, run: Run) -> dict[str, Any]:
        """Nothing."""
        return {}

    def finish(self, run: Run, folder: Path) -> None:
        """Nothing."""

    def readout(self, run: Run) -> ClassReadout:
        """Logits of the classes."""
        return ClassReadout()
