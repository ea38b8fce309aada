"""On-policy and offline distillation at equal processor time: held-out text and own answers.

    python benchmarks/on_policy.py --json benchmarks/results/on_policy.json

A student of 2 of the teacher's 4 blocks (glassllm-en) first learns offline for 250 steps. From
there every way goes on for the same processor seconds: those that `on-policy, reverse KL` takes for
120 steps of 16 prompts of 16 tokens with answers of 48. How many steps another way takes in them
is found by two short trainings in the same process, and each way's learning rate falls to 0 at its
own last step. The text is Jane Austen's (lm_austen of the shared data) in windows of 64
tokens; whole windows count offline, answers alone on-policy.

Measured after: `held-out KL`, KL(teacher || student) on windows held out; `own KL`, KL(student ||
teacher) at the tokens of the student's own answers to 128 held-out beginnings; the teacher's nll of
these; top-1 agreement there. Differences from `offline, forward KL` have 95% intervals over windows
and answers, of all seeds together.
"""

from __future__ import annotations

import gzip
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from harness import arguments, record

from attar.distributed import free_memory
from attar.models.loading import load_causal_lm
from attar.models.structure import head_of, run_body
from distill.console import set_up_logging
from distill.data.batching import collate
from distill.data.examples import Examples
from distill.data.tokenize import IGNORE
from distill.evaluation.job import OwnAnswersConfig
from distill.evaluation.own_answers import (
    answered_text,
    compare_at,
    prompts_to_answer,
    write_answers,
)
from distill.pipeline import run_stages
from distill.run.context import Run
from distill.run.load import load_recipe

WINDOW, PROMPT, NEW, STEPS, COLD_STEPS, BATCH = 64, 16, 48, 120, 250, 16
PROBE_STEPS = (4, 24)  # two short trainings, by which a way's seconds a step are known
ROLLOUTS = {"new_tokens": NEW, "prompt_tokens": PROMPT, "batch_size": BATCH}
WAYS: dict[str, dict[str, Any]] = {
    "on-policy, reverse KL": {"objective": [{"loss": "reverse_kl"}], "rollouts": ROLLOUTS},
    "on-policy, forward KL": {"objective": [{"loss": "forward_kl"}], "rollouts": ROLLOUTS},
    "half on-policy, JSD": {
        "objective": [{"loss": "jsd"}], "rollouts": {**ROLLOUTS, "share": 0.5},
    },
    "offline, forward KL": {"objective": [{"loss": "forward_kl"}]},
    "offline, reverse KL": {"objective": [{"loss": "reverse_kl"}]},
}  # fmt: skip
FIRST, CONTROL = "on-policy, reverse KL", "offline, forward KL"


@dataclass
class Measured:
    """A model's values: by held-out window, and by own answer, each with its number of tokens."""

    held_out: np.ndarray
    own: np.ndarray


def recipe_of(data: Path, model: str, student: Any, seed: int, train: dict[str, Any]) -> Any:
    """A recipe that trains one way."""
    loop = {
        "source": "online", "batch_size": BATCH, "precision": "float32", "keep": "last",
        "evaluate_every": 1_000_000, "evaluate_tokens": 256, "arms": [], "lr": 5e-4,
        "schedule": "linear", "warmup": 0, "epochs": 1000,
    }  # fmt: skip
    return {
        "seed": seed,
        "data": {
            "train": str(data / "train.jsonl"), "held_out": str(data / "held_out.jsonl"),
            "max_length": WINDOW,
        },
        "teacher": {"model": model, "dtype": "float32"},
        "student": student,
        "train": {**loop, **train},
        "export": {"artifacts": []},
    }  # fmt: skip


def trained(recipe: Any, folder: Path) -> tuple[Run, float]:
    """(a run whose student is trained, processor seconds of the training)."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder.parent / f"{folder.name}.yaml"
    file.write_text(yaml.safe_dump(recipe))
    run = Run(load_recipe(str(file)), folder)
    run_stages(run, ["cache", "build"])
    started = time.process_time()
    run_stages(run, ["train"])
    return run, time.process_time() - started


@torch.no_grad()
def measured(run: Run, teacher: Any, limit: int) -> Measured:
    """Both columns of a run's student."""
    student: Any = load_causal_lm(str(run.folder.arm_student()), dtype=torch.float32).eval()
    examples = Examples(run.folder.data() / "held_out.arrow")
    kl = [kls(teacher, student, examples[i], run.vocabulary) for i in range(min(limit, 400))]
    config = OwnAnswersConfig(prompts=limit, new_tokens=NEW)
    prompts = prompts_to_answer(examples, config, WINDOW + NEW)
    answers = write_answers(
        student, prompts, config, vocabulary=run.vocabulary,
        stop_ids=[run.tokenizer.eos_token_id], seed=run.recipe.seed,
    )  # fmt: skip
    texts = [answered_text(*both) for both in zip(prompts, answers, strict=True)]
    own = [kls(student, teacher, text, run.vocabulary) for text in texts]
    return Measured(np.array(kl), np.array(own))


