"""`distill plan` for tasks on texts: texts, disk, memory and time of each stage.

As in `plan.py`, time is multiply-adds over what a matrix product reaches here; a text's length is
that of a sample of rows, or of the prepared ones. Memory is weights, what the optimiser keeps, and
about a dozen widths of activations a token and block.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from attar.models.loading import resolve_precision
from attar.models.task_heads import CLASSIFIER
from distill.data.config import DataConfig, sources_of
from distill.data.labelled_texts import LabelledTexts
from distill.data.reader import Reader
from distill.data.sources import load_rows
from distill.data.tokenize import IGNORE
from distill.planning.estimate import (
    EFFICIENCY,
    SAMPLE_ROWS,
    Estimate,
    build_seconds,
    estimate,
    flops_per_second,
)
from distill.planning.memory import skeleton_to_count
from distill.run.context import Run
from distill.stages.status import is_done
from distill.training.config import LoopConfig

ACTIVATIONS = 12  # widths of float32 kept a token and block
PROCESS_SECONDS = 20  # to start one, load a model and leave


@dataclass(frozen=True)
class Body:
    """What time and memory depend on: parameters beside the embeddings, all, width, depth."""

    body: int
    total: int
    width: int
    depth: int

    def forward(self, tokens: float) -> float:
        """Floating-point operations."""
        return 2.0 * tokens * self.body


def estimates(run: Run) -> list[Estimate]:
    """Every stage of the recipe, in order, whatever its task."""
    return estimate(run) if run.task.packs else _of_texts(run)


def body_of_config(config: Any, auto: str) -> Body:
    """Of a model of an auto class, from its configuration alone."""
    model = skeleton_to_count(config, auto)
    text, total = config.get_text_config(), sum(p.numel() for p in model.parameters())
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    looked_up = sum(p.numel() for p in {id(p): p for p in tables}.values())
    return Body(total - looked_up, total, text.hidden_size, text.num_hidden_layers)


@dataclass(frozen=True)
class Texts:
    """Examples of both parts, means of one, and how they are known."""

    train: int
    held_out: int
    length: float  # tokens
    counted: float  # tokens that count: the masked ones, or one of a text
    kept: float  # tokens whose layers the cache keeps
    outcomes: int  # a counted token's: classes, or ids
    known: str

    def holding(self, tokens: int) -> int:
        """Examples that hold so many counted tokens."""
        return math.ceil(tokens / self.counted)


def count_texts(run: Run) -> Texts:
    """Those that are prepared; else by a sample of rows of each source."""
    if (run.folder.data() / "stats.json").exists():
        train, held_out = run.data()
        outcomes = len(run.classes) if run.task.auto == CLASSIFIER else run.vocabulary
        return _texts(run, train, len(train), len(held_out), outcomes, "counted")
    config, reader = run.recipe.data, _reader(run)
    sample = _sample(run, reader, sources_of(config), config.split)
    examples = sample.rows * len(sample.lengths) / max(1, sample.read)
    if isinstance(config.held_out, str):
        split = config.held_out.removeprefix("split:")
        own = split != config.held_out
        sources, split = (sources_of(config), split) if own else ([config.held_out], config.split)
        other = _sample(run, reader, sources, split)
        held = other.rows * len(other.lengths) / max(1, other.read)
    else:
        held = examples * config.held_out
        examples -= held
    outcomes = len(reader.names) if isinstance(reader, LabelledTexts) else run.vocabulary
    known = f"estimated from {sample.read} rows"
    found = _texts(run, sample, round(examples), round(held), outcomes, known)
    limits = {"train": config.train_tokens, "held_out": config.held_out_tokens}
    fewer = {
        part: min(getattr(found, part), found.holding(limit))
        for part, limit in limits.items()
        if limit is not None
    }
    return replace(found, **fewer)


def _texts(run: Run, sample: Any, train: int, held_out: int, outcomes: int, known: str) -> Texts:
    """The means of examples, or of a sample of them."""
    arrays = sample.lengths, sample.counts, run.task.cached_tokens(run, sample)
    length, counted, kept = (float(np.mean(a)) if len(a) else 1.0 for a in arrays)
    return Texts(train, held_out, length, counted, kept, outcomes, known)


def _reader(run: Run) -> Reader:
    adapted = run.recipe.teacher.adapt is not None
    reader = run.task.reader(run.teacher_config, adapted, run.recipe.seed)
    assert reader is not None, "next tokens are planned by plan.py"
    return reader


@dataclass(frozen=True)
class _Sample:
    """Rows of some sources, how many were read, and of the examples in them lengths and counts."""

    rows: int
    read: int
    lengths: np.ndarray
    counts: np.ndarray


def _sample(run: Run, reader: Reader, sources: list[str], split: str) -> _Sample:
    config = run.recipe.data
    tables = [load_rows(source, split, config.name) for source in sources]
    readings = reader.open(run.tokenizer, config, tables, sources)
    found = [
        (len(ids), sum(label != IGNORE for label in labels))
        for table, read in zip(tables, readings, strict=True)
        for i in range(min(len(table), SAMPLE_ROWS))
        for ids, labels, *_ in read(table[i], Counter())
    ]
    lengths, counts = np.asarray(found, np.int64).reshape(-1, 2).T
    rows = [len(table) for table in tables]
    return _Sample(sum(rows), sum(min(n, SAMPLE_ROWS) for n in rows), lengths, counts)


def _passed(config: LoopConfig, texts: int) -> int:
    """Texts one training passes over."""
    total = texts * config.epochs
    if config.max_steps is None:
        return total
    return min(total, config.max_steps * config.batch_size * config.accumulate)


def _bytes_a_text(run: Run, teacher: Body, texts: Texts) -> float:
    """Of an example in the cache: its outcomes, and its layers."""
    cache = run.recipe.cache
    outcome = cache.codec.bytes_per_token(texts.outcomes, teacher.width)
    layers = len(cache.hidden.parts) * cache.hidden.codec.bytes_per_token(teacher.width)
    return float(texts.counted * outcome + texts.kept * layers)


def _training_bytes(body: Body, config: LoopConfig, data: DataConfig) -> float:
    tokens = config.batch_size * data.max_length
    return 16.0 * body.total + 4.0 * ACTIVATIONS * body.width * body.depth * tokens


def _of_texts(run: Run) -> list[Estimate]:
    recipe = run.recipe
    teacher = body_of_config(run.teacher_config, run.task.auto)
    student = body_of_config(run.student_config, run.task.auto)
    texts = count_texts(run)
    length = texts.length
    speed = EFFICIENCY * flops_per_second(resolve_precision(recipe.teacher.dtype))
    train_speed = EFFICIENCY * flops_per_second(resolve_precision(recipe.train.precision))
    lines: list[Estimate] = []

    def add(
        stage: str, number: float, disk: float, memory: float, seconds: float, note: str
    ) -> None:
        note = f"done; {note}" if is_done(run, stage) else note
        lines.append(Estimate(stage, int(number), disk, memory, seconds, note))

    if (adapt := recipe.teacher.adapt) is not None:
        number = _passed(adapt, texts.train)
        memory = _training_bytes(teacher, adapt, recipe.data)
        seconds = 3 * teacher.forward(number * length) / train_speed
        add("adapt-teacher", number, teacher.total * 16.0, memory, seconds, "texts, fine-tuned")
    if run.reads_cache:
        a_text, number = _bytes_a_text(run, teacher, texts), texts.train + texts.held_out
        seconds = teacher.forward(number * length) / speed
        about = f"{a_text:.0f} bytes a text; texts {texts.known}"
        add("cache", number, a_text * number, teacher.total * 4.0, seconds, about)
    note = f"{student.total / 1e6:.1f} M parameters, {student.depth} blocks"
    memory, seconds = teacher.total * 4.0 + student.total * 8.0, build_seconds(run, teacher)
    add("build", 0, student.total * 4.0, memory, seconds, note)
    arms, number = 1 + len(recipe.train.arms), _passed(recipe.train, texts.train)
    seconds = arms * 3 * student.forward(number * length) / train_speed
    memory = _training_bytes(student, recipe.train, recipe.data)
    states = student.total * 16.0 * arms
    add("train", number * arms, states, memory, seconds, f"{arms} arms on the same texts")
    artifacts = run.artifacts
    disk, names = 2.0 * student.total * len(artifacts), ", ".join(artifacts)
    add("export", 0, disk, student.total * 6.0, 5.0 * len(artifacts), names)
    models = 2 + arms + len(artifacts)
    number = min(texts.held_out, texts.holding(recipe.evaluate.tokens))
    seconds = models * (PROCESS_SECONDS + 4 * student.forward(number * length) / speed)
    note = f"{models} models, a process each"
    add("evaluate", number * models, 0, teacher.total * 4.0, seconds, note)
    return lines
