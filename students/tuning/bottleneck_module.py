"""Bottleneck adapters: two small linear layers behind a frozen one, h + scale x up(act(down(h))).

Sources: Houlsby et al., arXiv 1902.00751 (behind attention and behind feed-forward); Pfeiffer et
al., arXiv 2005.00247 (behind feed-forward only). Both act before the residual is added.

This file imports only torch and safetensors. Copied beside an adapter as `bottleneck.py`, it loads
that adapter:

    from bottleneck import load_bottleneck
    model = load_bottleneck(AutoModelForCausalLM.from_pretrained(BASE), FOLDER)

Every error for the user is a `ValueError` of one sentence.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PEFT_TYPE = "BOTTLENECK"

# The output projections (of attention, of the feed-forward) by model family.
BOTTLENECK_LAYOUTS = (
    ("self_attn.o_proj", "mlp.down_proj"),  # Llama, Qwen, Mistral, Gemma, Cohere, OLMo, Phi-3
    ("self_attn.o_proj", "mlp.c_proj"),  # StarCoder2
    ("self_attn.dense", "mlp.fc2"),  # Phi
    ("self_attn.out_proj", "fc2"),  # OPT
    ("attn.c_proj", "mlp.c_proj"),  # GPT-2, GPT-BigCode
    ("attn.attention.out_proj", "mlp.c_proj"),  # GPT-Neo
    ("attn.out_proj", "mlp.fc_out"),  # GPT-J
    ("attention.dense", "mlp.dense_4h_to_h"),  # GPT-NeoX
    ("self_attention.dense", "mlp.dense_4h_to_h"),  # BLOOM, Falcon
    ("attention.output.dense", "output.dense"),  # BERT, RoBERTa, ELECTRA, DeBERTa
    ("attention.out_lin", "ffn.lin2"),  # DistilBERT
    ("attn.Wo", "mlp.Wo"),  # ModernBERT
)
BOTTLENECK_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": nn.functional.gelu,
    "relu": nn.functional.relu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class BottleneckConfig:
    """Where adapters are placed and how large they are.

    `size` is the channels of the bottleneck; by default the layer's outputs / `reduction`.
    """

    placement: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    reduction: int = 16
    size: int | None = None
    activation: Literal["gelu", "relu", "silu", "tanh"] = "gelu"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.placement not in ("houlsby", "pfeiffer"):
            raise ValueError(f"`placement: {self.placement}` is not houlsby or pfeiffer.")
        if self.activation not in BOTTLENECK_ACTIVATIONS:
            known = ", ".join(BOTTLENECK_ACTIVATIONS)
            raise ValueError(f"`activation: {self.activation}` is not one of {known}.")

    def size_for(self, width: int) -> int:
        """Return the channels of the bottleneck behind a layer of `width` outputs."""
        size = self.size if self.size is not None else width // self.reduction
        if size < 1:
            raise ValueError(
                f"`reduction: {self.reduction}` leaves no channel of the model's {width}; "
                f"it can be {width} at most."
            )
        return size


class Bottleneck(nn.Module):
    """A frozen linear layer of any kind with an adapter behind it, which starts as the identity."""

    def __init__(self, linear: nn.Module, config: BottleneckConfig) -> None:
        super().__init__()
        self.linear, self.config = linear, config
        width = outputs_of(linear)
        size = config.size_for(width)
        self.down = nn.Linear(width, size, dtype=torch.float32)
        self.up = nn.Linear(size, width, dtype=torch.float32)
        self.activation = BOTTLENECK_ACTIVATIONS[config.activation]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's outputs, adapted."""
        return self.adapt(self.linear(*args, **kwargs))

    def adapt(self, hidden: Tensor) -> Tensor:
        """Apply the adapter to outputs of the layer, (..., H) to (..., H), in their dtype."""
        inner = self.activation(self.down(hidden.to(self.down.weight.dtype)))
        added: Tensor = self.config.scale * self.up(inner)
        return hidden + added.to(hidden.dtype)

    def reset(self, generator: torch.Generator) -> None:
        """Draw `down` at random and set `up` to zero, so that the adapter is the identity."""
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5, generator=generator)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)


def outputs_of(linear: nn.Module) -> int:
    """Return the outputs of a linear layer: plain, quantised by bitsandbytes, or a `Conv1D`."""
    return int(linear.out_features if hasattr(linear, "out_features") else linear.nf)  # type: ignore[arg-type]


