"""Training from the cache against training with the same signals already in memory.

    python benchmarks/cache_reading.py --json benchmarks/results/cache_reading.json

Both sides do the same optimiser-less steps (forward, objective, backward) on the same batches of a
student cut from the teacher. `memory`: signals decoded before the clock starts. `cache`: batches
come through `SignalCache` and the prefetch thread, unpacked anew in every round; opening the cache,
once a run, stands apart. `no teacher`: the same steps with cross-entropy alone. The target is
`cache` within 3% of `memory`. Beside it, what encoding costs: the runner with the codec against the
bare forward.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import numpy as np
import torch
from harness import arguments, in_turn, record

from attar.models.loading import load_causal_lm
from distill.data.batching import Batch, collate
from distill.data.examples import Example, key_of
from distill.data.prefetch import Prefetch
from distill.data.tokenize import IGNORE
from distill.objective.chunked_head import tokens_per_chunk
from distill.objective.objective import Learner
from distill.objective.terms import TERM_MODELS
from students.pruning.depth import cut_depth, keep_evenly
from teachers.cache.config import CacheConfig, manifest_of
from teachers.cache.reader import SignalCache, Signals
from teachers.cache.store import SignalStore
from teachers.runners.build_cache import build_cache
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request

CODECS: list[dict[str, Any]] = [
    {"name": "hybrid", "k": 64},
    {"name": "final_hidden"},
]


def examples_of(number: int, length: int, vocabulary: int) -> list[Example]:
    """Examples of random ids: what is read does not depend on what they say."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(number):
        ids = random.integers(0, vocabulary, length)
        labels = np.append(ids[1:], IGNORE)
        found.append(Example(key_of(list(ids), list(labels)), ids, labels))
    return found


def learner_of(student: torch.nn.Module, vocabulary: int, loss: str) -> Learner:
    """A student with one term."""
    terms = [TERM_MODELS[loss].model_validate({"loss": loss})]
    chunk = tokens_per_chunk(vocabulary, torch.device("cpu"))
    return Learner(student, terms, vocabulary=vocabulary, dtype=torch.float32, chunk=chunk)


def steps(learner: Learner, ahead: Prefetch[tuple[Batch, Signals | None]], number: int) -> None:
    """Forward and backward of each batch."""
    for step in range(number):
        batch, signals = ahead.get(step)
        total, _ = learner(batch, {"cache": signals} if signals else {}, 1.0)
        total.backward()
        learner.zero_grad()
    ahead.close()


@torch.inference_mode()
def bare(model: torch.nn.Module, examples: list[Example]) -> None:
    """The teacher's forward with its logits, four examples at a time, and nothing else."""
    for first in range(0, len(examples), 4):
        ids = np.stack([example.input_ids for example in examples[first : first + 4]])
        model(input_ids=torch.from_numpy(ids), use_cache=False)


def compare(codec: dict[str, Any], model: Any, examples: list[Example], options: Any) -> Any:
    """Seconds of each side for one codec, and bytes a token."""
    vocabulary = model.config.vocab_size
    config = CacheConfig.model_validate({"codec": codec, "shard_tokens": 400})
    requests = [Request(e.key, e.input_ids, e.counted) for e in examples]
    batches = [collate([[e] for e in examples[i : i + 2]]) for i in range(0, len(examples), 2)]
    with tempfile.TemporaryDirectory() as folder:
        store = SignalStore(folder)
        data = {"examples": len(examples)}
        manifest = manifest_of(config, {"model": "benchmark"}, {}, data)
        runner = TeacherRunner(model, vocabulary, config)
        totals = build_cache(store, manifest, requests, lambda: runner)
        student = cut_depth(load_causal_lm(options.model, dtype=torch.float32), options.keep)
        distil, plain = (
            learner_of(student, vocabulary, loss) for loss in ("forward_kl", "cross_entropy")
        )
        ready = SignalCache(folder)
        memory = [(batch, ready.signals(batch.keys)) for batch in batches]
        for _, signals in memory:
            distil.decode(signals)

        start = time.perf_counter()
        cache = SignalCache(folder, keep_bytes=1)  # nothing unpacked is kept
        opened = time.perf_counter() - start

        def from_cache() -> None:
            def load(step: int) -> tuple[Batch, Signals | None]:
                signals = cache.signals(batches[step].keys)
                distil.decode(signals)
                return batches[step], signals

            steps(distil, Prefetch(load, len(batches)), len(batches))

        def from_memory() -> None:
            steps(distil, Prefetch(lambda i: memory[i], len(batches)), len(batches))

        def without() -> None:
            steps(plain, Prefetch(lambda i: (batches[i], None), len(batches)), len(batches))

        assets = store.assets() or {}
        sides = {
            "memory": from_memory,
            "cache": from_cache,
            "no teacher": without,
            "bare forward": lambda: bare(model, examples),
            "runner": lambda: runner.run(requests, assets),
        }
        seconds = in_turn(sides, 2 if options.quick else 3)
    return {
        "codec": " ".join(str(value) for value in codec.values()),
        "tokens": int(totals["tokens"]),
        "bytes/token": totals["bytes"] / totals["tokens"],
        "memory s": seconds["memory"],
        "opening s": opened,
        "cache / memory": seconds["cache"] / seconds["memory"],
        "no teacher / memory": seconds["no teacher"] / seconds["memory"],
        "runner / bare": seconds["runner"] / seconds["bare forward"],
    }


def main() -> None:
    """One line a codec."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", default=".demo/teacher")
    options = parser.parse_args()
    model = load_causal_lm(options.model, dtype=torch.float32).eval()
    options.keep = keep_evenly(model.config.num_hidden_layers, 10)
    examples = examples_of(4, 64 if options.quick else 256, model.config.vocab_size)
    codecs = CODECS[:1] if options.quick else CODECS
    record([compare(codec, model, examples, options) for codec in codecs], options.json)


if __name__ == "__main__":
    main()
