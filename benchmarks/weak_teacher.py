"""What a student learns from a weak teacher of classes, by the objective, beside the labels alone.

    python benchmarks/weak_teacher.py --json benchmarks/results/weak_teacher.json

1,500 texts to learn from, one class rare: banking77's intents in six groups, `exchange` at 2%,
and sms_spam, spam at 3%. The teacher is a BERT of 2 blocks, stopped early (`weak`), trained longer
(`long`), or on all texts of the data set, where no class is rare (`strong`); its student keeps one
block. Every setting trains from its teacher's cut on the same texts. `calibrated`
divides the teacher's logits by one temperature, fitted on validation texts (Guo et al. 2017,
1706.04599). The last weights are kept; all numbers are of test texts with the same rare class.
"""

from __future__ import annotations

import gzip
import json
import math
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from classification import run_of
from harness import arguments, record
from torch import Tensor

from attar.models.loading import load_model
from attar.models.task_heads import CLASSIFIER
from attar.models.tokenizers import load_tokenizer
from distill.console import set_up_logging
from distill.data.examples import Examples
from distill.evaluation.job import EvaluateConfig
from distill.evaluation.predictions import held_out_batches
from distill.pipeline import run_stages
from distill.run.context import Run
from distill.runtimes.hugging_face import Transformers
from distill.runtimes.runtime import ModelSource
from distill.tasks.sequence_classification.metrics import (
    ClassificationMetrics,
    compare_classes,
    read_classes,
)
from students.save import save_student

TEXTS, BATCH, QUICK = 1500, 32, 200
LOOP = {
    "batch_size": BATCH, "schedule": "linear", "warmup": 0.1, "keep": "last",
    "evaluate_every": 1_000_000, "evaluate_tokens": BATCH,  # steps: not on the way
}  # fmt: skip
TEACHER_EPOCHS = {"weak": 3, "long": 8, "strong": 8}
STUDENT = {"lr": 5.0e-4, "epochs": 4, "model_dropout": 0.0, "trainable": "-embeddings"}
GROUPS = {  # of banking77's intents, by the first of these words that the intent has
    "top-up": ("top_up", "topping"),
    "exchange": ("exchange", "currency", "currencies"),
    "cash": ("cash", "atm"),
    "transfer": ("transfer", "beneficiary", "direct_debit"),
    "card": ("card",),
}
RARE = {"banking77": ("exchange", 0.02), "sms_spam": ("spam", 0.03)}
# Setting: (teacher, temperature, weight of forward_kl, weight of cross_entropy).
SETTINGS = {
    "T 2, kl 1, ce 0.3": ("weak", 2.0, 1.0, 0.3),
    "T 1, kl 1, ce 0.3": ("weak", 1.0, 1.0, 0.3),
    "T 4, kl 1, ce 0.3": ("weak", 4.0, 1.0, 0.3),
    "T 1, kl 1, ce 1": ("weak", 1.0, 1.0, 1.0),
    "T 1, kl 0.5, ce 1": ("weak", 1.0, 0.5, 1.0),
    "calibrated, T 1, kl 1, ce 0.3": ("calibrated", 1.0, 1.0, 0.3),
    "calibrated, T 1, kl 1, ce 1": ("calibrated", 1.0, 1.0, 1.0),
    "T 2, kl 1, ce 1": ("weak", 2.0, 1.0, 1.0),
    "long, T 2, kl 1, ce 0.3": ("long", 2.0, 1.0, 0.3),
    "long, T 2, kl 1, ce 1": ("long", 2.0, 1.0, 1.0),
    "strong, T 2, kl 1, ce 0.3": ("strong", 2.0, 1.0, 0.3),
    "strong, T 2, kl 1, ce 1": ("strong", 2.0, 1.0, 1.0),
}
NUMBERS = ("accuracy", "macro_f1", "calibration_error", "nll")


