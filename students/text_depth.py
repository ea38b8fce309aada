"""Which blocks of an encoder to keep, judged on texts: it reads both ways and needs a mask.

Legend: B texts, T tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from attar.anatomy import blocks_of, capture_layers, num_layers
from attar.heads import class_logits, text_inputs

T = TypeVar("T")  # a batch of texts, as `read` takes it
Texts = dict[str, Tensor | None]  # what `text_inputs` takes


@contextmanager
def only_blocks(model: Any, keep: Sequence[int]) -> Iterator[None]:
    """The model with only the blocks `keep` (numbers from 0) inside the block."""
    blocks = blocks_of(model)
    originals = list(blocks)
    _put(blocks, [originals[block] for block in keep])
    try:
        yield
    finally:
        _put(blocks, originals)


def _put(blocks: nn.ModuleList, modules: Sequence[nn.Module]) -> None:
    del blocks[:]
    blocks.extend(modules)


@torch.inference_mode()
def keep_by_change(
    model: Any,
    batches: Sequence[T],
    keep: int,
    read: Callable[[Any, T], Tensor],
    apart: Callable[[Tensor, Tensor], Tensor],
    on_removal: Callable[[int, float], None] = lambda block, loss: None,
) -> list[int]:
    """Blocks left after removing, one at a time, the one whose absence changes texts least.

    read: (B, C) of a batch of texts. apart: how far the whole model's are from the cut one's, (B,).
    """
    whole = [read(model, texts) for texts in batches]
    number = sum(len(one) for one in whole)

    def loss(kept: list[int]) -> float:
        with only_blocks(model, kept):
            cut = [read(model, texts) for texts in batches]
        return sum(float(apart(w, c).sum()) for w, c in zip(whole, cut, strict=True)) / number

    kept = list(range(num_layers(model)))
    while len(kept) > keep:
        losses = {block: loss([other for other in kept if other != block]) for block in kept}
        cheapest = min(losses, key=lambda block: losses[block])
        kept.remove(cheapest)
        on_removal(cheapest, losses[cheapest])
    return kept


@torch.inference_mode()
def keep_by_cosine(model: Any, batches: Sequence[Texts], keep: int) -> list[int]:
    """The `keep` blocks that turn the residual stream of the texts' tokens most."""
    depth = num_layers(model)
    totals = torch.zeros(depth)
    for texts in batches:
        mask_BT = texts["attention_mask"]
        assert mask_BT is not None
        with capture_layers(model, list(range(depth + 1))) as captured:
            model(**text_inputs(model, texts))
        states = [captured.layers[layer][mask_BT.bool()].float() for layer in range(depth + 1)]
        for i in range(depth):
            totals[i] += torch.cosine_similarity(states[i], states[i + 1], dim=-1).sum().cpu()
    order = totals.argsort().tolist()
    return sorted(order[:keep])


def kl(whole_BC: Tensor, cut_BC: Tensor) -> Tensor:
    """KL(whole || cut), (B,), of log-probabilities."""
    return (whole_BC.exp() * (whole_BC - cut_BC)).sum(-1)


def class_logprobs(model: Any, texts: Texts) -> Tensor:
    """Log-probabilities (B, C) of a classifier."""
    return class_logits(model, texts).float().log_softmax(-1)
