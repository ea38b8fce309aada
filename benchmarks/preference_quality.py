"""What preferences come to on real pairs of answers: small models, before and after.

    python benchmarks/preference_quality.py --json benchmarks/results/preference_quality.json

Whole runs through the command line's own stages. A model first learns the chosen answers as plain
texts (`train`, cross-entropy), then the pairs (`specialize`), once each way: `sigmoid` with beta
0.1, the same with cross-entropy on the chosen answers at weight 0.2, and `sigmoid` with beta 0.5;
one epoch of each. The ways of a seed share a run folder, as they do for who changes a recipe and
runs it again, so the reference is computed for the first and read by the others: `references` says
how often the log has it. Learning rates are usual ones, not searched; the last weights are kept, so
the held-out pairs choose nothing.

Measured on held-out pairs by what the stage `evaluate` calls: `ranked`, the share whose chosen
answer has the higher mean log-probability a token, and `accuracy`, the share whose chosen answer
gained more than the rejected one since the start (of plain learning: the model as it was; of
preferences: the model after plain learning). Numbers are means over the seeds; 95% intervals are
over prompts, whose pairs of all seeds are drawn together.
"""

from __future__ import annotations

import gzip
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from harness import arguments, record

from attar.distributed import free_memory
from attar.files import read_json
from distill.console import set_up_logging
from distill.data.examples import Examples
from distill.evaluation.job import EvaluateConfig, PredictionArrays
from distill.evaluation.preferences import measure_pairs, moved, ranking
from distill.pipeline import run_stages
from distill.run.context import Run
from distill.run.load import load_recipe
from distill.runtimes.runtime import ModelSource, open_runtime
from distill.stages.evaluate import measure_jobs

START, PLAIN = "as it was", "chosen answers, plainly"
SIGMOID = {"loss": "preference", "form": "sigmoid", "beta": 0.1}
WAYS: dict[str, list[dict[str, Any]]] = {
    "sigmoid, beta 0.1": [SIGMOID],
    "and cross_entropy 0.2": [SIGMOID, {"loss": "cross_entropy", "weight": 0.2}],
    "sigmoid, beta 0.5": [{**SIGMOID, "beta": 0.5}],
}
SETS = ("pref_truthfulqa", "pref_sentiment", "pref_gsm8k")
LOOP = {
    "schedule": "linear", "warmup": 0.1, "keep": "last", "evaluate_every": 1_000_000,
    "evaluate_tokens": 512,
}  # fmt: skip
BUILT = "reference: log-probabilities of"  # in the log, where a reference is computed
EVALUATE = {"tokens": 1_000_000, "batch_size": 8}


@dataclass(frozen=True)
class Subject:
    """A model, how it learns, and how many pairs: to train on and held out, of each set."""

    folder: str
    train: dict[str, Any]
    specialize: dict[str, Any]
    pairs: dict[str, tuple[int, int]]
    max_length: int


SUBJECTS = {
    "glassllm-en": Subject(
        "{data}/models/glassllm-en",
        {"lr": 5.0e-4, "batch_size": 8},
        {"method": "full", "lr": 2.0e-4, "batch_size": 8},
        {"pref_truthfulqa": (400, 220), "pref_sentiment": (400, 300)},  # no gsm8k: 128 positions
        128,
    ),
    "SmolLM2-135M": Subject(
        ".demo/teacher",
        {"lr": 2.0e-5, "batch_size": 4},
        {"method": "lora", "rank": 16, "lr": 1.0e-4, "batch_size": 4},
        {"pref_truthfulqa": (120, 60), "pref_sentiment": (120, 60), "pref_gsm8k": (60, 40)},
        320,
    ),
}


# Runs ------------------------------------------------------------------------------------------


