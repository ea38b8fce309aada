"""Small classifiers that learn from a large one against the same ones plainly fine-tuned.

    python benchmarks/classification.py --json benchmarks/results/classification.json

Whole runs through the command line's own stages. The teacher is an encoder of 6 blocks
(examples/get_classification_demo.py fetches it), fine-tuned once on each data set; its students
keep half of its blocks, a third, and half of its blocks at half the width with half the neurons,
which leaves at most a 7.5th of the parameters beside the embeddings. Every student learns twice
from the same start, on the same texts in the same order for as many steps: from the teacher's cache
(`distill`) and from labels alone (`finetune`). The last weights are kept, so the test texts choose
nothing. Measured on the test part: accuracy, and the share of the teacher's that is kept. Speed is
measured once for each shape, teacher and students in turn. With `--runs FOLDER` the runs stay
there, and the same command goes on where it was stopped.
"""

from __future__ import annotations

import gzip
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from harness import arguments, record

from attar.files import read_json
from distill.console import set_up_logging
from distill.data.examples import Examples
from distill.evaluation.predictions import held_out_batches
from distill.evaluation.text_speed import measure_text_speed
from distill.evaluation.timing import Timer
from distill.pipeline import run_stages
from distill.run.context import Run
from distill.run.load import load_recipe
from distill.runtimes.hugging_face import Transformers
from distill.runtimes.runtime import ModelSource
from distill.tasks.sequence_classification.metrics import compare_classes, read_classes

BATCH = 32
ROUNDS = 3  # of timing, all models in turn
QUICK = 64  # texts of each part
TASK = "sequence-classification"
LOOP = {
    "batch_size": BATCH, "schedule": "linear", "warmup": 0.1, "keep": "last",
    "evaluate_every": 1_000_000, "evaluate_tokens": BATCH,  # steps: not on the way
}  # fmt: skip
TEACHERS: dict[str, dict[str, Any]] = {
    "sst2": {"lr": 1.0e-4, "epochs": 3},
    "banking77": {"lr": 3.0e-4, "epochs": 5},
}
CUTS: dict[str, dict[str, Any]] = {
    "half": {"layers": {"keep": [1, 3, 5]}},
    "third": {"layers": {"keep": [1, 5]}},
    "tiny": {
        "layers": {"keep": [1, 3, 5]},
        "hidden": {"keep": 192},
        "heads": {"keep": 6},
        "feed_forward": {"keep": 768},
    },
}
REST = "-embeddings"  # all learns but these: less time and memory
HOW: dict[str, dict[str, dict[str, Any]]] = {  # smaller students learn for longer
    "sst2": {
        "half": {"epochs": 3, "trainable": REST},
        "third": {"epochs": 6, "trainable": REST},
        "tiny": {"epochs": 6, "trainable": "all"},
    },
    "banking77": {
        "half": {"epochs": 3, "trainable": REST},
        "third": {"epochs": 4, "trainable": REST},
        "tiny": {"epochs": 4, "trainable": REST},
    },
}
RATES = {"half": 3.0e-4, "third": 3.0e-4, "tiny": 6.0e-4}
# Which layer of the student learns from which of the teacher's.
PAIRS = {"half": [[1, 2], [2, 4], [3, 6]], "third": [[1, 2], [2, 6]]}
PAIRS["tiny"] = PAIRS["half"]
CACHED = {"layers": [2, 4, 6]}
REACH = {"half": 0.99, "third": 0.98, "tiny": 0.968}  # of the teacher's accuracy


def objective_of(student: str) -> list[dict[str, Any]]:
    """What a student learns from: the teacher's classes and hidden states, and the labels."""
    return [
        {"loss": "forward_kl", "temperature": 2.0},
        {"loss": "cross_entropy", "weight": 0.3},
        {"loss": "hidden_mse", "weight": 3.0, "layers": PAIRS[student]},
    ]


def run_of(folder: Path, name: str, values: dict[str, Any]) -> Run:
    """A run of the recipe, in a folder of its own."""
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(values))
    return Run(load_recipe(str(file)), folder / name)


def teach(folder: Path, encoder: str, data: dict[str, Any], how: dict[str, Any]) -> Run:
    """Fine-tune the teacher; its run."""
    adapt = {**LOOP, **how}
    teacher = {"model": encoder, "adapt": adapt}
    run = run_of(folder, "teacher", {"task": TASK, "data": data, "teacher": teacher, "student": {}})
    run_stages(run, ["adapt-teacher"])
    return run


