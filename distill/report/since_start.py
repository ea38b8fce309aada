"""What a training without a teacher came to: the student against itself as it started."""

from __future__ import annotations

from distill.evaluation.job import Numbers
from distill.report.measurements import Measurements
from distill.report.verdict import ACCURACY, Comparison, Measure, compare, percent

START = "init"


def since_start(measured: Measurements, measure: Measure) -> tuple[Numbers, str]:
    """(differences of the distilled student since its start, of the measure and by downstream task;
    the same in words). Where nothing of a teacher is learned, this is what training came to.
    """
    found = compare(measured, [measure], START, "the student before training")
    tasks = {"tasks": found.tasks} if found.tasks else {}
    said = [found.numbers(measure), *(_task_words(found, name) for name in found.tasks)]
    return {**found.found, **tasks}, (
        "No loss reads the teacher, so the student is compared with itself before training: "
        f"{'; '.join(said)}."
    )


def _task_words(found: Comparison, name: str) -> str:
    after, before = (
        percent(found.models[one]["tasks"][name]["accuracy"]) for one in ("distill", START)
    )
    return f"accuracy on {name} {after} against {before} ({ACCURACY.in_words(found.tasks[name])})"
