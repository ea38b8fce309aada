"""The teacher runner against the bare forward of the same model on the same tokens.

    python benchmarks/runner.py --model .demo/teacher --json benchmarks/results/runner.json

bare: `model(input_ids).logits` of batches of 1,024 tokens. runner: the same batches, head in
chunks, encoding (top-k and tail, chosen layers in int8), and writing one shard of 4,096 tokens (a
build's are eight times as large). The target is 0.90 of the bare forward's tokens a second.
"""

from __future__ import annotations

import tempfile

import numpy as np
import torch
from harness import arguments, in_turn, record

from attar.models.loading import load_causal_lm, resolve_precision
from teachers.cache.config import CacheConfig
from teachers.cache.store import SignalStore
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request


def main() -> None:
    """Measure a plain cache and one with three layers' hidden states."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", default=".demo/teacher")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    model = load_causal_lm(options.model, dtype=resolve_precision(options.dtype))
    vocabulary = model.config.vocab_size
    depth = model.config.num_hidden_layers
    rows_of_ids, rounds = (4, 3) if options.quick else (16, 5)
    length = 256
    ids = np.random.default_rng(0).integers(0, vocabulary, (rows_of_ids, length))
    batches = torch.from_numpy(ids).to(model.device).split(1024 // length)
    requests = [Request(str(i), row, np.arange(length - 1)) for i, row in enumerate(ids)]
    plain = CacheConfig.model_validate({"batch_tokens": 1024})
    layers = {"layers": [depth // 3, 2 * depth // 3, depth], "codec": "int8"}
    deep = CacheConfig.model_validate({"batch_tokens": 1024, "hidden": layers})

    def bare() -> None:
        with torch.inference_mode():
            for batch in batches:
                model(input_ids=batch, use_cache=False).logits  # noqa: B018

    def cached(config: CacheConfig, store: SignalStore) -> None:
        rows = TeacherRunner(model, vocabulary, config).run(requests)
        store.write_shard(0, [request.key for request in requests], rows, {})

    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "bare forward": bare,
            "runner, topk 32": lambda: cached(plain, SignalStore(f"{folder}/plain")),
            "runner, topk 32 + 3 layers": lambda: cached(deep, SignalStore(f"{folder}/deep")),
        }
        seconds = in_turn(sides, rounds)
    tokens = ids.size
    rows = [
        {
            "side": name,
            "tokens": tokens,
            "dtype": str(model.dtype).removeprefix("torch."),
            "seconds": value,
            "tokens/s": round(tokens / value, 1),
            "share of bare": seconds["bare forward"] / value,
        }
        for name, value in seconds.items()
    ]
    record(rows, options.json)


if __name__ == "__main__":
    main()
