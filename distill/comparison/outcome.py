"""What an arm is in a cell: its quality row by row, what it cost, what it takes to serve.

Legend: N rows of a part.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from attar.errors import RunError
from attar.files import read_json_object, write_json
from distill.evaluation.job import Numbers, PredictionArrays
from distill.evaluation.predictions import write_arrays

PARTS = ("selection", "test")
RESULT_FILE = "result.json"
QUALITY = "quality"  # the array that is compared: 1 and 0 of right and wrong, or minus nll


@dataclass
class Outcome:
    """One arm in one cell.

    inputs: fingerprint of what it was made from. failed: why there is nothing else. parts: numbers
    by part, `selection`, `test` and perhaps `elsewhere`, as the task measures them. seconds,
    tokens: of learning, all stages that are this arm's own. peak_memory_bytes: while learning.
    trained: parameters that learned. task_bytes: what one more task takes on disk, beside the
    shared model.
    query_tokens: read for one query, on average. serving: speed, memory and bytes when used.
    shares_base: whether several tasks are served by one loaded model; mixes: in one batch.
    model, adapter: what can be loaded, relative to the comparison, where it is kept.
    before, after: what the model could do besides, before and after learning.
    """

    arm: str
    labels: int
    seed: int
    inputs: str = ""
    failed: str | None = None
    parts: dict[str, Numbers] = field(default_factory=dict)
    seconds: float = 0.0
    measuring_seconds: float = 0.0
    tokens: int = 0
    peak_memory_bytes: int = 0
    trained: int = 0
    task_bytes: int | None = None
    query_tokens: float | None = None
    serving: Numbers = field(default_factory=dict)
    shares_base: bool = False
    mixes: bool = False
    model: str | None = None
    adapter: str | None = None
    details: Numbers = field(default_factory=dict)
    forgets: Numbers = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write it as result.json."""
        write_json(folder / RESULT_FILE, asdict(self))


def read_outcome(folder: Path) -> Outcome | None:
    """The outcome in a folder; None where there is none, or one of another version."""
    if not (folder / RESULT_FILE).is_file():
        return None
    try:
        found = read_json_object(folder / RESULT_FILE, "arm", "inputs")
    except RunError:
        return None
    if found.keys() != {one.name for one in fields(Outcome)}:
        return None
    complete = found["failed"] is not None or all(
        (folder / f"{part}.npz").is_file() for part in PARTS
    )
    return Outcome(**found) if complete else None


def write_rows_of_quality(
    folder: Path, part: str, arrays: PredictionArrays, rows_N: np.ndarray
) -> None:
    """Write a part's arrays, one value a row, as NAME.npz.

    rows_N: the row of each value. In the file `document` is the row, in rising order; of tokens, a
    row has their mean.
    """
    values = arrays["correct"] if "label" in arrays else -arrays["nll"]
    arrays = {**arrays, QUALITY: values.astype(np.float64)}
    rows, index = np.unique(rows_N, return_inverse=True)
    counts = np.bincount(index)
    means = {
        name: np.bincount(index, weights=values.astype(np.float64)) / counts
        for name, values in arrays.items()
        if name in (QUALITY, "correct", "nll")
    }
    write_arrays(folder / f"{part}.npz", {"document": rows, **means})


def read_rows_of_quality(folder: Path, part: str) -> dict[str, np.ndarray]:
    """The arrays that `write_rows_of_quality` left."""
    with np.load(folder / f"{part}.npz") as found:
        return {name: found[name] for name in found.files}


def on_same_rows(
    one: dict[str, Any], other: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Both arrays on the rows that both have: a text without tokens is measured of neither."""
    shared = np.intersect1d(one["document"], other["document"])
    return tuple(  # type: ignore[return-value]
        {name: values[np.isin(arrays["document"], shared)] for name, values in arrays.items()}
        for arrays in (one, other)
    )
