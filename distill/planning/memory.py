"""What a training holds in memory, part by part, before anything is loaded.

Legend: B rows, T tokens, V vocabulary, H width.

The student is made twice without weights: on the meta device with its method attached, to count
what learns; and as fake tensors, on which a forward allocates nothing and autograd says exactly
what it would keep. benchmarks/memory.py compares the sum with what processes take.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attar.device import default_device
from attar.errors import ModelError
from attar.models import loading
from attar.models.loading import Quantization
from attar.models.structure import num_layers, run_body, width
from attar.models.task_heads import CAUSAL
from distill.training.optimizers import OPTIMIZERS
from students.pruning.depth import cut_config

log = logging.getLogger(__name__)

LIBRARIES = 0.65e9  # resident on a CPU before a model is there: the interpreter, torch, peft ...
# Bytes a number: 4 bits and a byte for the scale of 64, whose own scales are shared by 256; a byte.
QUANTIZED = {
    "nf4": 0.5 + 1 / 64 + 4 / (64 * 256),
    "fp4": 0.5 + 1 / 64 + 4 / (64 * 256),
    "int8": 1.0,
}
HEAP = 1.1  # times what lives: what the allocator of a CPU holds between
FLOAT32_COPIES = 5  # of one tensor, while bitsandbytes steps it on a CPU: averages, gradient, root
ACTIVATION_WIDTHS = 12  # widths of float32 kept a token and block, where it is not traced
KEPT_A_LINEAR = 1.2  # times its input and output: what a block keeps where it cannot be traced


@dataclass(frozen=True)
class Forward:
    """What a forward is run on: B rows of T tokens, on weights and in products of some dtype."""

    rows: int
    tokens: int
    products: torch.dtype
    weights: torch.dtype = torch.float32
    base: Quantization = "none"


@dataclass(frozen=True)
class Traced:
    """What is known of a student and how it learns, whatever steps it."""

    learning: list[int]  # numbers in each tensor that learns
    weights: float  # bytes
    kept: float  # bytes that autograd keeps of a micro-batch below the head
    recomputed: float  # ... with gradient checkpointing: every block's input, one block's own
    head: tuple[int, int]  # V, H
    head_learns: bool
    products: torch.dtype


@dataclass(frozen=True)
class Footprint:
    """Bytes of each part. Gradients of the head exist from the forward on, the others later."""

    weights: float
    gradients: float
    states: float
    activations: float
    logits: float  # of a chunk, and the head in the dtype of products
    waiting: float  # gradients that are there while the activations are
    copies: float  # that the optimiser makes of one tensor at a time
    libraries: float

    on_cpu: bool

    @property
    def peak(self) -> float:
        """The most that is held at once: as the backward begins, at its end, or in the step.

        A CPU's allocator does not give back what the activations took before the step is over.
        """
        begins = self.waiting + self.activations
        ends = max(self.gradients, begins if self.on_cpu else 0)
        lasting = self.weights + self.states
        heap = HEAP if self.on_cpu else 1
        return self.libraries + heap * (lasting + max(begins + self.logits, ends + self.copies))


def footprint(
    traced: Traced,
    *,
    optimizer: str = "adamw",
    checkpointing: bool = False,
    accumulates: bool = False,
    chunk: int,
    dense: bool = False,
) -> Footprint:
    """The parts of one choice; `dense`: the teacher's signal is its full distribution."""
    found, (vocabulary, channels) = OPTIMIZERS[optimizer], traced.head
    on_cpu, size = _device() == "cpu", traced.products.itemsize
    gradients = 4 * sum(traced.learning)
    logits = chunk * vocabulary * (size if on_cpu else 4) * (2 if dense else 1)
    logits += size * vocabulary * channels if size < 4 else 0  # the head in the dtype of products
    waiting = 4 * vocabulary * channels if traced.head_learns else 0
    copies = FLOAT32_COPIES * 4 * max(traced.learning) if found.bits == 8 and on_cpu else 0
    return Footprint(
        weights=traced.weights,
        gradients=gradients,
        states=found.state_bytes(traced.learning),
        activations=traced.recomputed if checkpointing else traced.kept,
        logits=logits,
        waiting=gradients if accumulates else waiting,
        copies=copies,
        libraries=libraries(),
        on_cpu=on_cpu,
    )


def training_bytes(parameters: int, width: int, depth: int, tokens: int) -> float:
    """Bytes of a training that is not traced, without the libraries: weights, gradients and two
    averages in float32, and activations of this many tokens.
    """
    return 16.0 * parameters + 4.0 * ACTIVATION_WIDTHS * width * depth * tokens


