"""The sweep itself: all trials to the first rung, those that go on to the next, and to the end.

A trial is an ordinary run in `trials/NAME`; run alone, it ends bit for bit as it does here. What is
known of it is in `trials/NAME.json`. Which trials go on follows from these files alone, so a sweep
that was stopped or killed anywhere goes on by the same command.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from attar.errors import ModelError, RunError, UserError
from attar.files import read_json_object, stored_weight_bytes, write_json
from attar.locks import LockFile, hold_lock
from attar.progress import progress
from distill.console import log_to_file
from distill.evaluation.bootstrap import MIN_DOCUMENTS, groups_of
from distill.pipeline import run_stages
from distill.planning.model_cost import model_cost
from distill.recipe.schema import Recipe
from distill.report.paired_difference import UNTOLD, direction
from distill.run.context import Run
from distill.stages.stage import STAGES
from distill.sweep.budget import affordable, check_budget, planned_seconds
from distill.sweep.checks import check_sweep, check_trials, section_of, warn_of_rates
from distill.sweep.grid import trials_of
from distill.sweep.halving import ranked, survivors
from distill.sweep.results import write_results
from distill.sweep.state import Rung, TrialState, read_state, steps_at, write_state
from distill.trials.advance import advance, total_steps
from distill.trials.shared import shared_base
from distill.trials.values import ValidationValues, difference

log = logging.getLogger(__name__)
COSTS: dict[str, Callable[[TrialState], float]] = {  # of a front, beside quality
    "bytes": lambda state: float(state.bytes),
    "latency": lambda state: state.operations,
}


def sweep(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Run a sweep in a folder, or go on with it; leave sweep.json and sweep.html, and return the
    content of the first.

    Raises a `UserError` for a recipe that cannot be swept, before any work, and `RunError` where no
    trial could be trained.
    """
    check_sweep(recipe)
    first = [(one, Run(one.recipe, folder / "trials" / one.name)) for one in trials_of(recipe, {})]
    check_trials(first)
    config = section_of(recipe)
    if config.budget is not None:  # of the teacher as it is before it is adapted
        check_budget(config, {one.name: planned_seconds(run) for one, run in first})
    warn_of_rates(config)
    folder.mkdir(parents=True, exist_ok=True)
    lock = LockFile(folder / "sweep.lock")
    with hold_lock(lock, f"The sweep folder {folder}", RunError), log_to_file(folder / "sweep.log"):
        work = Sweep(recipe, folder)
        left_at = work.climb()
        work.finish([name for name, rung in left_at.items() if rung is None])
        return write_results(recipe, folder, work.trials, work.states, left_at)


