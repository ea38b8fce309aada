"""Rotate the residual stream of a model to its principal axes, the strongest first.

This is SliceGPT (arXiv 2401.15024) with one rotation Q for the whole model, so that the result is a
plain checkpoint of the same function. The weights of norms are folded into the linear layers behind
them, embeddings and output projections are multiplied by Q, and the layers behind norms by its
inverse. The head absorbs the weights of the last norm, so a head that was tied to the embedding
becomes untied, and a model without a head cannot be rotated. Cutting the last channels of a rotated
model loses least.

Legend: B rows, T tokens of a row, N tokens of all rows, H channels.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import ModelError
from attar.models.structure import body_of, capture_layers, num_layers, run_body, unwrap
from students.layer_inputs import BATCH_ROWS
from students.pruning.architectures import (
    PrunableArchitecture,
    axes_of,
    block_number,
    prunable_architecture,
)


def can_rotate(family: PrunableArchitecture) -> bool:
    """Whether a family can be rotated: norms stand only before layers and subtract no mean."""
    return family.norms == "before" and family.norm_weight != "layer"


@torch.inference_mode()
def principal_channels(model: Any, input_ids_BT: Tensor) -> Tensor:
    """Return the principal axes of all layers' hidden states, Q (H, H), the strongest first.

    Every token has the same weight, as behind a norm. Q is orthogonal.
    """
    depth, moments_HH = num_layers(model), None
    device = next(model.parameters()).device
    for ids_BT in input_ids_BT.to(device).split(BATCH_ROWS):
        with capture_layers(model, list(range(depth + 1))) as captured:
            run_body(model, {"input_ids": ids_BT, "attention_mask": None})
        for hidden_BTH in captured.layers.values():
            hidden_NH = hidden_BTH.flatten(0, -2).double()
            hidden_NH = hidden_NH * hidden_NH.square().mean(-1, keepdim=True).rsqrt()
            products_HH = hidden_NH.T @ hidden_NH
            moments_HH = products_HH if moments_HH is None else moments_HH + products_HH
    assert moments_HH is not None
    _, axes_HH = torch.linalg.eigh(moments_HH)
    descending_HH: Tensor = axes_HH.flip(1).float()
    return descending_HH


@torch.no_grad()
def rotate(model: Any, rotation_HH: Tensor) -> nn.Module:
    """Return a model of the same function whose residual stream is the model's times Q.

    The result is float32 and its head is untied. Raises `ModelError` for a model without a head.
    """
    if body_of(model) is unwrap(model):
        raise ModelError(
            f"{type(model).__name__} has no head to absorb the last norm's weights, so it cannot "
            "be rotated; cut its channels by activation."
        )
    family, config = prunable_architecture(model), copy.deepcopy(model.config)
    config.get_text_config().tie_word_embeddings = False
    config.tie_word_embeddings = False
    device = next(model.parameters()).device
    rotated = type(model)._from_config(config, dtype=torch.float32).to(device)
    weights = {name: tensor.float() for name, tensor in model.state_dict().items()}
    rotation_HH = rotation_HH.to(device)
    one = 1.0 if family.norm_weight == "weight+1" else 0.0
    norms = {
        name: tensor + one
        for name, tensor in weights.items()
        if axes_of(family, name) == "H" and name.endswith("norm.weight")
    }
    embedding = _name_of(model, model.get_input_embeddings())
    for name, tensor in weights.items():
        axes = axes_of(family, name)
        if name in norms:
            weights[name] = torch.full_like(tensor, 1.0 - one)
        elif axes == "H":
            weights[name] = tensor @ rotation_HH
        elif axes in ("HQ", "HI"):
            weights[name] = rotation_HH.T @ tensor
        elif name == embedding:
            weights[name] = tensor @ rotation_HH
        elif axes.endswith("H"):
            weights[name] = (tensor * _norm_before(name, axes, norms)) @ rotation_HH
    rotated.load_state_dict(weights, strict=True)
    if getattr(model, "generation_config", None) is not None:  # classifiers have none
        rotated.generation_config = copy.deepcopy(model.generation_config)
    return rotated.eval()  # type: ignore[no-any-return]


def _name_of(model: nn.Module, module: nn.Module) -> str:
    return next(f"{name}.weight" for name, one in model.named_modules() if one is module)


def _norm_before(name: str, axes: str, norms: dict[str, Tensor]) -> Tensor:
    """Return the weight of the norm before a layer: in a block the first norm for attention, the
    second for the feed-forward; outside blocks the last norm.
    """
    block = block_number(name)
    mine = [weight_H for norm, weight_H in norms.items() if block_number(norm) == block]
    return mine[1] if axes == "IH" else mine[0]
