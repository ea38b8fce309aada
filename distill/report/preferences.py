"""What preferences came to: how models rank held-out pairs of answers, and what training moved."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from attar.word_lists import counted
from distill.evaluation.job import Numbers
from distill.evaluation.preferences import moved
from distill.report.columns import Column, TableColumns, cells
from distill.report.markup import Section, table_section
from distill.report.measurements import Measurements
from distill.report.paired_difference import has_lower_nll
from distill.report.verdict import percent

TITLE = "Preferences, on held-out pairs of answers"
HALF = 0.5  # the share of pairs that chance would rank right


PREFERENCE_COLUMNS: TableColumns = {
    "ranked right": Column(
        "ranked",
        lambda r: f"{r['ranked']:.3f}",
        "share of pairs whose chosen answer has the higher mean log-probability a token; it asks "
        "nothing of the model that training started from",
        lambda r: r.get("ranked_interval"),
    ),
    "pair accuracy": Column(
        "accuracy",
        lambda r: f"{r['accuracy']:.3f}",
        "share of pairs whose chosen answer gained more log-probability since the start than the "
        "rejected one",
        lambda r: r.get("accuracy_interval"),
    ),
    "margin": Column(
        "margin",
        lambda r: f"{r['margin']:+.3f}",
        "mean of what the chosen answer gained less what the rejected one did, nats a pair; `beta` "
        "times it is the mean difference of implicit rewards",
        lambda r: r.get("margin_interval"),
        "{:+.3f}".format,
    ),
    "chosen gained": Column(
        "chosen_gain",
        lambda r: f"{r['chosen_gain']:+.4f}",
        "mean change of the log-probability of chosen answers since the start, nats a token; below "
        "zero both answers became less likely, and the rejected one more so",
    ),
    "rejected gained": Column(
        "rejected_gain",
        lambda r: f"{r['rejected_gain']:+.4f}",
        "the same of rejected answers",
    ),
    "since": Column("against", lambda r: str(r["against"]), "the model that training started from"),
    "pairs": Column("pairs", lambda r: f"{r['pairs']:,}", "held-out pairs that were measured"),
}


def add_moves(measured: Measurements, starts: Mapping[str, str]) -> None:
    """Add to the numbers of models what they moved since their starts.

    starts: by the name of a model, that of the model that its training on preferences started
    from. Models without pairs, or without a start, stay as they are.
    """
    for name, start in starts.items():
        both = [measured.models.get(one, {}).get("preferences") for one in (name, start)]
        if None in both or name == start:
            continue
        arrays = [np.load(measured.folder / f"{one}.npz") for one in (name, start)]
        found = moved(arrays[0], arrays[1], measured.resamples, of=start)
        measured.models[name]["preferences"] |= found


def preferences_section(report: Numbers) -> Section | None:
    """A table of all models that were asked about pairs; None where there were none."""
    models = {"teacher": report["teacher"]}
    models |= {f"arm {name}": one for name, one in report["arms"].items()}
    models |= {f"artifact {name}": one for name, one in report["artifacts"].items()}
    rows = {name: one["preferences"] for name, one in models.items() if one.get("preferences")}
    if not rows:
        return None
    lines = [["", *PREFERENCE_COLUMNS]]
    lines += [[name, *cells(one, PREFERENCE_COLUMNS, intervals=True)] for name, one in rows.items()]
    meanings = {title: column.meaning for title, column in PREFERENCE_COLUMNS.items()}
    return table_section(TITLE, lines, meanings)


# In words ----------------------------------------------------------------------------------------


def preference_verdict(measured: Measurements) -> Numbers:
    """Whether learning from preferences helped: on held-out pairs, the chosen answer gained more
    than the rejected one in more than half of them, by an interval that excludes one half.
    """
    models = measured.models
    found = models["distill"].get("preferences", {})
    verdict: Numbers = {
        "helped": None,
        "teacher_is_better": {
            arm: has_lower_nll(models["teacher"], models[arm])
            for arm in ["init", *measured.controls]
        },
        "warnings": [],
    }
    if "accuracy" not in found:
        verdict["sentence"] = (
            "The held-out part has no pairs of answers, so what was learned from preferences is "
            "unknown."
        )
        return verdict
    bounds = found["accuracy_interval"]
    verdict["helped"] = None if bounds is None else bounds[0] > HALF
    lead = {None: "Cannot be told", True: "Learned the preferences", False: "Not shown to help"}
    others = [
        f" {name}: {_share(models[name]['preferences'])}."
        for name in measured.controls
        if "accuracy" in models[name].get("preferences", {})
    ]
    verdict["sentence"] = (
        f"{lead[verdict['helped']]}: {preference_sentence('the student', found)}{''.join(others)}"
    )
    if found["chosen_gain"] < 0:
        verdict["warnings"].append(
            f"The chosen answers became less likely, too ({found['chosen_gain']:+.3f} nats a "
            "token): a term `{loss: cross_entropy, weight: 0.2}` beside the preferences holds them "
            "up."
        )
    return verdict


def preference_sentence(name: str, found: Numbers) -> str:
    """What a model's training on preferences moved on held-out pairs."""
    return (
        f"on {counted(found['pairs'], 'held-out pair')} {name} raised the chosen answer above the "
        f"rejected one, against what it started from ({found['against']}), in {_share(found)}; "
        f"chosen answers gained {found['chosen_gain']:+.3f} nats a token, rejected ones "
        f"{found['rejected_gain']:+.3f}."
    )


def _share(found: Numbers) -> str:
    bounds = found["accuracy_interval"]
    between = "too few prompts for an interval"
    if bounds is not None:
        between = f"95% interval {percent(bounds[0])} to {percent(bounds[1])}"
    return f"{percent(found['accuracy'])} of them ({between})"
