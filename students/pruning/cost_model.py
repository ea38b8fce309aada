"""What a student of some sizes would cost, known before it is cut: parameters, bytes, latency.

Parameters and bytes follow from the teacher's parameters and the axes of each. Latency is measured
on models of random weights, and between those it is a line through what a step multiplies.
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
BYTES_PER_WEIGHT = {"bf16": 2.0, "int8": 1.0, "nf4": 0.5 + 4 / 64}  # a weight; with a float32 scale each 64
PROMPT_TOKENS, LATENCY_REPEATS = 32, 5  # of a latency's text; of its measurements


@dataclass(frozen=True)
class _ParameterKind:
    """Parameters alike: their axes, each with what of it is never cut, and where they lie."""

    dims: tuple[tuple[str, int], ...]
    in_block: bool
    quantized: bool


class Costs:
    """Parameters and bytes of students of any sizes, by the parameters of their teacher."""

    def __init__(self, teacher: nn.Module) -> None:
        self.family, self.whole = prunable_architecture(teacher), sizes_of(teacher.config)
        self.kinds: Counter[_ParameterKind] = Counter()
        for name, parameter in teacher.named_parameters():  # tied ones come once
            block = block_number(name)
            if block is None or block == 0:
                self.kinds[_parameter_kind(name, parameter, self.family, block is not None)] += 1

    def _sum(self, sizes: Sizes, weigh: Callable[[_ParameterKind], float], blocks: bool = True) -> float:
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
        """Parameters of a student; tied ones count once."""
        return self._sum(sizes, lambda kind: 1.0)

    def outside_blocks(self, sizes: Sizes) -> float:
        """Parameters of embeddings, head and last norm."""
        return self._sum(sizes, lambda kind: 1.0, blocks=False)

    def bytes(self, sizes: Sizes, form: WeightFormat) -> float:
        """Bytes of its weights; int8 and nf4 leave embeddings, head and norms in bfloat16."""
        return self._sum(sizes, lambda kind: BYTES_PER_WEIGHT[form if kind.quantized else "bf16"])


def _parameter_kind(name: str, parameter: nn.Parameter, family: PrunableArchitecture, in_block: bool) -> _ParameterKind:
    axes = axes_of(family, name)
    dims = tuple(zip(axes, parameter.shape, strict=True))
    fixed = tuple((axis, length if axis == "." else 0) for axis, length in dims)
    return _ParameterKind(fixed, in_block, in_block and len(axes) == 2)


class Latencies:
    """Seconds of one step of students of any sizes on this machine, relative to the teacher's.

    A step is, of a decoder, one token behind a text of 32, with a KV cache; of an encoder a text of
    32. `measure` is in turn with the teacher; `predict` fits what was not measured to what was.
    """

    def __init__(self, teacher: Any, costs: Costs) -> None:
        self.teacher, self.costs = teacher, costs
        self.step = latency_step(teacher)
        self.seconds = median(_step_seconds(self.step, teacher) for _ in range(LATENCY_REPEATS))
        self.known: dict[Sizes, float] = {costs.whole: 1.0}

    def measure(self, sizes: Sizes) -> float:
        """A student's share of the teacher's time, measured on random weights."""
        if sizes not in self.known:
            student = self._random(sizes)
            pairs = [
                (_step_seconds(self.step, student), _step_seconds(self.step, self.teacher)) for _ in range(LATENCY_REPEATS)
            ]
            self.known[sizes] = median(ours / theirs for ours, theirs in pairs)
        return self.known[sizes]

    def predict(self, sizes: Sizes) -> float:
        """The same at once: what was measured, or on a line through that, by a constant, the blocks
        and the weights that are read.
        """
        if sizes in self.known:
            return self.known[sizes]
        rows = np.array([self._features(one) for one in self.known])
        found = np.array(list(self.known.values()))
        ridge = 1e-3 * np.eye(rows.shape[1])
        line = np.linalg.solve(rows.T @ rows + ridge, rows.T @ found)
        return float(np.array(self._features(sizes)) @ line)

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
    """The first of everything: enough to make a config by."""

    def lists(number: int, of: int) -> list[list[int]] | None:
        return [list(range(number))] * sizes.blocks if number < of else None

    return KeptParts(
        list(range(sizes.blocks)),
        lists(sizes.groups, whole.groups),
        lists(sizes.neurons, whole.neurons),
        list(range(sizes.channels)) if sizes.channels < whole.channels else None,
    )


def latency_step(model: Any) -> Callable[[Any], None]:
    """What is timed of a model and of all that are cut from it."""
    ids_BT = torch.arange(PROMPT_TOKENS, device=next(model.parameters()).device)[None]
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
    """Median seconds of a few steps after one that is not counted."""
    past: list[Any] = []
    found = []
    for _ in range(4):
        start = time.perf_counter()
        float(step(model, past).flatten()[0])  # waits for a GPU
        found.append(time.perf_counter() - start)
    return median(found[1:])
