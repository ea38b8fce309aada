"""The parts of a `transformers` text model: body, blocks, head.

Layers are numbered along the residual stream: layer 0 is the embedding's output, layer l the output
of block l (counted from 1), always before the final norm. (`output_hidden_states` of `transformers`
gives the last one after the norm, so it is not used.)

Legend: B sequences, T tokens, N tokens counted, V vocabulary, H width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import ModelError
from attar.models.peft_models import adapted_head, prepends, run_prompted
from attar.models.task_heads import text_inputs

# Attribute paths from the body to its list of blocks, by model family; the first that exists.
BLOCK_PATHS = ("layers", "h", "encoder.layer", "transformer.layer", "blocks", "decoder.layers")

# Families whose positions start after the padding id: the first rows of their table are unused.
# Measured on transformers 5.23 by a text of each length.
AFTER_PADDING = {
    "camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "markuplm", "mpnet",
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip

# The key by which a family multiplies (1) or divides (-1) its logits, or the states before the map.
# A key alone says nothing: MPT has a `logit_scale` that transformers ignores, and HyperCLOVA X
# multiplies by what Granite divides by. attar/models/head_check.py compares with the model's own.
LOGIT_SCALES = {
    **dict.fromkeys(
        ("cohere", "cohere2", "cohere2_moe", "cohere_compass_text"), ("logit_scale", 1)
    ),
    **dict.fromkeys(
        ("granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoehybrid",
         "granitemoeshared", "minicpm3"),
        ("logits_scaling", -1),
    ),
    "hyperclovax": ("logits_scaling", 1),
    "falcon_h1": ("lm_head_multiplier", 1),
    "inkling_text": ("logits_mup_width_multiplier", -1),
}  # fmt: skip
SOFT_CAPS = {"recurrent_gemma": "logits_soft_cap", "xlstm": "output_logit_soft_cap"}


def usable_positions(config: Any) -> int | None:
    """The longest text, in tokens, that a model of this config can read; None: no limit."""
    text = config.get_text_config()
    positions: int | None = getattr(text, "max_position_embeddings", None)
    if positions is None or text.model_type not in AFTER_PADDING:
        return positions
    return positions - int(text.pad_token_id) - 1


def unwrap(model: Any) -> Any:
    """The `transformers` model inside a peft wrapper; its adapters stay active.

    peft leaves its `peft_config` on the model inside, too.
    """
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def body_of(model: Any) -> nn.Module:
    """The model without its head: maps ids to the final hidden states, after the final norm.

    A model that was loaded without a head is its own body.
    """
    model = unwrap(model)
    body = getattr(model, model.base_model_prefix, None)
    if body is None:  # Llama 4's text part names its prefix after the whole model
        body = model if model.get_output_embeddings() is None else getattr(model, "model", None)
    if not isinstance(body, nn.Module):
        raise ModelError(f"{type(model).__name__} has no body below its head; it is not supported.")
    return body


def blocks_of(model: Any) -> nn.ModuleList:
    """The model's list of blocks."""
    body = body_of(model)
    for path in BLOCK_PATHS:
        found: Any = body
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList) and len(found) == num_layers(model):
            return found
    raise ModelError(
        f"The blocks of {type(body).__name__} were not found; add their attribute path to "
        "`BLOCK_PATHS` in attar/models/structure.py."
    )


def num_layers(model: Any) -> int:
    """Number of blocks."""
    return int(unwrap(model).config.get_text_config().num_hidden_layers)


def width(model: Any) -> int:
    """Channels of the residual stream, H."""
    return int(unwrap(model).config.get_text_config().hidden_size)


def count_parameters(model: nn.Module) -> int:
    """Number of parameters: tied ones once, 4-bit ones by their unpacked number."""
    return sum(parameter_size(parameter) for parameter in model.parameters())


def parameter_size(parameter: nn.Parameter) -> int:
    """Number of weights in a parameter; for a packed 4-bit one, the unpacked number."""
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else parameter.numel()


