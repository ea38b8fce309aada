"""What is left of an adapter in four bits: every way of merging and rounding, before and after.

    python benchmarks/rounding.py --json benchmarks/results/rounding.json

The demo's student (SmolLM2-135M-Instruct, which itself comes from a 4-bit file, without 8 of its
30 blocks, healed by distilling) is quantised to NF4, gets a LoRA adapter by forward KL from the
cache on that base, and is merged into full precision: into what the base dequantises to, and into
the student as it was before quantising. The first is then rounded to NF4 again, the second to
llama.cpp's Q4_0 (its embedding and head left in 32 bits here, 8 in a file): to nearest as every
tool does, compensated on calibration text, and compensated with scales and norms that learn from
the same cache. Measured on held-out text as the weights dequantise, in float32: KL(teacher ||
student) in nats a token, perplexity, and KL(unrounded || rounded). `recovered` is the share of the
adapter's gain over the quantised base that is left; `nearer` how much of the distance that nearest
rounding to Q4_0 puts between is taken back. Targets: recovered 0.8, nearer 0.5.

Legend: N tokens, H width, V vocabulary.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from cache_students import KEPT
from harness import arguments, record
from held_out import say
from torch import Tensor, nn

from attar.models.loading import load_causal_lm
from attar.models.structure import Head, head_of
from distill.data.calibration import calibration_rows
from distill.data.examples import Examples, first_examples
from distill.objective.chunked_head import tokens_per_chunk
from distill.objective.objective import Learner
from distill.pipeline import run_stages
from distill.run.context import Run
from distill.run.load import load_recipe
from distill.stages.cache import open_cache
from distill.training.batch_source import planned_batches
from distill.training.job import Job
from distill.training.loop import train as train_loop
from distill.training.teacher_signals import TeacherSignals
from distill.training.train_config import TrainConfig
from students.quantization.formats import NUMBER_FORMATS
from students.quantization.gptq import RoundedWeight, round_model
from students.quantization.learned_scales import make_scales_trainable, store_learned_scales
from students.quantization.packed_weights import dequantized_model
from students.tuning.adapters import merge_adapter
from teachers.cache.config import CacheConfig
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request

STAGES = ["cache", "build", "train", "specialize"]


def recipe_of(options: Any, tokens: int, held_out: int) -> str:
    """The student and its adapter, as YAML."""
    learning = {
        "objective": [{"loss": "forward_kl"}],
        "schedule": "linear",
        "batch_size": 2,
        "evaluate_tokens": 512,
        "evaluate_every": 1000,
        "keep": "last",
    }
    data = {
        "train": f"{options.demo}/train.jsonl",
        "held_out": f"{options.demo}/held_out.jsonl",
        "max_length": 256,
        "train_tokens": tokens,
        "held_out_tokens": held_out,
    }
    return yaml.safe_dump(
        {
            "data": data,
            "teacher": {"model": f"{options.demo}/teacher", "dtype": "float32"},
            "cache": {"codec": {"name": "topk", "k": 32}, "shard_tokens": 8192},
            "student": {"from": "teacher", "layers": {"keep": KEPT[:: 7 if options.quick else 1]}},
            "train": {**learning, "lr": 3.0e-4, "arms": [], "precision": "float32"},
            "specialize": {**learning, "method": "qlora", "lr": 1.0e-3},
            "export": {"artifacts": ["bf16"]},
        }
    )


class Measure:
    """Distributions of models on the run's held-out text, by their final hidden states."""

    def __init__(self, run: Run, tokens: int) -> None:
        held_out = Examples(run.folder.data() / "held_out.arrow")
        self.vocabulary = run.vocabulary
        examples = [held_out[i] for i in first_examples(held_out, tokens)]
        self.requests = [Request(e.key, e.input_ids, e.counted) for e in examples]
        self.labels_N = torch.from_numpy(np.concatenate([e.labels[e.counted] for e in examples]))
        self.teacher = self.states(load_causal_lm(run.recipe.teacher.model, dtype=torch.float32))

    @torch.no_grad()
    def states(self, model: nn.Module) -> tuple[Tensor, Head]:
        """Final hidden states (N, H) and a head of its own."""
        head = head_of(model, self.vocabulary)
        plain = Head(head.weight_VH.detach().clone(), head.bias_V, head.scale, head.softcap)
        runner = TeacherRunner(model, self.vocabulary, CacheConfig())
        return runner.final_states(self.requests), plain

    @torch.no_grad()
    def __call__(self, model: nn.Module, unrounded: tuple[Tensor, Head]) -> dict[str, float]:
        """KL to the teacher and to an unrounded model, and perplexity."""
        mine = self.states(model.eval())
        sums = dict.fromkeys(("teacher", "unrounded", "nll"), 0.0)
        for rows in torch.arange(len(self.labels_N)).split(256):
            log_q = _logprobs(mine, rows)
            for name, other in (("teacher", self.teacher), ("unrounded", unrounded)):
                log_p = _logprobs(other, rows)
                sums[name] += float((log_p.exp() * (log_p - log_q)).sum())
            sums["nll"] -= float(log_q.gather(-1, self.labels_N[rows, None]).sum())
        mean = {name: total / len(self.labels_N) for name, total in sums.items()}
        return {
            "kl to teacher": mean["teacher"],
            "perplexity": float(np.exp(mean["nll"])),
            "kl to unrounded": mean["unrounded"],
        }


def _logprobs(states: tuple[Tensor, Head], rows: Tensor) -> Tensor:
    hidden_NH, head = states
    return head.logits(hidden_NH[rows]).log_softmax(-1)


