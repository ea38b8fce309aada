"""The rounds in which students wrote what they learned from, from the first to the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from distill.evaluation.job import Numbers
from distill.report.markup import Figure, Section, as_figures, table_section
from distill.report.plots import plot_curves

TITLE = "What the students wrote while they learned"
TERMS = {
    "rounds": "how often the student wrote, and how many answers in all",
    "tokens": "of an answer, the mean of the first rounds and of the last ones (a tenth of all)",
    "ended": "share of answers that the student ended by itself",
    "repeated": "share of sequences of 4 ids in an answer that stood in it before",
    "own KL": "KL(student || teacher) a token at the student's answers as it wrote them, in nats; "
    "over stored ids and the rest where signals come from a cache",
    "teacher's nll": "-log p of the written ids under the teacher, nats a token",
    "top-1": "share of written tokens at which both find the same id most likely",
    "kept mass": "the teacher's probability of the ids that the cache holds, at these tokens",
    "reward": "mean reward of an answer",
    "writing": "share of the training's time in which the student wrote",
}
_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "tokens": ("tokens", "{:.1f}".format),
    "ended": ("ended", "{:.0%}".format),
    "repeated": ("repeated", "{:.0%}".format),
    "own KL": ("reverse_kl", "{:.3f}".format),
    "teacher's nll": ("teacher_nll", "{:.3f}".format),
    "top-1": ("top1", "{:.0%}".format),
    "kept mass": ("kept", "{:.3f}".format),
    "reward": ("reward", "{:.3f}".format),
}
_CURVES = {
    "reward": "The mean reward of the answers of each round.",
    "reverse_kl": "KL(student || teacher) on the student's answers as it wrote them, by the step "
    "that learned from them first.",
}


def rounds_entry(rounds: Sequence[Numbers], seconds: float) -> Numbers | None:
    """The rounds of a training in report.json; None where it had none. seconds: the training's."""
    if not rounds:
        return None
    edge = max(1, len(rounds) // 10)
    return {
        "rounds": len(rounds),
        "answers": sum(one["answers"] for one in rounds),
        "writing": sum(one.get("seconds", 0.0) for one in rounds) / seconds if seconds else None,
        "first": _means(rounds[:edge]),
        "last": _means(rounds[-edge:]),
        "curve": [
            {name: one[name] for name in ("step", *_CURVES) if name in one} for one in rounds
        ],
    }


def _means(rounds: Sequence[Numbers]) -> Numbers:
    """The mean of each number over the answers of the rounds that have it."""
    found = {}
    for key, _ in _COLUMNS.values():
        values = [(one[key], one["answers"]) for one in rounds if key in one and one["answers"]]
        if values:
            found[key] = sum(value * number for value, number in values) / sum(
                number for _, number in values
            )
    return found


def rounds_section(report: Numbers) -> Section | None:
    """The section of report.html; None where no student wrote."""
    trainings = report.get("training") or {}
    found = {name: one["rounds"] for name, one in trainings.items() if one.get("rounds")}
    if not found:
        return None
    shown = {
        title: column
        for title, column in _COLUMNS.items()
        if any(column[0] in one["first"] for one in found.values())
    }
    lines = [["", "rounds", *shown, "writing"]]
    for name, one in found.items():
        cells = [_change(one, key, show) for key, show in shown.values()]
        share = "" if one["writing"] is None else f"{one['writing']:.0%}"
        lines.append([name, f"{one['rounds']:,} ({one['answers']:,} answers)", *cells, share])
    terms = {title: about for title, about in TERMS.items() if title in lines[0]}
    table = table_section(TITLE, lines, terms)
    figures: list[Figure] = []
    for key, caption in _CURVES.items():
        curves = {name: [r for r in one["curve"] if key in r] for name, one in found.items()}
        curves = {name: points for name, points in curves.items() if len(points) > 1}
        if curves:
            figures.append((plot_curves(curves, {}, key), caption))
    plots = f'<div class="plots">{as_figures(figures)}</div>' if figures else ""
    return Section(TITLE, table.markup + plots)


def _change(entry: Numbers, key: str, show: Callable[[float], str]) -> str:
    """A number of the first rounds and of the last."""
    first, last = entry["first"].get(key), entry["last"].get(key)
    if first is None:
        return ""
    return show(first) if last is None or entry["rounds"] == 1 else f"{show(first)} → {show(last)}"