class Sweep:
    """The trials of a sweep under way, their runs and their states, by name."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.config, self.folder = section_of(recipe), folder
        shared = shared_base(recipe, folder / "base")
        self.trials = {one.name: one for one in trials_of(recipe, shared)}
        self.runs = {n: Run(one.recipe, self._of(n)) for n, one in self.trials.items()}
        self.states = {n: read_state(self._file(n), n, t.over) for n, t in self.trials.items()}

    def _of(self, name: str) -> Path:
        return self.folder / "trials" / name

    def _file(self, name: str) -> Path:
        return self.folder / "trials" / f"{name}.json"

    # Rungs -------------------------------------------------------------------------------------

    def climb(self) -> dict[str, int | None]:
        """Train the trials from rung to rung; gives, by name, the number of the rung, from 0, at
        which a trial was left behind or failed, None for the finalists.

        Raises `RunError` where every trial failed.
        """
        left_at: dict[str, int | None] = dict.fromkeys(self.trials)
        alive = sorted(self.trials)
        for number, share in enumerate(self.config.rungs):
            reached = self._rung(number, share, alive)
            going_on = self._going_on(number, reached)
            for name in alive:
                left_at[name] = None if name in going_on else number
            alive = going_on
        return left_at

    def _rung(self, number: int, share: float, alive: list[str]) -> dict[str, ValidationValues]:
        """What the trials are worth after this share of their steps, without those that fail."""
        rungs, found = len(self.config.rungs), {}
        with progress(f"rung {number + 1} of {rungs}", len(alive), "trials") as work:
            for place, name in enumerate(alive, start=1):
                log.info(
                    "sweep: rung %d of %d, trial %d of %d: %s", number + 1, rungs, place,
                    len(alive), name,
                )  # fmt: skip
                work.report(name)
                values = self._advance(name, number, share)
                if values is not None:
                    found[name] = values
                work.advance()
        if not found:
            first = next(s for s in self.states.values() if s.failed is not None)
            raise RunError(f"Every trial failed; the first, {first.name}: {first.failed}")
        return found

    def _advance(self, name: str, number: int, share: float) -> ValidationValues | None:
        """A trial at a share of its steps; None where it failed, now or before."""
        state, run, values = self.states[name], self.runs[name], None
        with self._working(state, number) as goes_on:
            if goes_on:
                total = total_steps(run)
                values = advance(run, steps_at(share, total))
                self._measure_costs(state, run)
                state.reached(Rung(values.step, total, values.tokens, values.seconds, values.mean))
        return values

    @contextmanager
    def _working(self, state: TrialState, rung: int) -> Iterator[bool]:
        """Note the time of work on a trial, or why it failed; gives whether it had not before."""
        file = self._file(state.name)
        if state.has_failed(rung):
            log.warning("sweep: %s failed before; delete %s to try again", state.name, file)
            yield False
            return
        started, before = time.monotonic(), replace(state)
        try:
            yield True
        except (UserError, torch.OutOfMemoryError) as error:
            state.failed, state.failed_at = " ".join(str(error).split()), rung
            log.error("sweep: %s failed: %s", state.name, state.failed)
        if state != before:  # else what was done before was read again
            state.seconds += time.monotonic() - started
            write_state(file, state)

    def _measure_costs(self, state: TrialState, run: Run) -> None:
        """Bytes and operations of a student that is built, once."""
        if state.bytes:
            return
        state.bytes = stored_weight_bytes(run.folder.student)
        try:
            cost = model_cost(run.student_config, run.task.auto)
        except ModelError:  # its code came with it: its weights stand for its operations
            state.parameters, state.operations = state.bytes // 4, state.bytes / 2
        else:
            state.parameters, state.operations = cost.total, cost.forward(1)

    def _going_on(self, number: int, reached: dict[str, ValidationValues]) -> list[str]:
        """Names of the trials that go on after a rung, the best first."""
        axes = [COSTS[axis] for axis in self.config.front if axis != "quality"]
        points = {
            name: (values.mean, *(axis(self.states[name]) for axis in axes))
            for name, values in reached.items()
        }
        if number == len(self.config.rungs) - 1:
            return ranked(points)

        def overlaps(one: str, other: str) -> bool:
            resamples = self.runs[one].recipe.evaluate.bootstrap
            found = direction(difference(reached[one], reached[other], resamples))
            return found in (UNTOLD, "not distinguishable")

        self._warn_of_few(reached)
        whole = self.config.keep_front
        kept = survivors(points, self.config.halve, overlaps, keep_front=whole)
        if not whole and len(kept) > math.ceil(len(points) / self.config.halve):
            log.info("sweep: %d trials go on, since some cannot be told apart", len(kept))
        if self.config.budget is not None:
            kept = self._within_budget(kept, number)
        log.info("sweep: %d of %d trials go on", len(kept), len(points))
        return kept

    def _warn_of_few(self, reached: dict[str, ValidationValues]) -> None:
        """Warn where there are too few documents to tell any trial from another."""
        documents = min(groups_of(values.arrays) for values in reached.values())
        if documents < MIN_DOCUMENTS:
            log.warning(
                "sweep: trials are compared on %d validation documents, too few to tell any apart, "
                "so none is left behind; raise `data.validation` or `evaluate.tokens`", documents,
            )  # fmt: skip

    def _within_budget(self, kept: list[str], number: int) -> list[str]:
        """Those that the budget is enough for; once decided, the same by every later command."""
        file = self.folder / f"rung-{number}.json"
        try:
            found = read_json_object(file, "of", "kept")
        except (FileNotFoundError, RunError):
            found = {}
        if found.get("of") == kept:
            return list(found["kept"])
        planned = {name: planned_seconds(self.runs[name]) for name in kept}
        fitting = affordable(kept, self.states, self.config, number, planned)
        write_json(file, {"of": kept, "kept": fitting})
        if len(fitting) < len(kept):
            log.warning(
                "sweep: the budget is enough for %d of the %d trials that would go on",
                len(fitting), len(kept),
            )  # fmt: skip
        return fitting

    # Finalists ---------------------------------------------------------------------------------

    def finish(self, finalists: list[str]) -> None:
        """Make and measure the artifacts of every finalist, on held_out."""
        with progress("finalists", len(finalists), "trials") as work:
            for name in finalists:
                log.info("sweep: finalist %s", name)
                work.report(name)
                with self._working(self.states[name], len(self.config.rungs)) as goes_on:
                    if goes_on:
                        run_stages(self.runs[name], list(STAGES))
                        self.states[name].finished = True
                work.advance()
