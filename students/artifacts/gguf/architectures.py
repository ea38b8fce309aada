"""Model families that llama.cpp computes as `transformers` does, and checks of their configs.

Legend: H width, O rows of a weight.

A test compares the logits of both for every family. A config that llama.cpp cannot compute raises
an error before any weight is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from attar.errors import ModelError

if TYPE_CHECKING:
    from gguf import GGUFWriter


@dataclass(frozen=True)
class GGUFArchitecture:
    """The llama.cpp architecture of one family of `transformers`.

    pairs: llama.cpp rotates neighbouring rows of queries and keys together, where `transformers`
    rotates rows i and i + half. norm_offset: added to the weights of norms, which `transformers`
    stores relative to it. period: every period-th layer has full attention, the others a sliding
    window; None: no layer has a window.
    """

    architecture: str
    activation: str = "silu"
    pairs: bool = False
    norm_offset: float = 0.0
    period: int | None = None
    projection_bias: bool = False  # llama.cpp supports `attention_bias`
    soft_caps: bool = False
    tied: bool = False  # a file has no place for a head of its own


GGUF_ARCHITECTURES = {
    "llama": GGUFArchitecture("llama", pairs=True, projection_bias=True),
    "mistral": GGUFArchitecture("llama", pairs=True),
    "qwen2": GGUFArchitecture("qwen2"),
    "qwen3": GGUFArchitecture("qwen3"),
    "gemma2": GGUFArchitecture(
        "gemma2", "gelu_pytorch_tanh", norm_offset=1.0, period=2, soft_caps=True, tied=True
    ),
    "gemma3_text": GGUFArchitecture("gemma3", "gelu_pytorch_tanh", norm_offset=1.0, period=6),
}
NO_CAP = 1e6  # llama.cpp always caps this family: 0 would divide by it, this changes no float32
ROPE_SCALINGS = ("default", "linear", "llama3")


def gguf_architecture(config: Any) -> GGUFArchitecture:
    """Return the architecture of a config; raise `ModelError`, listing the supported ones."""
    found = GGUF_ARCHITECTURES.get(config.model_type)
    if found is None:
        known = ", ".join(sorted(GGUF_ARCHITECTURES))
        raise ModelError(
            f"A model of type `{config.model_type}` cannot be written as GGUF; supported are "
            f"{known} (for others, convert the bf16 artifact with llama.cpp's own script)."
        )
    return found


def head_width(config: Any) -> int:
    """Return the width of one attention head."""
    width = getattr(config, "head_dim", None)
    return int(width or config.hidden_size // config.num_attention_heads)


Unsupported = tuple[str, Any, str]  # (key, its value, what llama.cpp computes instead)


def check_config(config: Any) -> None:
    """Raise `ModelError` for a config that llama.cpp computes differently from `transformers`."""
    family = gguf_architecture(config)
    unsupported = next(
        chain(
            _unsupported_layers(config, family),
            _unsupported_positions(config),
            _unsupported_windows(config, family),
        ),
        None,
    )
    if unsupported is not None:
        key, found, computed = unsupported
        raise ModelError(
            f"A `{config.model_type}` with `{key}: {found}` cannot be written as GGUF: llama.cpp "
            f"computes {computed}."
        )


def _unsupported_layers(config: Any, family: GGUFArchitecture) -> Iterator[Unsupported]:
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation != family.activation:
        yield "hidden_act", activation, f"{family.activation} only"
    if getattr(config, "attention_bias", False) and not family.projection_bias:
        yield "attention_bias", True, "this family without biases"
    if family.tied and not config.tie_word_embeddings:  # also after a rotation
        yield "tie_word_embeddings", False, "this family with the embedding as its head"
    if getattr(config, "use_bidirectional_attention", False):
        yield "use_bidirectional_attention", True, "causal attention only"
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, key, None) is not None and not family.soft_caps:
            yield key, getattr(config, key), "this family without soft-caps"
    scale = getattr(config, "query_pre_attn_scalar", head_width(config))
    if scale != head_width(config):
        yield "query_pre_attn_scalar", scale, f"head_dim ({head_width(config)}) only"


def _unsupported_positions(config: Any) -> Iterator[Unsupported]:
    for layer_type, rope in _rotary_parameters(config).items():
        kind, part = rope.get("rope_type", "default"), rope.get("partial_rotary_factor", 1.0)
        accepted = ("default",) if layer_type == "sliding_attention" else ROPE_SCALINGS
        if kind not in accepted:
            yield "rope_type", kind, f"{', '.join(accepted)} as transformers does"
        if part != 1.0:
            yield "partial_rotary_factor", part, "1.0 only"


def _unsupported_windows(config: Any, family: GGUFArchitecture) -> Iterator[Unsupported]:
    types = getattr(config, "layer_types", None) or []
    if family.period is None and "sliding_attention" in types:
        yield "use_sliding_window", True, "this family without a window"
    if family.period is not None and not _full_attention_period(types, family.period):
        shown = ", ".join(kind.removesuffix("_attention") for kind in types)
        yield "layer_types", shown, "layers with full attention at regular distances only"


def _full_attention_period(types: list[str], usual: int) -> int:
    """Return n if exactly the layers n, 2n, ... (from 1) have full attention, or 0 if no n fits.

    The family's usual period comes first, since some releases of llama.cpp support no other.
    """
    periods: list[int] = [usual, *range(1, len(types) + 2)]
    for n in periods:
        kinds = [
            "sliding_attention" if i % n else "full_attention" for i in range(1, len(types) + 1)
        ]
        if types == kinds:
            return n
    return 0


def _rotary_parameters(config: Any) -> dict[str, dict[str, Any]]:
    """Return the rotary parameters by layer type; one entry if all layers share them."""
    found = config.rope_parameters
    nested = isinstance(next(iter(found.values()), None), dict)
    return dict(found) if nested else {"full_attention": found}


# Metadata ----------------------------------------------------------------------------------------


def context_length(config: Any) -> int:
    """Return how many positions both compute alike; Mistral's sliding window limits them."""
    longest = int(config.max_position_embeddings)
    if config.model_type == "mistral" and config.sliding_window is not None:
        return min(longest, int(config.sliding_window))
    return longest


