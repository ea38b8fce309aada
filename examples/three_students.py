"""One cache, three students: what each of them is told about the same examples, compared.

    distill cache build examples/demo.yaml
    python examples/three_students.py runs/demo

The cache is keyed by content, so batch size, packing and the number of processes do not enter.
Three trainings are planned over it, each as `distill train` plans it, and for every example the
signals that would reach the loss are hashed: the digests must be the same.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from distill.data.batching import TOKEN_BATCHING
from distill.data.examples import Examples
from distill.data.tokenize import IGNORE
from distill.run.context import Run
from distill.run.load import load_recipe
from distill.stages.cache import open_cache
from distill.training.loop import Plan
from teachers.cache.reader import SignalCache

STUDENTS: dict[str, dict[str, Any]] = {
    "one row at a time": {"batch_size": 1, "packing": False, "world": 1},
    "four packed rows": {"batch_size": 4, "packing": True, "world": 1},
    "two packed rows on each of two processes": {"batch_size": 2, "packing": True, "world": 2},
}


def signals_seen(
    cache: SignalCache, examples: Examples, max_length: int, student: dict[str, Any]
) -> dict[str, str]:
    """A digest of each example's signals, cut out of the batches of one epoch."""
    config = SimpleNamespace(
        accumulate=1, epochs=1, max_steps=None, batch_size=student["batch_size"]
    )
    job: Any = SimpleNamespace(
        config=config,
        train=examples,
        max_length=max_length,
        packing=student["packing"],
        seed=7,
        batching=TOKEN_BATCHING,
    )
    plan, seen = Plan(job, student["world"]), {}
    for step in range(len(plan.steps)):
        for rank in range(student["world"]):
            for batch, share in plan.batches(step, examples, rank):
                if not share:
                    continue
                assert int((batch.labels_BT != IGNORE).sum()) == sum(map(cache.tokens, batch.keys))
                target: Any = cache.signals(batch.keys).distribution(1.0)
                start = 0
                for key in batch.keys:
                    stop = start + cache.tokens(key)
                    seen[key] = digest(target.rows(start, stop))
                    start = stop
    return seen


def digest(target: Any) -> str:
    """Of a distribution as the loss reads it: entries by id, whatever the padding of the batch."""
    if hasattr(target, "hidden_NH"):
        return hashlib.sha256(target.hidden_NH.numpy().tobytes()).hexdigest()[:16]
    found = hashlib.sha256()
    for ids_K, logprobs_K in zip(target.ids_NK, target.logprobs_NK, strict=True):
        used = logprobs_K > -torch.inf
        order = ids_K[used].argsort()
        found.update(ids_K[used][order].numpy().tobytes())
        found.update(logprobs_K[used][order].numpy().tobytes())
    if target.tail_N is not None:
        found.update(target.tail_N.numpy().tobytes())
    return found.hexdigest()[:16]


def main() -> None:
    """Compare the three on the run folder named on the command line."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    run = Run(load_recipe(folder / "recipe.yaml", ()), folder)
    cache, (train, _) = open_cache(run), run.data()
    told = {
        name: signals_seen(cache, train, run.recipe.data.max_length, student)
        for name, student in STUDENTS.items()
    }
    first, *others = told.values()
    one = next(iter(first))
    for name, seen in told.items():
        print(f"{name:42} {len(seen)} examples; example {one[:8]}: {seen[one]}")
    same = all(other == first for other in others)
    print("All signals are identical." if same else "The students were told different things!")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
