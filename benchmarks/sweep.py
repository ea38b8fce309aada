"""A sweep beside the whole grid: tokens trained, and whether it finds the grid's front.

    python benchmarks/sweep.py --json benchmarks/results/sweep.json

The teacher is `glassllm-en` (0.9 million parameters, 4 blocks), adapted to paragraphs of Wikipedia
(lm_wiki89). Students are cut out of it: 1, 2 or 3 blocks, a quarter or three quarters of the
neurons, two learning rates: 12 trials, each exported as bf16 and nf4. First `distill sweep` with
its own rungs; then, in the same folder, all 12 to their end, which is what a grid costs and finds.
A trial that the sweep left goes on from where it paused, and ends as it would have alone.

`front`: on the front of held-out nll and bytes, by the paired 95% interval, of all 24 artifacts.
`sweep has`: of the artifacts of the sweep that are no larger, the one with the lowest nll, and the
95% interval of its nll less this one's, paired over paragraphs: a member of the front is found
where that interval is not above 0. With `--runs FOLDER` what is finished stays there, and the same
command goes on.
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
OVER = {
    "student.layers.keep": [1, 2, 3],
    "student.feed_forward.keep": [0.25, 0.75],
    "train.lr": [5e-4, 4e-3],
}
RUNGS = [0.11, 0.33, 1.0]
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


def recipe_of(folder: Path, data: Path, quick: bool, rungs: list[float]) -> dict[str, Any]:
    """The recipe of the sweep; with one rung, of the whole grid."""
    over = {**OVER, "student.layers.keep": [1, 3]} if quick else OVER
    if quick:
        over.pop("student.feed_forward.keep")
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
            "epochs": 1 if quick else 3,
        },
        "evaluate": {
            "tokens": 30_000, "prefill_tokens": 64, "generate_tokens": 8, "agreement_prompts": 0,
        },
        "sweep": {"over": over, "artifacts": ["bf16", "nf4"], "rungs": rungs, "halve": 3},
    }  # fmt: skip


def rows_of(folder: Path, swept: dict[str, Any], whole: dict[str, Any]) -> list[dict[str, Any]]:
    """One row an artifact of the whole grid, the smallest first."""
    order = sorted(whole["artifacts"].items(), key=lambda item: item[1]["bytes"])
    found = []
    for name, one in order:
        trial = swept["trials"][one["trial"]]
        left = trial["left_at"]
        best, interval = _found(folder, name, one, swept)
        found.append(
            {
                "student": trial["words"],
                "artifact": one["artifact"],
                "MB": one["bytes"] / 1e6,
                "nll": one["nll"],
                "left at": "" if left is None else f"{RUNGS[left]:.0%}",
                "front": one["pareto"]["bytes"],
                "sweep's front": bool(
                    swept["artifacts"].get(name, {}).get("pareto", {}).get("bytes")
                ),
                "sweep has": best,
                "less this": interval,
            }
        )
    return found


def _found(
    folder: Path, name: str, one: dict[str, Any], swept: dict[str, Any]
) -> tuple[str, list[float] | None]:
    """(the best artifact of the sweep that is no larger, the interval of its nll less this's)."""
    able = [n for n, its in swept["artifacts"].items() if its["bytes"] <= one["bytes"]]
    if not able:
        return "", None
    best = min(able, key=lambda n: swept["artifacts"][n]["nll"])
    arrays = [np.load(folder / "trials" / f"{n}.npz") for n in (best, name)]
    its = swept["artifacts"][best]
    words = f"{swept['trials'][its['trial']]['words']} {its['artifact']}"
    return words, difference_of(arrays[0], arrays[1], "nll", 2000)["interval"]


def summary(
    swept: dict[str, Any], whole: dict[str, Any], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """The share of the grid's tokens that the sweep took, and how much of its front it has."""
    front = [row for row in rows if row["front"]]
    has = [row for row in front if row["less this"] is not None and row["less this"][0] <= 0]
    tokens, all_tokens = swept["training"]["tokens"], whole["training"]["tokens"]
    return {
        "trials": len(swept["trials"]),
        "finalists": sum(one["left_at"] is None for one in swept["trials"].values()),
        "tokens of the sweep": tokens,
        "tokens of the grid": all_tokens,
        "share": tokens / all_tokens,
        "front": len(front),
        "found": len(has),
    }


def main() -> None:
    """Sweep, then train the whole grid in the same folder, and compare."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--data", default="../shared/data", help="small data sets and models")
    parser.add_argument("--runs", help="a folder in which what is finished stays")
    options = parser.parse_args()
    set_up_logging(quiet=True)
    with ExitStack() as stack:
        folder = Path(options.runs or stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        data = Path(options.data)
        write_texts(data, folder, options.quick)
        found = []
        for rungs in (RUNGS, [1.0]):
            kept = folder / f"sweep-{len(rungs)}.json"
            if not kept.exists():
                recipe = check_recipe(recipe_of(folder, data, options.quick, rungs))
                kept.write_text(json.dumps(sweep(recipe, folder / "sweep")))
            found.append(json.loads(kept.read_text()))
        swept, whole = found
        rows = rows_of(folder / "sweep", swept, whole)
        total = summary(swept, whole, rows)
        print(total)
        record([*rows, {**dict.fromkeys(rows[0], ""), "student": json.dumps(total)}], options.json)


if __name__ == "__main__":
    main()
