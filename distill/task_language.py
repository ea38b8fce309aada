"""Task `causal-lm`: every counted token is predicted from those before it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from attar.anatomy import head_of, num_layers, run_body
from attar.heads import CAUSAL
from attar.loading import load_causal_lm
from distill.batches import OF_TOKENS, Batching
from distill.calibration import calibration_rows
from distill.data import Example, Examples, Reader
from distill.readouts import Readout
from distill.task import TASKS, used_by_texts_alone
from students.build import LayersConfig, choose_blocks, fresh_model
from students.stream import ROWS
from students.surgery.yardstick import Reading, Yardstick
from teachers.codecs import CLASS_CODECS
from teachers.load import load_teacher
from teachers.runner import Request, TeacherRunner

if TYPE_CHECKING:
    from distill.recipe import Recipe
    from distill.run import Run

log = logging.getLogger(__name__)


@TASKS.add("causal-lm")
class CausalLM:
    """Next tokens of texts and conversations."""

    auto: ClassVar[str] = CAUSAL
    batching: ClassVar[Batching] = OF_TOKENS
    packs: ClassVar[bool] = True

    def check_recipe(self, recipe: Recipe) -> None:
        """Keys of labelled texts have no effect here."""
        used_by_texts_alone(recipe.data, recipe.task)
        if recipe.cache.codec.name in CLASS_CODECS:
            raise ValueError(
                "`cache.codec: classes` holds the classes of texts; for the next token use `topk`, "
                "`hybrid`, or `hidden`"
            )

    def check(self, run: Run) -> None:
        """Nothing that is not checked for every task."""

    def reader(self, run: Run) -> Reader | None:
        """Texts and conversations: `prepare`'s own."""
        return None

    def load(self, run: Run, source: str, trust_remote_code: bool) -> nn.Module:
        """Any causal language model."""
        return load_causal_lm(source, dtype=torch.float32, trust_remote_code=trust_remote_code)

    def teacher(self, run: Run) -> nn.Module:
        """As it is."""
        return self.load(run, run.teacher.model, run.teacher.trust_remote_code)

    def fresh(self, run: Run) -> nn.Module:
        """Of the recipe's configuration."""
        config = run.recipe.student.from_
        assert isinstance(config, dict)
        return fresh_model(config, run.teacher_config, run.recipe.seed)

    def choose_blocks(self, run: Run, teacher: nn.Module, layers: LayersConfig) -> list[int]:
        """By the loss on the next token."""
        calibration = calibration_rows(run.data()[0], layers.calibration_tokens)

        def on_removal(block: int, loss: float) -> None:
            log.info("build: block %d removed, calibration loss %.3f nats a token", block, loss)

        return choose_blocks(teacher, layers, calibration, on_removal)

    def removal_order(self, run: Run, teacher: nn.Module, count: int) -> list[int]:
        """Greedily by the loss on the next token."""
        order: list[int] = []

        def on_removal(block: int, loss: float) -> None:
            order.append(block)
            log.info("build: block %d removed, calibration loss %.3f nats a token", block, loss)

        layers = LayersConfig(keep=num_layers(teacher) - count)
        calibration_BT = calibration_rows(run.data()[0], layers.calibration_tokens)
        choose_blocks(teacher, layers, calibration_BT, on_removal)
        return order

    def yardstick(self, run: Run, teacher: nn.Module, tokens: int, heals: bool) -> Yardstick:
        """On the distribution of every next token."""
        device = next(teacher.parameters()).device
        rows_BT = calibration_rows(run.data()[0], (1 + heals) * tokens, last=True).to(device)
        batches = rows_BT.split(ROWS)
        held = max(1, len(batches) // 2) if heals else len(batches)

        def states(model: Any, ids_BT: Tensor) -> Tensor:
            return run_body(model, {"input_ids": ids_BT, "attention_mask": None}).flatten(0, 1)

        reading = Reading(states, lambda model: head_of(model, run.vocabulary).logits)
        return Yardstick(teacher, reading, batches[:held], batches[held:])

    def runner(self, run: Run) -> TeacherRunner:
        """The teacher's body and its head over the tokenizer's ids."""
        return TeacherRunner(load_teacher(run.teacher), run.vocabulary, run.recipe.cache)

    def kept(self, run: Run, examples: Examples) -> np.ndarray:
        """The counted ones."""
        return examples.counts

    def request(self, run: Run, example: Example) -> Request:
        """Its counted positions."""
        return Request(example.key, example.input_ids, example.counted)

    def readout(self) -> Readout | None:
        """The learner's own."""
        return None