def write_metadata(writer: GGUFWriter, config: Any, num_rows: int) -> None:
    """Write the metadata of the architecture; `num_rows` is the rows of the embedding."""
    family = gguf_architecture(config)
    writer.add_vocab_size(num_rows)
    writer.add_context_length(context_length(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads or config.num_attention_heads)
    writer.add_key_length(head_width(config))
    writer.add_value_length(head_width(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_width(config))
    _describe_positions(writer, config)
    if family.period is not None:
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern(_full_attention_period(config.layer_types, family.period))
    if family.soft_caps:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping or NO_CAP)
        writer.add_final_logit_softcapping(config.final_logit_softcapping or NO_CAP)


def _describe_positions(writer: GGUFWriter, config: Any) -> None:
    from gguf import RopeScalingType

    ropes = _rotary_parameters(config)
    rope = ropes["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if "sliding_attention" in ropes:
        writer.add_rope_freq_base_swa(ropes["sliding_attention"]["rope_theta"])
    if rope.get("rope_type", "default") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def rotary_factors(config: Any) -> np.ndarray | None:
    """Return the divisors of the angles in llama3's scaling, (head width / 2), else None."""
    rope = _rotary_parameters(config)["full_attention"]
    if rope.get("rope_type", "default") != "llama3":
        return None
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    width = head_width(config)
    plain = rope["rope_theta"] ** -(np.arange(0, width, 2, dtype=np.float64) / width)
    return np.asarray(plain / scaled.double().numpy(), np.float32)


# Weights -----------------------------------------------------------------------------------------


def row_order(config: Any, name: str) -> np.ndarray | None:
    """Return the order of a weight's rows in the file, (O,), or None if it is unchanged.

    name: the parameter's name in `transformers`.
    """
    if not gguf_architecture(config).pairs:
        return None
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    part = name.rsplit(".", 2)[-2]
    if part not in heads:
        return None
    rows = np.arange((heads[part] or config.num_attention_heads) * head_width(config))
    return rows.reshape(-1, 2, head_width(config) // 2).swapaxes(1, 2).reshape(-1)


def stored_norm(config: Any, weight_H: np.ndarray) -> np.ndarray:
    """Return a norm's weight as llama.cpp stores it."""
    return weight_H + np.float32(gguf_architecture(config).norm_offset)
