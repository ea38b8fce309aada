"""Running the body and the head of a model with peft adapters separately.

Legend: B rows, T tokens, P learned positions, V vocabulary, H width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def prepends(model: Any) -> bool:
    """Whether the model prepends learned positions to the text: prefix, prompt or p-tuning."""
    return bool(getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False))


def run_prompted(model: Any, body: Any, batch: dict[str, Tensor | None]) -> Tensor:
    """Final hidden states (B, T, H) of the text after the learned positions.

    Each row is one example, padded on the right; its positions continue after the learned ones. The
    learned positions are computed in float32, even under autocast.
    """
    ids_BT, positions_BT = batch["input_ids"], batch["position_ids"]
    assert ids_BT is not None
    assert positions_BT is not None
    config = model.active_peft_config
    with torch.autocast(ids_BT.device.type, enabled=False):
        learned = model.get_prompt(len(ids_BT))
    positions_BT = positions_BT + config.num_virtual_tokens
    inputs = {**batch, "position_ids": positions_BT, "use_cache": False}
    if not isinstance(learned, Tensor):  # keys and values of every block
        hidden_BTH: Tensor = body(**inputs, past_key_values=learned).last_hidden_state
        return hidden_BTH
    text_BTH = model.word_embeddings(ids_BT)
    learned_P = torch.arange(config.num_virtual_tokens, device=ids_BT.device)
    inputs["position_ids"] = torch.cat([learned_P.expand(len(ids_BT), -1), positions_BT], dim=1)
    inputs["input_ids"] = None
    inputs["inputs_embeds"] = torch.cat([learned.to(text_BTH.dtype), text_BTH], dim=1)
    output: Tensor = body(**inputs).last_hidden_state
    return output[:, config.num_virtual_tokens :]


def adapted_head(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight (V, H) and bias (V,) of a head with the adapters that peft put on it.

    LoRA adds its delta; DoRA then gives each row its learned length (the norm it is divided by is
    a constant, section 4.3 of arXiv 2402.09353); (IA)^3 scales rows and bias, or columns.
    """
    weight_VH, bias_V = module.weight, getattr(module, "bias", None)
    if getattr(module, "disable_adapters", False):
        return weight_VH, bias_V
    for name in getattr(module, "active_adapters", ()):
        if name in getattr(module, "lora_A", ()):
            weight_VH = weight_VH + module.get_delta_weight(name)
            if name in module.lora_magnitude_vector:
                length_V = module.lora_magnitude_vector[name].weight
                norm_V = weight_VH.detach().norm(dim=1)
                weight_VH = weight_VH * (length_V / norm_V).unsqueeze(-1)
        if name in getattr(module, "ia3_l", ()):
            factor = module.ia3_l[name]  # (V, 1), or (1, H) on the input
            weight_VH = weight_VH * factor
            if bias_V is not None and not module.is_feedforward:
                bias_V = bias_V * factor.flatten()
    return weight_VH, bias_V
