"""The memory of a run's trainings, and of specialising by other methods and optimisers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from attar.device import default_device
from attar.models.loading import resolve_precision
from distill.data.config import DataConfig
from distill.objective.chunked_head import tokens_per_chunk
from distill.objective.losses import LOSSES
from distill.objective.terms import source_of
from distill.planning.memory import (
    Footprint,
    Forward,
    Traced,
    footprint,
    student_skeleton,
    trace_memory,
)
from distill.recipe.specialize import without_start
from distill.training.config import LoopConfig
from students.tuning.method import METHODS
from students.tuning.trainable import Trainable, choose_trainable

ALTERNATIVE_METHODS = ("full", "lora", "qlora")
ALTERNATIVE_OPTIMIZERS = ("adamw", "adamw_8bit")


@dataclass(frozen=True)
class Trainee:
    """A model that predicts the next token, as far as its training's memory depends on it.

    config: its `PretrainedConfig`. dense_cache: whether the cache gives the teacher's full
    distribution. seed: draws what a method adds. rows: that one example takes in a micro-batch, 2
    of a pair of answers.
    """

    config: Any
    depth: int
    vocabulary: int
    dense_cache: bool
    seed: int
    rows: int = 1

    def memory(self, loop: LoopConfig, data: DataConfig, trainable: Trainable) -> Footprint:
        """What training all or some of its weights takes, without a teacher beside it."""

        def choose(model: Any) -> Any:
            choose_trainable(model, trainable)
            return model

        return self._footprint(loop, data, self._trace(choose, self._forward(loop, data)))

    def memory_with_method(self, loop: Any, data: DataConfig) -> Footprint:
        """What specialising it takes by the section's method, without a teacher beside it."""
        traced = self._with_method(loop, self._forward(loop, data))
        return self._footprint(loop, data, traced)

    def _trace(self, attach: Callable[[Any], nn.Module], forward: Forward) -> Traced:
        return trace_memory(student_skeleton(self.config, self.depth, attach), forward)

    def _with_method(self, method: Any, forward: Forward) -> Traced:
        plain = without_start(method)
        return self._trace(lambda model: plain.attach(model, self.seed), forward)

    def _footprint(self, loop: LoopConfig, data: DataConfig, traced: Traced) -> Footprint:
        chunk = loop.chunk or tokens_per_chunk(self.vocabulary, default_device())
        terms = [t for t in loop.objective if LOSSES[t.loss].reads == "distribution"]
        return footprint(
            traced,
            optimizer=loop.optimizer,
            checkpointing=loop.gradient_checkpointing,
            accumulates=loop.accumulate > 1,
            chunk=min(chunk, self.rows * loop.batch_size * data.max_length),
            dense=any(
                self.dense_cache or source_of(term, loop.source) == "online" for term in terms
            ),
        )

    def _forward(self, loop: LoopConfig, data: DataConfig, base: Any = None) -> Forward:
        """A micro-batch of a section; a quantised base has other weights in bfloat16."""
        base = base or getattr(loop, "base", "none")
        quantized = base != "none"
        return Forward(
            rows=self.rows * loop.batch_size,
            tokens=data.max_length,
            products=torch.bfloat16 if quantized else resolve_precision(loop.precision),
            weights=torch.bfloat16 if quantized else torch.float32,
            base=base,
        )

    def alternatives(self, loop: LoopConfig, own: Any, data: DataConfig) -> list[Alternative]:
        """Every method with every optimiser, with and without gradient checkpointing.

        loop: batch, chunk and objective of all. own: the recipe's section on specialising, which
        comes first, or None.
        """
        traced: dict[str, Traced] = {}
        found: list[Alternative] = []

        def add(method: Any, optimizer: str, checkpointing: bool) -> None:
            if method.method not in traced:
                forward = self._forward(loop, data, method.base)
                traced[method.method] = self._with_method(method, forward)
            changes = {"optimizer": optimizer, "gradient_checkpointing": checkpointing}
            changed, student = loop.model_copy(update=changes), traced[method.method]
            parts = self._footprint(changed, data, student)
            found.append(
                Alternative(method.method, optimizer, checkpointing, sum(student.learning), parts)
            )

        if own is not None:
            add(own, own.optimizer, own.gradient_checkpointing)
        first = [(one.method, one.optimizer, one.checkpointing) for one in found]
        for name in ALTERNATIVE_METHODS:
            method = own if own is not None and own.method == name else METHODS[name]()
            for optimizer in ALTERNATIVE_OPTIMIZERS:
                for checkpointing in (False, True):
                    if (name, optimizer, checkpointing) not in first:
                        add(method, optimizer, checkpointing)
        return found


@dataclass(frozen=True)
class Alternative:
    """One way to specialise, how many numbers it trains, and the memory that it takes."""

    method: str
    optimizer: str
    checkpointing: bool
    learning: int
    parts: Footprint
