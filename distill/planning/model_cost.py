"""What a model's forward costs, and how fast this machine multiplies.

Time in a plan is arithmetic over speed: multiply-adds counted from a model's config, divided by
what one large matrix product reaches on this machine now (under a second), at 60% of it.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from attar.device import default_device
from attar.models.task_heads import CAUSAL
from distill.planning.memory import skeleton_to_count

EFFICIENCY = 0.6  # of a bare matrix product; the demo's stages reach between 0.5 and 0.8


@dataclass(frozen=True)
class ModelCost:
    """What time and memory of a model depend on: numbers of parameters, width H and depth."""

    body: int  # that every token is multiplied with, below the head
    head: int  # V x H of a language model's head; 0 where a few numbers a text are predicted
    total: int
    width: int
    depth: int

    def forward(self, tokens: float) -> float:
        """Floating-point operations of one forward with predictions at every token."""
        return 2.0 * tokens * (self.body + self.head)


def model_cost(config: Any, auto: str) -> ModelCost:
    """The cost of a model of an auto class of transformers, from its configuration alone.

    Embeddings are looked up, not multiplied with. Raises `ModelError` for a model whose code came
    with it.
    """
    model = skeleton_to_count(config, auto)
    text, total = config.get_text_config(), sum(p.numel() for p in model.parameters())
    others = {id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    head = 0
    if auto == CAUSAL:
        weight = model.get_output_embeddings().weight
        others[id(weight)] = weight
        head = text.vocab_size * text.hidden_size
    body = total - sum(weight.numel() for weight in others.values())
    return ModelCost(body, head, total, text.hidden_size, text.num_hidden_layers)


@functools.cache
def flops_per_second(dtype: torch.dtype) -> float:
    """What a 1,024 x 1,024 x 4,096 product reaches here, best of four; measured once."""
    device = default_device()
    a = torch.randn(1024, 1024, device=device).to(dtype)
    b = torch.randn(1024, 4096, device=device).to(dtype)
    best = 0.0
    for _ in range(4):
        start = time.perf_counter()
        float((a @ b)[0, 0])  # reading a value waits for the device
        best = max(best, 2 * 1024 * 1024 * 4096 / (time.perf_counter() - start))
    return best
