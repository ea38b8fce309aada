"""What a student learns from: the data's answers or the teacher's, their labels or its signals.

    python benchmarks/answers.py --json benchmarks/results/answers_tiny.json

Word problems of GSM8K with worked solutions, those that are short enough. The teacher is first
adapted on some of them; the student is cut from it, refitted, and first learns from the same ones.
From there every way takes as many steps of 8 answers to other problems: `gold` the data's answers
by their labels, `word-level` the same by the teacher's signals (forward KL), `sequence-level`
answers that the teacher wrote by their labels, `both in one pass` these by labels and by the
signals that it left while it wrote, `word-level, written` by these signals alone. Answers are drawn
as `data.answers` draws them unless told otherwise; for one way at temperature 1. Each way is a
recipe with a run of its own. A seed is one of the draws of the answers and of the order; the
held-out problems are the same for all. The student keeps two of glassllm-en's 4 blocks, or, with
`--model SmolLM2-135M-Instruct`, 8 of its 30, whose vocabulary is first fitted.

Measured on held-out problems: nll and KL(teacher || student) on gold answers and on the teacher's;
KL(student || teacher) on answers that the student drew, and the teacher's nll of these; how often
these are right, and end. Intervals are 95%, of differences from `gold`, problems and seeds drawn
with replacement. `before` is what writing or caching took, `training` what the steps took, in
seconds of the processor. What is finished stays in the folder `--runs`; the same command goes on
from there.
"""

from __future__ import annotations

import gzip
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from answer_measures import DRAWN, MEASURES, Measure, Table, kept, mean, row_of
from harness import arguments, record

from attar.distributed import free_memory
from attar.files import read_json, write_json
from attar.models.tokenizers import load_tokenizer
from distill.console import set_up_logging
from distill.data.config import DataConfig
from distill.fit_vocabulary import fit_vocabulary
from distill.pipeline import run_stages
from distill.run.context import Run
from distill.run.load import load_recipe

BATCH = 8
LABELS = [{"loss": "cross_entropy"}]
SIGNALS = [{"loss": "forward_kl"}]
BOTH = [{**one, "weight": 0.5} for one in (*SIGNALS, *LABELS)]
CONTROL, WROTE = "gold", "both in one pass"  # WROTE: its run has the teacher write
AT_ONE = {"temperature": 1.0, "top_p": 1.0}  # the teacher's answers as it is, not surer
WAYS: dict[str, tuple[dict[str, float] | None, list[dict[str, Any]]]] = {
    # how the teacher's answers are drawn, None: the data's are learned; the objective
    CONTROL: (None, LABELS),
    "word-level": (None, SIGNALS),
    WROTE: (DRAWN, BOTH),
    "sequence-level": (DRAWN, LABELS),
    "word-level, written": (DRAWN, SIGNALS),
    "sequence-level, drawn at 1": (AT_ONE, LABELS),
}


@dataclass(frozen=True)
class Size:
    """How large the measurement is. corpus: rows whose ids are kept, 0: all ids are. length, new:
    tokens of a text and of an answer, at most. ended: whether only whole answers are learned.
    """

    model: str
    corpus: int
    blocks: list[int]
    length: int
    new: int
    rows: dict[str, int]
    steps: dict[str, int]
    rates: dict[str, float]
    ended: bool


SIZES = {
    "SmolLM2-135M-Instruct": Size(
        ".demo/teacher", 1500, [0, 1, 2, 4, 8, 20, 28, 29], 152, 72,
        {"start": 64, "train": 64, "validation": 8, "held_out": 32},
        {"teacher": 8, "start": 24, "way": 16},
        {"teacher": 5e-5, "start": 1e-3, "way": 5e-4}, True,
    ),
    "glassllm-en": Size(
        "{data}/models/glassllm-en", 0, [0, 3], 124, 60,
        {"start": 400, "train": 240, "validation": 16, "held_out": 100},
        {"teacher": 150, "start": 80, "way": 60},
        {"teacher": 1e-3, "start": 2e-3, "way": 5e-4}, False,
    ),
}  # fmt: skip
QUICK = replace(
    SIZES["glassllm-en"],
    rows={"start": 16, "train": 16, "validation": 8, "held_out": 10},
    steps={"teacher": 4, "start": 4, "way": 4},
)


# Runs --------------------------------------------------------------------------------------------


