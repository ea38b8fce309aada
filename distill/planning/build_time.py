"""How long the build stage takes: to score, prune, refit and heal the student."""

from __future__ import annotations

import math

from attar.word_lists import counted
from distill.data.calibration import MAX_ROW_TOKENS
from distill.planning.model_cost import ModelCost
from students.config import StudentConfig
from students.layer_inputs import BATCH_ROWS
from students.pruning.cost_model import BYTES_PER_WEIGHT
from students.pruning.depth import expected_trials
from students.pruning.target import TargetConfig, read_amount

LOADING_SECONDS = 5.0


def build_seconds(student: StudentConfig, teacher: ModelCost, speed: float) -> float:
    """Seconds to build the student in float32; `speed` in floating-point operations a second."""
    layers = student.layers
    removal = _removal_operations(teacher, _blocks_removed(student, teacher))
    if student.target is not None:
        operations = removal * student.target.calibration_tokens
        operations += teacher.forward(_search_tokens(student, student.target))
        return LOADING_SECONDS + operations / speed
    tokens = 0.0
    if student.reads_text:  # one pass scores; a refit makes three, and multiplies as much again
        passes = (1 if student.needs_text() else 0) + (6 if student.refit else 0)
        tokens += passes * student.calibration_tokens
    operations = 0.0
    if layers is not None and isinstance(layers.keep, int) and layers.by != "even":
        if layers.by == "greedy":
            operations = removal * layers.calibration_tokens
        else:
            tokens += layers.calibration_tokens
    return LOADING_SECONDS + (operations + teacher.forward(tokens)) / speed


def build_note(student: StudentConfig, teacher: ModelCost) -> str:
    """What a greedy removal does, for the plan's table; empty where blocks are not removed so.

    A search tries shapes with all blocks, too.
    """
    removed = _blocks_removed(student, teacher)
    if not removed:
        return ""
    trials = expected_trials(teacher.depth, removed)
    blocks, by = counted(removed, "block"), f"by about {counted(trials, 'trial')}"
    if student.target is not None:
        return f"; a search, which tries to remove up to {blocks} greedily {by}"
    return f"; {blocks} removed greedily {by}"


def _removal_operations(teacher: ModelCost, removed: int) -> float:
    """Floating-point operations that greedy removal takes for each token of calibration text.

    Each trial runs the blocks behind the one that it leaves out, half of those left, and the head;
    all that are left run at the start and after each removal.
    """
    if not removed:
        return 0.0
    left = 1 - removed / (2 * teacher.depth)  # of the blocks, while they are removed
    later = expected_trials(teacher.depth, removed) - teacher.depth
    passes_of_body = 0.5 * teacher.depth + (0.5 * later + removed) * left + 1
    passes_of_head = teacher.depth + later + removed + 1
    return 2.0 * (passes_of_body * teacher.body + passes_of_head * teacher.head)


def _search_tokens(student: StudentConfig, target: TargetConfig) -> float:
    """Tokens that a search passes over beside the removal of blocks: to score, to measure shapes,
    and to refit and heal the best of them.
    """
    shapes = target.candidates + 3 * len(target.axes)
    repairs = 6 * student.calibration_tokens if student.refit else 0
    repairs += 3 * target.heal_steps * BATCH_ROWS * MAX_ROW_TOKENS
    return (
        student.calibration_tokens
        + (1 + shapes) * target.tokens
        + min(target.finalists, target.candidates) * repairs
    )


def _blocks_removed(student: StudentConfig, teacher: ModelCost) -> int:
    """Blocks that are removed greedily.

    A search puts as many into an order as would meet the target alone; half of all for a target in
    seconds, of which nothing is known before it is measured.
    """
    layers, target = student.layers, student.target
    if target is None:
        greedy = layers is not None and isinstance(layers.keep, int) and layers.by == "greedy"
        return teacher.depth - int(layers.keep) if greedy else 0  # type: ignore[union-attr,arg-type]
    if "layers" not in target.axes:
        return 0
    number, is_share = read_amount(target.kind, target.amount)
    if target.kind == "latency" and not is_share:
        return teacher.depth // 2
    size = teacher.total * (BYTES_PER_WEIGHT[target.form] if target.kind == "bytes" else 1.0)
    share = number if is_share else number / size
    a_block = teacher.body / teacher.depth / teacher.total
    return min(teacher.depth - 1, math.ceil(max(0.0, 1 - share) / a_block))
