"""What was measured of each way on similar shapes: the rows that are shipped, the nearest first.

`benchmarks/advise_table.py` writes measured.json from the results of the benchmarks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar.files import read_json
from distill.advise.subject import Kind

FILE = Path(__file__).with_name("measured.json")
MOST = 2  # groups of rows that are shown
KIND_OF: dict[Kind, str] = {"exact": "text", "choices": "text"}  # measured together with text
UNKNOWN = 3.0  # doublings that a number of rows is away which was not recorded


@dataclass(frozen=True)
class Measured:
    """Ways that were measured on one data set, with one model and number of rows.

    distance: doublings of the parameters and of the rows between this and what was asked for.
    rows: one a way, as measured.json has them.
    """

    kind: str
    data: str
    parameters: float
    labels: int | None
    distance: float
    rows: list[dict[str, Any]]

    def describe(self, parameters: float, labels: int) -> str:
        """How far away it is, in words."""
        here = "" if self.labels is None else f" and {self.labels:,} rows"
        return (
            f"{self.data}: measured with {shown_size(self.parameters)} parameters{here}; yours has "
            f"{shown_size(parameters)} and {labels:,} rows"
        )


def shown_size(parameters: float) -> str:
    """A number of parameters in words."""
    if parameters >= 1e9:
        return f"{parameters / 1e9:.1f} B"
    return f"{parameters / 1e6:.{0 if parameters >= 1e8 else 1}f} M"


def nearest_measured(kind: Kind, parameters: float, labels: int) -> list[Measured]:
    """The nearest group of each data set of the same kind of task, at most `MOST`, nearest first.

    parameters: of the student. The teacher of a group is another model, which does not count.
    """
    wanted = KIND_OF.get(kind, kind)
    shipped = [row for row in read_json(FILE)["rows"] if row["kind"] == wanted]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in shipped:
        if not _is_of_teacher(row):
            groups[(*_setting(row), row["parameters"], row["rows"])].append(row)
    found = []
    for (*setting, size, number), rows in groups.items():
        away = abs(math.log2(size / parameters))
        away += UNKNOWN if number is None else abs(math.log2(number / labels))
        teachers = [r for r in shipped if _is_of_teacher(r) and _setting(r) == setting]
        near = [row for row in teachers if row["rows"] == number] or teachers[:1]
        found.append(Measured(wanted, setting[0], size, number, away, [*near, *rows]))
    found.sort(key=lambda one: one.distance)
    by_data: dict[str, Measured] = {}
    for one in found:
        by_data.setdefault(one.data, one)
    return list(by_data.values())[:MOST]


def _is_of_teacher(row: dict[str, Any]) -> bool:
    return str(row["arm"]).startswith("teacher")


def _setting(row: dict[str, Any]) -> list[str]:
    return [row["data"], row["measure"], row["source"]]