def write_rows(shared: Path, folder: Path, size: Size, tokenizer: Any) -> None:
    """The parts as files, of problems short enough; no problem is in two of them."""
    if (folder / "held_out.jsonl").exists():
        return
    for source, parts in (("train", ("start", "train", "validation")), ("test", ("held_out",))):
        with gzip.open(shared / "gsm8k" / f"{source}.jsonl.gz", "rt", encoding="utf8") as lines:
            rows = [json.loads(line) for line in lines]
        random.Random(0).shuffle(rows)
        short = (row for row in rows if is_short(row, size, tokenizer))
        found = {part: [next(short) for _ in range(size.rows[part])] for part in parts}
        if source == "train":
            found["corpus"] = rows[: size.corpus]
        for part, chosen in found.items():
            kept = ({key: row[key] for key in ("prompt", "response")} for row in chosen)
            (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))


def is_short(row: dict[str, str], size: Size, tokenizer: Any) -> bool:
    """Whether a problem leaves room for an answer, and its own too if it must be whole."""
    prompt, response = (row[key] for key in ("prompt", "response"))
    if tokenizer.chat_template is not None:
        turns = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    asked, answered = (len(tokenizer(text)["input_ids"]) for text in (prompt, response))
    fits = answered + 4 <= size.new or not size.ended
    return asked + size.new + 4 <= size.length and fits


def loop(size: Size, of: str, **more: Any) -> dict[str, Any]:
    """The keys of a training: of the teacher, of the start, or of a way."""
    return {
        "max_steps": size.steps[of], "lr": size.rates[of], "batch_size": BATCH, "epochs": 1000,
        "schedule": "linear", "warmup": 0.1, "precision": "float32", "keep": "last",
        "evaluate_every": 1_000_000, "evaluate_tokens": 256, **more,
    }  # fmt: skip


def timed(run: Run, *stages: str) -> float:
    """Do stages of a run, and return their seconds of the processor, those of earlier calls too."""
    file = run.folder.path.with_name(f"{run.folder.path.name}-{'-'.join(stages)}.json")
    before = read_json(file)["seconds"] if file.exists() else 0.0
    started = time.process_time()
    run_stages(run, list(stages))
    seconds = float(before + time.process_time() - started)
    write_json(file, {"seconds": seconds})
    return seconds


def name_of(way: str, seed: int) -> str:
    """The name of a run."""
    return f"{way.replace(' ', '-')}-{seed}"