def group_of(name: str, row: dict[str, Any]) -> str:
    """The class of a row of a data set."""
    if name == "sms_spam":
        return "spam" if row["label"] else "ham"
    found = (group for group, words in GROUPS.items() if any(w in row["category"] for w in words))
    return next(found, "other")


def write_part(source: Path, name: str, limit: int | None, file: Path, rare: bool = True) -> None:
    """Rows in random order, at most `limit`; the rare class has its share, or all of its rows."""
    with gzip.open(source, "rt", encoding="utf8") as lines:
        rows = [json.loads(line) for line in lines]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    texts = [{"text": row["text"], "label": group_of(name, row)} for row in rows]
    if rare:
        few, share = RARE[name]
        usual = [row for row in texts if row["label"] != few]
        if limit is not None:
            usual = usual[: limit - round(share * limit)]
        found = [row for row in texts if row["label"] == few]
        texts = [*usual, *found[: round(len(usual) * share / (1 - share))]]
    file.write_text("".join(json.dumps(row) + "\n" for row in texts), encoding="utf8")


def logits_of(model: Path, examples: Examples) -> tuple[Tensor, Tensor]:
    """(logits (N, C), labels (N)) of a classifier on texts."""
    runtime = Transformers(ModelSource(str(model), dtype="float32"))
    return read_classes(runtime, examples, held_out_batches(examples, len(examples), BATCH))


def measured(model: Path, examples: Examples, rare: int) -> dict[str, float]:
    """Numbers of a classifier on test texts, with the rare class's recall."""
    arrays = compare_classes(*logits_of(model, examples))
    arrays["document"] = np.arange(len(arrays["label"]))
    found = ClassificationMetrics().summary(arrays, EvaluateConfig(bootstrap=100))
    recall = float(arrays["correct"][arrays["label"] == rare].mean())
    return {**{name: float(found[name]) for name in NUMBERS}, "rare recall": recall}


def fitted_temperature(logits_NC: Tensor, labels_N: Tensor) -> float:
    """The one number that, dividing the logits, gives these labels the lowest nll."""
    grid = [math.exp(i / 50) for i in range(-100, 101)]
    cross_entropy = torch.nn.functional.cross_entropy
    return min(grid, key=lambda one: float(cross_entropy(logits_NC / one, labels_N)))