def learn(
    run: Run, model: nn.Module, rounded: dict[str, RoundedWeight], steps: int, lr: float
) -> None:
    """Let scales and norms learn from the run's cache, in the one loop; then store them."""
    make_scales_trainable(model, rounded)
    settings = run.recipe.train.model_dump(by_alias=True)
    config = TrainConfig.model_validate({**settings, "lr": lr, "max_steps": steps})
    learner = Learner(
        model,
        config.objective,
        vocabulary=run.vocabulary,
        dtype=torch.float32,
        chunk=tokens_per_chunk(run.vocabulary, torch.device("cpu")),
    )
    data, signals = run.recipe.data, TeacherSignals(open_cache(run, torch.device("cpu")))
    source = planned_batches(
        run.training_examples(),
        learner,
        signals,
        config,
        max_length=data.max_length,
        packing=data.packing,
        seed=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            name="rounding",
            learner=learner,
            config=config,
            source=source,
            validation=run.validation_examples(),
            signals=signals,
            folder=Path(folder),
            seed=1,
        )
        train_loop(job)
    store_learned_scales(model)


def rounded_ways(
    run: Run, unrounded: nn.Module, kind: str, options: Any, steps: int
) -> dict[str, Callable[[], nn.Module]]:
    """Ways to round a model to a grid, each from a copy."""
    calibration_BT = calibration_rows(run.data()[0], options.calibration)

    def nearest() -> nn.Module:
        model = copy.deepcopy(unrounded)
        round_model(model, NUMBER_FORMATS[kind], None)
        return model

    def compensated() -> nn.Module:
        model = copy.deepcopy(unrounded)
        found[kind] = round_model(model, NUMBER_FORMATS[kind], calibration_BT)
        return model

    def learned() -> nn.Module:
        model = copy.deepcopy(unrounded)
        learn(run, model, found[kind], steps, options.lr)
        return model

    found: dict[str, dict[str, RoundedWeight]] = {}
    return {"nearest": nearest, "compensated": compensated, "compensated, learned": learned}


def measured_ways(run: Run, options: Any, tokens: int, steps: int) -> list[dict[str, Any]]:
    """A row for every form of the student."""
    measure = Measure(run, tokens)
    student, adapter = run.folder.arm_student(), run.folder.adapter
    rows: list[dict[str, Any]] = []

    def add(form: str, rounding: str, make: Callable[[], nn.Module], unrounded: Any) -> None:
        start = time.monotonic()
        model = make()
        seconds = round(time.monotonic() - start, 1)
        found = measure(model, unrounded or measure.states(model))
        rows.append({"form": form, "rounding": rounding, **found, "seconds": seconds})
        say(f"{form}, {rounding}: " + ", ".join(f"{k} {v:.4f}" for k, v in found.items()))

    whole = load_causal_lm(str(student), dtype=torch.float32)
    add("student", "none", lambda: whole, None)
    add(
        "nf4 of the student",
        "nearest",
        lambda: dequantized_model(student, "nf4"),
        measure.states(whole),
    )
    into_base = merge_adapter(student, adapter, into="dequantized")
    add("adapter on the nf4 base", "none", lambda: into_base, None)
    unrounded = measure.states(into_base)
    for name, make in rounded_ways(run, into_base, "nf4", options, steps).items():
        add("merged-requantized-nf4", name, make, unrounded)
    into_student = merge_adapter(student, adapter, into="student")
    add("merged into the student", "none", lambda: into_student, None)
    unrounded = measure.states(into_student)
    for name, make in rounded_ways(run, into_student, "q4_0", options, steps).items():
        add("gguf-q4_0", name, make, unrounded)
    return rows


def with_shares(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is recovered of the adapter's gain, and how much nearer a file is than the plain one."""
    by = {(row["form"], row["rounding"]): row for row in rows}
    base = by["nf4 of the student", "nearest"]["kl to teacher"]
    gain = base - by["adapter on the nf4 base", "none"]["kl to teacher"]
    whole = by["merged into the student", "none"]["kl to teacher"]
    plain = by["gguf-q4_0", "nearest"]["kl to teacher"] - whole
    for row in rows:
        found = row["kl to teacher"]
        merged = row["form"] == "merged-requantized-nf4"
        row["recovered"] = (base - found) / gain if merged else ""
        row["nearer"] = 1 - (found - whole) / plain if row["form"] == "gguf-q4_0" else ""
    return rows


def main() -> None:
    """Make the student and its adapter, then round in every way."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--demo", default=".demo", help="folder of examples/get_demo.py")
    parser.add_argument("--tokens", type=int, default=24000, help="that are trained on")
    parser.add_argument("--calibration", type=int, default=8192, help="tokens of compensation")
    parser.add_argument("--steps", type=int, default=32, help="of 512 tokens, of learned scales")
    parser.add_argument("--lr", type=float, default=2e-3, help="of learned scales")
    parser.add_argument("--run-dir", help="keep the student there, or go on with it")
    options = parser.parse_args()
    tokens, held_out, steps = options.tokens, 4096, options.steps
    if options.quick:
        tokens, held_out, steps, options.calibration = 512, 256, 1, 256
    with tempfile.TemporaryDirectory() as folder:
        home = Path(options.run_dir or folder)
        home.mkdir(parents=True, exist_ok=True)
        recipe = home / "recipe.yaml"
        recipe.write_text(recipe_of(options, tokens, held_out))
        run = Run(load_recipe(recipe, ()), home / "run")
        run_stages(run, STAGES)
        rows = with_shares(measured_ways(run, options, held_out, steps))
    record(rows, options.json)


if __name__ == "__main__":
    main()
