"""Which arms run in which cells: the cheap first, within a budget, without those that fell behind.

Points of the learning curves come with rising numbers of rows. At each, every arm that is left is
learned and measured. After it, an arm is dropped only where its difference from the leader, on the
same selection rows, lies below zero with all of its 95% interval.

A budget is divided among the points by what their arms are expected to take. Within a point, arms
that take little of it come first, then by turns the best of the point before and the cheapest of
those that were not run there. An arm whose time is beyond what is left is not run at this point,
and says so.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from attar.errors import RecipeError, UserError
from attar.files import fingerprint
from attar.progress import progress
from distill.comparison.arms import ARMS_COMPARED, ArmWork
from distill.comparison.cells import Cell, Comparison
from distill.comparison.outcome import Outcome, read_outcome
from distill.comparison.standing import Standing
from distill.evaluation.job import Numbers

log = logging.getLogger(__name__)
PROCESS_SECONDS = 3.0  # to start a process that measures, and load a small model
LITTLE_SHARE = 0.05  # of a point's budget: arms that take less come first
KEPT_BESIDE = (
    "result.json", "selection.npz", "test.npz", "elsewhere.npz", "asked", "recipe.yaml",
)  # fmt: skip


@dataclass
class Race:
    """What ran so far.

    outcomes: by number of rows and arm. dropped: by arm, at which number of rows and by how much.
    not_run: by number of rows and arm, why not.
    """

    comparison: Comparison
    arms: list[str]
    estimate: Callable[[str, Cell], float]
    outcomes: dict[int, dict[str, list[Outcome]]] = field(default_factory=dict)
    dropped: dict[str, Numbers] = field(default_factory=dict)
    not_run: dict[int, dict[str, str]] = field(default_factory=dict)
    spent: float = 0.0
    _standings: dict[int, Standing] = field(default_factory=dict)

    def run(self) -> None:
        """Run all points."""
        comparison = self.comparison
        cells = len(comparison.cells) * len(self.arms)
        with progress("arms", cells, "arms") as shown:
            for labels in comparison.sizes:
                allowed = self._allowed(labels)
                order = self._order(labels, allowed)
                self.outcomes[labels], self.not_run[labels] = {}, {}
                for arm in order:
                    shown.report(f"{arm}, {labels:,} rows")
                    self._run_arm(labels, arm, allowed)
                    shown.advance(len(comparison.config.seeds))
                self._refuse_none(labels)
                self._drop(labels)

    def _refuse_none(self, labels: int) -> None:
        """Raise `RecipeError` where every arm that ran failed, with the first reason."""
        found = [one for ran in self.outcomes[labels].values() for one in ran]
        if found and all(one.failed for one in found):
            raise RecipeError(f"No arm could be run; {found[0].arm} failed: {found[0].failed}")

    def standing(self, labels: int) -> Standing:
        """How the arms stand at a number of rows, all of which ran."""
        if labels not in self._standings:
            self._standings[labels] = Standing(self.comparison, labels, self.outcomes[labels])
        return self._standings[labels]

    # Costs -------------------------------------------------------------------------------------

    def expected(self, arm: str, cell: Cell) -> float:
        """Seconds that an arm takes in a cell: as it took at the number of rows before, in
        proportion to the rows, else as planned.
        """
        for labels in reversed([n for n in self.outcomes if n < cell.labels]):
            found = self.outcomes[labels].get(arm)
            if found and not any(one.failed for one in found):
                learning = sum(one.seconds for one in found) / len(found)
                measuring = sum(one.measuring_seconds for one in found) / len(found)
                return learning * self._growth(arm, labels, cell.labels) + measuring
        return self.estimate(arm, cell)

    def _growth(self, arm: str, before: int, labels: int) -> float:
        """By which factor learning grows with the rows: trainings have a least number of steps."""
        if ARMS_COMPARED[arm].family in ("prompting", "baseline"):
            return 1.0
        train, least = self.comparison.recipe.train, self.comparison.config.least_steps
        rows = train.batch_size * train.accumulate
        steps = [max(least, train.epochs * max(1, n // rows)) for n in (before, labels)]
        return steps[1] / steps[0]

    @property
    def left(self) -> list[str]:
        """Arms that were not dropped."""
        return [name for name in self.arms if name not in self.dropped]

    def _expected_of_point(self, labels: int) -> dict[str, float]:
        """Seconds of each arm that is left, all seeds together."""
        seeds = self.comparison.config.seeds
        cell = Cell(labels, seeds[0])
        return {name: len(seeds) * self.expected(name, cell) for name in self.left}

    def _allowed(self, labels: int) -> float:
        """Seconds up to which this point may spend: its share of what is left of the budget."""
        budget, sizes = self.comparison.config.budget, self.comparison.sizes
        if budget is None:
            return math.inf
        ahead = [sum(self._expected_of_point(n).values()) for n in sizes if n >= labels]
        share = ahead[0] / sum(ahead) if sum(ahead) > 0 else 1.0
        return self.spent + share * max(0.0, budget - self.spent)

    def _order(self, labels: int, allowed: float) -> list[str]:
        """The arms that are left in the order in which they run."""
        expected = self._expected_of_point(labels)
        cheap_first = sorted(self.left, key=lambda name: expected[name])
        before = [n for n in self.outcomes if n < labels]
        if allowed == math.inf or not before:
            return cheap_first
        standing = self.standing(before[-1])
        little = LITTLE_SHARE * (allowed - self.spent)
        first = [name for name in cheap_first if expected[name] <= little]
        known = [name for name in cheap_first if name in standing.whole and name not in first]
        known.sort(key=lambda name: -standing.quality(name, "selection")["value"])
        unknown = [name for name in cheap_first if name not in first and name not in known]
        by_turns = [name for pair in zip_longest(known, unknown) for name in pair if name]
        return [*first, *by_turns]

    # Running -----------------------------------------------------------------------------------

    def _run_arm(self, labels: int, arm: str, allowed: float) -> None:
        """Run an arm with every seed, unless that takes the race beyond `allowed` seconds."""
        seeds = self.comparison.config.seeds
        found: list[Outcome] = []
        for seed in seeds:
            cell = Cell(labels, seed)
            known = self._known(arm, cell)
            if known is None:
                expected = self.expected(arm, cell) * (len(seeds) - len(found))
                if self.spent + expected > allowed:
                    self.not_run[labels][arm] = (
                        f"about {expected:,.0f} s, and {max(0.0, allowed - self.spent):,.0f} s of "
                        "the budget were left for this number of rows"
                    )
                    return
            outcome = known or self._work(arm, cell)
            self.spent += outcome.seconds + outcome.measuring_seconds
            found.append(outcome)
        self.outcomes[labels][arm] = found

    def _inputs(self, arm: str, cell: Cell) -> str:
        settings = self.comparison.config.settings
        own = [settings.get(arm), settings.get("distill") if arm == "teacher" else None]
        return fingerprint([self.comparison.stamp(cell), arm, own])

    def _known(self, arm: str, cell: Cell) -> Outcome | None:
        found = read_outcome(self.comparison.cell_folder(cell, arm))
        if found is None or found.failed is not None or found.inputs != self._inputs(arm, cell):
            return None
        return found

    def _work(self, arm: str, cell: Cell) -> Outcome:
        """Learn and measure an arm in a cell; one that fails leaves its reason."""
        work = ArmWork(self.comparison, cell, arm)
        work.folder.mkdir(parents=True, exist_ok=True)
        log.info("compare: %s with %d rows, seed %d", arm, cell.labels, cell.seed)
        try:
            outcome = ARMS_COMPARED[arm]().work(work)
        except UserError as error:
            log.error("compare: %s failed with %d rows: %s", arm, cell.labels, error)
            outcome = work.outcome()
            outcome.failed = str(error)
        outcome.inputs = self._inputs(arm, cell)
        outcome.write(work.folder)
        return outcome

    def _drop(self, labels: int) -> None:
        """Drop what is below the leader, and delete weights that will not be asked for again."""
        standing = self.standing(labels)
        leader = standing.leader()
        if leader is None:
            return
        behind = standing.below(leader) if self.comparison.config.drop else {}
        for name, difference in behind.items():
            if ARMS_COMPARED[name].family == "ceiling":
                continue
            self.dropped[name] = {"labels": labels, "leader": leader, **difference}
            log.info("compare: %s is dropped after %d rows: below %s", name, labels, leader)
        for arm, found in self.outcomes[labels].items():
            for one in found if arm != leader else ():
                delete_weights(self.comparison.cell_folder(Cell(labels, one.seed), arm))


def delete_weights(folder: Path) -> None:
    """Delete an arm's run, whose numbers are kept; the recipe stays."""
    recipe = folder / "run" / "recipe.yaml"
    if recipe.is_file():
        shutil.copyfile(recipe, folder / "recipe.yaml")
    for path in folder.iterdir():
        if path.name not in KEPT_BESIDE:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_budget(comparison: Comparison, expected: dict[str, float]) -> None:
    """Raise `RecipeError` where the budget is below what the cheapest arm takes."""
    budget = comparison.config.budget
    if budget is None or not expected:
        return
    name = min(expected, key=lambda one: expected[one])
    if expected[name] > budget:
        raise RecipeError(
            f"`compare.budget` is {budget:,.0f} s, and the cheapest arm, {name}, takes about "
            f"{expected[name]:,.0f} s; give more, or fewer `compare.seeds`."
        )
