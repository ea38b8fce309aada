"""What the teacher makes of the models' own answers, beside what it says of held-out text."""

from __future__ import annotations

import numpy as np

from distill.evaluation.job import Numbers
from distill.evaluation.own_answers import KEY, answers_file, difference_by_prompt
from distill.report.columns import Column, TableColumns, cells
from distill.report.markup import Section, table_section
from distill.report.measurements import Measurements
from distill.report.paired_difference import (
    CLOSENESS,
    UNTOLD,
    direction,
    in_words,
    negated,
    paired_difference,
)
from distill.training.arms import DISTILL

TITLE = "On the models' own answers"
LEAD = (
    "Each model wrote one answer to each of the same held-out prompts, and the teacher read them. "
    "Held-out text asks how a model continues what others wrote, these numbers how it continues "
    "itself: a student that learns from its own answers may be worse in the first and better in "
    "the second."
)


def _share(key: str, meaning: str, digits: int = 3) -> Column:
    return Column(
        key, lambda r: f"{r[key]:.{digits}f}", meaning, lambda r: r.get(f"{key}_interval")
    )


OWN_COLUMNS: TableColumns = {
    "own KL": _share(
        "reverse_kl", "KL(model || teacher) over the full vocabulary at each written token, nats"
    ),
    "above distill": Column(
        "difference",
        lambda r: f"{r['difference']['difference']:+.3f}",
        "own KL of the model minus that of the distilled student, on answers to the same prompts; "
        "above 0 the distilled student is closer to the teacher",
        lambda r: r["difference"]["interval"],
        "{:+.3f}".format,
    ),
    "teacher's nll": _share(
        "teacher_nll",
        "mean of -log p of the written tokens under the teacher, nats a token: what it would pay "
        "to write them itself; low, too, where a model repeats itself",
    ),
    "top-1": _share(
        "top1_agreement",
        "share of these tokens where model and teacher have the same most likely token",
    ),
    "length": Column("length", lambda r: f"{r['length']:.1f}", "mean tokens of an answer"),
    "ended": Column(
        "ended", lambda r: f"{r['ended']:.2f}", "share of answers that the model ended by itself"
    ),
    "repeated": Column(
        "repeated",
        lambda r: f"{r['repeated']:.3f}",
        "share of the sequences of 4 tokens that stood in the same answer before",
    ),
    "answers": Column("answers", lambda r: f"{r['answers']:,}", "how many were written"),
}


def add_differences(measured: Measurements) -> None:
    """Add to the own answers of students the `difference` of their KL from the distilled one's.

    Models whose own answers were not measured stay as they are.
    """
    if _own(measured.models, DISTILL) is None:
        return
    for name in ("init", *measured.controls, "specialized"):
        if (found := _own(measured.models, name)) is not None:
            files = [answers_file(measured.folder, one) for one in (name, DISTILL)]
            one, other = (np.load(file) for file in files)
            found["difference"] = difference_by_prompt(one, other, measured.resamples)


def _own(models: dict[str, Numbers], name: str) -> Numbers | None:
    """The numbers of a student's own answers; None where there are none."""
    found: Numbers | None = models.get(name, {}).get(KEY)
    return found if found is not None and "reverse_kl" in found else None


def own_answers_section(report: Numbers) -> Section | None:
    """A table of all models whose answers the teacher read; None where there are none."""
    models = {"teacher": report["teacher"]}
    models |= {f"arm {name}": one for name, one in report["arms"].items()}
    rows = {name: one[KEY] for name, one in models.items() if one.get(KEY)}
    if not rows:
        return None
    missing = [
        f" Of {name} there are none: {one['reason']}"
        for name, one in rows.items()
        if "reason" in one
    ]
    lines = [["", *OWN_COLUMNS]]
    lines += [[name, *cells(one, OWN_COLUMNS, intervals=True)] for name, one in rows.items()]
    meanings = {title: column.meaning for title, column in OWN_COLUMNS.items()}
    return table_section(TITLE, lines, meanings, lead=f"{LEAD}{''.join(missing)}")


def own_answers_verdict(measured: Measurements, control: str, words: str) -> Numbers:
    """The difference of the distilled student's KL on its own answers from a control's, called
    `words`; whether it `disagrees` with that of the KL on held-out text; and a `sentence` on both
    that begins with a space. {} where it was not measured.
    """
    mine, its = (_own(measured.models, name) for name in (DISTILL, control))
    if mine is None or its is None or "difference" not in its:
        return {}
    found = negated(its["difference"])
    said = direction(found)
    where = "" if said == UNTOLD else f", so there it is {CLOSENESS[said]}"
    sentence = (
        f" On the answers that each wrote itself, KL(student || teacher) is "
        f"{mine['reverse_kl']:.3f} nats a token against {its['reverse_kl']:.3f} of {words} "
        f"({in_words(found)}){where}."
    )
    held_out = paired_difference(measured, "kl", DISTILL, control)
    disagree = {said, direction(held_out)} == {"lower", "higher"}
    if disagree:
        sentence += _disagreement(said, held_out, words)
    return {**found, "disagrees": disagree, "sentence": sentence}


def _disagreement(said: str, held_out: Numbers, words: str) -> str:
    """That the columns `KL` and `own KL` say opposite things; said: the direction of `own KL`."""
    own, others = ("better", "worse") if said == "lower" else ("worse", "better")
    return (
        f" The columns `KL` and `own KL` disagree: on held-out text KL(teacher || student) is "
        f"{direction(held_out)} than that of {words} ({in_words(held_out)}). The student follows "
        f"the teacher {own} in its own text and {others} in text that others wrote; which of the "
        "two counts depends on its use, and `helped` is about held-out text alone."
    )
