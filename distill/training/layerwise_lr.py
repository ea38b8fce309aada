"""Learning rates by depth: how fast, and from which step on, each part of a student learns.

Depth 0 is the embeddings, 1 to D are the D blocks, and D + 1 is everything above them: the final
norm, an untied head, and what is not the student's own, as projectors. Rates and first steps follow
from the recipe and the step alone, so a checkpoint holds nothing of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field
from torch import nn

from attar.config import Section
from attar.errors import RecipeError
from attar.models.structure import num_layers, parameter_size
from distill.console import aligned
from students.tuning.trainable import depths_of, is_tied


class Unfreeze(Section):
    """Blocks that begin to learn later (gradual unfreezing of ULMFiT, arXiv 1801.06146)."""

    every: float = Field(gt=0, description="share of the steps, or number of steps if >= 1")
    blocks: int = Field(1, ge=1, description="how many more begin to learn each time")
    from_: Literal["top", "bottom"] = Field("top", alias="from", description="which learn first")


@dataclass(frozen=True)
class LayerwiseRates:
    """The factor on the learning rate, and the first step (from 0), of parameters by their id."""

    factors: dict[int, float]
    starts: dict[int, int]

    @contextmanager
    def at(self, module: nn.Module, step: int) -> Iterator[None]:
        """Freeze, inside the `with` block, the parameters that do not learn yet in a step.

        They get no gradient, so the optimiser makes no state for them before their first step.
        """
        waiting = [
            parameter
            for parameter in module.parameters()
            if parameter.requires_grad and self.starts.get(id(parameter), 0) > step
        ]
        for parameter in waiting:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in waiting:
                parameter.requires_grad_(True)


def layerwise_rates(
    student: Any, decay: float, unfreeze: Unfreeze | None, total: int, path: str
) -> LayerwiseRates:
    """Return the rates of a student's learning parameters in a training of `total` steps.

    decay: the factor of each block on the rate of the block above it. Raises `RecipeError`, which
    names keys below `path`, where a key has no effect, or where a part would never begin to learn.
    """
    if decay == 1 and unfreeze is None:
        return LayerwiseRates({}, {})
    depths, depth = depths_of(student), num_layers(student)
    learning = {id(p): depths[id(p)] for p in student.parameters() if p.requires_grad}
    factors = {p: decay ** max(0, depth - at) for p, at in learning.items()}
    if decay != 1 and len(set(factors.values())) == 1:
        raise RecipeError(
            f"`{path}layer_lr_decay: {decay:g}` has no effect: all that learns is at one depth; "
            "leave it out."
        )
    if unfreeze is None:
        return LayerwiseRates(factors, {})
    order = sorted({at for at in learning.values() if at <= depth}, reverse=unfreeze.from_ == "top")
    if len(order) <= unfreeze.blocks:
        raise RecipeError(
            f"`{path}unfreeze` has no effect: {len(order)} blocks learn (the embeddings count as "
            f"one), and `{path}unfreeze.blocks: {unfreeze.blocks}` begin at once; leave it out."
        )
    every = max(1, round(unfreeze.every * total)) if unfreeze.every < 1 else round(unfreeze.every)
    first = {at: i // unfreeze.blocks * every for i, at in enumerate(order)}
    never = sum(step >= total for step in first.values())
    if never:
        raise RecipeError(
            f"`{path}unfreeze`: {len(order)} blocks (the embeddings count as one), "
            f"{unfreeze.blocks} more every {every} of {total} steps: {never} would never learn; "
            f"raise `{path}unfreeze.blocks`, lower `{path}unfreeze.every`, or let fewer learn."
        )
    return LayerwiseRates(factors, {p: first.get(at, 0) for p, at in learning.items()})


CHECKED_STEPS = 10**6  # stands for a number of steps that is not known yet


def check_rates(student: Any, config: Any, path: str, total: int | None = None) -> None:
    """Raise `RecipeError` for what `layerwise_rates` would refuse of a recipe's section.

    total: the number of steps; None while it is not known, when only what no number of steps could
    make right is refused.
    """
    total = total or config.max_steps or CHECKED_STEPS
    layerwise_rates(student, config.layer_lr_decay, config.unfreeze, total, path)


# The table that is logged before a training ------------------------------------------------------


def how_much_learns(student: nn.Module) -> str:
    """Return how much of a student learns: `12 of 96 parameters learn (12.5%)`."""
    sizes = [(parameter_size(p), p.requires_grad) for p in student.parameters()]
    learning, total = sum(size for size, learns in sizes if learns), sum(size for size, _ in sizes)
    return f"{learning:,} of {total:,} parameters learn ({100 * learning / total:.3g}%)"


@dataclass(frozen=True)
class _Row:
    """The parameters of a student at one depth: how many, how many learn, how fast, from when."""

    total: int
    learning: int
    factor: float
    start: int


def learning_table(student: Any, rates: LayerwiseRates) -> list[str]:
    """Return a table of what learns by depth, and the depth that gradients go down to.

    Neighbouring blocks with the same row share a line.
    """
    rows, depth = _rows(student, rates), num_layers(student)
    spans: list[tuple[int, int]] = []
    for at in sorted(rows):
        same = spans and spans[-1][0] >= 1 and at <= depth and rows[at] == rows[spans[-1][0]]
        spans[-1:] = [(spans[-1][0], at)] if same else [*spans[-1:], (at, at)]
    decays, unfreezes = len(set(rates.factors.values())) > 1, any(rates.starts.values())
    table = [["", "parameters", "that learn"] + ["lr x"] * decays + ["from step"] * unfreezes]
    for first, last in spans:
        row, number = rows[first], last - first + 1
        line = [_name(student, first, last), f"{number * row.total:,}"]
        line += [f"{number * row.learning:,}" if row.learning else "-"]
        line += [f"{row.factor:.3g}" if row.learning else "-"] * decays
        table.append(line + [f"{row.start + 1}" if row.learning else "-"] * unfreezes)
    lines = aligned(table)
    lowest = min(at for at, row in rows.items() if row.learning)
    if lowest > 1:
        below = "the blocks" if lowest > depth else f"block {lowest - 1}"
        lines.append(f"no gradient goes below {below}")
    return lines


def _rows(student: Any, rates: LayerwiseRates) -> dict[int, _Row]:
    depths = depths_of(student)
    rows: dict[int, _Row] = {}
    for parameter in student.parameters():
        at, size, learns = depths[id(parameter)], parameter_size(parameter), parameter.requires_grad
        row = rows.get(at, _Row(0, 0, 1.0, 0))
        if learns:
            key = id(parameter)
            factor, start = rates.factors.get(key, 1.0), rates.starts.get(key, 0)
            row = _Row(row.total, row.learning + size, factor, start)
        rows[at] = _Row(row.total + size, row.learning, row.factor, row.start)
    return rows


def _name(student: Any, first: int, last: int) -> str:
    if first == 0:
        return "embeddings (and head: one matrix)" if is_tied(student) else "embeddings"
    if first > num_layers(student):
        return "above the blocks"
    return f"block {first - 1}" if first == last else f"blocks {first - 1} to {last - 1}"


def lowest_learning(student: Any) -> int:
    """Return the lowest depth at which a parameter learns: layers up to it get no gradient."""
    depths = depths_of(student)
    return min(depths[id(p)] for p in student.parameters() if p.requires_grad)