@dataclass
class Bench:
    """Everything in a folder: what is there is not made again."""

    folder: Path
    size: Size
    model: str

    @property
    def teacher(self) -> Path:
        """The adapted teacher."""
        return self.folder / "teacher" / "teacher"

    @property
    def start(self) -> Path:
        """The student from which every way starts."""
        return self.folder / "start" / "arms" / "distill" / "student"

    @cached_property
    def measure(self) -> Measure:
        """What measures students; the teacher is there."""
        held_out = self.folder / "teacher" / "data" / "held_out.arrow"
        return Measure(held_out, self.teacher, self.size.new)

    def run(self, name: str, part: str, values: dict[str, Any]) -> Run:
        """A run in a folder of its own that learns from a part of the rows."""
        parts = {"train": part, "validation": "validation", "held_out": "held_out"}
        data = {key: str(self.folder / f"{rows}.jsonl") for key, rows in parts.items()}
        data |= {"max_length": self.size.length, "packing": False}
        recipe = {**values, "data": {**data, **values.get("data", {})}, "export": {"artifacts": []}}
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(recipe))
        return Run(load_recipe(str(file)), self.folder / name)

    def adapt(self) -> tuple[Path, dict[str, float]]:
        """(the adapted teacher, what it took)."""
        adapt = loop(self.size, "teacher")
        model, fitted = self.model, self.folder / "fitted"
        if self.size.corpus:
            corpus = {"train": str(self.folder / "corpus.jsonl"), "max_length": 1024}
            if not fitted.exists():
                print(fit_vocabulary(model, DataConfig.model_validate(corpus), fitted).sentence())
            model = str(fitted)
        values = {"teacher": {"model": model, "dtype": "float32", "adapt": adapt}}
        run = self.run("teacher", "start", {**values, "student": {}})
        return self.teacher, self.once("teacher", timed(run, "adapt-teacher"))

    def begin(self) -> tuple[Path, dict[str, float]]:
        """(the student that has not yet gone any way, what it took)."""
        values = {
            "teacher": {"model": str(self.teacher), "dtype": "float32"},
            "student": {"layers": {"keep": self.size.blocks}, "refit": True},
            "train": loop(self.size, "start", objective=BOTH, arms=[]),
        }
        run = self.run("start", "start", values)
        return self.start, self.once("start", timed(run, "cache", "build", "train"))

    def once(self, of: str, seconds: float) -> dict[str, float]:
        """What the teacher, or the start, took."""
        answers, steps = self.size.rows["start"], self.size.steps[of]
        return {"steps": steps, "answers": answers, "before": 0.0, "training": seconds}

    def go(self, way: str, seed: int) -> tuple[Path, dict[str, float]]:
        """(the student of a way, what it took)."""
        drawn, objective = WAYS[way]
        values: dict[str, Any] = {
            "seed": seed,
            "teacher": {"model": str(self.teacher), "dtype": "float32"},
            "student": {"from": str(self.start)},
            "train": loop(self.size, "way", objective=objective, arms=[]),
            "cache": {} if drawn else {"dir": str(self.folder / "cache")},
        }
        if drawn:
            keep = {"ended": self.size.ended}
            answers = {"samples": 1, "new_tokens": self.size.new, "keep": keep, **drawn}
            values["data"] = {"answers": answers}
        run = self.run(name_of(way, seed), "train", values)
        if drawn == DRAWN and way != WROTE:  # answers are known by writer, prompt, draw; not by run
            wrote = self.folder / name_of(WROTE, seed) / "answers" / "requests"
            shutil.copytree(wrote, run.folder.answers / "requests", dirs_exist_ok=True)
        costs = {"writing": timed(run, "answer"), "caching": timed(run, "cache")}
        run_stages(run, ["build"])
        costs["training"] = timed(run, "train")
        if drawn:
            print(read_json(run.folder.answers / "result.json")["sentence"], flush=True)
        return run.folder.arm_student(), {
            **costs, "steps": self.size.steps["way"], "answers": len(run.training_examples())
        }  # fmt: skip

    def table(self, name: str, make: Callable[[], tuple[Path, dict[str, float]]]) -> Table:
        """What is measured of a model, and what it took; made where its file is not there."""

        def made() -> Table:
            student, costs = make()
            found = self.measure.of(student)
            free_memory()
            values = {one: round(mean(found[at[0]], at[1]), 3) for one, at in MEASURES.items()}
            print(time.strftime("%H:%M:%S"), name, costs, values, flush=True)
            return {**found, **{key: np.asarray(value) for key, value in costs.items()}}

        return kept(self.folder / f"{name}.npz", made)


def add_costs(ways: dict[str, list[Table]]) -> None:
    """What each way took before its training, as if it were alone: of seeds that share a cache the
    one that made it, and of answers that another way's run wrote what writing took there.
    """
    for way, tables in ways.items():
        for seed, one in enumerate(tables):
            drawn = WAYS[way][0]
            if drawn:
                wrote = ways[WROTE][seed] if drawn == DRAWN else one
                before = float(wrote["writing"] + one["caching"])
            else:
                before = max(float(other["caching"]) for other in tables)
            one["before"] = np.asarray(before)


def main() -> None:
    """Train every way from every seed, and measure it; write the rows after each seed."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--data", default="../shared/data", help="folder of the shared data")
    parser.add_argument("--model", default="glassllm-en", choices=list(SIZES), help="the teacher")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", type=int, default=len(WAYS), help="only the first so many")
    parser.add_argument("--runs", metavar="FOLDER", help="keep the runs there; absent: nowhere")
    options = parser.parse_args()
    set_up_logging(quiet=True)
    torch.set_num_threads(1)
    size, seeds = (QUICK, 2) if options.quick else (SIZES[options.model], options.seeds)
    model = size.model.format(data=options.data)
    with ExitStack() as stack:
        folder = Path(options.runs or stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(Path(options.data), folder, size, load_tokenizer(model))
        bench = Bench(folder, size, model)
        first = {"teacher": [bench.table("teacher", bench.adapt)]}
        first["start"] = [bench.table("start", bench.begin)]
        ways: dict[str, list[Table]] = {way: [] for way in list(WAYS)[: options.ways]}
        for seed in range(seeds):
            for way, found in ways.items():
                found.append(bench.table(name_of(way, seed), partial(bench.go, way, seed)))
            add_costs(ways)
            rows = [row_of(way, found, None) for way, found in first.items()]
            rows += [row_of(way, found, ways[CONTROL]) for way, found in ways.items()]
            record(rows, options.json)


if __name__ == "__main__":
    main()