def run_body(model: Any, batch: dict[str, Tensor | None]) -> Tensor:
    """Final hidden states, after the final norm: what the head reads. Shape (B, T, H).

    Where learned positions precede the text, only the text's states are returned. For a masked
    language model, and a decoder with layers between body and output map (BERT, ModernBERT), they
    are the inputs of the map.
    """
    inner = unwrap(model)
    if type(inner).__name__.endswith("ForMaskedLM"):
        return _run_to_map(inner, _masked_inputs(inner, batch))
    if transforms_states(inner):
        if prepends(model):
            raise ModelError(
                f"{type(inner).__name__} has layers between its body and its output map, so "
                "positions learned before the text are not supported; choose another method."
            )
        return _run_to_map(inner, {**batch, "use_cache": False})
    if prepends(model):
        return run_prompted(model, body_of(model), batch)
    output = body_of(model)(**batch, use_cache=False)
    return output.last_hidden_state  # type: ignore[no-any-return]


def transforms_states(model: Any) -> bool:
    """Whether layers with weights stand between the body and the output map of a model."""
    model = unwrap(model)
    body, output_map = body_of(model), model.get_output_embeddings()
    if body is model or output_map is None:
        return False
    own = {id(parameter) for parameter in output_map.parameters()}
    return any(
        id(parameter) not in own
        for part in model.children()
        if part is not body
        for parameter in part.parameters()
    )


def _masked_inputs(model: Any, batch: dict[str, Tensor | None]) -> dict[str, Tensor]:
    ids_BT, mask_BT = batch["input_ids"], batch.get("attention_mask")
    assert ids_BT is not None
    mask_BT = torch.ones_like(ids_BT) if mask_BT is None else mask_BT
    inputs = {"input_ids": ids_BT, "attention_mask": mask_BT}
    return text_inputs(model, {**inputs, "token_type_ids": batch.get("token_type_ids")})


