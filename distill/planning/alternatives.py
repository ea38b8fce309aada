"""The memory of a run's trainings, and what the specialising stage would take by other choices."""

from __future__ import annotations

from typing import Any

import torch

from attar.device import default_device
from attar.models.loading import resolve_precision
from distill.data.config import DataConfig
from distill.objective.chunked_head import tokens_per_chunk
from distill.objective.losses import LOSSES
from distill.objective.terms import source_of
from distill.planning.memory import Footprint, Forward, Traced, footprint, skeleton, trace
from distill.recipe.specialize import without_start
from distill.run.context import Run
from distill.training.config import LoopConfig
from students.tuning.method import METHODS
from students.tuning.trainable import Trainable, choose_trainable

ALTERNATIVES = ("full", "lora", "qlora")
STEPPED_BY = ("adamw", "adamw_8bit")


def adapting_memory(run: Run) -> Footprint:
    """What adapting the teacher takes."""
    config = run.recipe.teacher.adapt
    assert config is not None
    depth = run.teacher_depth
    traced = _whole(run.teacher_config, depth, config.trainable, _forward(config, run.recipe.data))
    return _footprint(run, config, run.recipe.data, traced)


def training_memory(run: Run) -> Footprint:
    """What an arm of the student's training takes, without a teacher that runs in the step."""
    config, data = run.recipe.train, run.recipe.data
    depth = run.student_depth
    traced = _whole(run.student_config, depth, config.trainable, _forward(config, data))
    return _footprint(run, config, data, traced)


def specializing_memory(run: Run) -> Footprint:
    """What the specialising stage takes, without a teacher that runs in the step."""
    config = run.recipe.specialize
    data = config.data or run.recipe.data
    return _footprint(run, config, data, _with_method(run, config, _forward(config, data)))


def choice_lines(run: Run) -> list[tuple[str, str, bool, Traced, Footprint]]:
    """(method, optimizer, gradient checkpointing, what was traced, its parts) of each choice.

    On the specialising stage's data and batch, or the training's where the recipe has no such
    stage; the recipe's own choice first.
    """
    own = run.recipe.specialize
    config: LoopConfig = own or run.recipe.train
    data = (own.data if own is not None else None) or run.recipe.data
    known: dict[str, Traced] = {}
    lines = []

    def add(method: Any, optimizer: str, checkpointing: bool) -> None:
        if method.method not in known:
            forward = _forward(config, data, method.base)
            known[method.method] = _with_method(run, method, forward)
        changes = {"optimizer": optimizer, "gradient_checkpointing": checkpointing}
        traced, chosen = known[method.method], config.model_copy(update=changes)
        parts = _footprint(run, chosen, data, traced)
        lines.append((method.method, optimizer, checkpointing, traced, parts))

    if own is not None:
        add(own, own.optimizer, own.gradient_checkpointing)
    for name in ALTERNATIVES:
        method = own if own is not None and own.method == name else METHODS[name]()
        for optimizer in STEPPED_BY:
            for checkpointing in (False, True):
                if not lines or (name, optimizer, checkpointing) != lines[0][:3]:
                    add(method, optimizer, checkpointing)
    return lines


def _forward(config: LoopConfig, data: DataConfig, base: Any = None) -> Forward:
    """A micro-batch of a section; on a quantised base products and other weights are bfloat16."""
    base = base or getattr(config, "base", "none")
    quantized = base != "none"
    return Forward(
        rows=config.batch_size,
        tokens=data.max_length,
        products=torch.bfloat16 if quantized else resolve_precision(config.precision),
        weights=torch.bfloat16 if quantized else torch.float32,
        base=base,
    )


def _whole(model_config: Any, depth: int, trainable: Trainable, forward: Forward) -> Traced:
    def choose(model: Any) -> Any:
        choose_trainable(model, trainable)
        return model

    return trace(skeleton(model_config, depth, choose), forward)


def _with_method(run: Run, method: Any, forward: Forward) -> Traced:
    """The student with a method attached."""
    plain = without_start(method)
    attached = skeleton(
        run.student_config, run.student_depth, lambda model: plain.attach(model, run.recipe.seed)
    )
    return trace(attached, forward)


def _footprint(run: Run, config: LoopConfig, data: DataConfig, traced: Traced) -> Footprint:
    chunk = config.chunk or tokens_per_chunk(run.vocabulary, default_device())
    whole = run.recipe.cache.codec.name == "final_hidden"
    terms = [t for t in config.objective if LOSSES[t.loss].reads == "distribution"]
    dense = any(whole or source_of(term, config.source) == "online" for term in terms)
    return footprint(
        traced,
        optimizer=config.optimizer,
        checkpointing=config.gradient_checkpointing,
        accumulates=config.accumulate > 1,
        chunk=min(chunk, config.batch_size * data.max_length),
        dense=dense,
    )
