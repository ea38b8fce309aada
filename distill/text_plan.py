"""`distill plan` for tasks on texts: texts, disk, memory and time of each stage.

As in `plan.py`, time is multiply-adds over what a matrix product reaches here; a text's length is
that of a sample of rows, or of the prepared ones. Memory is weights, what the optimiser keeps, and
about a dozen widths of activations a token and block.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from attar.loading import resolve_precision
from distill.data import DataConfig, sources_of
from distill.inputs import is_done
from distill.loop import LoopConfig
from distill.plan import (
    EFFICIENCY,
    SAMPLE_ROWS,
    Estimate,
    estimate,
    flops_per_second,
    skeleton_to_count,
)
from distill.run import Run
from distill.sources import load_rows

ACTIVATIONS = 12  # widths of float32 kept a token and block
PROCESS_SECONDS = 20  # to start one, load a model and leave


@dataclass(frozen=True)
class Body:
    """What time and memory depend on: parameters beside the embeddings, all, width, depth."""

    parameters: int
    total: int
    width: int
    depth: int

    def forward(self, tokens: float) -> float:
        """Floating-point operations."""
        return 2.0 * tokens * self.parameters


def estimates(run: Run) -> list[Estimate]:
    """Every stage of the recipe, in order, whatever its task."""
    return estimate(run) if run.task.packs else _of_texts(run)


def body_of_config(config: Any, depth: int, auto: str) -> Body:
    """Of a model of an auto class with so many blocks, from its configuration alone."""
    model = skeleton_to_count(config, auto)
    text, total = config.get_text_config(), sum(p.numel() for p in model.parameters())
    table = sum(p.numel() for n, p in model.named_parameters() if "embedding" in n)
    lost = (total - table) * (text.num_hidden_layers - depth) // text.num_hidden_layers
    return Body(total - table - lost, total - lost, text.hidden_size, depth)


def count_texts(run: Run) -> tuple[int, int, float, str]:
    """(training texts, held-out texts, tokens a text, how they are known)."""
    if (run.folder / "data" / "stats.json").exists():
        train, held_out = run.data()
        return len(train), len(held_out), float(np.mean(train.lengths)), "counted"
    config = run.recipe.data
    sources = sources_of(config)
    tables = [load_rows(source, config.split, config.name) for source in sources]
    reader = run.task.reader(run.teacher_config, adapted=True, seed=run.recipe.seed)
    assert reader is not None, "next tokens are planned by plan.py"
    readings = reader.open(run.tokenizer, config, tables, sources)
    lengths = [
        len(ids)
        for table, read in zip(tables, readings, strict=True)
        for i in range(min(len(table), SAMPLE_ROWS))
        for ids, *_ in read(table[i], Counter())
    ]
    rows = sum(len(table) for table in tables)
    held = rows // 10 if isinstance(config.held_out, str) else int(rows * config.held_out)
    train_texts = rows if isinstance(config.held_out, str) else rows - held
    known = f"estimated from {len(lengths)} rows"
    limits = config.train_tokens or train_texts, config.held_out_tokens or held
    return (
        min(train_texts, limits[0]),
        min(held, limits[1]),
        float(np.mean(lengths or [1])),
        known,
    )


def _passed(config: LoopConfig, texts: int) -> int:
    """Texts one training passes over."""
    total = texts * config.epochs
    if config.max_steps is None:
        return total
    return min(total, config.max_steps * config.batch_size * config.accumulate)


def _training_bytes(body: Body, config: LoopConfig, data: DataConfig) -> float:
    tokens = config.batch_size * data.max_length
    return 16.0 * body.total + 4.0 * ACTIVATIONS * body.width * body.depth * tokens


def _of_texts(run: Run) -> list[Estimate]:
    recipe = run.recipe
    teacher = body_of_config(run.teacher_config, run.teacher_depth, run.task.auto)
    student = body_of_config(run.student_config, run.student_depth, run.task.auto)
    texts, held, length, known = count_texts(run)
    speed = EFFICIENCY * flops_per_second(resolve_precision(recipe.teacher.dtype))
    train_speed = EFFICIENCY * flops_per_second(resolve_precision(recipe.train.precision))
    lines: list[Estimate] = []

    def add(
        stage: str, number: float, disk: float, memory: float, seconds: float, note: str
    ) -> None:
        note = f"done; {note}" if is_done(run, stage) else note
        lines.append(Estimate(stage, int(number), disk, memory, seconds, note))

    if (adapt := recipe.teacher.adapt) is not None:
        number = _passed(adapt, texts)
        memory = _training_bytes(teacher, adapt, recipe.data)
        seconds = 3 * teacher.forward(number * length) / train_speed
        add("adapt-teacher", number, teacher.total * 16.0, memory, seconds, "texts, fine-tuned")
    if run.reads_cache:
        parts = len(recipe.cache.hidden.parts)
        a_token = parts * recipe.cache.hidden.codec.bytes_per_token(teacher.width)
        number, seconds = texts + held, teacher.forward((texts + held) * length) / speed
        about = f"{a_token * length:.0f} bytes a text for its layers; texts {known}"
        add("cache", number, a_token * length * number, teacher.total * 4.0, seconds, about)
    note = f"{student.total / 1e6:.1f} M parameters, {student.depth} blocks"
    add("build", 0, student.total * 4.0, teacher.total * 4.0 + student.total * 8.0, 5.0, note)
    arms, number = 1 + len(recipe.train.arms), _passed(recipe.train, texts)
    seconds = arms * 3 * student.forward(number * length) / train_speed
    memory = _training_bytes(student, recipe.train, recipe.data)
    states = student.total * 16.0 * arms
    add("train", number * arms, states, memory, seconds, f"{arms} arms on the same texts")
    artifacts = run.artifacts
    disk, names = 2.0 * student.total * len(artifacts), ", ".join(artifacts)
    add("export", 0, disk, student.total * 6.0, 5.0 * len(artifacts), names)
    models, number = 2 + arms + len(artifacts), min(held, recipe.evaluate.tokens)
    seconds = models * (PROCESS_SECONDS + 4 * student.forward(number * length) / speed)
    note = f"{models} models, a process each"
    add("evaluate", number * models, 0, teacher.total * 4.0, seconds, note)
    return lines
