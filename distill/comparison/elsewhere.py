"""Quality on rows of another source than the training's: `compare.elsewhere`.

The rows become a part beside `validation` and `test`: numbers in `Outcome.parts`, values by row in
elsewhere.npz. Classes are matched by their names; columns have the training's names, or usual ones.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from attar.errors import DataError, nearest
from distill.comparison.arms import ArmWork
from distill.comparison.asking import prompt_config
from distill.comparison.cells import Comparison
from distill.comparison.measuring import quality_numbers
from distill.comparison.outcome import Outcome, write_rows_of_quality
from distill.comparison.rows import LABEL, Row, read_rows, write_rows
from distill.comparison.starts import unlearned_values
from distill.data.config import DataConfig
from distill.data.labelled_texts import columns_of
from distill.data.sources import load_rows
from distill.evaluation.bootstrap import proportion_interval
from distill.evaluation.job import MeasureJob
from distill.evaluation.measure import measure_in_fresh_process
from distill.prompt_search import measure_prompt
from distill.run.context import Run
from distill.run.load import short_form
from distill.runtimes.runtime import ModelSource

ELSEWHERE = "elsewhere"  # the part's name
PREPARED = "held_out.arrow"


def elsewhere_rows(comparison: Comparison) -> list[Row]:
    """The rows, at most `compare.test`, in the columns of the comparison's own.

    Texts that the comparison's own parts have are left out. Raises `DataError` for a class that is
    not one of the comparison's, for a missing column, and where no row is left.
    """
    source = comparison.config.elsewhere
    assert source is not None, "asked only where the section names it"
    config = comparison.recipe.data
    parts, labelled = comparison.parts, comparison.labelled
    if not labelled:
        rows = read_rows(config, source, "train", labelled)
        names: Sequence[str] = sorted(parts.train[0])
    else:
        rows, names = _labelled(config, source, parts.columns, parts.classes), parts.columns
    seen = {_text(row, names) for part in (parts.train, parts.validation, parts.test)
            for row in part}  # fmt: skip
    random.Random(0).shuffle(rows)
    found: list[Row] = []
    for row in rows:
        if len(found) < comparison.config.test and (text := _text(row, names)) not in seen:
            seen.add(text)
            found.append(row)
    if not found:
        raise DataError(
            f"`compare.elsewhere`: {source} has no labelled row that the comparison's own rows "
            "have not; name another source, or leave it out."
        )
    return found


def _labelled(
    config: DataConfig, source: str, columns: Sequence[str], classes: Sequence[str]
) -> list[Row]:
    """Labelled rows of the source, with the comparison's columns and the names of classes."""
    features = load_rows(source, "train", config.name).features
    named = {key: getattr(config, key) for key in ("text_column", "label_column")}
    missing = {key: None for key, name in named.items() if name not in features}
    own = config.model_copy(update=missing)
    found = columns_of(features, source, own)
    rows: list[Row] = []
    for row in read_rows(own, source, "train", labelled=True):
        if row[LABEL] not in classes:
            raise DataError(
                f"`compare.elsewhere`: {source} has rows of the class `{row[LABEL]}`, and the "
                f"classes are {', '.join(classes)}; give it the same names."
                f"{nearest(row[LABEL], list(classes))}"
            )
        texts = [row[name] for name in (found.text, found.pair) if name is not None]
        rows.append({**dict(zip(columns, texts, strict=True)), LABEL: row[LABEL]})
    return rows


def _text(row: Row, names: Sequence[str]) -> str:
    return repr([str(row.get(name)) for name in names])


def elsewhere_file(comparison: Comparison) -> Path:
    """The file of the rows, written where it is not there yet."""
    return write_rows(comparison.folder / "data" / f"{ELSEWHERE}.jsonl", elsewhere_rows(comparison))


def row_order(comparison: Comparison, seed: int) -> list[int]:
    """For each document that a run of the seed prepares, which row of the file it is."""
    order = list(range(len(elsewhere_rows(comparison))))
    random.Random(seed).shuffle(order)
    return order


def measure_elsewhere(work: ArmWork, run: Run, job: MeasureJob, outcome: Outcome) -> None:
    """Measure on the rows what `measure_parts` measures: a model of the run, or a baseline.

    Nothing is done where `compare.elsewhere` names no rows.
    """
    if work.comparison.config.elsewhere is None:
        return
    started = time.perf_counter()
    values = short_form(run.recipe)
    own = run_elsewhere(work.comparison, values, work.folder / ELSEWHERE)
    held_out, out = own.folder.data() / PREPARED, work.folder / "measured" / f"{ELSEWHERE}.json"
    found = measure_in_fresh_process(replace(job, held_out=str(held_out), out=str(out)))
    with np.load(out.with_suffix(".npz")) as arrays:
        _keep(work, own, {name: arrays[name] for name in arrays.files})
    outcome.parts[ELSEWHERE] = quality_numbers(found)
    shutil.rmtree(own.folder.path)
    outcome.measuring_seconds += time.perf_counter() - started


def measure_elsewhere_in_words(
    work: ArmWork, source: ModelSource, outcome: Outcome, keys: dict[str, Any] | None = None,
    *, search: bool = False,
) -> None:  # fmt: skip
    """Measure on the rows a language model as `ask_in_words` does, with the same arguments.

    A search is made again on the same validation rows, and so finds the same prompt.
    """
    comparison = work.comparison
    if comparison.config.elsewhere is None:
        return
    started = time.perf_counter()
    values = unlearned_values(comparison, work.cell, comparison.recipe.task)
    folder = comparison.cell_folder(work.cell, "rows-elsewhere")
    own = run_elsewhere(comparison, values, folder)
    asked = work.folder / "asked-elsewhere"
    config = prompt_config(comparison, own, keys)
    found = measure_prompt(own, config, source, asked, search=search)
    with np.load(asked / "held_out.npz") as arrays:
        _keep(work, own, {name: arrays[name] for name in arrays.files})
    outcome.parts[ELSEWHERE] = quality_numbers({k: v for k, v in found.items() if k != "prompt"})
    outcome.measuring_seconds += time.perf_counter() - started


def measure_class_elsewhere(work: ArmWork, name: str, outcome: Outcome) -> None:
    """Measure on the rows what gives every text the class of this name."""
    if work.comparison.config.elsewhere is None:
        return
    rows = elsewhere_rows(work.comparison)
    correct_N = np.array([row[LABEL] == name for row in rows])
    arrays = {"document": np.arange(len(rows)), "label": correct_N, "correct": correct_N}
    write_rows_of_quality(work.folder, ELSEWHERE, arrays, list(range(len(rows))))
    right = int(correct_N.sum())
    outcome.parts[ELSEWHERE] = {
        "accuracy": right / len(rows),
        "accuracy_interval": list(proportion_interval(right, len(rows))),
    }


def run_elsewhere(comparison: Comparison, values: Mapping[str, Any], folder: Path) -> Run:
    """A run of some recipe's values that holds out these rows, its data prepared."""
    data = {**values["data"], "held_out": str(elsewhere_file(comparison))}
    run = comparison.open({**values, "data": data}, folder)
    run.prepare_data()
    return run


def _keep(work: ArmWork, run: Run, arrays: dict[str, Any]) -> None:
    order = row_order(work.comparison, run.recipe.seed)
    write_rows_of_quality(work.folder, ELSEWHERE, arrays, order)
