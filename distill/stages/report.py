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
from distill.report.data_parts import DataParts
from distill.report.measurements import Measurements
from distill.run.context import Run
from distill.run.folder import StageRecord
from distill.stages.evaluate import reference_of
from distill.stages.stage import REPORT, STAGES, work
from students.artifacts.artifact import ARTIFACTS

SCHEMA = 5


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
    measured = found.models
    arms = {name: measured[name] for name in ["init", *run.recipe.train.arms, "distill"]}
    if run.recipe.specialize is not None:
        arms["specialized"] = measured["specialized"]
    artifacts = judged_artifacts(run, found)
    of = run.task.report
    return {
        "schema": SCHEMA,
        "teacher": {"model": run.recipe.teacher.model, **measured["teacher"]},
        "arms": arms,
        "artifacts": artifacts,
        "advice": of.advise(artifacts),
        "specialize": _specialised(run),
        "verdict": of.verdict(found),
        "selection": None if found.parts is None else found.parts.entry(),
        "cost": costs,
        "recipe": run.recipe.model_dump(mode="json", by_alias=True),
        "environment": {
            "attar": __version__,
            "python": platform.python_version(),
            "machine": platform.processor() or platform.machine(),
            **{name: version(name) for name in ("torch", "transformers", "accelerate", "peft")},
        },
    }


def measurements(run: Run, costs: dict[str, Any]) -> Measurements:
    """What the evaluate stage left, as the task's report reads it."""
    folder, special = run.folder.evaluation, run.recipe.specialize
    on_own_data = special is not None and special.data is None
    merged = on_own_data and run.merged_student is not None
    return Measurements(
        models={path.stem: read_json(path) for path in sorted(folder.glob("*.json"))},
        folder=folder,
        resamples=run.recipe.evaluate.bootstrap,
        controls=run.recipe.train.arms,
        costs=costs,
        tolerance=run.recipe.export.tolerance,
        quantized_base=special.base if merged and special.base != "none" else None,
        parts=DataParts.from_stats(read_json(run.folder.data() / "stats.json")),
    )


def judged_artifacts(run: Run, measurements: Measurements) -> dict[str, Any]:
    """Numbers of the artifacts, each with `fit` (to ship?) and `pareto` (optimal?).

    One that could not be made or run has `failed`, the reason, instead of numbers.
    """
    measured = measurements.models
    found = {name: dict(measured[name]) for name in run.artifacts}
    of, tolerance = run.task.report, run.recipe.export.tolerance
    for name, numbers in found.items():
        reference = reference_of(run, name)
        numbers["runtime"] = ARTIFACTS[name].runtime
        if "failed" in numbers:
            reason = numbers["failed"]
            numbers["fit"] = {"reference": reference, "ships": False, "reason": reason}
            continue
        numbers["fit"] = of.judge(numbers, measured[reference], reference, tolerance)
        numbers["fit"].update(of.certainty(measurements, name, reference))
    made = {name: one for name, one in found.items() if "failed" not in one}
    of.mark_pareto(made, measurements)
    return found


def _specialised(run: Run) -> dict[str, Any] | None:
    """The numbers of specialising, and the nll of each form before and after merging."""
    if run.recipe.specialize is None:
        return None
    found = read_json(run.folder.specialized / "result.json")
    return {key: value for key, value in found.items() if key != "history"}


def cost(run: Run) -> dict[str, Any]:
    """Seconds, tokens, bytes and peak memory of each stage, and bytes a token of the cache."""
    recipe = run.recipe
    left_out = {"adapt-teacher": recipe.teacher.adapt, "specialize": recipe.specialize}
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
