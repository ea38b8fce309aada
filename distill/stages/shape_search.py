"""`student.target`: search for the shape of a student under a limit on its size or latency."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from attar.errors import RecipeError
from distill.data.calibration import calibration_rows
from distill.run.context import Run
from distill.stages.search_objective import SearchObjective
from students.config import StudentConfig
from students.pruning.architectures import Sizes
from students.pruning.cost_model import Costs, Latencies
from students.pruning.importance import measure_importance
from students.pruning.least_squares import refit
from students.pruning.prune import KeptParts, cut_model
from students.pruning.shape_search import MeasuredShape, ShapeMeasures, search_shapes
from students.pruning.target import TargetConfig
from students.pruning.width import choose_parts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShapeCandidate:
    """A shape that was measured: its cost, its expected divergence, and its divergence as cut.

    healed: the divergence after refit and healing; None where the shape was no finalist.
    """

    sizes: Sizes
    parameters: int
    cost: float
    expected: float
    divergence: float
    healed: float | None

    @property
    def rank(self) -> tuple[bool, float]:
        """A sort key: healed shapes come first, then the lower divergence."""
        return self.healed is None, self.divergence if self.healed is None else self.healed


@dataclass(frozen=True)
class Shape:
    """The result of a search: the recipe's section with the chosen shape, and every shape measured.

    The chosen shape is the first of `measured`.
    """

    target: TargetConfig
    config: StudentConfig
    whole: Sizes
    measured: list[ShapeCandidate]
    limit: float
    divergence: str  # what it is called
    seconds: float | None  # a step of the teacher, where latency was the target

    def record(self) -> dict[str, Any]:
        """What pruning.json records about the search."""
        return {
            "by": "search",
            "target": self.target.model_dump(),
            "limit": self.limit,
            "divergence": self.divergence,
            "latency_of_teacher": self.seconds,
            "candidates": [asdict(one) for one in self.measured],
        }

    def table(self) -> list[list[str]]:
        """The measured shapes as a table, header first, then the chosen shape."""
        kind = {"latency": ["of the latency"], "bytes": ["bytes"], "parameters": []}[
            self.target.kind
        ]
        sizes = ["blocks", "heads", "neurons", "channels", "parameters"]
        lines = [
            [
                "",
                *sizes,
                *kind,
                f"{self.divergence} expected",
                self.divergence,
                f"{self.divergence} healed",
            ]
        ]
        for number, one in enumerate(self.measured):
            shape = (one.sizes.blocks, one.sizes.heads, one.sizes.neurons, one.sizes.channels)
            cost = f"{one.cost:.0%}" if self.target.kind == "latency" else f"{one.cost:,.0f}"
            lines.append(
                [
                    "chosen" if number == 0 else "",
                    *(f"{n:,}" for n in (*shape, one.parameters)),
                    *([cost] if kind else []),
                    f"{one.expected:.4f}",
                    f"{one.divergence:.4f}",
                    f"{one.healed:.4f}" if one.healed is not None else "",
                ]
            )
        return lines


class ShapeTrials:
    """Cuts shapes out of a teacher and measures them."""

    def __init__(self, run: Run, teacher: nn.Module, target: TargetConfig) -> None:
        self.run, self.teacher, self.config = run, teacher, run.recipe.student
        self.target, self.costs = target, Costs(teacher)
        self.space = target.space(teacher.config)
        self.latencies = Latencies(teacher, self.costs) if target.kind == "latency" else None
        self.limit = target.limit(self.costs, self.latencies)
        if self.latencies is None:
            target.check_possible(self.space, self.costs, self.limit)
        exact = self.cost if self.latencies is None else self.latencies.measure
        self.space = self.space.within(exact, self.limit)
        healing_tokens = target.tokens if target.heal_steps else 0
        self.objective = SearchObjective(run, teacher, target.tokens, healing_tokens)
        examples = run.training_examples()
        self.calibration_BT = calibration_rows(examples, self.config.calibration_tokens)
        self.scores = measure_importance(teacher, self.calibration_BT)
        gone = self.space.whole.blocks - self.space.min_blocks
        judged = target.calibration_tokens
        self.order = run.task.removal_order(run, teacher, gone, judged) if gone else []

    def cost(self, sizes: Sizes) -> float:
        """The cost of a shape, predicted without making the student."""
        if self.latencies is not None:
            return self.latencies.predict(sizes)
        return self.target.cost(self.costs, sizes)

    def kept(self, sizes: Sizes) -> KeptParts:
        """The parts of the teacher that stay in a student of these sizes."""
        gone = set(self.order[: self.space.whole.blocks - sizes.blocks])
        blocks = [block for block in range(self.space.whole.blocks) if block not in gone]
        config = self.config.with_shape(sizes, blocks, self.space.whole)
        return choose_parts(self.teacher, blocks, config, None, self.scores)[0]

    def divergence(self, sizes: Sizes) -> float:
        """The divergence of a shape right after the cut."""
        return self.objective.divergence(cut_model(self.teacher, self.kept(sizes)))

    def healed(self, sizes: Sizes) -> float:
        """The divergence of a shape after the refit and healing that the recipe asks for."""
        kept = self.kept(sizes)
        student = cut_model(self.teacher, kept)
        if self.config.refit:
            refit(student, self.teacher, kept, self.calibration_BT)
        if self.target.heal_steps:
            student = self.objective.healed(student, self.target.heal_steps)
        return self.objective.divergence(student)


def search_shape(run: Run, teacher: nn.Module, target: TargetConfig) -> Shape:
    """Find the best shape under the recipe's target, for a teacher in float32.

    Raises `RecipeError` where no shape meets the target.
    """
    trials = ShapeTrials(run, teacher, target)
    with closing(trials.objective):
        return _search(trials, target)


def _search(trials: ShapeTrials, target: TargetConfig) -> Shape:
    def on_candidate(found: MeasuredShape) -> None:
        numbers = (trials.objective.name, found.divergence, found.expected)
        log.info("build: %s: %s %.4f, expected %.4f", words(found.sizes), *numbers)

    latencies = trials.latencies
    measures = ShapeMeasures(
        trials.cost, trials.divergence, latencies.measure if latencies else None
    )
    found = search_shapes(trials.space, measures, trials.limit, target.candidates, on_candidate)
    if not found:
        assert latencies is not None  # what parameters and bytes ask for was checked
        timed = latencies.known.values()
        raise RecipeError(
            f"{target.words} cannot be met: the quickest of {len(timed) - 1} shapes that were "
            f"timed takes {min(timed):.0%} of the teacher's time here; ask for more than that."
        )
    measured = _healed(trials, found)
    sizes = measured[0].sizes
    config = trials.config.with_shape(sizes, trials.kept(sizes).blocks, trials.space.whole)
    seconds = latencies.seconds if latencies is not None else None
    return Shape(
        target,
        config,
        trials.space.whole,
        measured,
        trials.limit,
        trials.objective.name,
        seconds,
    )


def _healed(trials: ShapeTrials, found: list[MeasuredShape]) -> list[ShapeCandidate]:
    """All shapes, the best first, after healing the best few and those cut along one axis only."""
    mends = trials.config.refit or trials.target.heal_steps > 0
    measured = []
    for number, one in enumerate(found):
        parameters, healed = round(trials.costs.parameters(one.sizes)), None
        plain = len(trials.space.cut_along(one.sizes)) == 1
        if mends and (plain or number < trials.target.finalists):
            healed = trials.healed(one.sizes)
            numbers = (trials.objective.name, healed)
            log.info("build: %s: %s %.4f once healed", words(one.sizes), *numbers)
        measured.append(
            ShapeCandidate(one.sizes, parameters, one.cost, one.expected, one.divergence, healed)
        )
    return sorted(measured, key=lambda one: one.rank)


def words(sizes: Sizes) -> str:
    """A shape in a few words."""
    return (
        f"{sizes.blocks} blocks, {sizes.heads} heads, {sizes.neurons} neurons, "
        f"{sizes.channels} channels"
    )
