"""Run calibration text through a model block by block, a few rows at a time.

Only the hidden states of one layer are kept in memory beside the model, (B, T, H) in all.

Legend: B rows, T tokens of a row, N tokens of all rows, H width, I inputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import ModelError
from attar.models.structure import blocks_of, run_body

BATCH_ROWS = 4  # rows of calibration text in one forward


class StopForward(Exception):
    """Raised by a hook to end a forward once it has seen what it needs."""


@dataclass
class BlockArguments:
    """The arguments that the model passes to one block besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class BlockwiseForward:
    """Runs calibration text through the blocks one after another, a batch at a time.

    `hidden` holds the inputs of the next block. Raises `ModelError` for a model whose blocks take
    other arguments that depend on the text.
    """

    def __init__(self, model: Any, input_ids_BT: Tensor) -> None:
        self.blocks = blocks_of(model)
        batches = list(input_ids_BT.to(next(model.parameters()).device).split(BATCH_ROWS))
        # arguments of every block, by the number of rows in a batch
        self.arguments: dict[int, list[BlockArguments]] = {}
        self.hidden: list[Tensor] = []
        for ids_BT in batches:
            known = self.arguments.get(len(ids_BT))
            hidden_BTH, arguments = _first_block_inputs(
                model, self.blocks, ids_BT, whole=known is None
            )
            if known is not None and not _same_values(known[0].kwargs, arguments[0].kwargs):
                raise ModelError(
                    f"The blocks of {type(model).__name__} take arguments besides the hidden "
                    "states that depend on the text, so it cannot be rounded or refitted block "
                    "by block."
                )
            self.arguments.setdefault(len(ids_BT), arguments)
            self.hidden.append(hidden_BTH)

    def moments(self, number: int) -> dict[nn.Linear, Tensor]:
        """Return mean x x^T (I, I) over the inputs x of every linear layer in a block."""
        block = self.blocks[number]
        linears = [m for m in block.modules() if isinstance(m, nn.Linear)]
        sums: dict[nn.Linear, Tensor] = {}
        tokens = dict.fromkeys(linears, 0)
        with _record_inputs(linears) as seen:
            for hidden_BTH in self.hidden:
                self.run(block, number, hidden_BTH)
                products: dict[int, Tensor] = {}
                for module, x_NI in seen.items():
                    key = id(x_NI)
                    if key not in products:  # queries, keys and values share their input
                        flat_NI = x_NI.flatten(0, -2).float()
                        products[key] = flat_NI.T @ flat_NI
                    tokens[module] += x_NI.numel() // x_NI.shape[-1]
                    sums[module] = sums[module] + products[key] if module in sums else products[key]
                seen.clear()
        return {module: total / max(1, tokens[module]) for module, total in sums.items()}

    def advance(self, block: nn.Module, number: int) -> None:
        """Replace the hidden states by the outputs of a block."""
        for i, hidden_BTH in enumerate(self.hidden):
            self.hidden[i] = self.run(block, number, hidden_BTH)

    def run(self, block: nn.Module, number: int, hidden_BTH: Tensor) -> Tensor:
        """Return the outputs of a block for one batch of hidden states (B, T, H)."""
        block_arguments = self.arguments[len(hidden_BTH)][number]
        output = block(hidden_BTH, *block_arguments.args, **block_arguments.kwargs)
        found: Tensor = output[0] if isinstance(output, tuple) else output
        return found


def _first_block_inputs(
    model: Any, blocks: nn.ModuleList, ids_BT: Tensor, *, whole: bool
) -> tuple[Tensor, list[BlockArguments]]:
    """Return the first block's inputs, and the arguments of the first block or, if `whole`, all."""
    first: list[Tensor] = []
    arguments: list[BlockArguments] = []

    def note(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        given = args if args else (kwargs.pop("hidden_states"),)
        if not first:
            first.append(given[0])
        arguments.append(BlockArguments(given[1:], kwargs))
        if not whole:
            raise StopForward

    handles = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
    try:
        run_body(model, {"input_ids": ids_BT, "attention_mask": None})
    except StopForward:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return first[0], arguments


def _same_values(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same_values(one[k], other[k]) for k in one)
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(_same_values, one, other))
    return not isinstance(one, Tensor) and not isinstance(other, Tensor)


@contextmanager
def _record_inputs(linears: list[nn.Linear]) -> Iterator[dict[nn.Linear, Tensor]]:
    """Yield a dict that every forward fills with the latest input of each linear layer."""
    seen: dict[nn.Linear, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(module, nn.Linear)
        seen[module] = args[0]

    handles = [module.register_forward_pre_hook(keep) for module in linears]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