def fewer(file: Path, number: int, folder: Path) -> Path:
    """So many rows of a file, evenly spaced, as a file of its own."""
    with gzip.open(file, "rt", encoding="utf8") as lines:
        rows = list(lines)
    number = min(number, len(rows))
    short = folder / f"{file.name.split('.')[0]}.jsonl"
    short.write_text("".join(rows[i * len(rows) // number] for i in range(number)), "utf8")
    return short


def recipe_of(subject: Subject, model: str, files: dict[str, Path], seed: int, way: str) -> Any:
    """The recipe of one way of learning."""
    return {
        "seed": seed,
        "data": {
            "train": str(files["train"]), "held_out": str(files["test"]), "validation": 0.05,
            "max_length": subject.max_length,
        },
        "teacher": {"model": model},
        "student": {"from": "teacher"},
        "train": {**LOOP, **subject.train, "objective": [{"loss": "cross_entropy"}], "arms": []},
        "specialize": {**LOOP, **subject.specialize, "objective": WAYS[way]},
        "export": {"artifacts": []},
        "evaluate": EVALUATE,
    }  # fmt: skip


def learned(recipe: Any, folder: Path) -> Run:
    """A run of the recipe, its models made."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder.parent / f"{folder.name}.yaml"
    file.write_text(yaml.safe_dump(recipe))
    run = Run(load_recipe(str(file)), folder)
    run_stages(run, ["cache", "build", "train", "specialize"])
    return run


def pairs_of(run: Run, name: str) -> PredictionArrays:
    """The log-probabilities of held-out answers under one of a run's models.

    Pairs are in the order of their keys, and a document's number is that of its first pair, so that
    the arrays of all seeds are of the same pairs: the seed decides the order of prepared data.
    """
    job = next(job for job in measure_jobs(run) if job.name == name)
    runtime = open_runtime(
        ModelSource(job.model, job.adapter, job.vocabulary, job.dtype, job.quantization)
    )
    found = measure_pairs(runtime, job)
    del runtime
    free_memory()
    examples = Examples(Path(job.held_out))
    assert len(examples) == len(found["pair_document"]), "all that is held out are pairs"
    order = np.argsort(np.asarray(examples.keys))
    found = {key: array[order] for key, array in found.items()}
    _, first, index = np.unique(found["pair_document"], return_index=True, return_inverse=True)
    return {**found, "pair_document": first[index]}


def references_built(run: Run) -> int:
    """How often the run's log says that a reference is computed."""
    return run.folder.log.read_text("utf8").count(BUILT)


@dataclass
class Results:
    """Of one model and set: arrays by state, one a seed; seconds and references, by way."""

    arrays: dict[str, list[PredictionArrays]]
    seconds: dict[str, list[float]]
    references: dict[str, int]


def results_of(
    subject: Subject, model: str, files: dict[str, Path], folder: Path, seeds: int
) -> Results:
    """Learn every way with every seed, one run folder a seed."""
    found = Results({}, {}, dict.fromkeys(WAYS, 0))
    for seed in range(seeds):
        built = 0
        for way in WAYS:
            run = learned(recipe_of(subject, model, files, seed, way), folder / f"seed-{seed}")
            if way == next(iter(WAYS)):
                start = found.arrays[START][0] if seed else pairs_of(run, "init")
                found.arrays.setdefault(START, []).append(start)
                found.arrays.setdefault(PLAIN, []).append(pairs_of(run, "distill"))
                plain = read_json(run.folder.arm("distill") / "result.json")["seconds"]
                found.seconds.setdefault(PLAIN, []).append(plain)
            found.arrays.setdefault(way, []).append(pairs_of(run, "specialized"))
            seconds = read_json(run.folder.specialized / "result.json")["seconds"]
            found.seconds.setdefault(way, []).append(seconds)
            now = references_built(run)
            found.references[way] += now - built
            built = now
    return found


# Numbers ---------------------------------------------------------------------------------------


def together(arrays: list[PredictionArrays]) -> PredictionArrays:
    """The pairs of all seeds; a prompt is one document in all of them."""
    return {name: np.concatenate([one[name] for one in arrays]) for name in arrays[0]}


def row_of(found: Results, state: str) -> dict[str, Any]:
    """What one state measures: means over seeds, and intervals over prompts."""
    config = EvaluateConfig.model_validate(EVALUATE)
    mine = found.arrays[state]
    ranked = ranking(together(mine), config)
    row = {
        "state": state,
        "seeds": len(mine) if state != START else 1,
        "held-out pairs": len(mine[0]["pair_document"]),
        "nll": -float(
            sum(one["chosen_logprob"].sum() for one in mine)
            / sum(one["chosen_tokens"].sum() for one in mine)
        ),
        "ranked": ranked["ranked"],
        "ranked 95%": bounds(ranked["ranked_interval"]),
    }
    blank = dict.fromkeys(
        ("accuracy", "accuracy 95%", "by seed", "chosen gained", "rejected gained")
    )
    if state == START:
        return {**row, **blank, "seconds": None, "references": None}
    since = found.arrays[START if state == PLAIN else PLAIN]
    moves = moved(together(mine), together(since), config.bootstrap, of="start")
    each = [
        moved(one, before, config.bootstrap, of="start")["accuracy"]
        for one, before in zip(mine, since, strict=True)
    ]
    return {
        **row,
        "accuracy": moves["accuracy"],
        "accuracy 95%": bounds(moves["accuracy_interval"]),
        "by seed": " ".join(f"{one:.3f}" for one in each),
        "chosen gained": moves["chosen_gain"],
        "rejected gained": moves["rejected_gain"],
        "seconds": float(np.mean(found.seconds[state])),
        "references": found.references.get(state),
    }


def bounds(interval: list[float] | None) -> str:
    """An interval in words."""
    return "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def main() -> None:
    """A row for each model, set and state."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--data", default="../shared/data", help="folder of the sets of pairs")
    parser.add_argument("--demo", default=".demo/teacher", help="SmolLM2-135M")
    parser.add_argument("--models", nargs="+", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", metavar="FOLDER", help="keep the runs there; absent: nowhere")
    options = parser.parse_args()
    if options.quick:
        options.models, options.sets, options.seeds = options.models[:1], options.sets[:1], 1
    set_up_logging()
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        runs = Path(options.runs or stack.enter_context(tempfile.TemporaryDirectory()))
        for name, data in [(name, data) for name in options.models for data in options.sets]:
            subject = SUBJECTS[name]
            model = options.demo if name == "SmolLM2-135M" else subject.folder
            rows += rows_of(name, model.format(data=options.data), data, runs, options)
    if rows:
        record(rows, options.json)


def rows_of(name: str, model: str, data: str, runs: Path, options: Any) -> list[dict[str, Any]]:
    """The rows of one model and set; none, and why, where one of them is not there."""
    subject, source = SUBJECTS[name], Path(options.data) / data
    if data not in subject.pairs:
        return []
    for path, option in ((source, "--data"), (Path(model), "--data or --demo")):
        if not path.exists():
            print(f"{name}, {data}: left out; there is no {path} ({option} names another).")
            return []
    folder = runs / name / data
    folder.mkdir(parents=True, exist_ok=True)
    numbers = (32, 16) if options.quick else subject.pairs[data]
    files = {
        part: fewer(source / f"{part}.jsonl.gz", number, folder)
        for part, number in zip(("train", "test"), numbers, strict=True)
    }
    start = time.perf_counter()
    found = results_of(subject, model, files, folder, options.seeds)
    print(f"{name}, {data}: {time.perf_counter() - start:.0f} s", flush=True)
    first = {"model": name, "data": data, "train pairs": numbers[0]}
    return [{**first, **row_of(found, state)} for state in (START, PLAIN, *WAYS)]


if __name__ == "__main__":
    main()
