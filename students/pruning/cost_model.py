"""The cost of a student of given sizes, known before it is cut: parameters, bytes, latency.

Parameters and bytes follow from the teacher's parameters and the axes of each. Latency is measured
on models with random weights; for other sizes it is predicted by a linear fit.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from students.pruning.architectures import (
    PrunableArchitecture,
    Sizes,
    axes_of,
    block_number,
    prunable_architecture,
    sizes_of,
)
from students.pruning.prune import KeptParts, smaller_config

WeightFormat = Literal["bf16", "int8", "nf4"]
BYTES_PER_WEIGHT = {
    "bf16": 2.0,
    "int8": 1.0,
    "nf4": 0.5 + 4 / 64,
}  # with a float32 scale per 64 weights
LATENCY_TOKENS = 32  # length of the text that a latency is measured on
LATENCY_REPEATS = 5  # measurements, whose median counts


@dataclass(frozen=True)
class _ParameterKind:
    """Parameters that scale alike.

    dims: (axis, length if the axis is never cut) per dimension.
    """

    dims: tuple[tuple[str, int], ...]
    in_block: bool
    quantized: bool


class Costs:
    """Parameters and bytes of students of any sizes, computed from their teacher's parameters."""

    def __init__(self, teacher: nn.Module) -> None:
        self.family, self.whole = prunable_architecture(teacher), sizes_of(teacher.config)
        self.kinds: Counter[_ParameterKind] = Counter()
        for name, parameter in teacher.named_parameters():  # tied parameters appear once
            block = block_number(name)
            if block is None or block == 0:
                self.kinds[_parameter_kind(name, parameter, self.family, block is not None)] += 1

    def _sum(
        self, sizes: Sizes, weigh: Callable[[_ParameterKind], float], blocks: bool = True
    ) -> float:
        by_axis = {
            "V": sizes.ids,
            "H": sizes.channels,
            "I": sizes.neurons,
            "Q": sizes.heads * sizes.head_size,
            "K": sizes.groups * sizes.head_size,
        }
        total = 0.0
        for kind, number in self.kinds.items():
            size = math.prod(by_axis.get(axis, length) for axis, length in kind.dims)
            times = sizes.blocks if kind.in_block else 1
            if blocks or not kind.in_block:
                total += number * times * size * weigh(kind)
        return total

    def parameters(self, sizes: Sizes) -> float:
        """Return the number of parameters of a student; tied ones count once."""
        return self._sum(sizes, lambda kind: 1.0)

    def outside_blocks(self, sizes: Sizes) -> float:
        """Return the number of parameters in embeddings, head and last norm."""
        return self._sum(sizes, lambda kind: 1.0, blocks=False)

    def bytes(self, sizes: Sizes, form: WeightFormat) -> float:
        """Return the bytes of its weights; int8 and nf4 keep embeddings, head and norms in bf16."""
        return self._sum(sizes, lambda kind: BYTES_PER_WEIGHT[form if kind.quantized else "bf16"])


def _parameter_kind(
    name: str, parameter: nn.Parameter, family: PrunableArchitecture, in_block: bool
) -> _ParameterKind:
    axes = axes_of(family, name)
    dims = tuple(zip(axes, parameter.shape, strict=True))
    fixed = tuple((axis, length if axis == "." else 0) for axis, length in dims)
    return _ParameterKind(fixed, in_block, in_block and len(axes) == 2)


class Latencies:
    """Latency of students of any sizes on this machine, as a share of the teacher's.

    A step of a decoder generates one token after 32, with a KV cache; a step of an encoder reads a
    text of 32 tokens. `measure` times a student in turn with the teacher; `predict` estimates from
    the sizes measured so far. `seconds` is the teacher's latency.
    """

    def __init__(self, teacher: Any, costs: Costs) -> None:
        self.teacher, self.costs = teacher, costs
        self.step = latency_step(teacher)
        self.seconds = median(_step_seconds(self.step, teacher) for _ in range(LATENCY_REPEATS))
        self.known: dict[Sizes, float] = {costs.whole: 1.0}

    def measure(self, sizes: Sizes) -> float:
        """Measure a student with random weights; return its share of the teacher's time."""
        if sizes not in self.known:
            student = self._random(sizes)
            pairs = [
                (_step_seconds(self.step, student), _step_seconds(self.step, self.teacher))
                for _ in range(LATENCY_REPEATS)
            ]
            self.known[sizes] = median(ours / theirs for ours, theirs in pairs)
        return self.known[sizes]

    def predict(self, sizes: Sizes) -> float:
        """Return the measured share, or predict it without measuring.

        The prediction is a ridge regression on a constant, the blocks, and the parameters inside
        and outside blocks.
        """
        if sizes in self.known:
            return self.known[sizes]
        rows = np.array([self._features(one) for one in self.known])
        found = np.array(list(self.known.values()))
        ridge = 1e-3 * np.eye(rows.shape[1])
        weights = np.linalg.solve(rows.T @ rows + ridge, rows.T @ found)
        return float(np.array(self._features(sizes)) @ weights)

    def _features(self, sizes: Sizes) -> list[float]:
        whole, costs = self.costs.whole, self.costs
        outside = costs.outside_blocks(sizes) / costs.outside_blocks(whole)
        inside = (costs.parameters(sizes) - costs.outside_blocks(sizes)) / costs.parameters(whole)
        return [1.0, sizes.blocks / whole.blocks, inside, outside]

    def _random(self, sizes: Sizes) -> nn.Module:
        config = smaller_config(self.teacher.config, leading_parts(sizes, self.costs.whole))
        parameter = next(self.teacher.parameters())
        student = type(self.teacher)._from_config(config, dtype=parameter.dtype)
        found: nn.Module = student.to(parameter.device).eval()
        return found


def leading_parts(sizes: Sizes, whole: Sizes) -> KeptParts:
    """Return the first parts along every axis, which are enough to make a config."""

    def lists(number: int, of: int) -> list[list[int]] | None:
        return [list(range(number))] * sizes.blocks if number < of else None

    return KeptParts(
        list(range(sizes.blocks)),
        lists(sizes.groups, whole.groups),
        lists(sizes.neurons, whole.neurons),
        list(range(sizes.channels)) if sizes.channels < whole.channels else None,
    )


def latency_step(model: Any) -> Callable[[Any], None]:
    """Return the function whose time is measured, for a model and for those cut out of it."""
    ids_BT = torch.arange(LATENCY_TOKENS, device=next(model.parameters()).device)[None]
    mask_BT = torch.ones_like(ids_BT)
    generates = model.can_generate()

    @torch.inference_mode()
    def step(model: Any, past: list[Any]) -> Tensor:
        if not generates:
            return model(input_ids=ids_BT, attention_mask=mask_BT)[0]  # type: ignore[no-any-return]
        if not past:
            past.append(model(input_ids=ids_BT, use_cache=True).past_key_values)
        logits: Tensor = model(input_ids=ids_BT[:, -1:], past_key_values=past[0]).logits
        return logits

    return step  # type: ignore[return-value]


def _step_seconds(step: Any, model: Any) -> float:
    """Return the median seconds of three steps after one warm-up step."""
    past: list[Any] = []
    found = []
    for _ in range(4):
        start = time.perf_counter()
        float(step(model, past).flatten()[0])  # waits for a GPU
        found.append(time.perf_counter() - start)
    return median(found[1:])
