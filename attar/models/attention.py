"""Attention inside the blocks of a `transformers` model: its projections, and what they give.

Legend: B sequences, T tokens, H width of what is projected, C channels of all query heads, D of
all key-value heads.

Blocks are counted from 1: block l is the one whose output is layer l. Queries, keys and values are
taken as the linear maps give them, before any norm of theirs and before rotary embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import ModelError
from attar.models.structure import blocks_of, num_layers, unwrap

# Names of the maps to queries, keys and values in a module of attention, family by family.
PROJECTIONS = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
)


def check_blocks(blocks: list[int], depth: int) -> None:
    """Raise `ModelError` for a block that a model of `depth` blocks does not have."""
    for block in blocks:
        if not 1 <= block <= depth:
            raise ModelError(f"Block {block} does not exist: the model has blocks 1 to {depth}.")


def attention_heads(model: Any) -> tuple[int, int]:
    """Number of query heads and of key-value heads of every block."""
    config = unwrap(model).config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    key_value = getattr(config, "num_key_value_heads", None) or heads
    if not isinstance(heads, int) or not isinstance(key_value, int):
        raise ModelError(
            f"The configuration of {type(unwrap(model)).__name__} does not say how many attention "
            "heads every block has; relation losses cannot read it."
        )
    return heads, key_value


def attention_projections(model: Any, block: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The linear maps of a block to queries (C), keys and values (D each), with adapters on them.

    Raises `ModelError` where a block has none, several, or maps that hold more than that.
    """
    check_blocks([block], num_layers(model))
    found: dict[int, list[Any]] = {}
    for module in blocks_of(model)[block - 1].modules():
        for names in PROJECTIONS:
            maps = [getattr(module, name, None) for name in names]
            if all(isinstance(one, nn.Module) and hasattr(one, "out_features") for one in maps):
                found[id(maps[0])] = maps
    where = f"Block {block} of {type(unwrap(model)).__name__}"
    if len(found) != 1:
        known = " or ".join("/".join(f"`{name}`" for name in names) for names in PROJECTIONS)
        raise ModelError(
            f"{where} has {'several attentions' if found else 'no attention'} with a linear map "
            f"each for queries, keys and values ({known}); relation losses cannot read it."
        )
    ((query, key, value),) = found.values()
    heads, key_value = attention_heads(model)
    of_head = query.out_features / heads, key.out_features / key_value
    if of_head[0] != of_head[1] or value.out_features % key_value:
        raise ModelError(
            f"{where} has {query.out_features} channels of queries in {heads} heads but "
            f"{key.out_features} of keys in {key_value}, so its maps hold more than that; relation "
            "losses cannot read it."
        )
    return query, key, value


def reads_both_ways(model: Any) -> bool:
    """Whether the attention of a model's blocks sees later tokens too, as encoders' does."""
    flags = [getattr(module, "is_causal", None) for module in blocks_of(model)[0].modules()]
    known = [flag for flag in flags if isinstance(flag, bool)]
    return bool(known) and not any(known)


@torch.no_grad()
def linear_map(module: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Weight (out, in) and bias (out,), if it has one, of a linear module in any disguise.

    One that is quantised or has adapters is asked what it makes of the identity, in inputs of
    `dtype`; without its bias meanwhile, beside which small weights would be rounded away.
    """
    if type(module) is nn.Linear:
        bias_C = None if module.bias is None else module.bias.detach().clone()
        return module.weight.detach().clone(), bias_C
    device, size = next(module.parameters()).device, module.in_features
    plain = getattr(module, "base_layer", module)  # below peft's adapters
    bias, plain.bias = plain.bias, None
    try:
        weight_CH = module(torch.eye(size, dtype=dtype, device=device)).T.contiguous()
    finally:
        plain.bias = bias
    if bias is None:
        return weight_CH, None
    return weight_CH, module(torch.zeros(1, size, dtype=dtype, device=device))[0]


@dataclass
class CapturedAttention:
    """What the maps of chosen blocks gave, each by block, filled while the body runs."""

    queries: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    @property
    def blocks(self) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
        """Queries (B, T, C), keys (B, T, D) and values (B, T, D) of every block."""
        return {
            block: (self.queries[block], self.keys[block], self.values[block])
            for block in self.queries
        }


@contextmanager
def capture_attention(model: Any, blocks: list[int]) -> Iterator[CapturedAttention]:
    """Keep queries, keys and values of chosen blocks of every forward inside, in the graph.

    Under gradient checkpointing they are of the forward, not of its repetition in the backward
    pass; the reentrant kind keeps no graph inside a block and is refused with a `ModelError`.
    """
    captured = CapturedAttention()
    with ExitStack() as stack:
        for block in blocks:
            outside = _Outside(blocks_of(model), block, stack)
            maps = attention_projections(model, block)
            kept_as = (captured.queries, captured.keys, captured.values)
            for module, kept in zip(maps, kept_as, strict=True):

                def keep(
                    _module: nn.Module,
                    _args: Any,
                    output: Tensor,
                    kept: dict[int, Tensor] = kept,
                    outside: _Outside = outside,
                ) -> None:
                    outside.store(kept, output)

                stack.callback(module.register_forward_hook(keep).remove)
        yield captured


@contextmanager
def capture_attention_inputs(model: Any, blocks: list[int]) -> Iterator[dict[int, Tensor]]:
    """Keep what queries, keys and values of chosen blocks are linear maps of: (B, T, H) by block.

    Raises `ModelError` where the three are not maps of the same.
    """
    inputs: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for block in blocks:
            outside = _Outside(blocks_of(model), block, stack)
            query, key, value = attention_projections(model, block)

            def keep(
                _module: nn.Module, args: Any, kwargs: Any, outside: _Outside = outside
            ) -> None:
                outside.store(inputs, _first(args, kwargs))

            def compare(_module: nn.Module, args: Any, kwargs: Any, block: int = block) -> None:
                if _first(args, kwargs) is not inputs.get(block) and not _in_backward():
                    raise ModelError(
                        f"Queries, keys and values of block {block} are not maps of the same "
                        "states, so they cannot be kept by their input; leave it out of "
                        "`cache.hidden.attention`."
                    )

            hooks: list[tuple[nn.Module, Callable[..., None]]] = [
                (query, keep),
                (key, compare),
                (value, compare),
            ]
            for module, hook in hooks:
                stack.callback(
                    module.register_forward_pre_hook(hook, with_kwargs=True).remove,
                )
        yield inputs


class _Outside:
    """Whether a graph is being made around a block; kept things of the block go through it."""

    def __init__(self, blocks: nn.ModuleList, block: int, stack: ExitStack) -> None:
        self.block, self.makes_graph = block, False
        stack.callback(blocks[block - 1].register_forward_pre_hook(self.look).remove)

    def look(self, _module: nn.Module, _args: Any) -> None:
        """Called before the block, outside of any checkpointing of it."""
        self.makes_graph = torch.is_grad_enabled()

    def store(self, kept: dict[int, Tensor], tensor: Tensor) -> None:
        """Keep a tensor met inside the block."""
        if _in_backward():
            return  # a checkpointed block is run again
        if self.makes_graph and not torch.is_grad_enabled():
            raise ModelError(
                "Reentrant gradient checkpointing keeps no graph of queries, keys and values; use "
                '`{"use_reentrant": False}`.'
            )
        kept[self.block] = tensor


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _first(args: Any, kwargs: Any) -> Tensor:
    tensor: Tensor = args[0] if args else next(iter(kwargs.values()))
    return tensor