def calibrate(teacher: Run, folder: Path) -> float:
    """Save a teacher whose head is divided by the temperature fitted on validation; that number."""
    found = fitted_temperature(
        *logits_of(teacher.folder.teacher, Examples(teacher.folder.data() / "validation.arrow"))
    )
    model: Any = load_model(str(teacher.folder.teacher), auto=CLASSIFIER, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.div_(found)
    save_student(model, load_tokenizer(str(teacher.folder.teacher)), folder)
    return found


def objective_of(temperature: float, kl: float, labels: float) -> list[dict[str, Any]]:
    """The terms of one setting."""
    return [
        {"loss": "forward_kl", "weight": kl, "temperature": temperature},
        {"loss": "cross_entropy", "weight": labels},
    ]


def teacher_of(folder: Path, kind: str, encoder: str, common: dict[str, Any]) -> Run:
    """Fine-tune the encoder for as many epochs as this kind of teacher has; its run."""
    adapt = {**LOOP, "lr": 3.0e-4, "epochs": TEACHER_EPOCHS[kind]}
    values = {**common, "teacher": {"model": encoder, "adapt": adapt}, "student": {}}
    run = run_of(folder, f"teacher-{kind}", values)
    run_stages(run, ["adapt-teacher"])
    return run


def rows_of(folder: Path, name: str, seed: int, options: Any) -> list[dict[str, Any]]:
    """One row a setting, and each teacher's, of one data set and seed."""
    folder.mkdir(parents=True, exist_ok=True)
    limits = {"train": QUICK if options.quick else TEXTS, "test": QUICK if options.quick else None}
    for part, limit in limits.items():
        source = Path(options.data) / name / f"{part}.jsonl.gz"
        write_part(source, name, limit, folder / f"{part}.jsonl")
    data = {"train": str(folder / "train.jsonl"), "held_out": str(folder / "test.jsonl"),
            "validation": 0.15, "max_length": 32}  # fmt: skip
    write_part(
        Path(options.data) / name / "train.jsonl.gz", name, None, folder / "all.jsonl", False
    )
    common = {"task": "sequence-classification", "seed": seed, "data": data}
    rows: list[dict[str, Any]] = []
    teachers: dict[str, Run] = {}

    def add(setting: str, numbers: dict[str, float]) -> None:
        rows.append({"data": name, "seed": seed, "setting": setting, **numbers})
        print(
            {key: round(v, 3) if isinstance(v, float) else v for key, v in rows[-1].items()},
            flush=True,
        )

    taught = {SETTINGS[setting][0] for setting in options.settings}
    for kind in (kind for kind in TEACHER_EPOCHS if kind == "weak" or kind in taught):
        more = {"data": {**data, "train": str(folder / "all.jsonl")}} if kind == "strong" else {}
        teachers[kind] = teacher_of(folder, kind, options.encoder, {**common, **more})
    held_out = Examples(teachers["weak"].folder.data() / "held_out.arrow")
    rare = sorted({row["label"] for row in map(json.loads, (folder / "train.jsonl").open())})

    def score(model: Path) -> dict[str, float]:
        return measured(model, held_out, rare.index(RARE[name][0]))

    places = {kind: run.folder.teacher for kind, run in teachers.items()}
    if "calibrated" in taught:
        places["calibrated"] = folder / "calibrated"
        print("fitted temperature:", calibrate(teachers["weak"], places["calibrated"]), flush=True)
    for kind, place in places.items():
        add(f"teacher, {kind}", score(place))
    alone = {kind: f"{kind}, labels alone" for kind in TEACHER_EPOCHS}  # from this teacher's cut
    alone["weak"] = "labels alone"
    for number, setting in enumerate(options.settings):
        kind, *weights = SETTINGS[setting]
        values = {
            **common, "teacher": {"model": str(places[kind])},
            "cache": {"dir": str(folder / f"cache-{kind}")}, "student": {"layers": {"keep": [1]}},
            "train": {**LOOP, **STUDENT, "objective": objective_of(*weights),
                      "arms": ["finetune"] if kind in alone else []},
        }  # fmt: skip
        run = run_of(folder, f"student-{number}", values)
        run_stages(run, ["cache", "build", "train"])
        if kind in alone:
            add(alone.pop(kind), score(run.folder.arm_student("finetune")))
        add(setting, score(run.folder.arm_student("distill")))
    return rows


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a data set and setting: means over the seeds."""
    found = []
    for name, setting in dict.fromkeys((row["data"], row["setting"]) for row in rows):
        mine = [row for row in rows if (row["data"], row["setting"]) == (name, setting)]
        numbers = {
            key: statistics.mean(row[key] for row in mine) for key in (*NUMBERS, "rare recall")
        }
        found.append({"data": name, "setting": setting, "seeds": len(mine), **numbers})
    return found


def main() -> None:
    """Train, measure, compare."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--encoder", default="../shared/data/models/bert-tiny-splade")
    parser.add_argument("--data", default="../shared/data", help="folder of the labelled sets")
    parser.add_argument("--sets", nargs="+", default=list(RARE), choices=list(RARE))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    options = parser.parse_args()
    if options.quick:
        options.sets, options.seeds = options.sets[:1], [0]
        options.settings = options.settings[:2]
    set_up_logging()
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for seed in options.seeds:
            for name in options.sets:
                rows += rows_of(folder / f"{name}-{seed}", name, seed, options)
                record(rows, options.json)  # what is measured so far
    record(means(rows), None)


if __name__ == "__main__":
    main()
