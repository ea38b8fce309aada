"""Small classifiers that learn from a large one against the same ones plainly fine-tuned.

    python benchmarks/classification.py --json benchmarks/results/classification.json

Whole runs through the command line's own stages. The teacher is an encoder of 6 blocks
(examples/get_classification_demo.py fetches it) fine-tuned on each data set; its students keep
half of its blocks, a third, and one block with half the feed-forward neurons, which leaves at most
a 7.5th of the parameters beside the embeddings. Every student learns twice from the same start, on
the same texts in the same order: from the teacher's cache (`distill`) and from labels alone
(`finetune`). The last weights are kept, so the test texts choose nothing. Measured on the test
part: accuracy, the share of the teacher's that is kept, and how many times as many texts a second
go through, in batches of 32. With `--json FILE` every finished student is kept in FILE.partial, and
the same command goes on.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from harness import arguments, record

from distill.class_metrics import measure_class_speed, measure_classes
from distill.data import Examples
from distill.pipeline import run_stages
from distill.quality import held_out_batches
from distill.recipe import load_recipe
from distill.run import Run
from distill.runtimes import Source
from distill.runtimes.hugging_face import Transformers

BATCH = 32
SETS: dict[str, dict[str, Any]] = {
    "sst2": {"teacher": {"lr": 1.0e-4, "epochs": 3}, "train": {"lr": 2.0e-4, "epochs": 6}},
    "banking77": {"teacher": {"lr": 3.0e-4, "epochs": 6}, "train": {"lr": 4.0e-4, "epochs": 8}},
}
STUDENTS: dict[str, dict[str, Any]] = {
    "half": {"layers": {"keep": [1, 3, 5]}},
    "third": {"layers": {"keep": [2, 5]}},
    "tiny": {"layers": {"keep": [5]}, "feed_forward": {"keep": 0.5}},
}
OBJECTIVE = [
    {"loss": "forward_kl", "temperature": 2.0},
    {"loss": "cross_entropy", "weight": 0.3},
    {"loss": "hidden_mse", "weight": 0.3},
    {"loss": "relation", "weight": 0.1},
]
LOOP = {"batch_size": BATCH, "schedule": "linear", "warmup": 0.1, "keep": "last"}
REACH = {"half": 0.99, "third": 0.98, "tiny": 0.968}  # of the teacher's accuracy


def run_of(folder: Path, name: str, values: dict[str, Any]) -> Run:
    """A run of the recipe, in a folder of its own."""
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(values))
    return Run(load_recipe(str(file)), folder / name)


def teach(folder: Path, encoder: str, data: dict[str, Any], how: dict[str, Any], seed: int) -> Run:
    """Fine-tune the teacher; its run."""
    run = run_of(
        folder,
        "teacher",
        {
            "task": "sequence-classification", "seed": seed, "data": data,
            "teacher": {"model": encoder, "adapt": {**LOOP, "evaluate_every": 100_000, **how}},
            "student": {},
        },
    )  # fmt: skip
    run_stages(run, ["adapt-teacher"])
    return run


def learn(
    folder: Path, name: str, teacher: Run, student: dict[str, Any], how: dict[str, Any], seed: int
) -> Run:
    """Cut one student and train both arms from the cache that all share; its run."""
    run = run_of(
        folder,
        name,
        {
            "task": "sequence-classification", "seed": seed,
            "data": teacher.recipe.data.model_dump(exclude_unset=True),
            "teacher": {"model": str(teacher.teacher_folder)},
            "cache": {
                "dir": str(folder / "cache"), "hidden": {"layers": [2, 4, 6], "attention": [6]},
            },
            "student": {"from": "teacher", **student},
            "train": {"objective": OBJECTIVE, **LOOP, "evaluate_every": 100_000, **how},
        },
    )  # fmt: skip
    run_stages(run, ["cache", "build", "train"])
    return run


def measure(model: Path, held_out: Examples) -> dict[str, float]:
    """Accuracy, speed, and parameters beside the embeddings, of a classifier in a folder."""
    runtime = Transformers(Source(str(model), dtype="float32"))
    batches = held_out_batches(held_out, len(held_out), BATCH)
    speed = measure_class_speed(runtime, held_out, batches)
    arrays = measure_classes(runtime, held_out, batches)
    named = runtime.model.named_parameters()
    body = sum(p.numel() for name, p in named if "embeddings" not in name)
    accuracy = float(np.mean(arrays["correct"]))
    return {"accuracy": accuracy, "speed": speed["texts_per_second"], "body": body}


def data_of(name: str, shared: Path, texts: int | None) -> dict[str, Any]:
    """The section `data` of a labelled set of the shared folder."""
    files = {part: str(shared / name / f"{part}.jsonl.gz") for part in ("train", "test")}
    limits = {} if texts is None else {"train_tokens": texts, "held_out_tokens": texts}
    return {
        "train": files["train"], "held_out": files["test"], "text_column": "text",
        "label_column": "label", "max_length": 64, **limits,
    }  # fmt: skip


def students_of(folder: Path, name: str, seed: int, options: Any) -> list[dict[str, Any]]:
    """One row a student of one data set and seed."""
    how, rows = SETS[name], []
    shorter = {"epochs": 1} if options.quick else {}
    data = data_of(name, Path(options.data), options.texts)
    teacher = teach(folder, options.encoder, data, {**how["teacher"], **shorter}, seed)
    held_out = teacher.data()[1]
    whole = measure(teacher.teacher_folder, held_out)
    for student in options.students:
        train = {**how["train"], **shorter}
        run = learn(folder, student, teacher, STUDENTS[student], train, seed)
        found = {
            arm: measure(run.arm_folder(arm) / "student", held_out)
            for arm in ("distill", "finetune")
        }
        rows.append(
            {
                "data": name,
                "seed": seed,
                "student": student,
                "fewer parameters, x": whole["body"] / found["distill"]["body"],
                "teacher": whole["accuracy"],
                "distilled": found["distill"]["accuracy"],
                "fine-tuned": found["finetune"]["accuracy"],
                "kept": found["distill"]["accuracy"] / whole["accuracy"],
                "kept, fine-tuned": found["finetune"]["accuracy"] / whole["accuracy"],
                "faster, x": found["distill"]["speed"] / whole["speed"],
            }
        )
    return rows


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """A sentence for each data set and student: medians over seeds against the reach."""
    lines = []
    for name, student in dict.fromkeys((row["data"], row["student"]) for row in rows):
        mine = [row for row in rows if (row["data"], row["student"]) == (name, student)]
        middle = {
            key: statistics.median(row[key] for row in mine)
            for key in ("kept", "kept, fine-tuned", "faster, x", "fewer parameters, x")
        }
        word = "reached" if middle["kept"] >= REACH[student] else "missed"
        lines.append(
            f"{name}, {student}: {middle['kept']:.1%} of the teacher's accuracy distilled "
            f"({REACH[student]:.1%} {word}), {middle['kept, fine-tuned']:.1%} fine-tuned; "
            f"{middle['fewer parameters, x']:.1f} times fewer parameters beside the embeddings, "
            f"{middle['faster, x']:.1f} times the speed."
        )
    return lines


def main() -> None:
    """Train, measure, compare."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--encoder", default=".demo/classification/encoder")
    parser.add_argument("--data", default="../shared/data", help="folder of the labelled sets")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--students", nargs="+", default=list(STUDENTS), choices=list(STUDENTS))
    parser.add_argument("--texts", type=int, help="of each part; all when absent")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if options.quick:
        options.sets, options.students, options.seeds = options.sets[:1], ["half"], 1
        options.texts = 64
    kept = Path(f"{options.json}.partial") if options.json else None
    lines = kept.read_text().splitlines() if kept and kept.exists() else []
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    for name in options.sets:
        if not (Path(options.data) / name).exists():
            print(f"{name} is not in {options.data}: left out (`--data FOLDER`)")
            continue
        for seed in range(options.seeds):
            if any((row["data"], row["seed"]) == (name, seed) for row in rows):
                continue
            with tempfile.TemporaryDirectory() as folder:
                rows += students_of(Path(folder), name, seed, options)
            if kept:
                kept.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if rows:
        record(rows, options.json)
        print("\n".join(summary(rows)))
    if kept:
        kept.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
