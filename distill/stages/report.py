"""Stage `report`: what every model measured, what it cost, and whether distilling helped.

docs/reference/report.md documents the schema. The report of the task says what its numbers mean
(`distill/report/task_report.py`).
"""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from attar import __version__
from attar.files import read_json, write_json, write_text
from attar.machine import processor_name
from distill.objective.terms import learns_preferences, reads_from
from distill.report.best_way import way_words
from distill.report.data_parts import DataParts
from distill.report.measurements import Measurements
from distill.report.own_answers import add_differences
from distill.report.preferences import add_moves, preference_sentence
from distill.report.selection import advise_best
from distill.report.specializing import specializing_entry
from distill.report.trainings import overfitted_warnings
from distill.report.written_answers import beside_gold
from distill.run.context import Run
from distill.run.folder import StageRecord
from distill.stages.evaluate import baselines_of, reference_of
from distill.stages.run_facts import (
    data_facts,
    data_stats,
    own_data_stats,
    student_facts,
    training_facts,
)
from distill.stages.stage import CACHE, REPORT, STAGES, work
from distill.stages.train import arms_of
from distill.training.arms import DISTILL
from students.artifacts.artifact import ARTIFACTS

SCHEMA = 8
UNTRAINED: dict[str, Any] = {
    "helped": None,
    "worse": [],
    "sentence": "The student was not trained (`train.max_steps: 0`): it is as it was built.",
    "warnings": [],
}


@work(
    REPORT,
    inputs=lambda run: [],
    outputs=lambda run: [run.folder.report, run.folder.report_page],
)
def report(run: Run, inputs: str) -> StageRecord:
    """Write report.json and report.html."""
    write_report(run)
    return StageRecord(REPORT.name)


def write_report(run: Run) -> dict[str, Any]:
    """Assemble and write report.json and report.html in the run folder."""
    found = assemble(run)
    write_json(run.folder.report, found)
    curves = {arm: _history(run, arm) for arm in found["arms"] if arm != "init"}
    of = run.task.report
    measured = measurements(run, found["cost"])
    write_text(run.folder.report_page, of.render_page(found, curves, measured))
    return found


def assemble(run: Run) -> dict[str, Any]:
    """The content of report.json."""
    costs = cost(run)
    found = measurements(run, costs)
    add_moves(found, _starts(run))
    add_differences(found)
    measured = found.models
    arms = {name: measured[name] for name in ["init", *run.recipe.train.arms, "distill"]}
    if run.recipe.specialize is not None:
        arms["specialized"] = measured["specialized"]
    artifacts, baselines = judged(run, found)
    of = run.task.report
    trainings = training_facts(run)
    verdict = of.verdict(found) if run.recipe.train.learns else dict(UNTRAINED)
    verdict["warnings"] = [*verdict["warnings"], *overfitted_warnings(trainings)]
    made = {name: one for name, one in baselines.items() if "failed" not in one}
    return {
        "schema": SCHEMA,
        "teacher": {"model": run.recipe.teacher.model, **measured["teacher"]},
        "arms": arms,
        "baselines": baselines,
        "artifacts": artifacts,
        "advice": [*_best_advice(run, found), *of.advise(artifacts, made)],
        "specialize": _specialised(run, found),
        "verdict": verdict,
        "data": data_facts(run),
        "answers": _answers(run, found),
        "transport": _transported(run),
        "student": student_facts(run),
        "training": trainings,
        "selection": None if found.parts is None else found.parts.entry(),
        "cost": costs,
        "recipe": run.recipe.model_dump(mode="json", by_alias=True),
        "environment": {
            "attar": __version__,
            "python": platform.python_version(),
            "machine": processor_name(),
            **{name: version(name) for name in ("torch", "transformers", "accelerate", "peft")},
        },
    }


def measurements(run: Run, costs: dict[str, Any]) -> Measurements:
    """What the evaluate stage left, as the task's report reads it."""
    folder, special = run.folder.evaluation, run.recipe.specialize
    on_own_data = special is not None and special.data is None
    merged = on_own_data and run.merged_student is not None
    models = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
    kinds = run.task.metrics.baselines
    measured_baselines = [name for name in baselines_of(run) if "failed" not in models[name]]
    return Measurements(
        models=models,
        folder=folder,
        resamples=run.recipe.evaluate.bootstrap,
        controls=run.recipe.train.arms,
        costs=costs,
        tolerance=run.recipe.export.tolerance,
        quantized_base=special.base if merged and special.base != "none" else None,
        parts=DataParts.from_stats(data_stats(run, "data"), own_data_stats(run)),
        baselines={name: kinds[name].about for name in measured_baselines},
        start=_start(run),
        preferences=_on_preferences(run),
        reads_teacher=any(reads_from(run.recipe.train, source) for source in ("cache", "online")),
    )


def _start(run: Run) -> str:
    """The teacher in words, where the student was made of it; else empty."""
    if run.recipe.student.from_ != "teacher":
        return ""
    return "the teacher" if run.recipe.teacher.adapt is None else "the fine-tuned teacher"


