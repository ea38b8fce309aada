"""What it costs to keep the teacher's signals while it writes answers.

    python benchmarks/written_answers.py --json benchmarks/results/written_answers.json

A Llama of SmolLM2-135M's sizes with random weights writes 32 answers of 24 tokens at once, to
prompts of 40 to 47 tokens, with `top_p` 0.95 and with none: alone, with codec `label`, with `topk`
of 32 entries. `share` is the time beside that of the answers alone; up to 1.05 is the aim. The
store of requests is part of what is timed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import arguments, in_turn, record
from transformers import LlamaConfig, LlamaForCausalLM

from attar.models.sampling import Sampling
from teachers.cache.config import CacheConfig
from teachers.writing.ask import ask
from teachers.writing.local import LocalWriter
from teachers.writing.request import WriteRequest
from teachers.writing.store import StoreWriter

VOCABULARY, PROMPTS, SAMPLES = 49152, 8, 4


def model_of(blocks: int) -> LlamaForCausalLM:
    """A Llama of SmolLM2-135M's sizes, of so many blocks."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=blocks,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def write(model: Any, requests: list[WriteRequest], top_p: float, codec: str | None) -> None:
    """Write all answers, and keep their signals by a codec."""
    kept = None if codec is None else CacheConfig.model_validate({"codec": codec}).codec
    sampling = Sampling(requests[0].limit, 0.8, top_p)
    writer = LocalWriter(model, sampling, VOCABULARY, (), "0", len(requests), kept)
    with tempfile.TemporaryDirectory() as folder, StoreWriter(Path(folder)) as storing:
        ask(writer, requests, storing)


def main() -> None:
    """Measure, print, record."""
    given = arguments(str(__doc__).splitlines()[0]).parse_args()
    model = model_of(4 if given.quick else 30)
    dice, limit = np.random.default_rng(0), 4 if given.quick else 24
    prompts = [dice.integers(0, VOCABULARY, 40 + i) for i in range(PROMPTS)]
    requests = [
        WriteRequest(f"{i}/{sample}", prompt, sample, limit)
        for sample in range(SAMPLES)
        for i, prompt in enumerate(prompts)
    ]
    rows = []
    for top_p in (0.95, 1.0):
        sides: dict[str, Callable[[], None]] = {
            name or "answers alone": partial(write, model, requests, top_p, name)
            for name in (None, "label", "topk")
        }
        seconds = in_turn(sides, 1 if given.quick else 7)
        for name, one in seconds.items():
            share = one / seconds["answers alone"]
            rows.append({"top_p": top_p, "what": name, "seconds": one, "share": share})
    record(rows, given.json)


if __name__ == "__main__":
    main()
