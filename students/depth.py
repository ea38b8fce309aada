"""Cutting blocks out of a model: which to keep, and the smaller checkpoint.

Legend: B sequences, T tokens, H width, V vocabulary.

`greedy` removes, one by one, the block without which the calibration loss rises least; the order
is found anew after every removal, because blocks lean on each other. `influence` removes at once
the blocks that turn the residual stream least (mean cosine of a block's input and output; the
block influence of ShortGPT, arXiv 2403.03853). Greedy costs some five half passes over the
calibration text a removal and is far better when much is removed.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attar.anatomy import blocks_of, body_of, capture_layers, head_of, num_layers, run_body, unwrap
from attar.errors import ModelError


class _Skip(nn.Module):
    """Stands in for a removed block: the residual stream passes."""

    def __init__(self, returns_tuple: bool) -> None:
        super().__init__()
        self.returns_tuple = returns_tuple
        self.instead: Tensor | None = None

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        if self.instead is not None:
            hidden_states = self.instead
        return (hidden_states,) if self.returns_tuple else hidden_states


def keep_evenly(depth: int, keep: int) -> list[int]:
    """`keep` of `depth` blocks, evenly spaced, the first and the last among them."""
    if keep == 1:
        return [0]
    return [round(i * (depth - 1) / (keep - 1)) for i in range(keep)]


@torch.inference_mode()
def block_cosines(model: nn.Module, input_ids_BT: Tensor) -> list[float]:
    """Mean cosine between each block's input and output on calibration text; 1: not needed."""
    depth = num_layers(model)
    with capture_layers(model, list(range(depth + 1))) as captured:
        run_body(model, {"input_ids": input_ids_BT, "attention_mask": None})
    layers = captured.layers
    return [
        float(torch.cosine_similarity(layers[i].float(), layers[i + 1].float(), dim=-1).mean())
        for i in range(depth)
    ]


def keep_by_influence(model: nn.Module, input_ids_BT: Tensor, keep: int) -> list[int]:
    """The `keep` blocks that turn the residual stream most."""
    cosines = block_cosines(model, input_ids_BT)
    return sorted(sorted(range(len(cosines)), key=lambda i: cosines[i])[:keep])


@torch.inference_mode()
def keep_greedily(
    model: nn.Module,
    input_ids_BT: Tensor,
    keep: int,
    on_removal: Callable[[int, float], None] = lambda block, loss: None,
) -> list[int]:
    """Blocks left after removing, one at a time, the one whose absence costs least.

    Lazy: a block is tried again only while its cost when it was last tried could still win (costs
    grow as others go, Minoux 1978), and a trial starts from the stored input of its block, so it
    runs only the blocks behind. `on_removal` is told the block and the loss (nats a token) left.
    """
    trial = _Trial(model, input_ids_BT)
    costs = dict.fromkeys(trial.kept, 0.0)
    try:
        while len(trial.kept) > keep:
            losses: dict[int, float] = {}
            for block in sorted(trial.kept, key=lambda block: costs[block]):
                if losses and trial.loss + costs[block] >= min(losses.values()):
                    break
                losses[block] = trial.loss_without(block)
                costs[block] = losses[block] - trial.loss
            cheapest = min(losses, key=lambda block: losses[block])
            trial.remove(cheapest)
            on_removal(cheapest, trial.loss)
    finally:
        trial.restore()
    return trial.kept


class _Trial:
    """A model under removal: which blocks are left, what enters each, and the loss as it stands."""

    def __init__(self, model: nn.Module, input_ids_BT: Tensor) -> None:
        self.model, self.input_ids_BT = model, input_ids_BT
        self.blocks = blocks_of(model)
        self.originals = list(self.blocks)
        self.kept = list(range(len(self.originals)))
        self.returns_tuple = _block_output_is_tuple(model, input_ids_BT)
        self._look()

    def _run(self) -> Tensor:
        return run_body(self.model, {"input_ids": self.input_ids_BT, "attention_mask": None})

    def _look(self) -> None:
        with capture_layers(self.model, list(range(len(self.originals) + 1))) as captured:
            hidden_BTH = self._run()
        self.entering = dict(captured.layers)
        self.loss = calibration_loss(self.model, hidden_BTH, self.input_ids_BT)

    def _install(self, present: set[int]) -> None:
        for i, block in enumerate(self.originals):
            self.blocks[i] = block if i in present else _Skip(self.returns_tuple)

    def loss_without(self, block: int) -> float:
        """Next-token loss with one more block gone, run from that block on."""
        self._install({other for other in self.kept if other > block})
        start = self.blocks[block]
        assert isinstance(start, _Skip)
        start.instead = self.entering[block]
        return calibration_loss(self.model, self._run(), self.input_ids_BT)

    def remove(self, block: int) -> None:
        """Take a block out for good and look again."""
        self.kept.remove(block)
        self._install(set(self.kept))
        self._look()

    def restore(self) -> None:
        """Put every block back: the model is the caller's."""
        self._install(set(range(len(self.originals))))


