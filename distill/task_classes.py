"""Task `sequence-classification`: one class a text, or a pair of texts; encoders and decoders."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

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
from distill.text_tasks import (
    calibration_texts,
    check_text_task,
    order_by_change,
    text_request,
    texts_kept,
    yardstick_texts,
)
from students.build import fresh_model
from students.depth import keep_by_influence
from students.surgery.yardstick import Yardstick
from students.text_depth import class_logprobs, kl
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

    def removal_order(self, run: Run, model: nn.Module, count: int, tokens: int) -> list[int]:
        """By KL of the classes."""
        texts = calibration_texts(run.data()[0], tokens, model)
        return order_by_change(model, texts, count, class_logprobs, kl, "KL to the teacher")

    def keep_by_influence(self, run: Run, model: nn.Module, keep: int, tokens: int) -> list[int]:
        """By the cosine of what enters a block and what leaves it."""
        return keep_by_influence(model, calibration_texts(run.data()[0], tokens, model), keep)

    def yardstick(self, run: Run, teacher: nn.Module, tokens: int, heals: bool) -> Yardstick:
        """KL of the classes."""
        texts = yardstick_texts(run.data()[0], tokens, heals, teacher)

        def apart(_student: Any, theirs_BC: Tensor, ours_BC: Tensor) -> Tensor:
            return kl(theirs_BC, ours_BC).sum()

        return Yardstick(teacher, class_logprobs, apart, *texts)

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
