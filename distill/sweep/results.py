"""sweep.json: every trial, the artifacts of the finalists, which are optimal, which to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attar.files import read_json, write_json, write_text
from distill.evaluation.job import Numbers
from distill.recipe.schema import Recipe
from distill.report.measurements import Measurements
from distill.report.selection import Quality
from distill.sweep.checks import section_of
from distill.sweep.grid import Trial
from distill.sweep.page import render_page
from distill.sweep.state import TrialState, steps_at
from distill.tasks.registry import TASKS

SCHEMA = 1
Sweeping = dict[str, Any]  # the content of sweep.json


def write_results(
    recipe: Recipe,
    folder: Path,
    trials: Mapping[str, Trial],
    states: Mapping[str, TrialState],
    left_at: Mapping[str, int | None],
) -> Sweeping:
    """Write sweep.json and sweep.html; returns the content of the first.

    left_at: the rung, from 0, at which a trial was left behind, None for finalists.
    """
    of = TASKS[recipe.task].report
    artifacts = _artifacts(folder, states, left_at)
    made = {name: one for name, one in artifacts.items() if "failed" not in one}
    measured = Measurements(
        models=made, folder=folder / "trials", resamples=recipe.evaluate.bootstrap, controls=[],
        costs={}, tolerance=recipe.export.tolerance,
    )  # fmt: skip
    of.mark_pareto(made, measured)
    found = {
        "schema": SCHEMA,
        "task": recipe.task,
        "trials": {name: _trial(trials[name], states[name], left_at[name]) for name in trials},
        "artifacts": artifacts,
        "advice": advice(made, trials, of.quality),
        "training": _training(states, left_at, section_of(recipe).rungs),
        "compared": TASKS[recipe.task].metrics.trial_value,
        "recipe": recipe.model_dump(mode="json", by_alias=True),
    }
    write_json(folder / "sweep.json", found)
    write_text(folder / "sweep.html", render_page(found, of))
    return found


def model_name(trial: str, artifact: str) -> str:
    """The name of an artifact among all of a sweep: where its numbers are below `trials`."""
    return f"{trial}/evaluation/{artifact}"


def _artifacts(
    folder: Path, states: Mapping[str, TrialState], left_at: Mapping[str, int | None]
) -> dict[str, Numbers]:
    """Numbers of the artifacts of all finalists, as their reports have them."""
    found = {}
    for name, left in left_at.items():
        if left is None and states[name].failed is None:
            report = read_json(folder / "trials" / name / "report.json")
            for artifact, numbers in report["artifacts"].items():
                own = {"trial": name, "artifact": artifact}
                found[model_name(name, artifact)] = {**numbers, **own}
    return found


def _trial(trial: Trial, state: TrialState, left_at: int | None) -> Numbers:
    return {**asdict(state), "words": trial.words, "left_at": left_at}


def _training(
    states: Mapping[str, TrialState], left_at: Mapping[str, int | None], rungs: Sequence[float]
) -> Numbers:
    """`tokens` of all trials up to where they were left, those of training every trial to its end
    (`whole`, by the tokens a step so far), and the `share`.
    """
    tokens = whole = 0.0
    for name, state in states.items():
        left = left_at[name]
        share = 1.0 if left is None else rungs[left]
        known = [one for one in state.rungs if one.step <= steps_at(share, one.total)]
        if known and known[-1].step:
            tokens += known[-1].tokens
            whole += state.rungs[-1].tokens * state.rungs[-1].total / state.rungs[-1].step
    share = tokens / whole if whole else 1.0
    return {"tokens": round(tokens), "whole": round(whole), "share": share}


def advice(
    artifacts: Mapping[str, Numbers], trials: Mapping[str, Trial], quality: Quality
) -> list[str]:
    """Sentences on what to take under a size: the optimal artifacts from the largest down."""
    optimal = [one for one in artifacts.values() if one["pareto"]["bytes"]]
    optimal.sort(key=lambda one: (-one["bytes"], quality.loss(one)))
    found = []
    for place, one in enumerate(optimal):
        words = f"{trials[one['trial']].words}, as {one['artifact']}"
        size, said = _megabytes(one["bytes"]), quality.words(one)
        where = "Without a limit on size"
        if place:
            where = f"Under {_megabytes(optimal[place - 1]['bytes'])}"
        fit = one.get("fit", {})
        doubt = "" if fit.get("ships", True) else "; not fit to ship against its own student"
        found.append(f"{where}: take {words} ({said}, {size}{doubt}).")
    return found


def _megabytes(number: float) -> str:
    return f"{number / 1e6:,.2f} MB" if number < 1e7 else f"{number / 1e6:,.0f} MB"
