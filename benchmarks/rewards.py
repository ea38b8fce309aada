"""What rewards by TRL come to: a small student of ours before and after GRPO, on held-out sums.

    python benchmarks/rewards.py --json benchmarks/results/rewards.json

A model of 0.85 million parameters first learns 400 sums of a number below 100 and one below 10 by
cross-entropy, in a run of ours. Then `examples/trl_grpo.py` rewards it on 400 others, 100 steps of
16 questions with 8 answers each. Before and after it is asked 200 held-out ones, greedily, as
`evaluate.tasks` asks them. `labels` is a control: the student goes on by cross-entropy instead, on
as many answers to the same 400 questions as the rewarded one was asked.

Every seed draws other questions, another start and other answers. `gain` is the share right after
less the share right before, and `+-` half of its 95% interval, over held-out questions: it covers
the choice of questions, not that of the trainings' draws, of which the seeds' rows give an idea.
Rates were tried on seed 0 (rewards: 1e-4 and 3e-4), which is therefore not among them.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import arguments, record

from distill.api import STAGES, ExactMatch, Run, check_recipe, run_stages
from distill.console import set_up_logging
from distill.evaluation.downstream.scoring import score_task
from distill.runtimes.runtime import ModelSource, open_runtime

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "trl_grpo.py"
MODEL = ROOT.parent / "shared" / "data" / "models" / "glassllm-en"
HELD_OUT, SHOWN = 200, 400  # questions asked; questions learned with their answers
BATCH, GROUP, STEPS = 16, 8, 100
SEEDS = (1, 2, 3)


def write_questions(folder: Path, seed: int) -> None:
    """Training questions, those of them that are learned by labels, and held-out ones."""
    pairs = [(a, b) for a in range(100) for b in range(10)]
    random.Random(seed).shuffle(pairs)
    rows = [
        json.dumps({"prompt": f"{a} and {b} make", "answer": str(a + b)}) + "\n" for a, b in pairs
    ]
    ends = HELD_OUT, HELD_OUT + SHOWN
    parts = {"held_out": rows[: ends[0]], "shown": rows[slice(*ends)], "asked": rows[ends[1] :]}
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(part), "utf8")


def learned(folder: Path, name: str, start: str, train: str, seed: int, **loop: Any) -> Path:
    """A student that learned answers by cross-entropy in a run of ours."""
    recipe = check_recipe(
        {
            "seed": seed,
            "data": {
                "train": str(folder / f"{train}.jsonl"), "held_out": 0.02, "max_length": 32,
            },
            "teacher": {"model": start},
            "student": {"from": "teacher"},
            "export": {"artifacts": ["bf16"]},
            "train": {
                "objective": [{"loss": "cross_entropy"}], "arms": [], "batch_size": 32,
                "keep": "last", "precision": "float32", **loop,
            },
        }
    )  # fmt: skip
    run = Run(recipe, folder / name)
    stages = list(STAGES)
    run_stages(run, stages[: stages.index("train") + 1])
    return Path(run.folder.arm_student())


def rewarded(folder: Path, student: Path, seed: int, steps: int) -> tuple[Path, list[float]]:
    """What the example makes of a student, and the mean rewards that it prints."""
    result = folder / "rewarded"
    options = {
        "steps": steps, "batch": BATCH, "group": GROUP, "new-tokens": 6, "lr": 1e-4, "seed": seed
    }  # fmt: skip
    command = [sys.executable, str(EXAMPLE), str(student), str(folder / "asked.jsonl"), str(result)]
    command += [f"--{key}={value}" for key, value in options.items()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    last = done.stdout.strip().splitlines()[-1]
    return result, [float(one) for one in re.findall(r"\d\.\d{3}", last)]


def answered(folder: Path, model: Path) -> np.ndarray:
    """Which held-out questions a model answers right: bool (questions,)."""
    task = ExactMatch(
        name="sums", kind="exact_match", data=str(folder / "held_out.jsonl"), new_tokens=6
    )
    return score_task(task, open_runtime(ModelSource(str(model)))).correct


def one_seed(folder: Path, seed: int, model: str, quick: bool) -> dict[str, Any]:
    """A student's answers before and after; `before`, `rewarded` and `labels` are bool arrays."""
    begun, steps = time.perf_counter(), 10 if quick else STEPS
    write_questions(folder, seed)
    epochs = 10 if quick else 60
    start = learned(folder, "start", model, "shown", seed, lr=2e-3, epochs=epochs)
    after, rewards = rewarded(folder, start, seed, steps)
    epochs = max(1, steps * BATCH // 400)
    labels = learned(folder, "labels", str(start), "asked", seed, lr=1e-3, epochs=epochs)
    models = {"before": start, "rewarded": after, "labels": labels}
    return {
        **{name: answered(folder, path) for name, path in models.items()},
        "rewards": rewards, "seconds": time.perf_counter() - begun,
    }  # fmt: skip


def row_of(name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of the record, of the questions of some seeds together."""
    right = {
        key: np.concatenate([one[key] for one in found]).astype(float)
        for key in ("before", "rewarded", "labels")
    }
    gains = {key: right[key] - right["before"] for key in ("rewarded", "labels")}
    half = {key: 1.96 * one.std(ddof=1) / len(one) ** 0.5 for key, one in gains.items()}
    first, last = (float(np.mean([one["rewards"][i] for one in found])) for i in (0, 1))
    return {
        "seed": name,
        **{key: float(one.mean()) for key, one in right.items()},
        "gain": float(gains["rewarded"].mean()), "gain +-": float(half["rewarded"]),
        "labels' gain": float(gains["labels"].mean()), "labels' +-": float(half["labels"]),
        "reward, first": first, "reward, last": last,
        "seconds": float(np.sum([one["seconds"] for one in found])),
    }  # fmt: skip


def main() -> None:
    """Three seeds, each before and after."""
    args = arguments(__doc__ or "").parse_args()
    set_up_logging(quiet=True)
    torch.set_num_threads(1)
    found = []
    for seed in SEEDS[:1] if args.quick else SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            found.append(one_seed(Path(folder), seed, str(MODEL), args.quick))
        print(row_of(str(seed), found[-1:]), flush=True)
    rows = [row_of(str(seed), [one]) for seed, one in zip(SEEDS, found, strict=False)]
    record([*rows, row_of("all", found)], args.json)


if __name__ == "__main__":
    main()