def learn(
    folder: Path, student: str, teacher: Run, data: dict[str, Any], seed: int, how: dict[str, Any]
) -> Run:
    """Cut one student and train both arms from the cache that all share; its run."""
    values = {
        "task": TASK, "seed": seed, "data": data,
        "teacher": {"model": str(teacher.folder.teacher)},
        "cache": {"dir": str(folder / "cache"), "hidden": CACHED},
        "student": CUTS[student],
        "train": {
            **LOOP, "objective": objective_of(student), "batch_size": 16,
            "model_dropout": 0.0, **how,
        },
    }  # fmt: skip
    run = run_of(folder, f"{student}-{seed}", values)
    run_stages(run, ["cache", "build", "train"])
    return run


def accuracy_of(model: Path, held_out: Examples) -> float:
    """Of a classifier in a folder, on the test texts."""
    batches = held_out_batches(held_out, len(held_out), BATCH)
    arrays = compare_classes(*read_classes(_runtime(model), held_out, batches))
    return float(np.mean(arrays["correct"]))


def _runtime(model: Path) -> Transformers:
    return Transformers(ModelSource(str(model), dtype="float32"))


def shapes_of(models: dict[str, Path], held_out: Examples) -> dict[str, dict[str, float]]:
    """Size and speed of each model: parameters, those beside the embeddings, texts a second in
    batches, and milliseconds for one text; medians over rounds in which all take their turn.
    """
    runtimes = {name: _runtime(model) for name, model in models.items()}
    batches = held_out_batches(held_out, len(held_out), BATCH)
    rounds = [
        {
            name: measure_text_speed(one.classes, held_out, batches, Timer())
            for name, one in runtimes.items()
        }
        for _ in range(ROUNDS)
    ]
    found = {}
    for name, runtime in runtimes.items():
        named = list(runtime.model.named_parameters())
        found[name] = {
            "parameters": sum(p.numel() for _, p in named),
            "body": sum(p.numel() for key, p in named if "embeddings" not in key),
            "rate": statistics.median(one[name]["texts_per_second"] for one in rounds),
            "milliseconds": 1e3 * statistics.median(one[name]["seconds_a_text"] for one in rounds),
        }
    return found


def data_of(files: dict[str, Path]) -> dict[str, Any]:
    """The section `data` of a labelled set."""
    return {
        "train": str(files["train"]), "held_out": str(files["test"]), "text_column": "text",
        "label_column": "label", "max_length": 64,
    }  # fmt: skip


