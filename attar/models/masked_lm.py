"""Masked language models: loading one whose head can be applied separately."""

from __future__ import annotations

import torch
from torch import nn

from attar.models.head_check import check_head
from attar.models.loading import load_model
from attar.models.task_heads import MASKED, NEW_HEAD_WARNINGS
from attar.quiet import errors_only


def load_masked_lm(source: str, *, trust_remote_code: bool = False) -> nn.Module:
    """An `AutoModelForMaskedLM` in float32; a head that the checkpoint lacks is initialised.

    Raises `ModelError` where the head does not end in one linear map.
    """
    with errors_only(NEW_HEAD_WARNINGS):
        model = load_model(
            source, auto=MASKED, dtype=torch.float32, trust_remote_code=trust_remote_code
        )
    check_head(model, source)
    return model
