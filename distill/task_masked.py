"""Task `masked-lm`: masked tokens of plain texts; encoders that are good for any later task."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from attar.anatomy import head_of, run_body
from attar.errors import RecipeError
from attar.heads import MASKED, auto_class_of
from attar.masked import check_head, load_masked_lm
from distill.account import Account
from distill.batches import OF_MASKED, Batch, Batching, collate_masked
from distill.calibration import parted
from distill.data import IGNORE, DataConfig, Example, Examples
from distill.gauge import Gauge
from distill.masked_gauge import GAUGE
from distill.masked_report import ACCOUNT
from distill.masked_texts import MaskedTexts, check_masks
from distill.readouts import Readout
from distill.task import TASKS, refuse_keys
from distill.text_tasks import (
    check_artifacts,
    chosen_texts,
    order_by_change,
    refuse_next_tokens,
    rows_of,
)
from students.build import fresh_model
from students.depth import keep_by_influence
from students.surgery.yardstick import Read, Yardstick
from students.text_depth import kl
from teachers.codecs import TEXT_CODECS
from teachers.load import load_teacher
from teachers.runner import Request, TeacherRunner

if TYPE_CHECKING:
    from distill.evaluate import EvaluateConfig
    from distill.recipe import Recipe
    from distill.run import Run

log = logging.getLogger(__name__)
NAME = "masked-lm"
NOT_OF_MASKS = ["pair_column", "label_column", "label_names", "pooling", "normalize"]


@TASKS.add(NAME)
class MaskedLM:
    """Masked tokens, by any model of transformers with a head over its vocabulary."""

    auto: ClassVar[str] = MASKED
    batching: ClassVar[Batching] = OF_MASKED
    packs: ClassVar[bool] = False
    defaults: ClassVar[dict[str, dict[str, Any]]] = {}
    gauge: ClassVar[Gauge] = GAUGE
    account: ClassVar[Account] = ACCOUNT

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

    def check(self, run: Run) -> None:
        """The teacher finds masked tokens, and its tokenizer has a mask."""
        check_masks(run.tokenizer)
        config = run.teacher_config
        if auto_class_of(config) != MASKED and run.recipe.teacher.adapt is None:
            raise RecipeError(
                f"`teacher.model` ({run.recipe.teacher.model}) was saved without a head over "
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

    def identity(self, run: Run) -> dict[str, Any]:
        """Nothing: masks are in the examples."""
        return {}

    def load(self, run: Run, source: str, trust_remote_code: bool) -> nn.Module:
        """Any encoder; a head that it lacks is drawn anew."""
        torch.manual_seed(run.recipe.seed)
        return load_masked_lm(source, trust_remote_code=trust_remote_code)

    def teacher(self, run: Run) -> nn.Module:
        """As it is."""
        return self.load(run, run.teacher.model, run.teacher.trust_remote_code)

    def fresh(self, run: Run) -> nn.Module:
        """Of the recipe's configuration."""
        config = run.recipe.student.from_
        assert isinstance(config, dict)
        model = fresh_model(config, run.teacher_config, run.recipe.seed, auto=MASKED)
        check_head(model)
        return model

    def finish(self, run: Run, folder: Path) -> None:
        """Nothing."""

    def removal_order(self, run: Run, model: nn.Module, count: int, tokens: int) -> list[int]:
        """By KL at masked positions."""
        batches = _calibration(run, model, tokens)
        return order_by_change(model, batches, count, self._read(run), kl, "KL to the teacher")

    def keep_by_influence(self, run: Run, model: nn.Module, keep: int, tokens: int) -> list[int]:
        """By the cosine of what enters a block and what leaves it."""
        batches = _calibration(run, model, tokens)
        return keep_by_influence(model, [batch.model_inputs() for batch in batches], keep)

    def yardstick(self, run: Run, teacher: nn.Module, tokens: int, heals: bool) -> Yardstick:
        """KL at masked positions."""
        chosen = chosen_texts(run.data()[0], (1 + heals) * tokens, last=True)
        held, healing = (_batches(run, part, teacher) for part in parted(chosen, heals))

        def apart(_student: Any, theirs_NV: Tensor, ours_NV: Tensor) -> Tensor:
            return kl(theirs_NV, ours_NV).sum()

        return Yardstick(teacher, self._read(run), apart, held, healing)

    def _read(self, run: Run) -> Read:
        def read(model: Any, batch: Batch) -> Tensor:
            hidden_NH = run_body(model, batch.model_inputs())[batch.labels_BT != IGNORE]
            return head_of(model, run.vocabulary).logits(hidden_NH).log_softmax(-1)

        return read

    def runner(self, run: Run) -> TeacherRunner:
        """The teacher up to its output map, and the map over the tokenizer's ids."""
        return TeacherRunner(load_teacher(run.teacher), run.vocabulary, run.recipe.cache)

    def kept(self, run: Run, examples: Examples) -> np.ndarray:
        """The masked ones."""
        return examples.counts

    def request(self, run: Run, example: Example) -> Request:
        """Its masked positions."""
        return Request(example.key, example.input_ids, example.counted)

    def readout(self, run: Run) -> Readout | None:
        """The learner's own: masked tokens are read as next tokens are."""
        return None


def _calibration(run: Run, model: nn.Module, tokens: int) -> list[Batch]:
    """Batches of training texts from all over the data that hold so many tokens together."""
    return _batches(run, chosen_texts(run.data()[0], tokens), model)


def _batches(run: Run, chosen: np.ndarray, model: nn.Module) -> list[Batch]:
    """Chosen training texts, where the model is."""
    device = next(model.parameters()).device
    return [collate_masked(rows).to(device) for rows in rows_of(run.data()[0], chosen, 16)]
