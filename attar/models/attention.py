"""Attention inside the blocks of a `transformers` model: projections, and capturing their outputs.

Blocks are counted from 1: block l is the one whose output is layer l. Queries, keys and values are
the outputs of the linear maps, before any norm on them and before rotary embedding.

Legend: B sequences, T tokens, H width of the projections' input, C channels of all query heads, D
channels of all key-value heads.
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

# Names of the maps to queries, keys and values in an attention module, by model family.
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
    """The linear maps of a block to queries (C), keys and values (D each), adapters included.

    Raises `ModelError` where a block has no such maps, several attentions, or fused maps.
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
            f"{where} has {'several attentions' if found else 'no attention'} with one linear map "
            f"each for queries, keys and values ({known}); relation losses cannot read it."
        )
    ((query, key, value),) = found.values()
    heads, key_value = attention_heads(model)
    head_sizes = query.out_features / heads, key.out_features / key_value
    if head_sizes[0] != head_sizes[1] or value.out_features % key_value:
        raise ModelError(
            f"{where} has {query.out_features} channels of queries in {heads} heads but "
            f"{key.out_features} of keys in {key_value}, so its maps have other outputs; relation "
            "losses cannot read it."
        )
    return query, key, value


def reads_both_ways(model: Any) -> bool:
    """Whether a model's attention sees later tokens too, as in encoders."""
    flags = [getattr(module, "is_causal", None) for module in blocks_of(model)[0].modules()]
    known = [flag for flag in flags if isinstance(flag, bool)]
    return bool(known) and not any(known)


@torch.no_grad()
def linear_map(module: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Weight (out, in) and bias (out,), or None, of any linear module.

    For a quantised module, or one with adapters, the weight is its output for the identity in
    `dtype`. Its bias is removed meanwhile: added to it, small weights would be rounded away.
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
    """Outputs of the maps of chosen blocks, by block, filled while the body runs."""

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
    """Capture queries, keys and values of chosen blocks in every forward, within the graph.

    Under gradient checkpointing the tensors of the forward are kept, not those of its repetition
    in the backward pass. Reentrant checkpointing keeps no graph inside a block, so it raises
    `ModelError`.
    """
    captured = CapturedAttention()
    with ExitStack() as stack:
        for block in blocks:
            watch = _BlockWatch(blocks_of(model), block, stack)
            maps = attention_projections(model, block)
            kept_as = (captured.queries, captured.keys, captured.values)
            for module, kept in zip(maps, kept_as, strict=True):

                def keep(
                    _module: nn.Module,
                    _args: Any,
                    output: Tensor,
                    kept: dict[int, Tensor] = kept,
                    watch: _BlockWatch = watch,
                ) -> None:
                    watch.store(kept, output)

                stack.callback(module.register_forward_hook(keep).remove)
        yield captured


@contextmanager
def capture_attention_inputs(model: Any, blocks: list[int]) -> Iterator[dict[int, Tensor]]:
    """Capture the common input (B, T, H) of the maps to queries, keys and values, by block.

    Raises `ModelError` where the three maps have different inputs.
    """
    inputs: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for block in blocks:
            watch = _BlockWatch(blocks_of(model), block, stack)
            query, key, value = attention_projections(model, block)

            def keep(
                _module: nn.Module, args: Any, kwargs: Any, watch: _BlockWatch = watch
            ) -> None:
                watch.store(inputs, _first_input(args, kwargs))

            def compare(_module: nn.Module, args: Any, kwargs: Any, block: int = block) -> None:
                if _first_input(args, kwargs) is not inputs.get(block) and not _in_backward():
                    raise ModelError(
                        f"Queries, keys and values of block {block} have different inputs, so one "
                        "stored input cannot give all three; leave the block out of "
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


class _BlockWatch:
    """Stores tensors captured inside a block; knows whether the forward outside builds a graph."""

    def __init__(self, blocks: nn.ModuleList, block: int, stack: ExitStack) -> None:
        self.block, self.builds_graph = block, False
        stack.callback(blocks[block - 1].register_forward_pre_hook(self.look).remove)

    def look(self, _module: nn.Module, _args: Any) -> None:
        """Run before the block, outside of its gradient checkpointing."""
        self.builds_graph = torch.is_grad_enabled()

    def store(self, kept: dict[int, Tensor], tensor: Tensor) -> None:
        """Keep a tensor captured inside the block."""
        if _in_backward():
            return  # a checkpointed block is run again
        if self.builds_graph and not torch.is_grad_enabled():
            raise ModelError(
                "Reentrant gradient checkpointing keeps no graph of queries, keys and values; use "
                '`{"use_reentrant": False}`.'
            )
        kept[self.block] = tensor


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _first_input(args: Any, kwargs: Any) -> Tensor:
    tensor: Tensor = args[0] if args else next(iter(kwargs.values()))
    return tensor
