"""Low-rank adapters through peft, on a full-precision or an NF4 base; and the way back.

Merging is always into full precision, from a fresh load: an adapter merged into a 4-bit base is
rounded away (its delta is small against the quantisation step).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from attar.errors import ModelError
from attar.loading import Quantization, load_causal_lm
from attar.strict import Section


class LoraOptions(Section):
    """LoRA (arXiv 2106.09685), on an NF4 base when the method is `qlora` (2305.14314)."""

    method: Literal["qlora", "lora"] = "qlora"
    rank: int = Field(16, ge=1)
    alpha: int | None = Field(None, ge=1, description="scale x rank; twice the rank if absent")
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str | list[str] = Field(
        "all-linear", description="all-linear (every linear map but the head) or module names"
    )


def load_base(folder: Path, options: LoraOptions, trust_remote_code: bool = False) -> nn.Module:
    """The student that an adapter sits on: NF4 with bfloat16 compute, or float32 masters."""
    quantization: Quantization = "nf4" if options.method == "qlora" else "none"
    dtype = torch.bfloat16 if options.method == "qlora" else torch.float32
    return load_causal_lm(
        str(folder), dtype=dtype, quantization=quantization, trust_remote_code=trust_remote_code
    )


def add_adapter(model: Any, options: LoraOptions, seed: int) -> Any:
    """Wrap the model by peft; only the adapter learns, in float32."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model.requires_grad_(False)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha if options.alpha is not None else 2 * options.rank,
        lora_dropout=options.dropout,
        target_modules=options.targets,
        task_type="CAUSAL_LM",
    )
    try:
        wrapped = get_peft_model(model, config)
    except ValueError as error:
        linear = {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
        }
        raise ModelError(
            f"`specialize.targets: {options.targets}` matches no module; the model has "
            f"{', '.join(sorted(linear))}. ({error})"
        ) from None
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return wrapped


def merge_adapter(student: Path, adapter: Path, trust_remote_code: bool = False) -> nn.Module:
    """The full-precision student with the adapter merged in, both freshly loaded from disk."""
    from peft import PeftModel

    base = load_causal_lm(str(student), dtype=torch.float32, trust_remote_code=trust_remote_code)
    merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    return merged.eval()  # type: ignore[no-any-return]
