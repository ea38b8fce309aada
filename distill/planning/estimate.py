"""`distill plan`: tokens, disk, memory and time of each stage, before anything is spent.

Time is arithmetic over speed: multiply-adds counted from the models' configs, divided by what one
large matrix product reaches on this machine just now (under a second), at 60% of it. Tokens are
counted where the data is prepared, else estimated from a sample of rows. Memory of trainings is
counted by `footprint.py`.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from attar.device import default_device
from attar.distributed import is_alone
from attar.files import fingerprint, read_json
from attar.models.loading import resolve_precision
from attar.models.task_heads import CAUSAL
from distill.data.calibration import LONGEST
from distill.data.config import DataConfig, sources_of
from distill.data.row_formats import layout_of
from distill.data.sources import load_rows
from distill.data.tokenize import tokenize_document
from distill.objective.terms import reads_from
from distill.planning.alternatives import (
    adapting_memory,
    choice_lines,
    specializing_memory,
    training_memory,
)
from distill.planning.memory import libraries, skeleton_to_count
from distill.run.context import Run
from distill.stages.status import is_done
from distill.training.config import LoopConfig
from students.layer_inputs import ROWS
from students.pruning.cost_model import BYTES
from students.pruning.target import TargetConfig, read_amount

EFFICIENCY = 0.6  # of a bare matrix product; the demo's stages lie between 0.5 and 0.8
SAMPLE_ROWS = 50
TRAININGS = ("adapt-teacher", "train", "specialize")


@dataclass(frozen=True)
class Estimate:
    """One line of the plan. Memory is the peak of the stage's process; 0 where nothing counts."""

    stage: str
    tokens: int
    disk_bytes: float
    memory_bytes: float
    seconds: float
    note: str


@dataclass(frozen=True)
class Shape:
    """What time and memory depend on: parameters below the head, V, H, depth."""

    body: int
    vocabulary: int
    width: int
    depth: int
    total: int

    def forward(self, tokens: float) -> float:
        """Floating-point operations of one forward with logits at every token."""
        return 2.0 * tokens * (self.body + self.vocabulary * self.width)


def shape_of(config: Any, depth: int | None = None) -> Shape:
    """The shape of a model from its config alone, on the meta device."""
    model = skeleton_to_count(config, CAUSAL)
    text = config.get_text_config()
    total = sum(p.numel() for p in model.parameters())
    embeddings = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    body = sum(p.numel() for p in model.parameters() if id(p) not in embeddings)
    layers = text.num_hidden_layers
    kept = depth or layers
    lost = body * (layers - kept) // layers
    return Shape(body - lost, text.vocab_size, text.hidden_size, kept, total - lost)


@functools.cache
def flops_per_second(dtype: torch.dtype) -> float:
    """What a 1,024 x 1,024 x 4,096 product reaches here, best of three; measured once."""
    device = default_device()
    a = torch.randn(1024, 1024, device=device).to(dtype)
    b = torch.randn(1024, 4096, device=device).to(dtype)
    best = 0.0
    for _ in range(4):
        start = time.perf_counter()
        float((a @ b)[0, 0])  # reading a value waits for the device
        best = max(best, 2 * 1024 * 1024 * 4096 / (time.perf_counter() - start))
    return best


def count_tokens(run: Run, config: DataConfig) -> tuple[int, int, str]:
    """(training tokens, held-out tokens, how they are known)."""
    stats = run.folder.data() / "stats.json"
    if config is run.recipe.data and stats.exists():
        found = read_json(stats)
        return found["train"]["tokens"], found["held_out"]["tokens"], "counted"
    rows = seen = length = 0
    for source in sources_of(config):
        table = load_rows(source, config.split, config.name)
        layout = layout_of(table.features, source, config)
        rows += len(table)
        for i in range(min(len(table), SAMPLE_ROWS)):
            found = tokenize_document(run.tokenizer, table[i], layout, config)
            length += sum(sum(label >= 0 for label in labels) for _, labels in found)
            seen += 1
    total = int(rows * length / max(1, seen))
    known = f"estimated from {seen} rows"
    if isinstance(config.held_out, str):  # another source, not counted here
        return (
            min(total, config.train_tokens or total),
            config.held_out_tokens or total // 10,
            known,
        )
    held = min(int(total * config.held_out), config.held_out_tokens or total)
    return min(total - held, config.train_tokens or total), held, known


def trained_tokens(config: LoopConfig, data: DataConfig, tokens: int) -> int:
    """Tokens one training passes over: its epochs, or fewer where `max_steps` ends it."""
    total = tokens * config.epochs
    if config.max_steps is None:
        return total
    return min(total, config.max_steps * config.batch_size * config.accumulate * data.max_length)


