"""A policy gradient with a verifier on small sums: reward on unseen questions, before and after.

    python benchmarks/rloo.py --json benchmarks/results/rloo.json

glassllm-en (0.9 million parameters) first learns answers to "What is 7 plus 12?" as plain text,
until it is right now and then. Then `rloo` lets it answer the training part's questions 8 times
each, rewards right numbers, and never shows it an answer. Sums of 0 to 24, 500 to learn from and
125 held out, three seeds; once without and once with a KL to the start (weight 0.02).

Measured on held-out questions: the mean reward of 8 answers drawn at temperature 1, and of the most
likely answer; intervals of the change, 95%, are over questions, whose seeds are drawn together.
`on the training part` says how much of it is memory.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from harness import arguments, record

from attar.models.loading import load_causal_lm
from attar.models.sampling import Sampling, Writer
from distill.console import set_up_logging
from distill.data.examples import Examples
from distill.data.verifier import Verifier
from distill.pipeline import run_stages
from distill.rollouts.config import RewardConfig
from distill.rollouts.rewards import judge_of
from distill.rollouts.written import Written
from distill.run.context import Run
from distill.run.load import load_recipe

NUMBERS, HELD_OUT, SAMPLES, NEW = 25, 125, 8, 8
PLAIN_STEPS, STEPS = 240, 150
WAYS = {"rloo": 0.0, "rloo, KL 0.02": 0.02}


def write_sums(folder: Path) -> None:
    """All sums, a fifth of them held out; the same for every seed."""
    pairs = [(a, b) for a in range(NUMBERS) for b in range(NUMBERS)]
    np.random.default_rng(0).shuffle(pairs)
    rows = [{"prompt": f"What is {a} plus {b}?", "completion": f" {a + b}"} for a, b in pairs]
    for part, some in (("held_out", rows[:HELD_OUT]), ("train", rows[HELD_OUT:])):
        text = "".join(json.dumps(row) + "\n" for row in some)
        (folder / f"{part}.jsonl").write_text(text)


def trained(folder: Path, name: str, model: str, start: Any, seed: int, train: Any) -> Run:
    """A run whose student learned by a section `train`."""
    loop = {
        "batch_size": 16, "precision": "float32", "keep": "last", "evaluate_every": 1_000_000,
        "evaluate_tokens": 64, "arms": [], "epochs": 1000, "schedule": "linear", "warmup": 0.1,
    }  # fmt: skip
    recipe = {
        "seed": seed,
        "data": {
            "train": str(folder / "train.jsonl"), "held_out": str(folder / "held_out.jsonl"),
            "validation": 0.05, "max_length": 48,
        },
        "teacher": {"model": model, "dtype": "float32"},
        "student": start,
        "train": {**loop, **train},
        "export": {"artifacts": []},
    }  # fmt: skip
    file = folder / f"{name}{seed}.yaml"
    file.write_text(yaml.safe_dump(recipe))
    run = Run(load_recipe(str(file)), folder / f"{name}{seed}")
    run_stages(run, ["cache", "build", "train"])
    return run


def rewards_of(run: Run, examples: Examples, temperature: float) -> np.ndarray:
    """Rewards of answers to each question, (questions, answers)."""
    model: Any = load_causal_lm(str(run.folder.arm_student()), dtype=torch.float32).eval()
    sampling, samples = Sampling(NEW, temperature), SAMPLES if temperature else 1
    writer = Writer(model, sampling, run.vocabulary, [run.tokenizer.eos_token_id], "held out")
    judge = judge_of(RewardConfig(verifier=Verifier(extract="number")), run.tokenizer)
    order = sorted(range(len(examples)), key=lambda i: examples.keys[i])
    rewards = []
    for first in range(0, len(order), 32):
        some = [examples[i] for i in order[first : first + 32]]
        answers = writer.write([one.prompt for one in some], samples)
        for example, found in zip(some, answers, strict=True):
            written = [Written(example.prompt, answer) for answer in found]
            rewards.append(judge(example, written))
    return np.array(rewards)


def interval(change: np.ndarray) -> str:
    """95% interval of the mean of changes by question."""
    dice = np.random.default_rng(0)
    means = [change[dice.integers(0, len(change), len(change))].mean() for _ in range(4000)]
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{low:+.3f} to {high:+.3f}"


def main() -> None:
    """Train every way from every seed's plain student, and measure it."""
    parser = arguments((__doc__ or "").split("\n")[0])
    parser.add_argument("--data", default="../shared/data", help="folder of the shared data")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    set_up_logging(quiet=True)
    torch.set_num_threads(1)
    plain_steps, steps = (60, 6) if options.quick else (PLAIN_STEPS, STEPS)
    model = str(Path(options.data, "models", "glassllm-en").resolve())
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_sums(folder)
        for seed in range(options.seeds):
            plain = {"objective": [{"loss": "cross_entropy"}], "lr": 2e-3, "max_steps": plain_steps}
            first = trained(folder, "plain", model, {"from": "teacher"}, seed, plain)
            runs = {"before": first}
            for i, (way, kl) in enumerate(WAYS.items()):
                reward = {"verifier": {"extract": "number"}, "kl": kl}
                rollouts = {"samples": SAMPLES, "new_tokens": NEW, "reward": reward, "every": 1}
                train = {
                    "objective": [{"loss": "rloo"}], "lr": 3e-4, "max_steps": steps,
                    "rollouts": {**rollouts, "batch_size": 128},
                }  # fmt: skip
                start = {"from": str(first.folder.arm_student())}
                runs[way] = trained(folder, f"way{i}-", model, start, seed, train)
            for way, run in runs.items():
                data = run.folder.data()
                held, learned = (Examples(data / f"{n}.arrow") for n in ("held_out", "train"))
                for name, examples, temperature in (
                    ("drawn", held, 1.0), ("likeliest", held, 0.0), ("learned", learned, 1.0)
                ):  # fmt: skip
                    values = rewards_of(run, examples, temperature).mean(1)
                    found.setdefault((way, name), []).append(values)
                means = {
                    name: round(float(v[-1].mean()), 3)
                    for (w, name), v in found.items()
                    if w == way
                }
                print(seed, way, means, flush=True)
    rows = []
    for way in ("before", *WAYS):
        row: dict[str, Any] = {"way": way}
        for name, title in (
            ("drawn", "drawn answers"), ("likeliest", "likeliest answer"),
            ("learned", "on the training part"),
        ):  # fmt: skip
            row[title] = float(np.mean([one.mean() for one in found[way, name]]))
        for name in ("drawn", "likeliest"):
            pairs = zip(found[way, name], found["before", name], strict=True)
            change = np.mean([one - other for one, other in pairs], axis=0)
            row[f"change, {name}"] = interval(change)
        rows.append(row)
    record(rows, options.json)


if __name__ == "__main__":
    main()