def fewer(file: Path, texts: int, folder: Path) -> Path:
    """So many rows of a file, evenly spaced, since files are sorted by class; a file of its own."""
    with gzip.open(file, "rt", encoding="utf8") as lines:
        rows = list(lines)
    chosen = [rows[i * len(rows) // texts] for i in range(min(texts, len(rows)))]
    short = folder / f"{file.name.split('.')[0]}-{texts}.jsonl"
    short.write_text("".join(chosen), encoding="utf8")
    return short


def files_of(name: str, folder: Path, options: Any) -> dict[str, Path]:
    """The training and test part of a labelled set, cut to `--texts` and with `--quick`."""
    files = {part: Path(options.data) / name / f"{part}.jsonl.gz" for part in ("train", "test")}
    limits = {"train": options.texts, "test": QUICK if options.quick else None}
    return {
        part: file if limits[part] is None else fewer(file, limits[part], folder)
        for part, file in files.items()
    }


def rows_of(folder: Path, name: str, options: Any) -> list[dict[str, Any]]:
    """One row a student and seed, of one data set."""
    data = data_of(files_of(name, folder, options))
    short = {"epochs": 1} if options.quick else {}
    teacher = teach(folder, options.encoder, data, {**TEACHERS[name], **short})
    held_out = Examples(teacher.folder.data() / "held_out.arrow")
    whole = accuracy_of(teacher.folder.teacher, held_out)
    found: list[dict[str, Any]] = []
    models = {"teacher": teacher.folder.teacher}
    for seed in range(options.seeds):
        for student in options.students:
            how = {**HOW[name][student], "lr": RATES[student], "max_steps": options.steps, **short}
            run = learn(folder, student, teacher, data, seed, how)
            folders = {arm: run.folder.arm_student(arm) for arm in ("distill", "finetune")}
            models.setdefault(student, folders["distill"])
            distilled, tuned = (accuracy_of(one, held_out) for one in folders.values())
            found.append(
                {
                    "data": name, "student": student, "seed": seed, "teacher": whole,
                    "distilled": distilled, "fine-tuned": tuned, "kept": distilled / whole,
                    "kept, fine-tuned": tuned / whole,
                }
            )  # fmt: skip
            print({key: value for key, value in found[-1].items() if key != "data"}, flush=True)
    shapes = shapes_of(models, held_out)
    return [{**row, **_beside(shapes["teacher"], shapes[row["student"]])} for row in found]


def _beside(teacher: dict[str, float], student: dict[str, float]) -> dict[str, float]:
    """A student's size and speed, and how many times the teacher's."""
    return {
        "parameters": student["parameters"],
        "fewer in blocks, x": teacher["body"] / student["body"],
        "texts/s": student["rate"],
        "faster, x": student["rate"] / teacher["rate"],
        "one text, ms": student["milliseconds"],
        "one text, x": teacher["milliseconds"] / student["milliseconds"],
    }


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """A sentence for each data set and student: means over seeds against the reach."""
    lines = []
    for name, student in dict.fromkeys((row["data"], row["student"]) for row in rows):
        mine = [row for row in rows if (row["data"], row["student"]) == (name, student)]
        kept, tuned = (
            statistics.mean(row[key] for row in mine) for key in ("kept", "kept, fine-tuned")
        )
        word = "reached" if kept >= REACH[student] else "missed"
        lines.append(
            f"{name}, {student}: {kept:.1%} of the teacher's accuracy distilled "
            f"({REACH[student]:.1%} {word}), {tuned:.1%} fine-tuned; "
            f"{mine[0]['fewer in blocks, x']:.1f} times fewer parameters beside the embeddings, "
            f"{mine[0]['faster, x']:.1f} times the speed."
        )
    return lines


def draw(rows: list[dict[str, Any]], file: str) -> None:
    """Share of the teacher's accuracy against parameters, both arms, as a PNG: means over seeds
    with the lowest and the highest.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sets = list(dict.fromkeys(row["data"] for row in rows))
    figure, axes = pyplot.subplots(
        1, len(sets), figsize=(5 * len(sets), 4.2), sharey=True, squeeze=False, layout="constrained"
    )
    arms = {
        "kept": ("distilled", "tab:blue", "o"),
        "kept, fine-tuned": ("labels alone", "tab:orange", "s"),
    }
    for panel, name in zip(axes[0], sets, strict=True):
        mine = [row for row in rows if row["data"] == name]
        shapes = {row["student"]: row["fewer in blocks, x"] for row in mine}
        for key, (label, colour, marker) in arms.items():
            values = [[row[key] for row in mine if row["student"] == one] for one in shapes]
            means = [statistics.mean(found) for found in values]
            pairs = list(zip(means, values, strict=True))
            spread = [
                [mean - min(found) for mean, found in pairs],
                [max(found) - mean for mean, found in pairs],
            ]
            panel.errorbar(
                list(shapes.values()), means, spread, color=colour, marker=marker, ms=5, capsize=3,
                label=label,
            )  # fmt: skip
        aims = [REACH[student] for student in shapes]
        panel.plot(list(shapes.values()), aims, "k_", ms=14, label="aim")
        for student, times in shapes.items():
            panel.annotate(
                student, (times, 1), (0, 4), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="center",
            )  # fmt: skip
        panel.margins(x=0.12)
        panel.set_title(name, pad=20)
        panel.set_xscale("log")
        panel.set_xticks([2, 3, 4, 6, 8], labels=["2", "3", "4", "6", "8"])
        panel.minorticks_off()
        panel.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}")
        panel.set_xlabel("times fewer parameters beside the embeddings")
        panel.grid(alpha=0.3)
    axes[0, 0].set_ylabel("of the teacher's accuracy")
    axes[0, 0].legend(frameon=False, loc="lower left")
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def main() -> None:
    """Train, measure, compare."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--encoder", default=".demo/classification/encoder")
    parser.add_argument("--data", default="../shared/data", help="folder of the labelled sets")
    parser.add_argument("--sets", nargs="+", default=list(TEACHERS), choices=list(TEACHERS))
    parser.add_argument("--students", nargs="+", default=list(CUTS), choices=list(CUTS))
    parser.add_argument("--texts", type=int, help="to train on; all when absent")
    parser.add_argument("--steps", type=int, help="at most, of every student")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", metavar="FOLDER", help="keep the runs there; absent: nowhere")
    parser.add_argument("--plot", metavar="PNG", help="draw the rows there")
    parser.add_argument("--with", dest="others", metavar="JSON", help="... and others of a record")
    options = parser.parse_args()
    if options.quick:
        options.sets, options.students, options.seeds = options.sets[:1], ["half"], 1
        options.texts = QUICK
    set_up_logging()
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        runs = Path(options.runs or stack.enter_context(tempfile.TemporaryDirectory()))
        for name in options.sets:
            if not (Path(options.data) / name).exists():
                print(f"{name} is not in {options.data}: left out (`--data FOLDER`)")
                continue
            (runs / name).mkdir(parents=True, exist_ok=True)
            rows += rows_of(runs / name, name, options)
    if rows:
        record(rows, options.json)
        print("\n".join(summary(rows)))
        if options.plot:
            mine = {(row["data"], row["student"]) for row in rows}
            others = read_json(Path(options.others))["rows"] if options.others else []
            kept = [row for row in others if (row["data"], row["student"]) not in mine]
            draw([*kept, *rows], options.plot)


if __name__ == "__main__":
    main()