def estimate(run: Run) -> list[Estimate]:
    """Every stage of the recipe, in order."""
    recipe = run.recipe
    teacher = shape_of(run.teacher_config)
    student = shape_of(run.student_config, run.student_depth)
    train_tokens, held_tokens, known = count_tokens(run, recipe.data)
    speed = EFFICIENCY * flops_per_second(resolve_precision(recipe.teacher.dtype))
    train_speed = EFFICIENCY * flops_per_second(resolve_precision(recipe.train.precision))
    lines: list[Estimate] = []

    def add(
        stage: str, tokens: float, disk: float, memory: float, seconds: float, note: str
    ) -> None:
        note = f"done; {note}" if is_done(run, stage) else note
        memory += 0 if stage in TRAININGS else libraries()  # theirs are in it
        lines.append(Estimate(stage, int(tokens), disk, memory, seconds, note))

    teacher_bytes = _weights_of_teacher(run, teacher)
    if (adapt := recipe.teacher.adapt) is not None:
        tokens = trained_tokens(adapt, recipe.data, train_tokens)
        cost = 3 * teacher.forward(tokens) / train_speed
        memory = adapting_memory(run).peak
        add("adapt-teacher", tokens, teacher.total * 16, memory, cost, "full fine-tune")
    if run.reads_cache:
        a_token = bytes_per_token(run, teacher)
        tokens = train_tokens + held_tokens
        cost = teacher.forward(tokens) / speed
        about = f"{a_token:.0f} bytes a token{_how_known(run)}; tokens {known}"
        add("cache", tokens, a_token * tokens, teacher_bytes, cost, about)
    add("build", 0, student.total * 4, teacher.total * 4 + student.total * 8,
        build_seconds(run, teacher),
        f"{student.total / 1e6:.1f} M parameters, {student.depth} blocks")  # fmt: skip
    tokens = trained_tokens(recipe.train, recipe.data, train_tokens)
    arms = 1 + len(recipe.train.arms)
    cost = arms * 3 * student.forward(tokens) / train_speed
    in_step = teacher if reads_from(recipe.train, "online") else None
    cost += in_step.forward(tokens) / speed if in_step else 0
    memory = training_memory(run).peak + (teacher_bytes if in_step else 0)
    states = student.total * 16 * arms
    add("train", tokens * arms, states, memory, cost, f"{arms} arms on the same tokens")
    if recipe.specialize is not None:
        own = recipe.specialize.data or recipe.data
        its_tokens = count_tokens(run, own)[0] if recipe.specialize.data else train_tokens
        tokens = trained_tokens(recipe.specialize, own, its_tokens)
        cost = 3 * student.forward(tokens) / train_speed
        memory = specializing_memory(run).peak
        memory += teacher_bytes if reads_from(recipe.specialize, "online") else 0
        add("specialize", tokens, student.total * 4.5, memory, cost, recipe.specialize.method)
    artifacts = run.artifacts
    disk = sum({"bf16": 2.0, "int8": 1.2, "nf4": 0.8}.get(n, 2.0) for n in artifacts)
    add("export", 0, student.total * disk, student.total * 6, 5.0 * len(artifacts),
        ", ".join(artifacts))  # fmt: skip
    models = 2 + arms + len(artifacts) + (recipe.specialize is not None)
    tokens = min(held_tokens, recipe.evaluate.tokens)
    cost = models * (20 + 1.2 * student.forward(tokens) / speed) + teacher.forward(tokens) / speed
    add("evaluate", tokens * models, 0, teacher_bytes, cost, f"{models} models, a process each")
    return lines


def _weights_of_teacher(run: Run, teacher: Shape) -> float:
    """Bytes of the teacher as it runs; quantising leaves embeddings and norms as they are."""
    config = run.recipe.teacher
    plain = resolve_precision(config.dtype).itemsize
    return teacher.total * {"none": plain, "int8": 1.1, "nf4": 0.6, "fp4": 0.6}[config.quantization]


class Runs(Protocol):
    """What of a model the time of its forwards depends on, whatever its task."""

    @property
    def depth(self) -> int:
        """Number of blocks."""

    @property
    def body(self) -> int:
        """Parameters that every token passes."""

    @property
    def total(self) -> int:
        """All parameters."""

    def forward(self, tokens: float) -> float:
        """Floating-point operations of one forward."""


