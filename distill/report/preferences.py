"""What preferences came to: how models rank held-out pairs of answers, and what training moved."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from distill.evaluation.job import Numbers
from distill.evaluation.preferences import moved
from distill.report.columns import Column, TableColumns, cells
from distill.report.markup import Section, table_section
from distill.report.measurements import Measurements

TITLE = "Preferences, on held-out pairs of answers"


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
        "share of pairs whose chosen answer gained more log-probability than the rejected one since "
        "the start",
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