def kls(one: Any, other: Any, example: Any, vocabulary: int) -> list[float]:
    """Sums over a text's counted tokens: KL(one || other), nll of the text under `other`, whether
    both agree; and the number of tokens.
    """
    batch = collate([[example]])
    labels = batch.labels_BT[batch.labels_BT != IGNORE]
    pieces = []
    for model in (one, other):
        states = run_body(model, batch.model_inputs())[batch.labels_BT != IGNORE]
        pieces.append(_Known(head_of(model, vocabulary).logits(states)))
    found = compare_at(*pieces, labels)  # type: ignore[arg-type]
    return [*(float(found[name].sum()) for name in ("kl", "nll", "agree")), len(labels)]


@dataclass
class _Known:
    """Logits that are there already, as runtimes give them."""

    logits_NV: torch.Tensor

    def piece(self, rows: slice) -> torch.Tensor:
        return self.logits_NV[rows]


def mean(values: np.ndarray, column: int) -> float:
    """A mean a token."""
    return float(values[:, column].sum() / values[:, -1].sum())


def difference(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """95% interval of the difference of the first columns' means a token, rows drawn together."""
    dice, found = np.random.default_rng(0), []
    for _ in range(2000):
        rows = dice.integers(0, len(one), len(one))
        found.append(mean(one[rows], 0) - mean(other[rows], 0))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def write_texts(shared: Path, folder: Path, quick: bool) -> None:
    """The training and the held-out text as plain files."""
    for part, source, most in (("train", "train", 400_000), ("held_out", "test", 60_000)):
        files = sorted((shared / "lm_austen").glob(f"{source}*.gz")) or sorted(
            (shared / "lm_austen").glob("valid*.gz")
        )
        with gzip.open(files[0], "rt", encoding="utf8") as lines:
            text = "\n".join(json.loads(line)["text"] for line in lines)
        size = most // 8 if quick else most
        (folder / f"{part}.jsonl").write_text(json.dumps({"text": text[:size]}) + "\n")


def main() -> None:
    """Train every way from every seed's cold start, and measure it."""
    parser = arguments(__doc__.split("\n")[0])
    parser.add_argument("--data", default="../shared/data", help="folder of the shared data")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    set_up_logging(quiet=True)
    torch.set_num_threads(1)
    steps, cold, limit = (6, 20, 16) if options.quick else (STEPS, COLD_STEPS, 128)
    model = str(Path(options.data, "models", "glassllm-en"))
    teacher: Any = load_causal_lm(model, dtype=torch.float32).eval()
    found: dict[str, list[Measured]] = {}
    costs: dict[str, list[tuple[int, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_texts(Path(options.data), folder, options.quick)
        for seed in range(options.seeds):
            start = {"from": "teacher", "layers": {"keep": [0, 3]}}
            first = {"objective": [{"loss": "forward_kl"}], "max_steps": cold, "lr": 2e-3}
            run, _ = trained(recipe_of(folder, model, start, seed, first), folder / f"cold{seed}")
            found.setdefault("start", []).append(measured(run, teacher, limit))
            student, budget = {"from": str(run.folder.arm_student())}, 0.0
            for i, (way, keys) in enumerate(WAYS.items()):
                number = steps
                if way != FIRST:
                    few, more = (
                        trained(
                            recipe_of(folder, model, student, seed, {**keys, "max_steps": probe}),
                            folder / f"probe{seed}{i}-{probe}",
                        )[1]
                        for probe in PROBE_STEPS
                    )
                    a_step = (more - few) / (PROBE_STEPS[1] - PROBE_STEPS[0])
                    number = max(1, PROBE_STEPS[0] + round((budget - few) / a_step))
                full = recipe_of(folder, model, student, seed, {**keys, "max_steps": number})
                run, cost = trained(full, folder / f"way{seed}{i}")
                budget = cost if way == FIRST else budget
                found.setdefault(way, []).append(measured(run, teacher, limit))
                costs.setdefault(way, []).append((number, cost))
                last = found[way][-1]
                values = f"{mean(last.held_out, 0):.4f} {mean(last.own, 0):.4f}"
                print(f"{seed} {way}: {number} steps, {cost:.1f} s, {values}", flush=True)
                free_memory()
    record(rows_of(found, costs), options.json)


def rows_of(
    found: dict[str, list[Measured]], costs: dict[str, list[tuple[int, float]]]
) -> list[dict[str, Any]]:
    """A row a way: means over all seeds' texts, and differences from the control."""
    rows = []
    for way in ["start", CONTROL, *(way for way in WAYS if way != CONTROL)]:
        held, own = (
            np.concatenate([getattr(one, name) for one in found[way]])
            for name in ("held_out", "own")
        )
        control = [
            np.concatenate([getattr(one, name) for one in found[CONTROL]])
            for name in ("held_out", "own")
        ]
        spent = costs.get(way, [(0, 0.0)])
        row: dict[str, Any] = {
            "way": way,
            "steps": round(float(np.mean([steps for steps, _ in spent]))),
            "processor s": float(np.mean([seconds for _, seconds in spent])),
            "held-out KL": mean(held, 0),
            "own KL": mean(own, 0),
            "teacher's nll of own": mean(own, 1),
            "agreement on own": mean(own, 2),
        }
        for name, mine, other in (("held-out", held, control[0]), ("own", own, control[1])):
            low, high = difference(mine, other)
            row[f"{name} KL - control"] = f"{low:+.4f} to {high:+.4f}"
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
