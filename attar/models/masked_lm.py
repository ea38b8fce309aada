"""Masked language models: loading one, and checking that its head can be applied separately."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from attar.errors import ModelError
from attar.models.loading import load_model
from attar.models.structure import head_of, run_body
from attar.models.task_heads import MASKED, silence_warnings

HEAD_TOLERANCE = 1e-3  # of the largest logit; float32 products in another order differ far less


def load_masked_lm(source: str, *, trust_remote_code: bool = False) -> nn.Module:
    """An `AutoModelForMaskedLM` in float32; a head that the checkpoint lacks is initialised.

    Raises `ModelError` where the head does not end in one linear map.
    """
    with silence_warnings():
        model = load_model(
            source, auto=MASKED, dtype=torch.float32, trust_remote_code=trust_remote_code
        )
    check_head(model)
    return model


@torch.inference_mode()
def check_head(model: nn.Module) -> None:
    """Raise `ModelError` unless `head_of` gives the same logits as the model itself."""
    own_map: Any = model.get_output_embeddings()  # type: ignore[operator]
    if own_map is None or not hasattr(own_map, "weight"):
        raise ModelError(f"{type(model).__name__} has no linear output map; it is not supported.")
    rows = int(own_map.weight.shape[0])
    device = next(model.parameters()).device
    ids_BT = (5 + 7 * torch.arange(8, device=device).unsqueeze(0)) % rows
    own = model(input_ids=ids_BT).logits.float()
    by_itself = head_of(model, rows).logits(
        run_body(model, {"input_ids": ids_BT, "attention_mask": None})
    )
    if not (own - by_itself).abs().max() <= HEAD_TOLERANCE * own.abs().max():
        raise ModelError(
            f"The logits of {type(model).__name__} are not one linear map, with its bias, of the "
            "states before it; this family is not supported."
        )
