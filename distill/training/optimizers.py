"""The optimisers a recipe may name, and the bytes of state that each keeps.

An optimiser is one function under `@optimizer(...)`, from parameter groups to a torch optimiser.
Registering it enrols it in the recipe and in `distill plan`. Those of bitsandbytes quantise their
moving averages in blocks of 256 numbers, with a byte a number and a float32 scale a block (arXiv
2110.02861); tensors of fewer than 4,096 numbers keep float32. Weights and gradients are always
float32.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, WithJsonSchema
from torch import nn

from attar.errors import RecipeError
from attar.registry import Registry

Groups = list[dict[str, Any]]  # what `torch.optim` calls parameter groups
Betas = tuple[float, float]
Build = Callable[[Groups, float, Betas], torch.optim.Optimizer]

QUANTIZED_BLOCK = 256  # numbers that share a scale
MIN_QUANTIZED = 4096  # numbers of the smallest tensor whose averages are quantised
MIN_PAGED = 100_000  # ... and of the smallest whose averages are paged


@dataclass(frozen=True)
class Optimizer:
    """A registered optimiser: how it is built, and what it keeps for every parameter.

    averages: moving averages a parameter. bits: of each average. paged: whether they may leave the
    GPU.
    """

    name: str
    build: Build
    averages: int
    bits: int
    paged: bool

    @property
    def by_bitsandbytes(self) -> bool:
        """Return whether bitsandbytes makes it."""
        return self.bits == 8 or self.paged

    def state_bytes(self, sizes: Iterable[int]) -> int:
        """Return the bytes of state for tensors of these sizes, in numbers."""
        total = 0
        for size in sizes:
            if self.bits == 8 and size >= MIN_QUANTIZED:
                total += self.averages * (size + 4 * math.ceil(size / QUANTIZED_BLOCK))
            else:
                total += self.averages * 4 * size
        return total


OPTIMIZERS: Registry[Optimizer] = Registry("optimizer")


def optimizer(
    name: str, *, averages: int, bits: int = 32, paged: bool = False
) -> Callable[[Build], Build]:
    """Register an optimiser with the moving averages that it keeps for each parameter."""

    def enrol(build: Build) -> Build:
        OPTIMIZERS.add(name)(Optimizer(name, build, averages, bits, paged))
        return build

    return enrol


@optimizer("adamw", averages=2)
def adamw(groups: Groups, lr: float, betas: Betas) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101) of torch, fused: it takes a fifth of the time on a CPU."""
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


@optimizer("adamw_8bit", averages=2, bits=8)
def adamw_8bit(groups: Groups, lr: float, betas: Betas) -> torch.optim.Optimizer:
    """AdamW whose two averages take a byte a parameter each."""
    from bitsandbytes.optim.adamw import AdamW8bit

    return AdamW8bit(groups, lr=lr, betas=betas)


@optimizer("paged_adamw", averages=2, paged=True)
def paged_adamw(groups: Groups, lr: float, betas: Betas) -> torch.optim.Optimizer:
    """AdamW with float32 averages that leave the GPU when its memory runs out."""
    from bitsandbytes.optim.adamw import PagedAdamW32bit

    return PagedAdamW32bit(groups, lr=lr, betas=betas)


@optimizer("paged_adamw_8bit", averages=2, bits=8, paged=True)
def paged_adamw_8bit(groups: Groups, lr: float, betas: Betas) -> torch.optim.Optimizer:
    """`adamw_8bit` whose averages leave the GPU when its memory runs out (arXiv 2305.14314)."""
    from bitsandbytes.optim.adamw import PagedAdamW8bit

    return PagedAdamW8bit(groups, lr=lr, betas=betas)


@optimizer("lion_8bit", averages=1, bits=8)
def lion_8bit(groups: Groups, lr: float, betas: Betas) -> torch.optim.Optimizer:
    """Lion (arXiv 2302.06675): one average, steps of one size; needs a third of AdamW's `lr`."""
    from bitsandbytes.optim.lion import Lion8bit

    return Lion8bit(groups, lr=lr, betas=betas)


@optimizer("ademamix_8bit", averages=3, bits=8)
def ademamix_8bit(groups: Groups, lr: float, betas: Betas) -> torch.optim.Optimizer:
    """AdEMAMix (arXiv 2409.03137): AdamW with a second, slow average, for long trainings."""
    from bitsandbytes.optim.ademamix import AdEMAMix8bit

    return AdEMAMix8bit(groups, lr=lr, betas=(*betas, 0.9999))  # type: ignore[arg-type]


def _known(name: str) -> str:
    try:
        OPTIMIZERS[name]
    except RecipeError as error:
        raise ValueError(str(error)) from None
    return name


OptimizerName = Annotated[
    str, AfterValidator(_known), WithJsonSchema({"type": "string", "enum": list(OPTIMIZERS)})
]


def check_optimizer(path: str, name: str, device: torch.device) -> None:
    """Raise `RecipeError` where the optimiser that `path` names cannot run here."""
    found = OPTIMIZERS[name]
    if found.paged and device.type != "cuda":
        plain = name.removeprefix("paged_")
        raise RecipeError(
            f"`{path}: {name}` moves its state between a GPU and this machine's memory, and there "
            f"is no GPU here; use `{plain}`."
        )
    if found.by_bitsandbytes and importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError(
            f"`{path}: {name}` needs bitsandbytes, which is not installed; `pip install "
            "bitsandbytes`, or use `adamw`."
        )


def make_optimizer(
    module: nn.Module,
    name: str,
    lr: float,
    betas: Betas,
    weight_decay: float,
    factors: Mapping[int, float] | None = None,
) -> torch.optim.Optimizer:
    """Return the optimiser of a module's learning parameters; only matrices have weight decay.

    factors: a factor on the learning rate by a parameter's id, 1 where absent; each group
    keeps its own as `lr_factor`.
    """
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for parameter in module.parameters():
        if not parameter.requires_grad:
            continue
        factor, matrix = (factors or {}).get(id(parameter), 1.0), parameter.ndim >= 2
        decay = weight_decay if matrix else 0.0
        group = {"params": [], "weight_decay": decay, "lr_factor": factor}
        groups.setdefault((factor, matrix), group)["params"].append(parameter)
    order = sorted(groups, reverse=True)
    return OPTIMIZERS[name].build([groups[key] for key in order], lr, betas)


def set_rate(made: Any, lr: float) -> None:
    """Set the learning rate of every group: `lr` times the group's own factor."""
    for group in made.param_groups:
        group["lr"] = lr * group["lr_factor"]


def restore_paged_state(made: Any) -> None:
    """Put loaded averages back into paged memory: loading them leaves them in the GPU's own."""
    if not getattr(made, "is_paged", False):
        return
    for parameter, state in made.state.items():
        for name in ("state1", "state2"):
            loaded = state.get(name)
            if loaded is not None and loaded.numel() >= MIN_PAGED:
                paged = made.get_state_buffer(parameter, dtype=loaded.dtype)
                state[name] = paged.copy_(loaded)
