"""Arms that were trained with several seeds: their means, and how far the seeds spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from distill.evaluation.job import Numbers
from distill.evaluation.seed_intervals import interval_over_seeds, mean_over_seeds
from distill.report.columns import TableColumns, cells, shown_columns
from distill.report.markup import Section, table_section
from distill.report.measurements import Measurements
from distill.report.tables import Table

TITLE = "Over seeds"
OF_THE_FIRST = {  # what is not of the weights' quality, or was measured of one seed alone
    "own_answers", "samples", "machine", "timing", "tokens_per_second", "texts_per_second",
    "seconds_to_first_token", "seconds_a_text", "peak_memory_bytes", "process_peak_bytes",
    "generation_agreement", "parameters", "bytes",
}  # fmt: skip
SUFFIX = "_interval"
KEYS_OF_INTERVALS = {"kl": "kl_to_teacher"}  # where the number has another name than its interval
TERMS = {
    "seed": "of the order of batches, dropout and new weights; data, cache and untrained student "
    "are the same",
    "standard deviation": "of the seeds around their mean: how far another seed may be off",
}


def with_means(measured: Measurements) -> Measurements:
    """The same with means over seeds as the numbers of each arm that has several; each mean has
    the numbers of all `seeds`. Of speeds and sizes, and of own answers, the first seed's stay.
    """
    models, firsts = dict(measured.models), dict[str, Numbers]()
    for arm, names in measured.seeds.items():
        firsts[arm] = models[arm]
        single = [measured.models[name] for name in names]
        models[arm] = _mean(measured, single, names)
        for task in models[arm].get("tasks", {}).values():
            task["seeds"] = len(names)
        models[arm]["seeds"] = [
            {"model": name, **{key: one[key] for key in one if key not in OF_THE_FIRST}}
            for name, one in zip(names, single, strict=True)
        ]
    return replace(measured, models=models, firsts=firsts)


def _mean(measured: Measurements, models: Sequence[Numbers], names: Sequence[str]) -> Numbers:
    found = _means(models)
    files = [measured.folder / f"{name}.npz" for name in names]
    if all(file.exists() for file in files):
        arrays = [np.load(file) for file in files]
        for name in ("nll", "kl"):
            if f"{name}{SUFFIX}" in found and all(_is_by_document(one, name) for one in arrays):
                found[f"{name}{SUFFIX}"] = interval_over_seeds(arrays, name, measured.resamples)
    if "perplexity" in found and "nll" in found:
        found["perplexity"] = math.exp(min(found["nll"], 700.0))  # so that both are of one number
    return found


def _is_by_document(arrays: Mapping[str, np.ndarray], name: str) -> bool:
    return name in arrays and len(arrays[name]) == len(arrays["document"])


def _means(models: Sequence[Numbers]) -> Numbers:
    """Means of all numbers that every seed's model has, with intervals over seeds."""
    return {key: _mean_of(key, models) for key in models[0]}


def _mean_of(key: str, models: Sequence[Numbers]) -> Any:
    values: list[Any] = [one.get(key) for one in models]
    first = values[0]
    if key in OF_THE_FIRST or any(value is None for value in values):
        return first if key in OF_THE_FIRST else None
    if key.endswith(SUFFIX):
        name = key.removesuffix(SUFFIX)
        numbers = [one.get(KEYS_OF_INTERVALS.get(name, name)) for one in models]
        return _interval(numbers, values)
    if isinstance(first, dict):
        return _means(values)
    if isinstance(first, bool) or not isinstance(first, (int, float)):
        return first
    return first if len(set(values)) == 1 else sum(values) / len(values)


def _interval(numbers: Sequence[Any], intervals: Sequence[Any]) -> list[float] | None:
    if any(not isinstance(number, (int, float)) for number in numbers):
        return None
    both = zip(numbers, intervals, strict=True)
    found = mean_over_seeds([{"difference": number, "interval": its} for number, its in both])
    bounds: list[float] | None = found["interval"]
    return bounds


# The page ----------------------------------------------------------------------------------------


def seeds_entry(seeds: Mapping[str, Sequence[str]], numbers: Sequence[int]) -> Numbers | None:
    """The `seeds` of report.json: which `seeds` there were, and the `first`, whose student went on;
    None where there was one.
    """
    if not seeds:
        return None
    said = (
        f"Every arm was trained with {len(numbers)} seeds ({', '.join(map(str, numbers))}); its "
        "numbers are means over them, but for speeds, sizes and own answers. What was specialised "
        f"and exported is the distilled student of seed {numbers[0]}, the first."
    )
    return {"seeds": list(numbers), "first": numbers[0], "sentence": said}


def seeds_section(report: Numbers, columns: TableColumns) -> Section | None:
    """Each seed's numbers and their spread; None where arms have one seed."""
    entry = report.get("seeds")
    if entry is None:
        return None
    rows = [one for arm in report["arms"].values() for one in arm.get("seeds", [])]
    own = {title: one for title, one in columns.items() if one.key not in OF_THE_FIRST}
    own = shown_columns(own, rows, report["teacher"])
    lines: Table = [["", *own]]
    for name, arm in report["arms"].items():
        seeds = arm.get("seeds", [])
        for seed, one in zip(entry["seeds"], seeds, strict=False):
            lines.append([f"{name}, seed {seed}", *cells(one, own)])
        if seeds:
            spreads = [
                _deviation([one.get(column.key) for one in seeds]) for column in own.values()
            ]
            lines.append([f"{name}, standard deviation", *spreads])
    return table_section(TITLE, lines, TERMS, lead=entry["sentence"])


def _deviation(values: Sequence[Any]) -> str:
    if any(not isinstance(value, (int, float)) for value in values):
        return ""
    return f"{np.std(np.array(values, np.float64), ddof=1):.2g}"
