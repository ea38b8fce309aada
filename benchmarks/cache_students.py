"""Students trained from a small unbiased cache against students trained from dense logits.

    python benchmarks/cache_students.py --json benchmarks/results/cache_students.json

Whole runs through the command line's own stages, on the demo's teacher and text: the student is
the teacher without 8 of its 30 blocks, the objective is forward KL alone, and for every seed all
students see the same tokens in the same order, from caches that differ in nothing but the codec.
`dense` is the codec `final_hidden` at a KL of 1e-6: the full distribution. On held-out text:
perplexity, and the expected calibration error of the likeliest id (15 bins). The targets are a
perplexity within 2% of dense at no more than 32 bytes a token, and a calibration as good. With
`--json FILE` every finished student is kept in FILE.partial, and the same command goes on.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from harness import arguments, record

from attar.models.loading import load_causal_lm
from attar.models.structure import head_of
from distill.data.examples import Examples, first_examples
from distill.pipeline import run_stages
from distill.run.context import Run
from distill.run.load import load_recipe
from teachers.cache.config import CacheConfig
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request

CODECS: dict[str, dict[str, Any]] = {
    "dense": {"name": "final_hidden", "kl": 1e-6},
    "hybrid k=32": {"name": "hybrid", "k": 32},
    "nucleus k=16": {"name": "nucleus", "k": 16, "mass": 0.9},
}
ONE_SEED = {"nucleus k=16"}  # biased, for comparison only
KEPT = [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29]  # greedy
STAGES = ["cache", "build", "train"]


def recipe_of(demo: str, codec: dict[str, Any], seed: int, tokens: int, held_out: int) -> str:
    """The recipe of one student, as YAML."""
    codec = {**codec, "seed": seed} if codec["name"] == "hybrid" else codec
    return yaml.safe_dump(
        {
            "seed": seed,
            "data": {
                "train": f"{demo}/train.jsonl",
                "held_out": f"{demo}/held_out.jsonl",
                "max_length": 256,
                "packing": True,
                "train_tokens": tokens,
                "held_out_tokens": held_out,
            },
            "teacher": {"model": f"{demo}/teacher"},
            "cache": {"codec": codec, "shard_tokens": 8192},
            "student": {"from": "teacher", "layers": {"keep": KEPT}},
            "train": {
                "objective": [{"loss": "forward_kl"}],
                "lr": 3.0e-4,
                "schedule": "linear",
                "batch_size": 2,
                "evaluate_tokens": 512,
                "evaluate_every": 1000,
                "keep": "last",
                "arms": [],
            },
        }
    )


@torch.inference_mode()
def measure(student: str, held_out: Examples, vocabulary: int, tokens: int) -> dict[str, float]:
    """Perplexity and calibration error of a student on held-out examples."""
    model = load_causal_lm(student, dtype=torch.float32)
    examples = [held_out[i] for i in first_examples(held_out, tokens)]
    requests = [Request(e.key, e.input_ids, e.counted) for e in examples]
    hidden_NH = TeacherRunner(model, vocabulary, CacheConfig()).final_states(requests)
    labels_N = torch.from_numpy(np.concatenate([e.labels[e.counted] for e in examples]))
    head, nll, confidence, right = head_of(model, vocabulary), [], [], []
    for rows in torch.arange(len(labels_N)).split(256):
        logprobs_NV = head.logits(hidden_NH[rows]).log_softmax(-1)
        nll.append(-logprobs_NV.gather(-1, labels_N[rows, None]).squeeze(-1))
        best = logprobs_NV.max(-1)
        confidence.append(best.values.exp())
        right.append((best.indices == labels_N[rows]).float())
    bins_N = (torch.cat(confidence) * 15).long().clamp(max=14)
    gap = torch.cat(confidence) - torch.cat(right)
    error = sum(float(gap[bins_N == b].sum().abs()) for b in range(15)) / len(gap)
    return {"perplexity": float(torch.cat(nll).mean().exp()), "calibration_error": error}


def main() -> None:
    """Train three students a seed, and compare."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--demo", default=".demo", help="folder of examples/get_demo.py")
    parser.add_argument("--tokens", type=int, default=16000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    tokens, seeds, held_out = (256, 1, 256) if options.quick else (
        options.tokens, options.seeds, 8192,
    )  # fmt: skip
    kept = Path(f"{options.json}.partial") if options.json else None
    lines = kept.read_text().splitlines() if kept and kept.exists() else []
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    for seed in range(seeds):
        for name, codec in CODECS.items():
            done = any((row["seed"], row["cache"]) == (seed, name) for row in rows)
            if done or (name in ONE_SEED and seed):
                continue
            with tempfile.TemporaryDirectory() as folder:
                recipe = Path(folder) / "recipe.yaml"
                recipe.write_text(recipe_of(options.demo, codec, seed, tokens, held_out))
                run = Run(load_recipe(recipe, ()), Path(folder) / "run")
                run_stages(run, STAGES)
                numbers = run.folder.record("cache")
                assert numbers is not None
                student = str(run.folder.arm_student())
                examples = Examples(run.folder.data() / "held_out.arrow")
                found = measure(student, examples, run.vocabulary, held_out)
            share = numbers.notes["bytes_per_token"]
            rows.append({"seed": seed, "cache": name, "bytes/token": share, **found})
            print(rows[-1], file=sys.stderr, flush=True)
            if kept is not None:
                kept.write_text("".join(json.dumps(row) + "\n" for row in rows))
    record(rows + _summary(rows), options.json)
    if kept is not None:
        kept.unlink()


def _summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Median over seeds of each cache's perplexity relative to dense, and calibration."""
    dense = {row["seed"]: row["perplexity"] for row in rows if row["cache"] == "dense"}
    lines = []
    for name in CODECS:
        mine = [row for row in rows if row["cache"] == name]
        ratios = [row["perplexity"] / dense[row["seed"]] for row in mine]
        lines.append(
            {
                "seed": "median",
                "cache": f"{name} / dense",
                "bytes/token": statistics.median(row["bytes/token"] for row in mine),
                "perplexity": statistics.median(ratios),
                "calibration_error": statistics.median(row["calibration_error"] for row in mine),
            }
        )
    return lines


if __name__ == "__main__":
    main()
