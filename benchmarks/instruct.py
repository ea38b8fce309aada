"""Tasks that were not trained on, before and after instruction tuning by the shipped recipe.

    python benchmarks/instruct.py --json benchmarks/results/instruct.json

Whole runs of examples/instruct.yaml without artifacts. Rows: worked solutions of GSM8K and the
instructions of `instruct`, mixed; held out are their test and validation parts. The rows are put
where the recipe reads them, unless such files are there. Questions are asked without examples:
through the chat template of SmolLM2, as plain text of glassllm-en, which has none. `before` is the
model that is tuned, `after` the tuned one; intervals are 95%, of accuracies Wilson's, of their
difference Newcombe's for unpaired shares, wider than need be.
"""

from __future__ import annotations

import gzip
import json
import random
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness import arguments, record

from attar.files import read_json
from distill.console import set_up_logging
from distill.pipeline import run_stages
from distill.run.context import Run
from distill.run.load import load_recipe

RECIPE = "examples/instruct.yaml"
FILES = Path(".demo/instruct")  # where it reads its rows and questions
ASKED = ("arc_easy", "openbookqa", "copa")
STAGES = ["cache", "build", "train", "export", "evaluate", "report"]
CONTEXT = 128  # positions of glassllm-en
MODELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "glassllm-en": (
        "{data}/models/glassllm-en",
        (
            f"data.max_length={CONTEXT}", "train.lr=1.0e-3", "train.batch_size=4",
            "evaluate.prefill_tokens=64",
            *(f"evaluate.tasks.{i}.chat=false" for i in range(len(ASKED))),
            *(f"evaluate.tasks.{i}.limit=500" for i in range(len(ASKED))),
        ),
    ),
    "SmolLM2-135M-Instruct": (".demo/teacher", ()),
}  # fmt: skip


def write_rows(data: Path, folder: Path) -> None:
    """The files of the recipe that `folder` lacks, made of the sets in `data`."""

    def rows(name: str) -> list[dict[str, Any]]:
        with gzip.open(data / f"{name}.jsonl.gz", "rt", encoding="utf8") as lines:
            return [json.loads(line) for line in lines]

    def write(name: str, found: list[dict[str, Any]], keys: tuple[str, ...]) -> None:
        file = folder / f"{name}.jsonl"
        lines = (json.dumps({key: row[key] for key in keys}) + "\n" for row in found)
        if not file.exists():
            file.write_text("".join(lines), "utf8")

    folder.mkdir(parents=True, exist_ok=True)
    for name, parts in (
        ("train", ("gsm8k/train", "instruct/train")),
        ("held_out", ("gsm8k/test", "instruct/validation")),
    ):
        mixed = [row for part in parts for row in rows(part)]
        random.Random(0).shuffle(mixed)
        write(name, mixed, ("prompt", "response"))
    for name in ASKED:
        write(name, rows(f"mcq/{name}"), ("query", "choices", "gold"))


def report_of(model: str, settings: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """report.json of the shipped recipe on one model."""
    recipe = load_recipe(RECIPE, (f"teacher.model={model}", "export.artifacts=[]", *settings))
    run = Run(recipe, folder)
    run_stages(run, STAGES)
    found: dict[str, Any] = read_json(run.folder.report)
    return found


def rows_of(name: str, seed: int, report: dict[str, Any]) -> list[dict[str, Any]]:
    """The nll of held-out answers and the accuracy on each task, before and after."""
    before, after = (report["arms"][arm] for arm in ("init", "distill"))
    since, first = report["verdict"]["since_start"], {"model": name, "seed": seed}
    trained = {"answer tokens": report["cost"]["arms"]["distill"]["tokens"]}
    nll = {"measure": "nll", "questions": None, "before": before["nll"], "after": after["nll"]}
    bounds = {
        f"{when} 95%": _bounds(one["nll_interval"])
        for when, one in (("before", before), ("after", after))
    }
    rows = [{**first, **trained, **nll, **_difference(since["nll"]), **bounds}]
    for task, difference in since["tasks"].items():
        shares = {"before": before["tasks"][task], "after": after["tasks"][task]}
        bounds = {f"{when} 95%": _bounds(one["accuracy_interval"]) for when, one in shares.items()}
        rows.append(
            {
                **first, **trained, "measure": task, "questions": difference["examples"],
                **{when: one["accuracy"] for when, one in shares.items()},
                **_difference(difference), **bounds,
            }
        )  # fmt: skip
    return rows


def _difference(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "difference": found["difference"],
        "difference 95%": _bounds(found["interval"], "{:+.3f} to {:+.3f}"),
    }


def _bounds(interval: list[float] | None, shown: str = "{:.3f} to {:.3f}") -> str:
    return "" if interval is None else shown.format(*interval)


def main() -> None:
    """A row for each model, seed and measure."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--data", default="../shared/data", help="folder of the sets")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--runs", metavar="FOLDER", help="keep the runs there; absent: nowhere")
    options = parser.parse_args()
    set_up_logging()
    quick = ("data.train_tokens=1000", "data.held_out_tokens=500") if options.quick else ()
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        runs = Path(options.runs or stack.enter_context(tempfile.TemporaryDirectory()))
        write_rows(Path(options.data), FILES)
        for name in options.models[: 1 if options.quick else None]:
            model, settings = MODELS[name]
            for seed in range(options.seeds):
                more = (*settings, f"seed={seed}", *quick)
                folder = runs / f"{name}-{seed}"
                report = report_of(model.format(data=options.data), more, folder)
                rows += rows_of(name, seed, report)
    record(rows, options.json)


if __name__ == "__main__":
    main()