def _block_output_is_tuple(model: nn.Module, input_ids_BT: Tensor) -> bool:
    seen: list[bool] = []
    handle = blocks_of(model)[0].register_forward_hook(
        lambda _m, _i, output: seen.append(isinstance(output, tuple))
    )
    run_body(model, {"input_ids": input_ids_BT, "attention_mask": None})
    handle.remove()
    return seen[0]


def calibration_loss(model: nn.Module, hidden_BTH: Tensor, input_ids_BT: Tensor) -> float:
    """Mean next-token cross-entropy, nats a token, from final hidden states."""
    head = head_of(model, unwrap(model).get_output_embeddings().weight.shape[0])
    hidden_NH = hidden_BTH[:, :-1].reshape(-1, hidden_BTH.shape[-1])
    labels_N = input_ids_BT[:, 1:].reshape(-1)
    total = 0.0
    for piece_NH, piece_N in zip(hidden_NH.split(256), labels_N.split(256), strict=True):
        loss = nn.functional.cross_entropy(head.logits(piece_NH), piece_N, reduction="sum")
        total += float(loss)
    return total / len(labels_N)


def cut_config(config: Any, keep: list[int]) -> Any:
    """The `PretrainedConfig` of a model with only the blocks `keep`."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    depth, text.num_hidden_layers = text.num_hidden_layers, len(keep)
    for name, value in list(vars(text).items()):  # layer_types, rope or window patterns by layer
        if isinstance(value, (list, tuple)) and len(value) == depth and "token" not in name:
            setattr(text, name, [value[block] for block in keep])
    return config


def cut_depth(model: Any, keep: list[int]) -> nn.Module:
    """A new model with only the blocks `keep` (numbers from 0), in that order, where `model` is.

    The new model is made from a config that says so and filled through its state dict, so layer
    numbers, per-layer kinds of attention and tied weights are what a reload will make them.
    """
    depth = num_layers(model)
    wrong = [block for block in keep if not 0 <= block < depth]
    if wrong or not keep:
        raise ModelError(
            f"Block {wrong[0] if wrong else '(none)'} cannot be kept: the teacher has blocks 0 to "
            f"{depth - 1} and at least one must stay."
        )
    config = cut_config(model.config, keep)
    first = next(model.parameters())
    student = type(model)._from_config(config, dtype=first.dtype).to(first.device)
    prefix = _blocks_prefix(model)
    weights = model.state_dict()
    renamed = {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}
    for new, old in enumerate(keep):
        for name, tensor in weights.items():
            if match := re.match(rf"{re.escape(prefix)}{old}\.(.*)", name):
                renamed[f"{prefix}{new}.{match[1]}"] = tensor
    try:
        student.load_state_dict(renamed, strict=True)
    except RuntimeError as error:
        raise ModelError(
            f"{type(model).__name__} cannot be cut by blocks yet: {str(error)[:200]}"
        ) from None
    student.tie_weights()
    if hasattr(model, "generation_config"):  # classifiers have none
        student.generation_config = copy.deepcopy(model.generation_config)
    return student.eval()  # type: ignore[no-any-return]


def _blocks_prefix(model: nn.Module) -> str:
    blocks, body = blocks_of(model), body_of(model)
    name = next(name for name, module in body.named_modules() if module is blocks)
    outer = next(name for name, module in model.named_modules() if module is body)
    return f"{outer}.{name}." if outer else f"{name}."


def layer_map(keep: list[int], teacher_layer: int) -> int:
    """The student's layer that stands for a teacher's layer: behind all kept blocks before it."""
    return sum(block < teacher_layer for block in keep)
