"""Ways to do a task, compared: the teacher, students, and baselines that need no training of them.

A verdict names the best one that was measured, and begins with a baseline that beats the teacher or
the distilled student.
"""

from __future__ import annotations

from collections.abc import Sequence

from attar.word_lists import listed
from distill.evaluation.job import Numbers
from distill.report.measurements import Measurements
from distill.report.paired_difference import negated
from distill.report.tables import Table
from distill.report.verdict import Measure

WORDS = {
    "teacher": "the teacher",
    "distill": "the distilled student",
    "finetune": "the fine-tuned student",
}


def way_words(measured: Measurements, name: str) -> str:
    """A way as sentences name it."""
    if name in measured.baselines:
        return measured.baselines[name]
    return WORDS.get(name, f"the student of the arm `{name}`")


def best_way(measured: Measurements, measure: Measure, second: Measure) -> Numbers:
    """The best of all ways by a measure: `model`, its name, `by`, the key of what decided, and
    `tied`, the names of those that are not distinguishably worse by the first, the best first.

    Among ways than which none is distinguishably better, one that is distinguishably better by the
    second measure than the first of them comes before it. Of equals the smaller is the best.
    """

    def ranked(names: Sequence[str], by: Measure) -> list[str]:
        sign = -1 if by.higher else 1
        return sorted(names, key=lambda name: (sign * models[name][by.key], sizes[name]))

    def is_worse(one: str, other: str, by: Measure) -> bool:
        return by.is_worse(by.difference(measured, one, other))

    models = measured.models
    ways = ["teacher", *measured.controls, "distill", *measured.baselines]
    sizes = {name: models[name]["parameters"] for name in ways}
    ways = ranked(ways, measure)
    best, by = ways[0], measure
    unbeaten = [
        name for i, name in enumerate(ways) if not any(is_worse(name, o, measure) for o in ways[:i])
    ]
    rivals = ranked([name for name in unbeaten[1:] if is_worse(best, name, second)], second)
    if rivals:
        best, by = rivals[0], second
    tied = [name for name in ways if name != best and not is_worse(name, best, measure)]
    return {"model": best, "by": by.key, "tied": tied}


def best_sentence(measured: Measurements, measures: Sequence[Measure], best: Numbers) -> str:
    """The best way with its numbers by all measures that it has, and what is tied with it."""
    numbers, first = measured.models[best["model"]], measures[0]
    shown = [f"{one.name} {one.show(numbers[one.key])}" for one in measures if one.key in numbers]
    tied = [
        f"{way_words(measured, name)} ({first.show(measured.models[name][first.key])})"
        for name in best["tied"]
    ]
    also = f"; its {first.name} cannot be told from that of {listed(tied)}" if tied else ""
    if best["by"] != first.key:
        also += f", and its {_named(measures, best['by'])} is better"
    way = way_words(measured, best["model"])
    return f"The best of all that was measured is {way}: {', '.join(shown)}{also}."


def _named(measures: Sequence[Measure], key: str) -> str:
    return next(one.name for one in measures if one.key == key)


# Baselines ---------------------------------------------------------------------------------------


def baseline_entry(measured: Measurements, measures: Sequence[Measure]) -> Numbers:
    """What a verdict has of baselines: the teacher and the distilled student minus each, and those
    that are significantly better than either by the first measure, the best first.
    """
    first, models = measures[0], measured.models
    sign = 1 if first.higher else -1
    names = sorted(measured.baselines, key=lambda name: -sign * models[name][first.key])
    teacher = {name: first.difference(measured, "teacher", name) for name in names}
    student = {
        name: {one.key: one.difference(measured, "distill", name) for one in measures}
        for name in names
    }
    return {
        "against_baselines": student,
        "teacher_against_baselines": teacher,
        "beaten_by": [name for name in names if first.is_worse(student[name][first.key])],
        "teacher_beaten_by": [name for name in names if first.is_worse(teacher[name])],
    }


def baseline_lead(measured: Measurements, measures: Sequence[Measure], entry: Numbers) -> str:
    """What is said first, with a space behind it: a teacher and a student that a baseline beats by
    the first measure, and by which of the others that baseline is worse than the student.

    Empty where none does.
    """
    lead, about, measure = "", measured.baselines, measures[0]
    if entry["teacher_beaten_by"]:
        name = entry["teacher_beaten_by"][0]
        found = entry["teacher_against_baselines"][name]
        lead = (
            f"The teacher is worse than {about[name]} "
            f"({measure.name} {_values(measured, measure, 'teacher', name, found)}), "
            "so it has little to teach: train it longer or faster (`teacher.adapt.epochs`, `lr`), "
            "or take a better one. "
        )
    if entry["beaten_by"]:
        name, *others = entry["beaten_by"]
        differences = entry["against_baselines"][name]
        found = negated(differences[measure.key])
        shown = [measure.show(measured.models[one][measure.key]) for one in others]
        also = [f"{about[one]} ({value})" for one, value in zip(others, shown, strict=True)]
        lead += (
            f"{about[name][:1].upper()}{about[name][1:]} is better than the distilled student "
            f"in {measure.name} ({_values(measured, measure, name, 'distill', found)})"
            f"{_but_worse(measured, measures, name, differences)}"
            f"{f', and so is {listed(also)}' if also else ''}. "
        )
    return lead


def _but_worse(
    measured: Measurements, measures: Sequence[Measure], name: str, differences: Numbers
) -> str:
    """A clause on the measures by which a baseline is worse than the distilled student."""
    models = measured.models
    worse = [
        f"{one.name} ({' against '.join(one.show(models[m][one.key]) for m in (name, 'distill'))})"
        for one in measures
        if one.said(differences[one.key]) == "better"
    ]
    return f", but worse in {listed(worse)}" if worse else ""


def _values(measured: Measurements, measure: Measure, a: str, b: str, difference: Numbers) -> str:
    """The numbers of two models, and the difference of the first minus the second."""
    shown = [measure.show(measured.models[name][measure.key]) for name in (a, b)]
    return f"{' against '.join(shown)}, {measure.in_words(difference)}"


def baseline_table(report: Numbers, measures: Sequence[Measure]) -> Table:
    """The distilled student minus each baseline, a measure a column; [] without baselines."""
    found = report["verdict"].get("against_baselines", {})
    if not found:
        return []
    lines = [["the distilled student is", *(one.name for one in measures)]]
    for name, differences in found.items():
        cells = [
            f"{one.said(differences[one.key])} ({one.in_words(differences[one.key])})"
            for one in measures
        ]
        lines.append([f"against {name}", *cells])
    return lines
