"""What a step takes by what is trainable: time, and memory at its peak.

    python benchmarks/trainable.py --json benchmarks/results/trainable.json

A 10-block cut of the teacher, cross-entropy on real text through our `Learner`, AdamW (fused),
float32. All choices take their steps in turn in one process, on the same batch. `peak MiB`: each
alone in a fresh process, the most it held in two steps after a first, less what was held before
the model was loaded: weights, gradients, AdamW's averages, activations and logits. `down to` is the
lowest block that gets a gradient. A choice that fits nothing (SmolLM has no biases) is left out
with a line that says so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peak
import torch
from harness import arguments, in_turn, record
from step_sides import prepare

from attar.device import default_device
from attar.errors import RecipeError
from attar.models.loading import load_causal_lm
from distill.objective.chunked_head import tokens_per_chunk
from distill.objective.objective import Learner
from distill.objective.terms import TERM_MODELS
from distill.training.layerwise_lr import lowest_learning
from distill.training.optimizers import make_optimizer
from students.tuning.trainable import choose_trainable

CHOICES = ("all", "last:10", "last:4", "last:1", "first:4", "head", "embeddings", "norms", "bias")
QUICK = ("all", "last:4", "norms")


def options_of() -> argparse.Namespace:
    """The options; `--alone` is for the processes that this script starts itself."""
    parser = arguments(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default=".demo/teacher", help="the teacher")
    parser.add_argument("--text", default=".demo/train.jsonl", help="JSON lines with `text`")
    parser.add_argument("--keep", type=int, default=10, help="blocks of the student")
    parser.add_argument("--shape", help="rows x tokens; 4x256 when absent")
    parser.add_argument("--choices", help=f"separated by spaces; {' '.join(CHOICES)} when absent")
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.shape = options.shape or ("2x64" if options.quick else "4x256")
    default = QUICK if options.quick else CHOICES
    options.choices = options.choices.split() if options.choices else list(default)
    return options


class Student:
    """The student with a batch; one model serves every choice, and each has its own optimiser."""

    def __init__(self, folder: Path, shape: str) -> None:
        self.model: Any = load_causal_lm(str(folder / "student"), dtype=torch.float32)
        device, vocabulary = default_device(), self.model.config.vocab_size
        self.batch = torch.load(folder / f"{shape} batch", weights_only=False).to(device)
        self.learner = Learner(
            self.model,
            [TERM_MODELS["cross_entropy"](loss="cross_entropy")],
            vocabulary=vocabulary,
            dtype=torch.float32,
            chunk=tokens_per_chunk(vocabulary, device),
        )
        self.counted = int(sum(self.batch.counts))

    def step_of(self, choice: str) -> Callable[[], None]:
        """A whole optimiser step in which only the choice learns."""
        choose_trainable(self.model, choice)
        made = make_optimizer(self.learner, "adamw", 1e-5, (0.9, 0.95), 0.01)

        def step() -> None:
            choose_trainable(self.model, choice)
            self.learner.train()
            loss, _ = self.learner(self.batch, {}, 1 / self.counted)
            loss.backward()
            made.step()
            made.zero_grad()

        return step

    def about(self, choice: str) -> tuple[int, str]:
        """(parameters that learn, the lowest block that gets a gradient)."""
        count, lowest = choose_trainable(self.model, choice), lowest_learning(self.model)
        return count, "embeddings" if lowest == 0 else f"block {lowest - 1}"


def alone(folder: str, shape: str, choice: str) -> None:
    """Print, as JSON, the bytes held before the model was loaded and at most in two steps."""
    from transformers import AutoModelForCausalLM  # noqa: F401  (a library, not the step)

    peak.return_at_once()
    before = peak.held()
    step = Student(Path(folder), shape).step_of(choice)
    step()
    peak.start()
    step()
    step()
    print(json.dumps(peak.highest() - before))


def peak_of(folder: str, shape: str, choice: str) -> int:
    """What `alone` measured, in a process of its own. Raises `SystemExit` with its last words."""
    command = [sys.executable, __file__, "--alone", folder, shape, choice]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        words = ended.stderr.strip().splitlines()[-3:]
        raise SystemExit(f"{choice}: ended with {ended.returncode}: {' | '.join(words)}")
    return int(json.loads(ended.stdout.strip().splitlines()[-1]))


def compare(folder: str, options: Any) -> list[dict[str, Any]]:
    """A row for each choice that fits the student."""
    student = Student(Path(folder), options.shape)
    about: dict[str, tuple[int, str]] = {}
    for choice in options.choices:
        try:
            about[choice] = student.about(choice)
        except RecipeError as error:
            print(f"{choice}: left out. {error}")
    peaks = {choice: peak_of(folder, options.shape, choice) for choice in about}
    steps = {choice: student.step_of(choice) for choice in about}
    seconds = in_turn(steps, 2 if options.quick else 5)
    first = next(iter(about))
    return [
        {
            "trainable": choice,
            "learn": count,
            "down to": lowest,
            "seconds": seconds[choice],
            f"time / {first}": seconds[choice] / seconds[first],
            "peak MiB": round(peaks[choice] / peak.MIB),
            f"peak / {first}": peaks[choice] / peaks[first],
            "AdamW MiB": round(8 * count / peak.MIB),
        }
        for choice, (count, lowest) in about.items()
    ]


def main() -> None:
    """One table."""
    options = options_of()
    if options.alone:
        return alone(*options.alone)
    with tempfile.TemporaryDirectory() as folder:
        shapes = [options.shape]
        prepare(Path(folder), options.model, options.text, shapes, options.keep, [])
        rows = compare(folder, options)
    record(rows, options.json)


if __name__ == "__main__":
    main()
