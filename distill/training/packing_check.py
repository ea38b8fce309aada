"""A check that a model's attention mask, built from position ids, separates packed examples."""

from __future__ import annotations

import torch
from torch import nn

from attar.errors import ModelError
from attar.models.structure import run_body


@torch.no_grad()
def check_examples_stay_apart(model: nn.Module, vocabulary: int) -> None:
    """Raise `ModelError` if an example's hidden states change with its neighbour in the row.

    A family whose attention does not read position ids would silently train on mixed contexts. The
    check costs two forwards of twelve tokens.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    ids = torch.arange(18, device=device) % vocabulary
    positions_BT = torch.arange(6, device=device).repeat(2).unsqueeze(0)
    hidden = []
    for neighbour in (ids[:6], ids[6:12]):
        batch: dict[str, torch.Tensor | None] = {
            "input_ids": torch.cat([neighbour, ids[12:]]).unsqueeze(0),
            "position_ids": positions_BT,
            "attention_mask": None,
        }
        hidden.append(run_body(model, batch)[:, 6:].float())
    model.train(was_training)
    if not torch.allclose(hidden[0], hidden[1], atol=1e-3, rtol=1e-3):
        raise ModelError(
            f"{type(model).__name__} does not separate packed examples; set `data.packing: false`."
        )