def _starts(run: Run) -> dict[str, str]:
    """By name, the model from which a training on preferences started: the untrained student's for
    the arms; the distilled student, for what was specialised on preferences, and its artifacts.
    """
    last = DISTILL if "specialized" in _on_preferences(run) else "init"
    special = ["specialized"] if run.recipe.specialize is not None else []
    deployed = dict.fromkeys([*special, *run.artifacts], last)
    return {**dict.fromkeys(arms_of(run), "init"), **deployed}


def _on_preferences(run: Run) -> list[str]:
    """Names of the models that learned from preferences."""
    special = run.recipe.specialize
    found = [DISTILL] if learns_preferences(run.recipe.train.objective) else []
    if special is not None and learns_preferences(special.objective):
        found.append("specialized")
    return found


def judged(run: Run, measured: Measurements) -> tuple[dict[str, Any], dict[str, Any]]:
    """Numbers of the artifacts, and of the baselines, each with `fit` (to ship?) and `pareto`
    (optimal?). A baseline is held against the distilled student, and says what it is: `about`.

    One that could not be made or run has `failed`, the reason, instead of numbers.
    """
    of, tolerance = run.task.report, run.recipe.export.tolerance
    references = {name: reference_of(run, name) for name in run.artifacts}
    references |= dict.fromkeys(baselines_of(run), DISTILL)
    found = {name: dict(measured.models[name]) for name in references}
    for name, numbers in found.items():
        reference = references[name]
        if name in run.artifacts:
            numbers["runtime"] = ARTIFACTS[name].runtime
        else:
            numbers["about"] = run.task.metrics.baselines[name].about
        if "failed" in numbers:
            reason = numbers["failed"]
            numbers["fit"] = {"reference": reference, "ships": False, "reason": reason}
            continue
        numbers["fit"] = of.judge(numbers, measured.models[reference], reference, tolerance)
        numbers["fit"].update(of.certainty(measured, name, reference))
        if name in run.artifacts:
            numbers["fit"]["below"] = of.below(measured, name, list(measured.baselines))
    of.mark_pareto({n: one for n, one in found.items() if "failed" not in one}, measured)
    return {n: found[n] for n in run.artifacts}, {n: found[n] for n in baselines_of(run)}


def _best_advice(run: Run, measured: Measurements) -> list[dict[str, Any]]:
    """Advice on the best of teacher, students and baselines, where the task compares them."""
    of, kinds = run.task.report, run.task.metrics.baselines
    best = of.best(measured)
    if best is None:
        return []
    name = best["model"]
    if name in kinds:
        how = kinds[name].made_by
    elif name == "teacher":
        how = "It is the teacher itself."
    else:
        how = f"It is in arms/{name}/student of the run."
    numbers, words = measured.models[name], way_words(measured, name)
    return [advise_best(best, words, numbers, of.quality, of.speed, how)]


def _specialised(run: Run, measured: Measurements) -> dict[str, Any] | None:
    """The numbers of specialising, the nll of each form before and after merging, and what it did
    to the distilled student.
    """
    special = run.recipe.specialize
    if special is None:
        return None
    found = read_json(run.folder.specialized / "result.json")
    own = own_data_stats(run)
    held_out = None if own is None else own["held_out"]["tokens"]
    entry = specializing_entry(measured, found, special.base, held_out)
    moved = measured.models["specialized"].get("preferences", {})
    if "specialized" in measured.preferences and "accuracy" in moved:
        said = preference_sentence("specialising", moved)
        entry["sentence"] += f" By preferences: {said}"
    return {**{key: value for key, value in found.items() if key != "history"}, **entry}


def _answers(run: Run, measured: Measurements) -> dict[str, Any] | None:
    """The numbers of the answers that a model wrote; None where none did."""
    if run.recipe.data.answers is None:
        return None
    found: dict[str, Any] = read_json(run.folder.answers / "result.json")
    return {**found, "beside_gold": beside_gold(measured)}


def _transported(run: Run) -> dict[str, Any] | None:
    """What the transport to the student's tokenizer keeps; None where nothing was transported."""
    record = run.folder.record(CACHE.name)
    return None if record is None else record.notes.get("transport")


def cost(run: Run) -> dict[str, Any]:
    """Seconds, tokens, bytes and peak memory of each stage, and bytes a token of the cache."""
    recipe = run.recipe
    left_out = {
        "adapt-teacher": recipe.teacher.adapt,
        "answer": recipe.data.answers,
        "specialize": recipe.specialize,
    }
    records = {
        name: run.folder.record(name) for name in STAGES if left_out.get(name, True) is not None
    }
    stages = {
        name: {
            "seconds": record.seconds,
            "tokens": record.tokens,
            "bytes": record.bytes,
            "peak_memory_bytes": record.peak_memory_bytes,
        }
        for name, record in records.items()
        if record is not None
    }
    cache, train = records["cache"], records["train"]
    return {
        "stages": stages,
        "seconds": sum(stage["seconds"] for stage in stages.values()),
        "cache_bytes_per_token": cache.notes.get("bytes_per_token", 0.0) if cache else 0.0,
        "arms": train.notes if train else {},
    }


# Curves ---------------------------------------------------------------------------------------


def _history(run: Run, arm: str) -> list[dict[str, float]]:
    folder = run.folder.specialized if arm == "specialized" else run.folder.arm(arm)
    history: list[dict[str, float]] = read_json(folder / "result.json")["history"]
    return history