def libraries() -> float:
    """Bytes resident on a CPU before any model is there; a GPU's allocator does not count them."""
    return LIBRARIES if _device() == "cpu" else 0.0


def _device() -> str:
    return default_device().type


def skeleton_to_count(config: Any, auto: str) -> Any:
    """See `attar.models.loading.skeleton`; `ModelError` for a model whose code came with it."""
    model = loading.skeleton(config, auto)
    if model is None:
        raise ModelError(
            f"What a model of type `{config.model_type}` takes cannot be planned: its code came "
            "with it and is not run to count its parameters."
        )
    return model


def student_skeleton(config: Any, depth: int, attach: Callable[[Any], nn.Module]) -> nn.Module:
    """The model of a `PretrainedConfig`, cut to `depth` blocks, on the meta device."""
    config = cut_config(config, list(range(depth)))
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # told again when the real one is made
        return attach(skeleton_to_count(config, CAUSAL))


def trace_memory(model: nn.Module, forward: Forward) -> Traced:
    """Measure a skeleton; afterwards its parameters are fake tensors: it is used up."""
    learning = [p.numel() for p in model.parameters() if p.requires_grad]
    weights = parameter_bytes(model, forward)
    head_VH: nn.Parameter = _head_of(model).weight
    (vocabulary, channels), head_learns = head_VH.shape, head_VH.requires_grad
    try:
        kept = _kept(model, forward)
    except Exception as error:  # a forward may ask for values, which fake tensors have not
        log.debug("activations are estimated, not traced: %s", error)
        kept = _by_maps(model, forward)
    depth, size = num_layers(model), max(forward.products.itemsize, forward.weights.itemsize)
    inputs = depth * forward.rows * forward.tokens * width(model) * size
    return Traced(
        learning,
        weights,
        kept,
        inputs + kept / depth,
        (vocabulary, channels),
        head_learns,
        forward.products,
    )


def parameter_bytes(model: nn.Module, forward: Forward) -> float:
    """Bytes of all parameters: what learns in float32, linear maps below the head as `base` has."""
    quantized = set()
    if forward.base != "none":
        quantized = {id(m.weight) for m in _maps_below_head(model) if not m.weight.requires_grad}
    total = 0.0
    for parameter in model.parameters():
        if id(parameter) in quantized:
            total += parameter.numel() * QUANTIZED[forward.base]
        else:
            learns = parameter.requires_grad
            total += parameter.numel() * (4 if learns else forward.weights.itemsize)
    return total


def _head_of(model: Any) -> Any:
    return model.get_output_embeddings()


def _maps_below_head(model: nn.Module) -> list[nn.Linear]:
    head = _head_of(model)
    return [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]


def _by_maps(model: nn.Module, forward: Forward) -> float:
    numbers = sum(m.in_features + m.out_features for m in _maps_below_head(model))
    return KEPT_A_LINEAR * numbers * forward.rows * forward.tokens * forward.products.itemsize


def _kept(model: nn.Module, forward: Forward) -> float:
    """Bytes of the tensors that a forward leaves for its backward; parameters do not count."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.autograd.graph import saved_tensors_hooks

    kept: dict[int, Tensor] = {}
    with FakeTensorMode():
        _make_fake(model, forward)
        own = {_storage(p) for p in model.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            if _storage(tensor) not in own:
                kept[_storage(tensor)] = tensor  # alive, so that no other takes its place
            return tensor

        ids_BT = torch.zeros(forward.rows, forward.tokens, dtype=torch.long, device=_device())
        places_BT = torch.arange(forward.tokens, device=_device()).expand_as(ids_BT)
        enabled = forward.products != torch.float32
        cast = torch.autocast(_device(), forward.products, enabled=enabled)
        with cast, saved_tensors_hooks(keep, lambda tensor: tensor):
            run_body(model.train(), {"input_ids": ids_BT, "position_ids": places_BT})
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _make_fake(model: nn.Module, forward: Forward) -> None:
    """Fake tensors for every parameter, tied ones once, and for every buffer."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in made:
                dtype = torch.float32 if parameter.requires_grad else forward.weights
                fake = torch.empty(parameter.shape, dtype=dtype, device=_device())
                made[id(parameter)] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
            if parameter is not None:
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                fake = torch.empty(buffer.shape, dtype=buffer.dtype, device=_device())
                module._buffers[name] = fake
