"""What a training takes by the choice of method, optimiser and checkpointing, beside its plan.

    python benchmarks/memory.py --json benchmarks/results/memory.json

The student is the teacher's first 10 blocks. Every choice runs alone in a fresh process: two
optimiser steps of our `Learner` with cross-entropy on the same batch of real text, products in
bfloat16; `measured MiB` is the most that the process held in them, libraries included (on CUDA what
was allocated), `planned MiB` what `distill plan --choices` says of it, of which some parts stand
beside. On a CPU the 8-bit optimiser copies one tensor at a time to float32, which is the embedding
here, nearly half of the student.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import peak
import torch
from harness import arguments, record
from step_sides import parse_shape, text_examples

from attar.device import default_device
from attar.models.loading import load_causal_lm, load_config
from distill.data.batching import collate
from distill.objective.chunked_head import tokens_per_chunk
from distill.objective.objective import Learner
from distill.objective.terms import TERM_MODELS
from distill.planning.memory import (
    Footprint,
    Forward,
    footprint,
    libraries,
    student_skeleton,
    trace_memory,
)
from distill.training.optimizers import make_optimizer
from students.pruning.depth import cut_depth
from students.tuning.method import METHODS

CHOICES = [  # method, optimizer, gradient checkpointing
    ("full", "adamw", False),
    ("full", "adamw", True),
    ("full", "adamw_8bit", False),
    ("full", "adamw_8bit", True),
    ("lora", "adamw", False),
    ("lora", "adamw", True),
    ("qlora", "adamw", False),
    ("qlora", "adamw", True),
    ("qlora", "adamw_8bit", False),
]
QUICK = [("full", "adamw", False), ("qlora", "adamw", False)]
STEPS = 2
DTYPE = torch.bfloat16


def options_of() -> argparse.Namespace:
    """The options; `--alone` is for the processes that this script starts itself."""
    parser = arguments(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default=".demo/teacher", help="the teacher")
    parser.add_argument("--text", default=".demo/train.jsonl", help="JSON lines with `text`")
    parser.add_argument("--keep", type=int, default=10, help="blocks of the student")
    parser.add_argument("--shape", help="rows x tokens; 4x256 when absent")
    parser.add_argument("--student", help=argparse.SUPPRESS)
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.shape = options.shape or ("4x64" if options.quick else "4x256")
    return options


def student_of(folder: Path, method: Any) -> Any:
    """The student with its method attached, as a training has it."""
    quantized = method.base != "none"
    model: Any = load_causal_lm(
        str(folder), dtype=DTYPE if quantized else torch.float32, quantization=method.base
    )
    return method.attach(model, 0)


def alone(options: argparse.Namespace) -> None:
    """Print, as JSON, the bytes held before the model was loaded, and the peak."""
    name, optimizer, checkpointing = options.alone
    method = METHODS[name].model_validate({"method": name})
    import bitsandbytes  # noqa: F401  (a library, not the step)
    import peft  # noqa: F401

    before = peak.held()
    batch = collate([[e] for e in text_examples(options.model, options.text, options.shape)])
    model = student_of(Path(options.student), method)
    if checkpointing == "True":
        model.activation_checkpointing_enable({"use_reentrant": False})
    vocabulary, device = model.config.vocab_size, default_device()
    learner = Learner(
        model,
        [TERM_MODELS["cross_entropy"].model_validate({"loss": "cross_entropy"})],
        vocabulary=vocabulary,
        dtype=DTYPE,
        chunk=tokens_per_chunk(vocabulary, device),
    ).to(device)
    made = make_optimizer(learner, optimizer, 1e-5, (0.9, 0.95), 0.01)
    batch = batch.to(device)
    learner.train()
    peak.start()
    for _ in range(STEPS):
        learner(batch, {}, 1 / batch.num_counted)[0].backward()
        made.step()
        made.zero_grad()
    print(json.dumps({"before": before, "peak": peak.highest()}))


def measured(options: argparse.Namespace, folder: str, choice: tuple[Any, ...]) -> dict[str, Any]:
    """What `alone` found, in a process of its own. Raises `SystemExit` with its last words."""
    own = [str(part) for part in choice]
    shared = ["--model", options.model, "--text", options.text, "--shape", options.shape]
    command = [sys.executable, __file__, *shared, "--student", folder, "--alone", *own]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        words = ended.stderr.strip().splitlines()[-3:]
        raise SystemExit(f"{', '.join(own)}: ended with {ended.returncode}: {' | '.join(words)}")
    found: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
    return found


def planned(options: argparse.Namespace, choice: tuple[Any, ...]) -> tuple[int, Footprint]:
    """(parameters that learn, what the plan says) of a choice."""
    name, optimizer, checkpointing = choice
    method = METHODS[name].model_validate({"method": name})
    config, (rows, tokens, _) = load_config(options.model), parse_shape(options.shape)
    weights = DTYPE if method.base != "none" else torch.float32
    model = student_skeleton(config, options.keep, lambda model: method.attach(model, 0))
    traced = trace_memory(model, Forward(rows, tokens, DTYPE, weights, method.base))
    chunk = min(rows * tokens, tokens_per_chunk(config.vocab_size, default_device()))
    said = footprint(traced, optimizer=optimizer, checkpointing=checkpointing, chunk=chunk)
    return sum(traced.learning), said


def main() -> None:
    """A row for each choice."""
    options = options_of()
    if options.alone:
        return alone(options)
    rows = []
    import bitsandbytes  # noqa: F401  (as in the processes that are measured)
    import peft  # noqa: F401

    libraries()  # noted before the teacher is loaded
    with tempfile.TemporaryDirectory() as folder:
        teacher: Any = load_causal_lm(options.model, dtype=torch.float32)
        cut_depth(teacher, list(range(options.keep))).save_pretrained(folder)  # type: ignore[operator]
        for choice in QUICK if options.quick else CHOICES:
            learning, said = planned(options, choice)
            found = measured(options, folder, choice)
            rows.append(
                {
                    "method": choice[0],
                    "optimizer": choice[1],
                    "checkpointing": choice[2],
                    "learns, M": learning / 1e6,
                    "weights MiB": round(said.weights / peak.MIB),
                    "gradients MiB": round(said.gradients / peak.MIB),
                    "states MiB": round(said.states / peak.MIB),
                    "activations MiB": round(said.activations / peak.MIB),
                    "planned MiB": round(said.peak / peak.MIB),
                    "measured MiB": round(found["peak"] / peak.MIB),
                    "libraries MiB": round(found["before"] / peak.MIB),
                    "planned / measured": said.peak / found["peak"],
                }
            )
    record(rows, options.json)


if __name__ == "__main__":
    main()
