"""`distill data`: what will be learned, counted on the data as the run prepares them.

Of the held-out part only the numbers are said that were counted when it was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attar.files import read_json
from distill.data.config import DataConfig
from distill.data.examples import Examples
from distill.data.placed import DATA_PARTS
from distill.planning.data_counts import DataCounts
from distill.planning.estimate import data_counts
from distill.planning.held_out import few_held_out
from distill.planning.steps import planned_steps
from distill.run.context import Run

MOST_CLASSES = 40  # that are shown: the most frequent and the rarest of more
BAR = 30  # characters of the most frequent length


@dataclass(frozen=True)
class DataSummary:
    """Tables of text, header first, and sentences, of one section of data.

    classes: by class and part; empty where there are no classes.
    """

    parts: list[list[str]]
    lengths: list[list[str]]
    classes: list[list[str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def data_sections(run: Run) -> list[DataConfig]:
    """The run's data, and those that it specialises on where they are others."""
    special = run.recipe.specialize
    own = [special.data] if special is not None and special.data is not None else []
    return [run.recipe.data, *own]


def summary(run: Run, config: DataConfig) -> DataSummary:
    """What is to be said of a section of data that are prepared."""
    stats = read_json(run.folder.data(config.section) / "stats.json")
    train = Examples(run.folder.data(config.section) / "train.arrow")
    classes: list[list[str]] = []
    if "classes" in stats:
        classes = _class_rows(stats["classes"], stats["examples_by_class"])
    counts = data_counts(run, config)
    is_reported = config is run.recipe.data
    few = filter(None, [few_held_out(counts) if is_reported else None])
    return DataSummary(
        parts=_part_rows(stats),
        lengths=length_rows(train.by_text().lengths, config.max_length),
        classes=classes,
        remarks=[*stats["left_out"], *_training_remarks(run, config, counts), *few],
    )


def _part_rows(stats: Mapping[str, Any]) -> list[list[str]]:
    """Numbers of each part; without the counted tokens where each text counts once, with the
    judged examples and the pairs among them where there are some.
    """
    columns = ["documents", "examples", "tokens"]
    texts = {part: stats[part]["examples"] + stats[part]["pairs"] for part in DATA_PARTS}
    if all(stats[part]["tokens"] == texts[part] for part in DATA_PARTS):
        columns.remove("tokens")
    columns += [n for n in ("judged", "pairs") if any(stats[part][n] for part in DATA_PARTS)]
    heads = ["part", *(name.replace("tokens", "counted tokens") for name in columns)]
    return [heads, *([p, *(f"{stats[p][name]:,}" for name in columns)] for p in DATA_PARTS)]


def _class_rows(names: list[str], by_part: Mapping[str, list[int]]) -> list[list[str]]:
    """Examples of each class in each part, the most frequent first."""
    order = sorted(range(len(names)), key=lambda i: -by_part["train"][i])
    table = [[names[i], *(f"{by_part[part][i]:,}" for part in DATA_PARTS)] for i in order]
    if len(table) > MOST_CLASSES:
        half = MOST_CLASSES // 2
        between = [f"... {len(table) - MOST_CLASSES} more", *[""] * len(DATA_PARTS)]
        table = [*table[:half], between, *table[-half:]]
    return [["class", *DATA_PARTS], *table]


def length_rows(lengths: np.ndarray, most: int) -> list[list[str]]:
    """Training examples by their length in tokens; what is of full length stands by itself."""
    edges = [1]
    while edges[-1] * 2 < most:
        edges.append(edges[-1] * 2)
    edges += [most, most + 1]
    numbers = np.histogram(lengths, edges)[0]  # the last bin holds `most` alone
    filled = np.flatnonzero(numbers)
    table = [["length of train", "examples", "share", ""]]
    for i in range(filled[0], filled[-1] + 1):
        first, last = edges[i], edges[i + 1] - 1
        name = f"{most} (max_length)" if first == most else f"{first}-{last}"
        if first == last < most:
            name = str(first)
        number, bar = int(numbers[i]), "#" * round(BAR * numbers[i] / numbers.max())
        table.append([name, f"{number:,}", f"{number / len(lengths):.1%}", bar.ljust(BAR, ".")])
    return table


def _training_remarks(run: Run, config: DataConfig, counts: DataCounts) -> list[str]:
    """The number of steps of each training on these data, and whether they are few."""
    found = []
    adapt = run.recipe.teacher.adapt
    trainings = {"teacher.adapt": adapt} if adapt is not None else {}
    for path, loop in {**trainings, **run.recipe.learning()}.items():
        if (getattr(loop, "data", None) or run.recipe.data) is config:
            steps = planned_steps(run, path, loop, counts)
            found.append(steps.warning() or f"`{path}` has {steps.note()}")
    return found