def build_seconds(run: Run, teacher: Runs) -> float:
    """Time to judge, cut and mend the student, in float32."""
    student, speed = run.recipe.student, EFFICIENCY * flops_per_second(torch.float32)
    layers, seconds = student.layers, 5.0
    if student.target is not None:
        return seconds + _search_seconds(run, teacher, speed)
    if student.reads_text:  # once to judge; a refit passes three times and multiplies as much again
        passes = (1 if student.needs_text() else 0) + (6 if student.refit else 0)
        seconds += passes * teacher.forward(student.calibration_tokens) / speed
    if layers is None or isinstance(layers.keep, list):
        return seconds
    one = teacher.forward(layers.calibration_tokens) / speed
    if layers.by != "greedy":
        return seconds + one
    return seconds + _removal_passes(teacher.depth, teacher.depth - layers.keep) * one


def _removal_passes(depth: int, removed: float) -> float:
    """Of the whole model over the calibration text: five half passes a removal, after all once."""
    return 0.5 * depth + 3.5 * removed


def _search_seconds(run: Run, teacher: Runs, speed: float) -> float:
    """Of judging, greedy removal, every shape that is measured, and mending the last few."""
    student = run.recipe.student
    target = student.target
    assert target is not None
    removed = _blocks_removed(target, teacher)
    shapes = target.candidates + 3 * len(target.axes)
    mends = 6 * student.calibration_tokens if student.refit else 0
    mends += 3 * target.heal_steps * ROWS * LONGEST
    tokens = (
        student.calibration_tokens
        + _removal_passes(teacher.depth, removed) * target.calibration_tokens
        + (1 + shapes) * target.tokens
        + min(target.finalists, target.candidates) * mends
    )
    return teacher.forward(tokens) / speed


def _blocks_removed(target: TargetConfig, teacher: Runs) -> float:
    """Blocks that a search puts into an order: as many as would meet the target alone.

    Of a time in seconds, about which nothing is known yet, half of them.
    """
    if "layers" not in target.axes:
        return 0.0
    number, is_share = read_amount(target.kind, target.amount)
    if target.kind == "latency" and not is_share:
        return teacher.depth / 2
    size = teacher.total * (BYTES[target.form] if target.kind == "bytes" else 1.0)
    share = number if is_share else number / size
    a_block = teacher.body / teacher.depth / teacher.total
    return min(teacher.depth - 1.0, math.ceil(max(0.0, 1 - share) / a_block))


def bytes_per_token(run: Run, teacher: Shape) -> float:
    """Bytes a counted token takes in the cache: its distribution and the chosen layers."""
    cache = run.recipe.cache
    layers: float = len(cache.hidden.parts) * cache.hidden.codec.bytes_per_token(teacher.width)
    own: float = cache.codec.bytes_per_token(run.vocabulary, teacher.width)
    return (audited_bytes(run) or own) + layers


def _how_known(run: Run) -> str:
    return " as measured" if audited_bytes(run) else ""


def audited_bytes(run: Run) -> float | None:
    """What `distill cache audit` measured for the recipe's codec, if it was run."""
    file = run.folder.audit
    if not file.exists():
        return None
    wanted = fingerprint(run.recipe.cache.codec.model_dump())
    found = [one["bytes_per_token"] for one in read_json(file)["codecs"] if one["key"] == wanted]
    return found[0] if found else None


def plan_rows(lines: list[Estimate]) -> list[list[str]]:
    """The plan as a table of text, header first."""
    table = [["stage", "tokens", "disk", "memory", "time", ""]]
    for line in lines:
        memory = _size(line.memory_bytes) if line.memory_bytes else ""
        disk = _size(line.disk_bytes) if line.disk_bytes else ""
        tokens = f"{line.tokens:,}" if line.tokens else ""
        table.append([line.stage, tokens, disk, memory, _duration(line.seconds), line.note])
    disk = _size(sum(line.disk_bytes for line in lines))
    processes = "" if is_alone() else " a process"
    seconds = _duration(sum(line.seconds for line in lines if not line.note.startswith("done")))
    return [*table, ["all", "", disk, "", seconds, f"estimates{processes}; what is done takes 0"]]


def choice_rows(run: Run) -> list[list[str]]:
    """The memory of specialising by each choice, as a table of text, header first."""
    parts = ("weights", "gradients", "states", "activations", "peak")
    table = [["method", "optimizer", "checkpointing", "learns", *parts, ""]]
    for i, (method, optimizer, checkpointing, traced, found) in enumerate(choice_lines(run)):
        learns = f"{sum(traced.learning) / 1e6:.2f} M"
        sizes = [_size(getattr(found, part)) for part in parts]
        note = "the recipe's" if i == 0 and run.recipe.specialize is not None else ""
        kept = "yes" if checkpointing else "no"
        table.append([method, optimizer, kept, learns, *sizes, note])
    return table


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.1f} {unit}" if unit == "GB" else f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
