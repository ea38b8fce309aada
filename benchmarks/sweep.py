"""A sweep beside the whole grid: tokens trained, and whether it finds the grid's front.

    python benchmarks/sweep.py --json benchmarks/results/sweep.json

The teacher is `glassllm-en` (0.9 million parameters, 4 blocks), adapted to paragraphs of Wikipedia
(lm_wiki89). Students are cut out of it, each exported as bf16 and nf4. Two grids: `shapes`, 6
trials (1, 2 or 3 blocks; a quarter or three quarters of the neurons), and `rates`, 12 (the same,
with two learning rates, 8 times apart). `halved` is `distill sweep` with its defaults, `front kept`
with `keep_front`, and the grid all of them trained to their end.
All three are in one folder, one after the other: a trial that was left goes on from where it
paused, and ends as it would have alone; tokens are those that each sweep would take by itself.

`front`: on the grid's front of held-out nll and bytes, by the paired 95% interval, of all
artifacts. A member is found by a sweep where the lowest nll of the sweep's artifacts that are no
larger is not distinguishably higher: the 95% interval of the difference, paired over paragraphs, is
not above 0. With `--runs FOLDER` what is finished stays there, and the same command goes on.
Beside the JSON file of the sweeps, `_shapes` and `_rates` have every artifact of a grid.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from harness import arguments, record

from distill.console import set_up_logging
from distill.report.paired_difference import difference_of
from distill.run.load import check_recipe
from distill.sweep.run_sweep import sweep

BYTES = {"train": 160_000, "validation": 30_000, "held_out": 40_000}
SOURCES = {"train": "train", "validation": "validation", "held_out": "test"}
LETTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,;:'()-?!")
CUTS = {"student.layers.keep": [1, 2, 3], "student.feed_forward.keep": [0.25, 0.75]}
GRIDS: dict[str, dict[str, list[Any]]] = {
    "shapes": CUTS,
    "rates": {**CUTS, "train.lr": [5e-4, 4e-3]},
}
RATE = 3e-3  # where it is not swept over
SWEEPS: dict[str, tuple[str, dict[str, Any]]] = {  # folder, keys of the section
    "front kept": ("sweep", {"keep_front": True}),
    "halved": ("sweep", {}),
}
GRID: tuple[str, dict[str, Any]] = ("sweep", {"rungs": [1.0]})
Swept = dict[str, Any]  # the content of sweep.json
LOOP = {
    "batch_size": 4, "precision": "float32", "schedule": "cosine", "warmup": 0.1, "keep": "last",
    "evaluate_every": 1_000_000, "evaluate_tokens": 256,
}  # fmt: skip


def write_texts(data: Path, folder: Path, quick: bool) -> None:
    """Paragraphs of each part that the teacher's tokenizer keeps; one of each article in turn."""
    for part, most in BYTES.items():
        with gzip.open(
            data / f"lm_wiki89/{SOURCES[part]}.jsonl.gz", "rt", encoding="utf8"
        ) as lines:
            articles = [json.loads(line)["text"].split("\n\n") for line in lines]
        rows = [text for row in zip_longest(*articles) for text in row if text]
        rows = [text for text in rows if set(text) <= LETTERS]
        sizes = np.cumsum([len(text.encode()) for text in rows])
        count = int(np.searchsorted(sizes, most // 10 if quick else most)) + 1
        lines_out = "".join(json.dumps({"text": text}) + "\n" for text in rows[:count])
        (folder / f"{part}.jsonl").write_text(lines_out, "utf8")


def recipe_of(
    folder: Path, options: Any, over: dict[str, list[Any]], keys: dict[str, Any]
) -> dict[str, Any]:
    """The recipe of a sweep with these keys of its section beside `over`."""
    quick, data = options.quick, Path(options.data)
    if quick:
        over = {path: values[-2:] for path, values in over.items() if "feed_forward" not in path}
    return {
        "data": {
            **{part: str(folder / f"{part}.jsonl") for part in BYTES},
            "max_length": 128, "append_eos": False,
        },
        "teacher": {
            "model": str((data / "models/glassllm-en").resolve()), "dtype": "float32",
            "adapt": {**LOOP, "lr": 2e-3, "epochs": 1 if quick else 3},
        },
        "cache": {"codec": {"name": "topk", "k": 64}},
        "student": {"from": "teacher", "layers": {"keep": 4}},
        "train": {
            **LOOP, "objective": [{"loss": "forward_kl"}, {"loss": "cross_entropy"}],
            "epochs": 1 if quick else 3, "lr": RATE,
        },
        "evaluate": {
            "tokens": 30_000, "prefill_tokens": 64, "generate_tokens": 8, "agreement_prompts": 0,
        },
        "sweep": {"over": over, "artifacts": ["bf16", "nf4"], **keys},
    }  # fmt: skip


def rows_of(runs: Path, grid: Swept, swept: dict[str, Swept]) -> list[dict[str, Any]]:
    """One row an artifact of the whole grid, the smallest first."""
    found = []
    for name, one in sorted(grid["artifacts"].items(), key=lambda item: item[1]["bytes"]):
        of = grid["trials"][one["trial"]]
        trial, rungs = of["words"], of["rungs"]
        row = {
            "student": trial, "artifact": one["artifact"], "MB": one["bytes"] / 1e6,
            "nll": one["nll"], "front": one["pareto"]["bytes"],
            "first rung": rungs[0]["value"], "end": rungs[-1]["value"],
        }  # fmt: skip
        for sweep_name, its in swept.items():
            row[f"{sweep_name}: left at"] = _left_at(its, trial)
            mine = runs / GRID[0] / "trials" / f"{name}.npz"
            row[f"{sweep_name}: less this"] = _found(runs / SWEEPS[sweep_name][0], its, one, mine)
        found.append(row)
    return found


def _left_at(swept: Swept, words: str) -> str:
    one = next(one for one in swept["trials"].values() if one["words"] == words)
    shares = swept["recipe"]["sweep"]["rungs"]
    return "" if one["left_at"] is None else f"{shares[one['left_at']]:.0%}"


def _found(folder: Path, swept: Swept, one: dict[str, Any], file: Path) -> list[float] | None:
    """The interval of the nll of the sweep's best artifact that is no larger, less this one's; None
    where it has none so small.
    """
    able = [n for n, its in swept["artifacts"].items() if its["bytes"] <= one["bytes"]]
    if not able:
        return None
    best = min(able, key=lambda n: swept["artifacts"][n]["nll"])
    arrays = [np.load(path) for path in (folder / "trials" / f"{best}.npz", file)]
    bounds: list[float] | None = difference_of(arrays[0], arrays[1], "nll", 2000)["interval"]
    return bounds


def summary(name: str, swept: Swept, grid: Swept, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The share of the grid's tokens that a sweep took, and how much of its front it has."""
    front = [row[f"{name}: less this"] for row in rows if row["front"]]
    return {
        "sweep": name,
        "trials": len(swept["trials"]),
        "finalists": sum(one["left_at"] is None for one in swept["trials"].values()),
        "tokens": swept["training"]["tokens"],
        "grid's tokens": grid["training"]["tokens"],
        "share": swept["training"]["tokens"] / grid["training"]["tokens"],
        "front": len(front),
        "found": sum(bounds is not None and bounds[0] <= 0 for bounds in front),
        "worst": max((bounds[1] for bounds in front if bounds is not None), default=0.0),
    }


def measured(runs: Path, options: Any, grid: str) -> tuple[list[Any], list[Any]]:
    """(a row a sweep, a row an artifact) of a grid; its sweeps are run where they are not done."""
    runs.mkdir(parents=True, exist_ok=True)
    write_texts(Path(options.data), runs, options.quick)
    found = {}
    for name, (folder, keys) in {**SWEEPS, "grid": GRID}.items():
        if (grid, name) == ("rates", "front kept"):
            continue  # what decides is the rate
        kept = runs / f"{name}.json"
        if not kept.exists():
            recipe = check_recipe(recipe_of(runs, options, GRIDS[grid], keys))
            kept.write_text(json.dumps(sweep(recipe, runs / folder)))
        found[name] = json.loads(kept.read_text())
    whole = found.pop("grid")
    rows = rows_of(runs, whole, found)
    sweeps = [{"grid": grid, **summary(n, one, whole, rows)} for n, one in found.items()]
    return sweeps, [{"grid": grid, **row} for row in rows]


def main() -> None:
    """Sweep over both grids, train them whole, and compare."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--data", default="../shared/data", help="small data sets and models")
    parser.add_argument("--runs", help="a folder in which what is finished stays")
    parser.add_argument("--grids", nargs="+", default=list(GRIDS), choices=list(GRIDS))
    options = parser.parse_args()
    set_up_logging(quiet=True)
    with ExitStack() as stack:
        runs = Path(options.runs or stack.enter_context(tempfile.TemporaryDirectory()))
        found = [measured(runs / grid, options, grid) for grid in options.grids]
    record([row for sweeps, _ in found for row in sweeps], options.json)
    for grid, (_, rows) in zip(options.grids, found, strict=True):
        file = options.json and f"{options.json.removesuffix('.json')}_{grid}.json"
        record(rows, file)


if __name__ == "__main__":
    main()
