"""Model families that can be pruned: which axes each weight has, one table per family.

Removing a head, a neuron or a channel removes it from every weight that has the axis, so a table of
axes is all that pruning needs to know. To add a family, add an entry to `PRUNABLE_ARCHITECTURES`; a
parameter that the table does not name raises an error with its name.

Axes: V vocabulary, H channels of the residual stream, Q channels of all query heads, K channels of
all key-value heads, I neurons of a feed-forward, `.` an axis that is never cut (positions, classes,
the size of a head).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from attar.errors import ModelError
from attar.models.structure import unwrap


@dataclass(frozen=True)
class PrunableArchitecture:
    """The structure of the models of some `model_type`s.

    axes: from the end of a parameter's name to one letter per axis; the longest match counts.
    norms: where norms stand: before attention and feed-forward, around them (on their outputs too),
    or behind the sum with the residual stream. norm_weight: the factor that a norm applies is its
    weight, or its weight plus one; `layer` is LayerNorm, which also subtracts the mean. The other
    fields say what the family's configs require.
    """

    name: str
    model_types: tuple[str, ...]
    axes: dict[str, str]
    norms: Literal["before", "around", "behind"]
    norm_weight: Literal["weight", "weight+1", "layer"]
    neurons_key: str = "intermediate_size"
    head_size_key: bool = True  # False: the size of a head is always width / heads
    width_in_heads: bool = False  # the width must be a multiple of the number of heads
    scales_embedding: bool = False  # embeddings are multiplied by the square root of the width


_ATTENTION = {
    "self_attn.q_proj.weight": "QH",
    "self_attn.k_proj.weight": "KH",
    "self_attn.v_proj.weight": "KH",
    "self_attn.o_proj.weight": "HQ",
}
_ATTENTION_BIAS = {
    "self_attn.q_proj.bias": "Q",
    "self_attn.k_proj.bias": "K",
    "self_attn.v_proj.bias": "K",
    "self_attn.o_proj.bias": "H",
}
_HEAD_NORMS = {"self_attn.q_norm.weight": ".", "self_attn.k_norm.weight": "."}
_GATED = {
    "mlp.gate_proj.weight": "IH",
    "mlp.up_proj.weight": "IH",
    "mlp.down_proj.weight": "HI",
}
_GATED_BIAS = {"mlp.gate_proj.bias": "I", "mlp.up_proj.bias": "I", "mlp.down_proj.bias": "H"}
_NORMS_BEFORE = {
    "input_layernorm.weight": "H",
    "post_attention_layernorm.weight": "H",
    "norm.weight": "H",
}
_NORMS_AROUND = {
    **_NORMS_BEFORE,
    "pre_feedforward_layernorm.weight": "H",
    "post_feedforward_layernorm.weight": "H",
}
_EMBEDDING_AND_HEAD = {
    "embed_tokens.weight": "VH",
    "lm_head.weight": "VH",
    "score.weight": ".H",  # classes
}
_BERT = {
    "embeddings.word_embeddings.weight": "VH",
    "embeddings.position_embeddings.weight": ".H",
    "embeddings.token_type_embeddings.weight": ".H",
    "LayerNorm.weight": "H",
    "LayerNorm.bias": "H",
    **{f"attention.self.{name}.weight": "QH" for name in ("query", "key", "value")},
    **{f"attention.self.{name}.bias": "Q" for name in ("query", "key", "value")},
    "attention.output.dense.weight": "HQ",
    "attention.output.dense.bias": "H",
    "intermediate.dense.weight": "IH",
    "intermediate.dense.bias": "I",
    "output.dense.weight": "HI",
    "output.dense.bias": "H",
    "pooler.dense.weight": "HH",
    "pooler.dense.bias": "H",
    "classifier.weight": ".H",
    "classifier.bias": ".",
}

PRUNABLE_ARCHITECTURES = (
    PrunableArchitecture(
        "Llama",  # includes SmolLM
        ("llama",),
        {
            **_EMBEDDING_AND_HEAD,
            **_ATTENTION,
            **_ATTENTION_BIAS,
            **_GATED,
            **_GATED_BIAS,
            **_NORMS_BEFORE,
        },
        norms="before",
        norm_weight="weight",
        width_in_heads=True,
    ),
    PrunableArchitecture(
        "Mistral",
        ("mistral",),
        {**_EMBEDDING_AND_HEAD, **_ATTENTION, **_GATED, **_NORMS_BEFORE},
        norms="before",
        norm_weight="weight",
    ),
    PrunableArchitecture(
        "Qwen2",
        ("qwen2",),
        {**_EMBEDDING_AND_HEAD, **_ATTENTION, **_ATTENTION_BIAS, **_GATED, **_NORMS_BEFORE},
        norms="before",
        norm_weight="weight",
    ),
    PrunableArchitecture(
        "Qwen3",
        ("qwen3",),
        {
            **_EMBEDDING_AND_HEAD,
            **_ATTENTION,
            **_ATTENTION_BIAS,
            **_HEAD_NORMS,
            **_GATED,
            **_NORMS_BEFORE,
        },
        norms="before",
        norm_weight="weight",
    ),
    PrunableArchitecture(
        "Gemma",
        ("gemma",),
        {**_EMBEDDING_AND_HEAD, **_ATTENTION, **_ATTENTION_BIAS, **_GATED, **_NORMS_BEFORE},
        norms="before",
        norm_weight="weight+1",
        scales_embedding=True,
    ),
    PrunableArchitecture(
        "Gemma 2",
        ("gemma2",),
        {**_EMBEDDING_AND_HEAD, **_ATTENTION, **_ATTENTION_BIAS, **_GATED, **_NORMS_AROUND},
        norms="around",
        norm_weight="weight+1",
        scales_embedding=True,
    ),
    PrunableArchitecture(
        "Gemma 3",
        ("gemma3_text",),
        {
            **_EMBEDDING_AND_HEAD,
            **_ATTENTION,
            **_ATTENTION_BIAS,
            **_HEAD_NORMS,
            **_GATED,
            **_NORMS_AROUND,
        },
        norms="around",
        norm_weight="weight+1",
        width_in_heads=True,
        scales_embedding=True,
    ),
    PrunableArchitecture(
        "BERT",  # includes MiniLM
        ("bert",),
        {
            **_BERT,
            "cls.predictions.bias": "V",
            "cls.predictions.transform.dense.weight": "HH",
            "cls.predictions.transform.dense.bias": "H",
            "cls.predictions.decoder.weight": "VH",
            "cls.predictions.decoder.bias": "V",
        },
        norms="behind",
        norm_weight="layer",
        head_size_key=False,
    ),
    PrunableArchitecture(
        "RoBERTa",
        ("roberta", "xlm-roberta"),
        {
            **_BERT,
            "lm_head.bias": "V",
            "lm_head.dense.weight": "HH",
            "lm_head.dense.bias": "H",
            "lm_head.layer_norm.weight": "H",
            "lm_head.layer_norm.bias": "H",
            "lm_head.decoder.weight": "VH",
            "lm_head.decoder.bias": "V",
            "classifier.dense.weight": "HH",
            "classifier.dense.bias": "H",
            "classifier.out_proj.weight": ".H",
            "classifier.out_proj.bias": ".",
        },
        norms="behind",
        norm_weight="layer",
        head_size_key=False,
    ),
    PrunableArchitecture(
        "DistilBERT",
        ("distilbert",),
        {
            "embeddings.word_embeddings.weight": "VH",
            "embeddings.position_embeddings.weight": ".H",
            **{f"attention.{name}.weight": "QH" for name in ("q_lin", "k_lin", "v_lin")},
            **{f"attention.{name}.bias": "Q" for name in ("q_lin", "k_lin", "v_lin")},
            "attention.out_lin.weight": "HQ",
            "attention.out_lin.bias": "H",
            "ffn.lin1.weight": "IH",
            "ffn.lin1.bias": "I",
            "ffn.lin2.weight": "HI",
            "ffn.lin2.bias": "H",
            **{
                f"{name}.{kind}": "H"
                for name in ("LayerNorm", "sa_layer_norm", "output_layer_norm", "vocab_layer_norm")
                for kind in ("weight", "bias")
            },
            "vocab_transform.weight": "HH",
            "vocab_transform.bias": "H",
            "vocab_projector.weight": "VH",
            "vocab_projector.bias": "V",
            "pre_classifier.weight": "HH",
            "pre_classifier.bias": "H",
            "classifier.weight": ".H",
            "classifier.bias": ".",
        },
        norms="behind",
        norm_weight="layer",
        neurons_key="hidden_dim",
        head_size_key=False,
    ),
)


def prunable_architecture(model_or_config: Any) -> PrunableArchitecture:
    """Return the family of a model or config; raise `ModelError` for one without a table."""
    config = getattr(unwrap(model_or_config), "config", model_or_config).get_text_config()
    for family in PRUNABLE_ARCHITECTURES:
        if config.model_type in family.model_types:
            return family
    known = ", ".join(family.name for family in PRUNABLE_ARCHITECTURES)
    raise ModelError(
        f"Models of type `{config.model_type}` can only be cut by blocks (`student.layers`): the "
        f"axes of weights are known for {known}; to add a family, add an entry to "
        "`PRUNABLE_ARCHITECTURES` in students/pruning/architectures.py."
    )


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model.

    blocks; query heads and key-value heads (`groups`) of a block; channels of a head; neurons of a
    feed-forward; channels of the residual stream; token ids.
    """

    blocks: int
    heads: int
    groups: int
    head_size: int
    neurons: int
    channels: int
    ids: int

    @property
    def heads_per_group(self) -> int:
        """Query heads that share a key-value head."""
        return self.heads // self.groups


