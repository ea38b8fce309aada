"""The memory of a training, part by part, before anything is loaded.

Legend: B rows, T tokens, V vocabulary, H width.

The student is made twice without weights: on the meta device with its method attached, to count
what learns; and as fake tensors, on which a forward allocates nothing and autograd tells exactly
what it would keep. benchmarks/memory.py compares the sum with the memory of real processes.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attar.device import default_device, held_bytes
from attar.errors import ModelError
from attar.models import loading
from attar.models.loading import Quantization
from attar.models.structure import num_layers, run_body, width
from attar.models.task_heads import CAUSAL
from distill.training.optimizers import OPTIMIZERS
from students.pruning.depth import cut_config

log = logging.getLogger(__name__)

LEAST_LIBRARIES = 0.3e9  # bytes resident on a CPU: interpreter, torch and transformers alone
# Bytes that glibc keeps free: 64 MiB at the top of its heap, and holes between what lasts
# (benchmarks/planned.py: 30 to 130 MB in the cache stage).
FREE_HEAP = 134e6
# Bytes a weight. 4-bit: and a 1-byte scale for 64 weights, and a 4-byte scale for 256 of those.
QUANTIZED = {
    "nf4": 0.5 + 1 / 64 + 4 / (64 * 256),
    "fp4": 0.5 + 1 / 64 + 4 / (64 * 256),
    "int8": 1.0,
}
HEAP = 1.1  # bytes that a CPU's allocator holds, for each byte in use
FLOAT32_COPIES = 5  # of one tensor in bitsandbytes' step on a CPU: averages, gradient, root
ACTIVATION_WIDTHS = 12  # widths of float32 kept a token and block, where it is not traced
KEPT_A_LINEAR = 1.2  # inputs and outputs kept of a linear map, where a block cannot be traced


@dataclass(frozen=True)
class Forward:
    """A forward: B rows of T tokens, and the dtypes of its weights and products."""

    rows: int
    tokens: int
    products: torch.dtype
    weights: torch.dtype = torch.float32
    base: Quantization = "none"


@dataclass(frozen=True)
class Traced:
    """What the memory of a training depends on, other than the optimiser."""

    learning: list[int]  # numbers in each tensor that learns
    weights: float  # bytes
    kept: float  # bytes that autograd keeps of a micro-batch below the head
    recomputed: float  # the same with gradient checkpointing: all blocks' inputs, and one block
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
    waiting: float  # gradients that exist together with the activations
    copies: float  # what the optimiser copies of one tensor at a time
    libraries: float

    on_cpu: bool

    @property
    def peak(self) -> float:
        """The most that is held at once: at the start or the end of the backward, or in the step.

        A CPU's allocator does not return the memory of the activations before the step is over.
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
    """The memory of a training with an optimiser.

    chunk: tokens whose logits exist at once. dense: the teacher's signal is its full distribution.
    """
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


@functools.cache
def libraries() -> float:
    """Bytes resident on a CPU beside models and data; a GPU's allocator does not count them.

    What this process holds at the first call, since a plan has imported what a stage will, and how
    much that is depends on the installation (from 0.4 to 0.6 GB were seen); and the heap that stays
    free. A program that plans with models in memory counts these too.
    """
    if _device() != "cpu":
        return 0.0
    return max(LEAST_LIBRARIES, float(held_bytes())) + FREE_HEAP


def _device() -> str:
    return default_device().type


def skeleton_to_count(config: Any, auto: str) -> Any:
    """`attar.models.loading.skeleton`; raises `ModelError` for a model whose code came with it."""
    model = loading.skeleton(config, auto)
    if model is None:
        raise ModelError(
            f"A model of type `{config.model_type}` cannot be planned for: its code came with it "
            "and is not run to count its parameters."
        )
    return model


def student_skeleton(config: Any, depth: int, attach: Callable[[Any], nn.Module]) -> nn.Module:
    """The model of a `PretrainedConfig` with `depth` blocks and a method attached, on the meta
    device.
    """
    config = cut_config(config, list(range(depth)))
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the training itself warns
        return attach(skeleton_to_count(config, CAUSAL))


def trace_memory(model: nn.Module, forward: Forward) -> Traced:
    """Measure a skeleton, which cannot be used again: its parameters become fake tensors."""
    learning = [p.numel() for p in model.parameters() if p.requires_grad]
    weights = parameter_bytes(model, forward)
    head_VH: nn.Parameter = _head_of(model).weight
    (vocabulary, channels), head_learns = head_VH.shape, head_VH.requires_grad
    try:
        kept = _kept(model, forward)
    except Exception as error:  # a forward may read values, which fake tensors do not have
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
    """Bytes of all parameters: trained ones in float32, frozen linear maps below the head quantised
    as `base` says.
    """
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
    """Bytes of the tensors that a forward keeps for its backward, without parameters."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.autograd.graph import saved_tensors_hooks

    kept: dict[int, Tensor] = {}
    with FakeTensorMode():
        _make_fake(model, forward)
        own = {_storage(p) for p in model.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            if _storage(tensor) not in own:
                kept[_storage(tensor)] = tensor  # kept alive, so that its address is not reused
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
    """Replace every parameter and buffer by a fake tensor; tied parameters stay tied."""
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