def _run_to_map(model: Any, inputs: dict[str, Any]) -> Tensor:
    """The input (B, T, H) of a model's output map.

    The map itself receives no tokens, so that no logits are computed. Raises `ModelError` where the
    model does not call it exactly once.
    """
    seen: list[Tensor] = []

    def keep(_m: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(args[0])
        return (args[0][:, :0], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        model(**inputs)
    finally:
        handle.remove()
    if len(seen) != 1:
        raise ModelError(
            f"{type(model).__name__} does not call its output map once; it is not supported."
        )
    return seen[0]


@dataclass(frozen=True)
class Head:
    """The map from final hidden states to logits, over the tokenizer's V ids only.

    Columns that a model has beyond its tokenizer's ids (padding of the vocabulary) are cut off,
    so they receive no probability. `scale` and `softcap` are the family's (Cohere, Gemma).
    """

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def to(self, device: torch.device) -> Head:
        """The same on a device."""
        bias_V = None if self.bias_V is None else self.bias_V.to(device)
        return replace(self, weight_VH=self.weight_VH.to(device), bias_V=bias_V)

    def logits(self, hidden_NH: Tensor, out_NV: Tensor | None = None) -> Tensor:
        """Float32 logits of shape (N, V), multiplied in the dtype of the weight.

        out_NV: a buffer of that dtype for the product; the result may share its memory.
        """
        hidden_NH = hidden_NH.to(self.weight_VH.dtype)
        if out_NV is None:
            return self.finish(matmul_float32(hidden_NH, self.weight_VH.T))
        with torch.no_grad():
            raw_NV = torch.mm(hidden_NH.detach(), self.weight_VH.detach().T, out=out_NV)
        return self.finish(raw_NV.float())

    def finish(self, raw_NV: Tensor) -> Tensor:
        """Apply bias, scale and soft-cap to a raw product."""
        if self.bias_V is not None:
            raw_NV = raw_NV + self.bias_V.float()
        if self.scale != 1.0:
            raw_NV = raw_NV * self.scale
        if self.softcap is not None:
            raw_NV = torch.tanh(raw_NV / self.softcap) * self.softcap
        return raw_NV


def rows_per_chunk(vocabulary: int, device: torch.device) -> int:
    """Tokens whose logits are held at once: small enough for a CPU's cache, large for a GPU."""
    budget = (64 << 20) if device.type == "cpu" else (512 << 20)
    return max(16, budget // (4 * vocabulary))


@torch.no_grad()
def label_logprobs(
    hidden_NH: Tensor, head: Head, labels_N: Tensor, chunk: int | None = None
) -> Tensor:
    """Log-probability of one id a token, float32 (N,), natural log, without gradient.

    At temperature 1 over the head's V ids, logit scale and soft-cap applied; -inf where an id's
    logit is. The logits of `chunk` tokens are held at once, by default `rows_per_chunk`. labels_N:
    int64, each from 0 to V - 1.
    """
    size = chunk or rows_per_chunk(len(head.weight_VH), hidden_NH.device)
    labels_N = labels_N.to(hidden_NH.device)
    parts = zip(hidden_NH.split(size), labels_N.split(size), strict=True)
    return torch.cat([logprobs_of_ids(head.logits(states), ids) for states, ids in parts])


def logprobs_of_ids(logits_NV: Tensor, ids_N: Tensor) -> Tensor:
    """Log-softmax of float32 logits at one id a row, (N,)."""
    return logits_NV.log_softmax(-1).gather(-1, ids_N.unsqueeze(-1)).squeeze(-1)


def matmul_float32(a: Tensor, b: Tensor) -> Tensor:
    """a @ b with a float32 result; on CUDA, without gradients, 16-bit products are not rounded.

    Under autocast the product is computed in its dtype.
    """
    if torch.is_autocast_enabled(a.device.type):
        dtype = torch.get_autocast_dtype(a.device.type)
        a, b = a.to(dtype), b.to(dtype)
    if a.dtype == torch.float32:
        return a @ b
    if a.is_cuda and not torch.is_grad_enabled():
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float()


def head_of(model: Any, vocabulary: int, dtype: torch.dtype | None = None) -> Head:
    """The head over the first `vocabulary` ids, differentiable, including any adapter on it."""
    model = unwrap(model)
    module = model.get_output_embeddings()
    if module is None or not hasattr(module, "weight"):
        raise ModelError(f"{type(model).__name__} has no linear output head; it is not supported.")
    weight_VH, bias_V = adapted_head(module)
    if weight_VH.shape[0] < vocabulary:
        raise ModelError(
            f"The model's head has {weight_VH.shape[0]} rows but its tokenizer has {vocabulary} "
            "ids; resize its embeddings or use the tokenizer it was trained with."
        )
    config = model.config.get_text_config()
    if weight_VH.shape[0] > vocabulary:  # else no slice: the gradient of a slice is copied
        weight_VH = weight_VH[:vocabulary]
    return Head(
        weight_VH=weight_VH if dtype is None else weight_VH.to(dtype),
        bias_V=None if bias_V is None else bias_V[:vocabulary],
        scale=_logit_scale(config),
        softcap=getattr(config, SOFT_CAPS.get(config.model_type, "final_logit_softcapping"), None),
    )


def _logit_scale(config: Any) -> float:
    """What a family multiplies its logits by."""
    key, power = LOGIT_SCALES.get(config.model_type, ("", 1))
    return float(getattr(config, key, None) or 1.0) ** power


@dataclass
class CapturedLayers:
    """Hidden states by layer number, each (B, T, H), filled while the body runs."""

    layers: dict[int, Tensor] = field(default_factory=dict)


@contextmanager
def capture_layers(model: Any, layers: list[int]) -> Iterator[CapturedLayers]:
    """Capture the outputs of chosen layers in every forward inside the block.

    The hooks are outside gradient checkpointing, so they see each layer once and in the graph.
    """
    check_layers(layers, num_layers(model))
    captured = CapturedLayers()
    handles = []
    blocks = blocks_of(model)

    def first(output: Any) -> Tensor:
        tensor: Tensor = output[0] if isinstance(output, tuple) else output
        return tensor

    for layer in layers:
        if layer == 0:

            def keep_input(_m: nn.Module, args: Any, kwargs: Any) -> None:
                captured.layers[0] = args[0] if args else kwargs["hidden_states"]

            handles.append(blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True))
        else:

            def keep(_m: nn.Module, _args: Any, output: Any, layer: int = layer) -> None:
                captured.layers[layer] = first(output)

            handles.append(blocks[layer - 1].register_forward_hook(keep))
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def check_layers(layers: list[int], depth: int) -> None:
    """Raise `ModelError` for a layer that a model of `depth` blocks does not have."""
    for layer in layers:
        if not 0 <= layer <= depth:
            raise ModelError(
                f"Layer {layer} does not exist: the model has layers 0 (embeddings) to {depth} "
                "(output of the last block)."
            )
