"""How long the build stage takes: to score, prune, refit and heal the student."""

from __future__ import annotations

import math

from distill.data.calibration import MAX_ROW_TOKENS
from distill.planning.model_cost import ModelCost
from students.config import StudentConfig
from students.layer_inputs import BATCH_ROWS
from students.pruning.cost_model import BYTES_PER_WEIGHT
from students.pruning.target import TargetConfig, read_amount

LOADING_SECONDS = 5.0


def build_seconds(student: StudentConfig, teacher: ModelCost, speed: float) -> float:
    """Seconds to build the student in float32; `speed` in floating-point operations a second."""
    layers = student.layers
    if student.target is not None:
        tokens = _search_tokens(student, student.target, teacher)
        return LOADING_SECONDS + teacher.forward(tokens) / speed
    tokens = 0.0
    if student.reads_text:  # one pass scores; a refit makes three, and multiplies as much again
        passes = (1 if student.needs_text() else 0) + (6 if student.refit else 0)
        tokens += passes * student.calibration_tokens
    if layers is not None and isinstance(layers.keep, int):
        passes_of_layers = 1.0
        if layers.by == "greedy":
            passes_of_layers = _removal_passes(teacher.depth, teacher.depth - layers.keep)
        tokens += passes_of_layers * layers.calibration_tokens
    return LOADING_SECONDS + teacher.forward(tokens) / speed


def _removal_passes(depth: int, removed: float) -> float:
    """Passes of the whole model over the calibration text that greedy removal makes.

    Every block is tried once, in half a pass; then each removal takes about seven halves.
    """
    return 0.5 * depth + 3.5 * removed


def _search_tokens(student: StudentConfig, target: TargetConfig, teacher: ModelCost) -> float:
    """Tokens that a search passes over: to score, to remove blocks greedily, to measure shapes, and
    to refit and heal the best of them.
    """
    shapes = target.candidates + 3 * len(target.axes)
    repairs = 6 * student.calibration_tokens if student.refit else 0
    repairs += 3 * target.heal_steps * BATCH_ROWS * MAX_ROW_TOKENS
    removed = _blocks_removed(target, teacher)
    return (
        student.calibration_tokens
        + _removal_passes(teacher.depth, removed) * target.calibration_tokens
        + (1 + shapes) * target.tokens
        + min(target.finalists, target.candidates) * repairs
    )


def _blocks_removed(target: TargetConfig, teacher: ModelCost) -> float:
    """Blocks that a search puts into an order: as many as would meet the target alone.

    Half of all blocks for a target in seconds, of which nothing is known before it is measured.
    """
    if "layers" not in target.axes:
        return 0.0
    number, is_share = read_amount(target.kind, target.amount)
    if target.kind == "latency" and not is_share:
        return teacher.depth / 2
    size = teacher.total * (BYTES_PER_WEIGHT[target.form] if target.kind == "bytes" else 1.0)
    share = number if is_share else number / size
    a_block = teacher.body / teacher.depth / teacher.total
    return min(teacher.depth - 1.0, math.ceil(max(0.0, 1 - share) / a_block))
