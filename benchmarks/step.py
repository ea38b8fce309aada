"""One whole optimiser step of a 10-block student: ours, plain `transformers`, and the others' ways.

    python benchmarks/step.py --json benchmarks/results/step.json

The student is a cut of the teacher to 10 evenly spaced blocks; every side does forward, loss,
backward and AdamW (fused) on the same batch of real text, all sides in turn in one process. hf:
the model's own loss on labels. cross_entropy, sparse (codec topk, k = 32), final_hidden (its codec:
the teacher's frozen head in the step) and sparse + 2 layers (two cached layers): our `Learner`,
with cross-entropy and from cached signals, decoded before the clock starts. materialised: the
sparse loss on logits of all tokens. teacher in step: the teacher's forward and a dense KL in every
step. trl gkd: TRL's GKDTrainer with lmbda 0. In `chat` shapes about half of the tokens count.

Memory: each side alone in a fresh process, the most it held in two steps after a warm-up. `peak
MiB` is that less the interpreter and libraries (what was held before the model was loaded): the
student, its gradient, AdamW's two moments, and what the step needs; on CUDA what was allocated.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import peak
import torch
from harness import arguments, in_turn, record
from step_sides import LOGITS_HELD, SIDES, Steps, parse_shape, prepare

QUICK = ("hf", "sparse", "materialised")
SHAPES = ("4x256", "8x1024", "chat 4x256")
LARGE = 4096  # tokens; above it fewer rounds


def options_of() -> argparse.Namespace:
    """The options; `--alone` is for the processes that this script starts itself."""
    parser = arguments(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default=".demo/teacher", help="the teacher")
    parser.add_argument("--text", default=".demo/train.jsonl", help="JSON lines with `text`")
    parser.add_argument("--keep", type=int, default=10, help="blocks of the student")
    parser.add_argument("--dtype", default="float32", help="of products")
    parser.add_argument("--weights", default="float32", help="dtype of the models' weights")
    parser.add_argument("--shapes", help=f"separated by commas; {', '.join(SHAPES)} when absent")
    parser.add_argument("--sides", help=f"separated by commas; {', '.join(SIDES)} when absent")
    parser.add_argument(
        "--rounds", type=int, help="5 (3 above 4,096 tokens) if absent; 0: memory only"
    )
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.shapes = _listed(options.shapes, ("4x64",) if options.quick else SHAPES)
    options.sides = _listed(options.sides, QUICK if options.quick else SIDES)
    unknown = set(options.sides) - set(SIDES)
    if unknown:
        parser.error(f"unknown sides: {', '.join(sorted(unknown))}; known: {', '.join(SIDES)}")
    return options


def _listed(text: str | None, default: tuple[str, ...]) -> list[str]:
    return [part.strip() for part in text.split(",")] if text else list(default)


def alone(folder: str, shape: str, side: str, *dtypes: torch.dtype) -> None:
    """Print, as JSON, the bytes held before the model was loaded and at most in two steps."""
    from transformers import AutoModelForCausalLM  # noqa: F401  (a library, not the step)

    if side == "trl gkd":
        import trl.experimental.gkd  # noqa: F401
    before = peak.held()
    step = Steps(Path(folder), shape, *dtypes).step_of(side)
    step()
    peak.start()
    step()
    step()
    print(json.dumps({"before": before, "peak": peak.highest()}))


def peak_of(folder: str, shape: str, side: str, options: Any) -> dict[str, int]:
    """What `alone` measured, in a process of its own. Raises `SystemExit` with its last words."""
    own = ["--dtype", options.dtype, "--weights", options.weights, "--alone", folder, shape, side]
    command = [sys.executable, __file__, *own]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        words = ended.stderr.strip().splitlines()[-3:]
        raise SystemExit(f"{side}, {shape}: ended with {ended.returncode}: {' | '.join(words)}")
    found: dict[str, int] = json.loads(ended.stdout.strip().splitlines()[-1])
    return found


def sides_that_fit(sides: list[str], shape: str, vocabulary: int) -> list[str]:
    """Without those that hold more logits than there is memory; says which, and how large."""
    rows, length, _ = parse_shape(shape)
    fitting = []
    for side in sides:
        needed = LOGITS_HELD.get(side, 0) * rows * length * vocabulary * 4
        if needed > 0.65 * peak.available():
            print(f"{side}, {shape}: left out; its logits alone take {needed / 2**30:.0f} GiB.")
        else:
            fitting.append(side)
    return fitting


def dtypes_of(options: Any) -> tuple[torch.dtype, torch.dtype]:
    """(of products, of weights)."""
    return getattr(torch, options.dtype), getattr(torch, options.weights)


def compare(folder: str, shape: str, sides: list[str], options: Any) -> list[dict[str, Any]]:
    """The rows of one shape."""
    peaks = {side: peak_of(folder, shape, side, options) for side in sides}
    rows, length, _ = parse_shape(shape)
    steps = Steps(Path(folder), shape, *dtypes_of(options))
    rounds = options.rounds
    if rounds is None:
        rounds = 2 if options.quick else 3 if rows * length > LARGE else 5
    seconds = dict.fromkeys(sides, float("nan"))
    if rounds:
        seconds = in_turn({side: steps.step_of(side) for side in sides}, rounds)
    own = {side: found["peak"] - found["before"] for side, found in peaks.items()}

    def ratio(values: dict[str, Any], side: str, to: str) -> float | None:
        return values[side] / values[to] if to in values else None

    return [
        {
            "shape": shape,
            "counted": steps.num_counted,
            "side": side,
            "seconds": seconds[side],
            "time / hf": ratio(seconds, side, "hf"),
            "time / sparse": ratio(seconds, side, "sparse"),
            "peak MiB": round(own[side] / peak.MIB),
            "peak / hf": ratio(own, side, "hf"),
            "process MiB": round(peaks[side]["peak"] / peak.MIB),
        }
        for side in sides
    ]


def main() -> None:
    """A row for each side of each shape."""
    options = options_of()
    if options.alone:
        folder, shape, side = options.alone
        return alone(folder, shape, side, *dtypes_of(options))
    sides: list[str] = options.sides
    if "trl gkd" in sides and importlib.util.find_spec("trl") is None:
        print("trl gkd: left out; TRL is not installed (`pip install trl` adds its row).")
        sides = [side for side in sides if side != "trl gkd"]
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), options.model, options.text, options.shapes, options.keep, sides)
        vocabulary = json.loads((Path(folder) / "student" / "config.json").read_text())
        for shape in options.shapes:
            fitting = sides_that_fit(sides, shape, vocabulary["vocab_size"])
            found += compare(folder, shape, fitting, options)
    record(found, options.json)


if __name__ == "__main__":
    main()
