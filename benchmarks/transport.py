"""Students whose tokenizer is not the teacher's: transport beside fine-tuning, ULD and GOLD.

    python benchmarks/transport.py --json benchmarks/results/transport.json

The teacher is SmolLM2-135M (49,152 ids). Students: `glassllm-en`, which was trained on Lewis
Carroll (0.9 million parameters, 1,024 ids, spaces as SentencePiece writes them), and `fresh`, a
Llama of 1.3 million random parameters with a byte-level BPE of 4,096 ids that is made here. All
ways see the same windows of 128 tokens of Wikipedia (lm_wiki89) in the same order from the same
first weights, in the package's loop with its optimiser. The teacher's 256 likeliest ids a token are
cached once; transport reads what they become in the student's ids, GOLD and ULD
(`aligned_losses.py`) the entries themselves.

`bits/byte` is of held-out paragraphs; intervals are 95%, of the difference from `fine-tuning`, over
paragraphs, those of all seeds drawn together. Each way has the one of `--rates` that is best on
other paragraphs with a seed that is not reported; a single rate is not tried. With `--runs FOLDER`
what is finished stays there, and the same command goes on.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import string
import tempfile
import time
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from aligned_losses import AlignedLearner, GoldLoss, Texts, UldLoss
from harness import arguments, record
from held_out import say
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from attar.distributed import free_memory
from attar.models.loading import load_causal_lm
from attar.models.token_bytes import TokenBytes
from distill.console import set_up_logging
from distill.pipeline import run_stages
from distill.run.context import Run
from distill.run.load import load_recipe
from distill.run.teacher_side import TeacherSide
from distill.training.batch_source import planned_batches
from distill.training.job import Job
from distill.training.loop import train
from distill.training.teacher_signals import TeacherSignals

WINDOW, IDS, ENTRIES = 128, 4096, 256
BATCH = 4
BYTES = {"train": 33_000, "validation": 2_500, "tried": 20_000, "held_out": 40_000}
CHARACTERS = {*string.ascii_letters, *string.digits, *" .,;:'()-?!"}  # that all tokenizers keep
TRIAL_SEED, SEEDS, STEPS, RATES = 100, 3, 60, [1e-3, 3e-3]
STUDENTS = ["glassllm-en", "fresh"]
ULD_WEIGHT = 1.5  # beside a cross-entropy of weight 1
SHAPE = {
    "num_hidden_layers": 4, "hidden_size": 128, "intermediate_size": 352,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "max_position_embeddings": WINDOW, "tie_word_embeddings": True,
}  # fmt: skip
CE, KL = {"loss": "cross_entropy"}, {"loss": "forward_kl"}
WAYS: dict[str, list[dict[str, Any]]] = {
    "fine-tuning": [CE],
    "transport": [KL],
    "transport + cross-entropy": [KL, {**CE, "weight": 0.5}],
    "ULD": [CE],
    "GOLD": [CE],
    "GOLD, weights 1": [CE],
}
CONTROL = "fine-tuning"


def write_texts(data: Path, folder: Path, quick: bool) -> None:
    """Paragraphs of each part that all tokenizers keep; one of each article in turn."""
    sources = {"tried": "validation", "held_out": "test"}
    for part, most in BYTES.items():
        source = data / f"lm_wiki89/{sources.get(part, 'train')}.jsonl.gz"
        with gzip.open(source, "rt", encoding="utf8") as lines:
            articles = [json.loads(line)["text"].split("\n\n") for line in lines]
        if part in ("train", "validation"):  # of other articles
            articles = articles[5:] if part == "train" else articles[:5]
        paragraphs = [
            text
            for row in zip_longest(*articles)
            for text in row
            if text and set(text) <= CHARACTERS
        ]
        sizes = np.cumsum([len(text.encode()) for text in paragraphs])
        count = int(np.searchsorted(sizes, most // 20 if quick else most)) + 1
        rows = "".join(json.dumps({"text": text}) + "\n" for text in paragraphs[:count])
        (folder / f"{part}.jsonl").write_text(rows, "utf8")


def write_tokenizer(data: Path, folder: Path) -> None:
    """A byte-level BPE of all training articles."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=IDS,
        special_tokens=["<|pad|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with gzip.open(data / "lm_wiki89/train.jsonl.gz", "rt", encoding="utf8") as lines:
        made.train_from_iterator([json.loads(line)["text"] for line in lines], trainer)
    tokens = {"eos_token": "<|end|>", "pad_token": "<|pad|>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **tokens).save_pretrained(str(folder))


def recipe_of(
    folder: Path, student: dict[str, Any], options: Any, seed: int, way: str, lr: float
) -> dict[str, Any]:
    """The recipe of one student."""
    return {
        "seed": seed,
        "data": {
            "train": str(folder / "train.jsonl"), "validation": str(folder / "validation.jsonl"),
            "held_out": str(folder / "held_out.jsonl"), "max_length": WINDOW, "append_eos": False,
        },
        "teacher": {"model": options.model, "dtype": "float32"},
        "cache": {"codec": {"name": "topk", "k": ENTRIES}, "shard_tokens": 2048},
        "student": student,
        "train": {
            "objective": WAYS[way], "lr": lr, "schedule": "cosine", "warmup": 0.1,
            "batch_size": BATCH, "epochs": 1000, "max_steps": options.steps,
            "precision": "float32", "keep": "last", "evaluate_every": 1_000_000,
            "evaluate_tokens": 256, "arms": [],
        },
        "export": {"artifacts": []},
    }  # fmt: skip


def trained(run: Run, way: str, texts: Texts, side: TeacherSide) -> tuple[Any, float]:
    """(the student of a way, processor seconds of its training)."""
    if way in ("ULD", "GOLD", "GOLD, weights 1"):
        run_stages(run, ["build"])
        started = time.process_time()
        student = _train_aligned(run, way, texts, side)
        return student, time.process_time() - started
    run_stages(run, ["cache", "build"])
    started = time.process_time()
    run_stages(run, ["train"])
    seconds = time.process_time() - started
    return load_causal_lm(str(run.folder.arm_student()), dtype=torch.float32).eval(), seconds


def _train_aligned(run: Run, way: str, texts: Texts, side: TeacherSide) -> Any:
    """Train by GOLD's or ULD's loss, with all else as the stage `train` has it."""
    loss: Any
    teacher = side.tokenizer
    if way == "ULD":
        loss, weight = UldLoss(len(teacher)), ULD_WEIGHT
    else:
        weights = (1.0, 1.0) if way == "GOLD, weights 1" else None
        loss, weight = GoldLoss(teacher, run.tokenizer, weights), 1.0
    config = run.recipe.train
    student = load_causal_lm(str(run.folder.student), dtype=torch.float32)
    learner = AlignedLearner(
        student, config.objective, vocabulary=run.vocabulary, dtype=torch.float32, chunk=1024,
        loss=loss, weight=weight, texts=texts,
    )  # fmt: skip
    examples, validation = run.data()
    signals = TeacherSignals()
    source = planned_batches(
        examples, learner, signals, config, max_length=WINDOW, packing=True, seed=run.recipe.seed
    )
    job = Job(
        way, learner, config, source, validation, signals, run.folder.path, run.recipe.seed,
        passing=True,
    )  # fmt: skip
    train(job)
    return student.eval()


@torch.no_grad()
def bits(model: Any, file: Path, tokenizer: Any) -> np.ndarray:
    """(bits, bytes) of each document of a file, but its first token; windows overlap by one."""
    lengths = [len(one) for one in TokenBytes(tokenizer, "the student's").bytes_of]
    windows, of = [], []
    texts = [json.loads(line)["text"] for line in file.read_text("utf8").splitlines()]
    for number, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        for start in range(0, len(ids) - 1, WINDOW):
            windows.append(torch.tensor(ids[start : start + WINDOW + 1]))
            of.append(number)
    found = np.zeros((len(texts), 2))
    for begin in range(0, len(windows), 16):
        rows = windows[begin : begin + 16]
        ids_BT = pad_sequence(rows, batch_first=True, padding_value=-1)
        logits = model(ids_BT[:, :-1].clamp(min=0)).logits[..., : len(lengths)]
        nll = cross_entropy(logits.mT.double(), ids_BT[:, 1:], ignore_index=-1, reduction="none")
        for i, row in enumerate(rows):
            size = sum(lengths[one] for one in row[1:].tolist())
            found[of[begin + i]] += float(nll[i].sum()) / np.log(2), size
    return found[found[:, 1] > 0]


def rate_of(values: np.ndarray) -> float:
    """Bits a byte."""
    return float(values[:, 0].sum() / values[:, 1].sum())


def interval(one: np.ndarray, other: np.ndarray) -> str:
    """95% interval of the difference in bits a byte; documents of all seeds are drawn together."""
    dice, found = np.random.default_rng(0), []
    for _ in range(2000):
        rows = dice.integers(0, one.shape[1], one.shape[1])
        found.append(rate_of(one[:, rows].reshape(-1, 2)) - rate_of(other[:, rows].reshape(-1, 2)))
    low, high = np.quantile(found, [0.025, 0.975])
    return f"{low:+.3f} to {high:+.3f}"


class Bench:
    """One student's part of a measurement, in a folder where what is finished is read again."""

    def __init__(self, student: str, folder: Path, options: Any) -> None:
        self.name, self.folder, self.options = student, folder, options
        self.folder.mkdir(parents=True, exist_ok=True)
        self._aligned: tuple[Texts, TeacherSide] | None = None
        data = Path(options.data)
        write_texts(data, folder, options.quick)
        if student == "fresh":
            self.student: dict[str, Any] = {"from": SHAPE, "tokenizer": str(folder / "tokenizer")}
            if not (folder / "tokenizer").exists():
                write_tokenizer(data, folder / "tokenizer")
        else:
            self.student = {"from": str((data / "models" / student).resolve())}

    def _run(self, name: str, seed: int, way: str, lr: float, cache: str | None = None) -> Run:
        recipe = recipe_of(self.folder, self.student, self.options, seed, way, lr)
        recipe["cache"] |= {"dir": cache} if cache else {}
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(recipe))
        return Run(load_recipe(str(file)), self.folder / name)

    def aligned(self) -> tuple[Texts, TeacherSide]:
        """The teacher's entries and the groups, and the run as the teacher sees it."""
        if self._aligned is None:
            run = self._run("base", 0, "transport", 1e-3)
            run_stages(run, ["cache"])
            side = TeacherSide(run)
            self._aligned = Texts(side), side
        return self._aligned

    def values(self, seed: int, way: str, lr: float, part: str) -> tuple[np.ndarray, float]:
        """((bits, bytes) of each document of a part, processor seconds) of one student."""
        steps = self.options.steps
        name = re.sub(r"[^\w.]+", "-", f"{way} {seed} {lr:g} {steps} {part}")
        file = self.folder / f"{name}.npz"
        if not file.exists():
            aligned = self.aligned()
            shutil.rmtree(self.folder / "student", ignore_errors=True)
            run = self._run("student", seed, way, lr, str(self.folder / "base" / "cache"))
            student, seconds = trained(run, way, *aligned)
            found = bits(student, self.folder / f"{part}.jsonl", run.tokenizer)
            np.savez(file, values=found, seconds=seconds)
            free_memory()
            say(f"{way}, seed {seed}, lr {lr:g}: {rate_of(found):.4f} on {part}, {seconds:.0f} s")
        kept = np.load(file)
        return kept["values"], float(kept["seconds"])

    def best_rate(self, way: str) -> float:
        """The rate with the fewest bits a byte on other text, of a seed that is not reported."""
        rates = self.options.rates
        if len(rates) == 1:
            return float(rates[0])
        found = {lr: rate_of(self.values(TRIAL_SEED, way, lr, "tried")[0]) for lr in rates}
        return min(found, key=found.__getitem__)

    def before(self) -> np.ndarray:
        """The values of a student that was not trained; of random weights, of the first seed."""
        file = self.folder / "before.npz"
        if not file.exists():
            run = self._run("before", 0, CONTROL, 1e-3)
            run_stages(run, ["build"])
            model = load_causal_lm(str(run.folder.student), dtype=torch.float32).eval()
            np.savez(file, values=bits(model, self.folder / "held_out.jsonl", run.tokenizer))
        kept: np.ndarray = np.load(file)["values"]
        return kept

    def rows(self) -> list[dict[str, Any]]:
        """A row a way: means, and the difference from the control."""
        rates = {way: self.best_rate(way) for way in WAYS}
        found: dict[str, list[np.ndarray]] = {"before": [self.before()] * self.options.seeds}
        seconds: dict[str, list[float]] = {"before": [0.0]}
        for seed in range(self.options.seeds):
            for way, lr in rates.items():
                values, spent = self.values(seed, way, lr, "held_out")
                found.setdefault(way, []).append(values)
                seconds.setdefault(way, []).append(spent)
        rows = []
        for way, values in found.items():
            each = [rate_of(one) for one in values]
            row = {"student": self.name, "way": way, "lr": rates.get(way, 0.0)}
            row |= {"bits/byte": float(np.mean(each)), "lowest": min(each), "highest": max(each)}
            row["less the control's"] = interval(np.stack(values), np.stack(found[CONTROL]))
            row["processor s"] = float(np.mean(seconds[way]))
            rows.append(row)
        return rows


def main() -> None:
    """Train every way with every seed, and measure it."""
    parser = arguments(__doc__.split("\n")[0])
    parser.add_argument("--model", default=".demo/teacher")
    parser.add_argument("--data", default="../shared/data", help="folder of the shared data")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--students", nargs="+", default=STUDENTS, choices=STUDENTS)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--runs", metavar="FOLDER", help="keep what is finished there")
    options = parser.parse_args()
    set_up_logging(quiet=True)
    torch.set_num_threads(1)
    if options.quick:
        options.rates, options.seeds, options.steps = options.rates[:1], 1, 2
        options.students = STUDENTS[:1]
    with ExitStack() as stack:
        folder = Path(options.runs or stack.enter_context(tempfile.TemporaryDirectory()))
        rows = []
        for student in options.students:
            rows += Bench(student, folder.resolve() / student, options).rows()
        record(rows, options.json)


if __name__ == "__main__":
    main()