def sizes_of(config: Any) -> Sizes:
    """Read the sizes from the config of a known family."""
    family, text = prunable_architecture(config), config.get_text_config()
    heads = int(text.num_attention_heads)
    size = getattr(text, "head_dim", None) if family.head_size_key else None
    return Sizes(
        blocks=int(text.num_hidden_layers),
        heads=heads,
        groups=int(getattr(text, "num_key_value_heads", None) or heads),
        head_size=int(size or text.hidden_size // heads),
        neurons=int(getattr(text, family.neurons_key)),
        channels=int(text.hidden_size),
        ids=int(text.vocab_size),
    )


def axes_of(family: PrunableArchitecture, name: str) -> str:
    """Return one letter per axis of a parameter, given its full name.

    Raises `ModelError` for a parameter that the family's table does not name.
    """
    fits = [end for end in family.axes if f".{name}".endswith(f".{end}")]
    if not fits:
        raise ModelError(
            f"The table of the {family.name} family has no row for the parameter {name}; add its "
            "axes to `PRUNABLE_ARCHITECTURES` in students/pruning/architectures.py."
        )
    return family.axes[max(fits, key=len)]


def block_number(name: str) -> int | None:
    """Return the number of the block that a parameter or module name belongs to, or None."""
    found = re.search(r"(?:^|\.)(?:layers|layer)\.(\d+)(?:\.|$)", name)
    return int(found[1]) if found else None


def modules_with(model: nn.Module, family: PrunableArchitecture, axes: str) -> dict[str, nn.Module]:
    """Return the modules whose weight has these axes, by name, in the model's order.

    "HQ": output projections of attention; "HI": of feed-forwards; "H": norms.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter)
        and axes_of(family, f"{name}.weight") == axes
    }
