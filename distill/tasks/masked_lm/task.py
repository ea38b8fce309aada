"""Task `masked-lm`: masked tokens of plain texts; encoders that are good for any later task."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from attar.errors import RecipeError
from attar.models.masked_lm import check_head, load_masked_lm
from attar.models.structure import head_of, run_body
from attar.models.task_heads import MASKED, auto_class_of
from distill.data.batching import MASKED_BATCHING, Batch, Batching, collate_masked
from distill.data.calibration import split_for_healing
from distill.data.config import DataConfig
from distill.data.examples import Example, Examples
from distill.data.masked_texts import MaskedTexts, check_masks
from distill.data.tokenize import IGNORE
from distill.evaluation.job import EvaluateConfig, TaskMetrics
from distill.objective.model_outputs import Readout
from distill.recipe.schema import Recipe
from distill.report.task_report import TaskReport
from distill.tasks.masked_lm.metrics import METRICS
from distill.tasks.masked_lm.report import REPORT
from distill.tasks.task import TASKS, TaskContext, refuse_keys
from distill.tasks.whole_texts import (
    check_artifacts,
    chosen_texts,
    order_by_change,
    refuse_next_tokens,
    rows_of,
)
from students.fresh import fresh_model
from students.pruning.depth import keep_by_influence
from students.pruning.divergence import PruningObjective, Read
from students.pruning.output_change import kl
from teachers.codecs.codec import TEXT_CODECS
from teachers.load import load_teacher
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request

log = logging.getLogger(__name__)
NAME = "masked-lm"
NOT_OF_MASKS = ["pair_column", "label_column", "label_names", "pooling", "normalize"]


@TASKS.add(NAME)
class MaskedLM:
    """Masked tokens, by any model of transformers with a head over its vocabulary."""

    auto: ClassVar[str] = MASKED
    batching: ClassVar[Batching] = MASKED_BATCHING
    packs: ClassVar[bool] = False
    defaults: ClassVar[dict[str, dict[str, Any]]] = {}
    metrics: ClassVar[TaskMetrics] = METRICS
    report: ClassVar[TaskReport] = REPORT

    def check_recipe(self, recipe: Recipe) -> None:
        """What only models have that predict the next token is refused, in a sentence each."""
        refuse_next_tokens(recipe, NAME)
        refuse_keys(recipe.data, "data", NOT_OF_MASKS, NAME)
        refuse_keys(recipe.evaluate, "evaluate", ["pairs"], NAME)
        if recipe.specialize is not None:
            raise ValueError(
                f"`specialize` is for models that predict the next token; with `task: {NAME}` a "
                "student learns in `train` alone: leave it out"
            )
        if recipe.cache.codec.name in TEXT_CODECS:
            raise ValueError(
                f"`cache.codec: {recipe.cache.codec.name}` holds one signal a text; for masked "
                "tokens use `topk`, `hybrid`, or `hidden`"
            )
        check_artifacts(recipe, NAME)

    def check(self, context: TaskContext) -> None:
        """The teacher finds masked tokens, and its tokenizer has a mask."""
        check_masks(context.tokenizer)
        config = context.teacher_config
        if auto_class_of(config) != MASKED and context.recipe.teacher.adapt is None:
            raise RecipeError(
                f"`teacher.model` ({context.recipe.teacher.model}) was saved without a head over "
                f"masked tokens ({', '.join(config.architectures or ['no architecture named'])}); "
                "train one first with `teacher.adapt: {}`, or name a checkpoint ...ForMaskedLM."
            )

    def reader(self, config: Any, adapted: bool, seed: int) -> MaskedTexts:
        """Texts with masks drawn from the seed."""
        return MaskedTexts(seed)

    def about(
        self, tokenizer: Any, data: DataConfig, evaluate: EvaluateConfig, model: str, folder: Path
    ) -> dict[str, Any]:
        """Nothing."""
        return {}

    def identity(self, context: TaskContext) -> dict[str, Any]:
        """Nothing: masks are in the examples."""
        return {}

    def load(self, context: TaskContext, source: str, trust_remote_code: bool) -> nn.Module:
        """Any encoder; a head that it lacks is drawn anew."""
        torch.manual_seed(context.recipe.seed)
        return load_masked_lm(source, trust_remote_code=trust_remote_code)

    def teacher(self, context: TaskContext) -> nn.Module:
        """As it is."""
        return self.load(context, context.teacher.model, context.teacher.trust_remote_code)

    def fresh(self, context: TaskContext) -> nn.Module:
        """Of the recipe's configuration."""
        config = context.recipe.student.from_
        assert isinstance(config, dict)
        model = fresh_model(config, context.teacher_config, context.recipe.seed, auto=MASKED)
        check_head(model)
        return model

    def finish(self, context: TaskContext, folder: Path) -> None:
        """Nothing."""

    def removal_order(
        self, context: TaskContext, model: nn.Module, count: int, tokens: int
    ) -> list[int]:
        """By KL at masked positions."""
        batches = _calibration(context, model, tokens)
        return order_by_change(model, batches, count, self._read(context), kl, "KL to the teacher")

    def keep_by_influence(
        self, context: TaskContext, model: nn.Module, keep: int, tokens: int
    ) -> list[int]:
        """By the cosine of what enters a block and what leaves it."""
        batches = _calibration(context, model, tokens)
        return keep_by_influence(model, [batch.model_inputs() for batch in batches], keep)

    def pruning_objective(
        self, context: TaskContext, teacher: nn.Module, tokens: int, heals: bool
    ) -> PruningObjective:
        """KL at masked positions."""
        chosen = chosen_texts(context.training_examples(), (1 + heals) * tokens, last=True)
        held, healing = (
            _batches(context, part, teacher) for part in split_for_healing(chosen, heals)
        )

        def apart(_student: Any, theirs_NV: Tensor, ours_NV: Tensor) -> Tensor:
            return kl(theirs_NV, ours_NV).sum()

        return PruningObjective(teacher, self._read(context), apart, held, healing)

    def _read(self, context: TaskContext) -> Read:
        def read(model: Any, batch: Batch) -> Tensor:
            hidden_NH = run_body(model, batch.model_inputs())[batch.labels_BT != IGNORE]
            return head_of(model, context.vocabulary).logits(hidden_NH).log_softmax(-1)

        return read

    def runner(self, context: TaskContext) -> TeacherRunner:
        """The teacher up to its output map, and the map over the tokenizer's ids."""
        return TeacherRunner(
            load_teacher(context.teacher), context.vocabulary, context.recipe.cache
        )

    def kept(self, context: TaskContext, examples: Examples) -> np.ndarray:
        """The masked ones."""
        return examples.counts

    def request(self, context: TaskContext, example: Example) -> Request:
        """Its masked positions."""
        return Request(example.key, example.input_ids, example.counted)

    def readout(self, context: TaskContext) -> Readout | None:
        """The learner's own: masked tokens are read as next tokens are."""
        return None


def _calibration(context: TaskContext, model: nn.Module, tokens: int) -> list[Batch]:
    """Batches of training texts from all over the data that hold so many tokens together."""
    return _batches(context, chosen_texts(context.training_examples(), tokens), model)


def _batches(context: TaskContext, chosen: np.ndarray, model: nn.Module) -> list[Batch]:
    """Chosen training texts, where the model is."""
    device = next(model.parameters()).device
    return [
        collate_masked(rows).to(device) for rows in rows_of(context.training_examples(), chosen, 16)
    ]
