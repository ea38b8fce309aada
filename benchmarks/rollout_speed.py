"""What it costs to let a student write: the sampling loop beside transformers' `generate`.

    python benchmarks/rollout_speed.py --json benchmarks/results/rollout_speed.json

Ten blocks of SmolLM2-135M's shape (576 channels, 49,152 ids) with random weights; prompts of 32
tokens, 48 new ones, temperature 1, no stop, so that both write equally many. Both sides in turn in
one process; tokens a second are of the whole batch. `answers and entries` also keeps the 32 most
likely ids of every token as codec `topk` stores them, as a writing teacher does. `a step` is
forward and backward with cross-entropy on as many tokens, to compare.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from harness import arguments, in_turn, record
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from attar.models.sampling import Sampling, Writer
from attar.models.structure import head_of
from teachers.codecs.topk import TopK
from teachers.signals import TeacherChunk, seeds_of

PROMPT, NEW, VOCABULARY = 32, 48, 49_152
STEP_BATCH = 8  # largest whose step is timed: its logits exist at once


def model_of(blocks: int) -> LlamaForCausalLM:
    """Random weights of SmolLM2-135M's shape."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=576, intermediate_size=1536, num_hidden_layers=blocks,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def sides_of(model: LlamaForCausalLM, batch: int) -> dict[str, Callable[[], None]]:
    """What is timed, each for `batch` answers."""
    prompts = np.random.default_rng(0).integers(3, VOCABULARY, (batch, PROMPT))
    ids = torch.from_numpy(prompts)
    writer = Writer(model, Sampling(NEW), VOCABULARY, (), "speed")
    codec, head = TopK(k=32), head_of(model, VOCABULARY)

    def generate() -> None:
        with torch.no_grad():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, top_p=1.0,
                temperature=1.0, min_new_tokens=NEW, max_new_tokens=NEW, pad_token_id=0,
            )  # fmt: skip

    def keep(logits: torch.Tensor, numbers: list[int], position: int) -> None:
        seeds = seeds_of("0" * 16, len(logits))
        codec.encode(TeacherChunk(logits[:, :1], head, seeds, known_NV=logits), {})

    def step() -> None:
        texts = ids[:, :1].expand(-1, PROMPT + NEW)
        logits = model(texts).logits[:, PROMPT - 1 : -1]
        cross_entropy(logits.flatten(0, 1), texts[:, PROMPT:].flatten()).backward()

    sides: dict[str, Callable[[], None]] = {
        "generate": generate,
        "answers": lambda: writer.write(list(prompts)) and None,
        "answers and entries": lambda: writer.write(list(prompts), on_logits=keep) and None,
    }
    return sides | ({"a step": step} if batch <= STEP_BATCH else {})


def main() -> None:
    """Measure every batch size."""
    options = arguments((__doc__ or "").split("\n")[0]).parse_args()
    torch.set_num_threads(1)
    model, rows = model_of(2 if options.quick else 10), []
    for batch in (4, 8) if options.quick else (8, 32, 64):
        sides = sides_of(model, batch)
        seconds = in_turn(sides, 1 if options.quick else 3)
        row: dict[str, Any] = {"batch": batch}
        row |= {f"{name}, tokens/s": batch * NEW / seconds[name] for name in sides}
        row.setdefault("a step, tokens/s", "")
        row["answers / generate"] = seconds["answers"] / seconds["generate"]
        row["with entries / answers"] = seconds["answers and entries"] / seconds["answers"]
        rows.append(row)
    record(rows, options.json)


if __name__ == "__main__":
    main()