def adapted_linears(model: nn.Module, placement: str) -> list[str]:
    """Return the names of the linear layers that get an adapter, in the model's order.

    Raises `ValueError` for a model that has none of the layouts in `BOTTLENECK_LAYOUTS`.
    """
    names = [name for name, _ in model.named_modules()]
    for attention, feed_forward in BOTTLENECK_LAYOUTS:
        behind_attention = [n for n in names if f".{n}".endswith(f".{attention}")]
        taken = set(behind_attention)
        behind_feed_forward = [
            n for n in names if f".{n}".endswith(f".{feed_forward}") and n not in taken
        ]
        if len(behind_attention) == len(behind_feed_forward) > 0:
            taken = set(behind_feed_forward) | (taken if placement == "houlsby" else set())
            return [n for n in names if n in taken]
    known = "; ".join(f"{a} and {f}" for a, f in BOTTLENECK_LAYOUTS)
    raise ValueError(
        f"{type(model).__name__} has no output projections of attention and feed-forward in every "
        f"block under a known name ({known}), so it cannot take a bottleneck adapter."
    )


def bottlenecks(model: nn.Module) -> dict[str, Bottleneck]:
    """Return the adapters in a model, by the name of the layer that they follow."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Bottleneck)}


def add_bottleneck(model: nn.Module, config: BottleneckConfig, seed: int = 0) -> nn.Module:
    """Freeze a model and add new trainable float32 adapters, in place; return the model.

    Raises `ValueError` for an unknown family and for a model that already has adapters.
    """
    if bottlenecks(model):
        raise ValueError("The model has a bottleneck adapter already; remove_bottleneck first.")
    names = adapted_linears(model, config.placement)
    made = {name: Bottleneck(model.get_submodule(name), config) for name in names}
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, adapter in made.items():
        device = next(adapter.linear.parameters()).device
        adapter.reset(generator)
        adapter.down.to(device)
        adapter.up.to(device)
        adapter.train(adapter.linear.training)
        _replace_module(model, name, adapter)
    return model


def remove_bottleneck(model: nn.Module) -> nn.Module:
    """Put the plain layers back: the base as it was before `add_bottleneck`."""
    for name, adapter in bottlenecks(model).items():
        _replace_module(model, name, adapter.linear)
    return model


def _replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def save_bottleneck(model: nn.Module, folder: str | Path) -> None:
    """Save only the adapters, in the file layout of peft. Raises `ValueError` if there are none."""
    found = bottlenecks(model)
    if not found:
        raise ValueError("The model has no bottleneck adapter to save.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    base = getattr(getattr(model, "config", None), "_name_or_path", None)
    config = next(iter(found.values())).config
    described = {"peft_type": PEFT_TYPE, "base_model_name_or_path": base, **asdict(config)}
    save_file(_tensors(found), str(folder / WEIGHTS_FILE), metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf8")


def load_bottleneck(model: nn.Module, folder: str | Path) -> nn.Module:
    """Add the adapters of a folder to their base, frozen, for inference; return the model.

    Raises `ValueError` for another kind of adapter, or one for another model.
    """
    folder = Path(folder)
    stored = load_file(str(folder / WEIGHTS_FILE))
    add_bottleneck(model, read_config(folder))
    expected = _tensors(bottlenecks(model))
    for name in sorted(stored.keys() | expected.keys()):
        needed, found = (tuple(t[name].shape) if name in t else None for t in (expected, stored))
        if needed != found:
            remove_bottleneck(model)
            raise ValueError(
                f"The adapter {folder} was made for another model: its {name} has shape {found}, "
                f"this model needs {needed}."
            )
    with torch.no_grad():
        for name, tensor in stored.items():
            model.get_parameter(name).copy_(tensor)
    model.requires_grad_(False)
    return model


def read_config(folder: str | Path) -> BottleneckConfig:
    """Read the configuration that `save_bottleneck` wrote."""
    values = json.loads((Path(folder) / CONFIG_FILE).read_text(encoding="utf8"))
    if values.get("peft_type") != PEFT_TYPE:
        raise ValueError(f"{folder} holds a {values.get('peft_type')} adapter, not a {PEFT_TYPE}.")
    known = {field.name for field in fields(BottleneckConfig)}
    return BottleneckConfig(**{key: values[key] for key in known & values.keys()})


def _tensors(found: dict[str, Bottleneck]) -> dict[str, Tensor]:
    """Return the trained tensors; names begin with the layer's name: `NAME.down.weight` etc."""
    return {
        f"{name}.{part}.{kind}": getattr(getattr(adapter, part), kind).detach().cpu().contiguous()
        for name, adapter in found.items()
        for part in ("down", "up")
        for kind in ("weight", "bias")
    }
