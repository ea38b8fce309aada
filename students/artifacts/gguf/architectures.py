"""Families of models that llama.cpp computes as `transformers` does: one line each, and its checks.

Legend: H width, O rows of a weight.

Every family here is held by a test that compares logits of both. What a config can say and
llama.cpp cannot compute is refused, in a sentence, before any weight is read.
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
    """How one family of `transformers` becomes one architecture of llama.cpp.

    pairs: llama.cpp turns neighbouring rows of queries and keys by a position's angle, where
    `transformers` turns row i and i + half. norm_offset: added to the weights of norms that
    `transformers` stores as a difference from it. period: every so many layers sees the whole text,
    the others a sliding window; None: a window is nowhere.
    """

    architecture: str
    activation: str = "silu"
    pairs: bool = False
    norm_offset: float = 0.0
    period: int | None = None
    projection_bias: bool = False  # `attention_bias` can be computed
    soft_caps: bool = False


GGUF_ARCHITECTURES = {
    "llama": GGUFArchitecture("llama", pairs=True, projection_bias=True),
    "mistral": GGUFArchitecture("llama", pairs=True),
    "qwen2": GGUFArchitecture("qwen2"),
    "qwen3": GGUFArchitecture("qwen3"),
    "gemma2": GGUFArchitecture(
        "gemma2", "gelu_pytorch_tanh", norm_offset=1.0, period=2, soft_caps=True
    ),
    "gemma3_text": GGUFArchitecture("gemma3", "gelu_pytorch_tanh", norm_offset=1.0, period=6),
}
ROPE_SCALINGS = ("default", "linear", "llama3")


def gguf_architecture(config: Any) -> GGUFArchitecture:
    """The family of a model by its config; `ModelError` names those that are supported."""
    found = GGUF_ARCHITECTURES.get(config.model_type)
    if found is None:
        known = ", ".join(sorted(GGUF_ARCHITECTURES))
        raise ModelError(
            f"A model of type `{config.model_type}` cannot be written as GGUF; supported are "
            f"{known} (for others, convert the bf16 artifact with llama.cpp's own script)."
        )
    return found


def head_width(config: Any) -> int:
    """Width of one attention head."""
    width = getattr(config, "head_dim", None)
    return int(width or config.hidden_size // config.num_attention_heads)


Unsupported = tuple[str, Any, str]  # a key, what it says, what llama.cpp computes


def check_config(config: Any) -> None:
    """Raise `ModelError` for what llama.cpp would compute differently from `transformers`."""
    family = gguf_architecture(config)
    odd = next(
        chain(
            _unsupported_layers(config, family),
            _unsupported_positions(config),
            _unsupported_windows(config, family),
        ),
        None,
    )
    if odd is not None:
        key, found, computed = odd
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
        yield "layer_types", shown, "full layers at regular distances only (cut others to keep it)"


def _full_attention_period(types: list[str], usual: int) -> int:
    """n where exactly the layers n, 2n, ... (from 1) see the whole text; 0 where no n does.

    The family's usual rhythm where it fits: some releases of llama.cpp know no other.
    """
    rhythms: list[int] = [usual, *range(1, len(types) + 2)]
    for n in rhythms:
        kinds = [
            "sliding_attention" if i % n else "full_attention" for i in range(1, len(types) + 1)
        ]
        if types == kinds:
            return n
    return 0


def _rotary_parameters(config: Any) -> dict[str, dict[str, Any]]:
    """Parameters of rotary positions by layer type; one entry where all layers share them."""
    found = config.rope_parameters
    nested = isinstance(next(iter(found.values()), None), dict)
    return dict(found) if nested else {"full_attention": found}


# Metadata ----------------------------------------------------------------------------------------


def context_length(config: Any) -> int:
    """Positions that both compute alike: Mistral's window covers all layers and caps it."""
    longest = int(config.max_position_embeddings)
    if config.model_type == "mistral" and config.sliding_window is not None:
        return min(longest, int(config.sliding_window))
    return longest


def write_metadata(writer: GGUFWriter, config: Any, num_rows: int) -> None:
    """Write what llama.cpp must know of the architecture; `num_rows` of the embedding."""
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
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping or 0.0)
        writer.add_final_logit_softcapping(config.final_logit_softcapping or 0.0)


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
    """What each angle is divided by (llama3's scaling), (head width / 2); None where by nothing."""
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
    """Order of a weight's rows in the file, (O,); None where it is the same.

    `name` is the parameter's in `transformers`.
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
    """A norm's weight as llama.cpp multiplies by it."""
    return weight_H + np.float32(gguf_architecture(config).norm_offset)
