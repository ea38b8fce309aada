"""Round weights to a number format: to the nearest level, or with compensation (GPTQ).

The change that an adapter makes is small against a 4-bit step, so rounding to nearest loses it.
Compensated rounding (GPTQ, arXiv 2210.17323) rounds the inputs of a layer one after another, the
largest on calibration text first. The weights of inputs not yet rounded absorb each error, so that
the layer's outputs on calibration text change little.

Legend: O outputs and I inputs of a linear layer, B rows, T tokens of a row, H width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import ModelError
from attar.models.structure import unwrap
from attar.progress import tracked
from students.layer_inputs import BlockwiseForward
from students.quantization.formats import NumberFormat, Scales

DAMPING_SHARE = 0.01  # damping of the second moments, relative to their mean diagonal
PANEL_INPUTS = 64  # inputs whose errors are applied to the remaining inputs in one product


@dataclass(frozen=True)
class RoundedWeight:
    """A rounded weight: its codes (O, I) uint8, indices of levels, and its stored scales."""

    number_format: NumberFormat
    codes_OI: Tensor
    scales: Scales

    def weight(self) -> Tensor:
        """Return the dequantised weight, (O, I) float32."""
        scale_OI, shift_OI = self.number_format.per_weight(self.scales, self.codes_OI)
        return self.number_format.values(self.codes_OI, scale_OI, shift_OI)


def round_nearest(weight_OI: Tensor, number_format: NumberFormat) -> RoundedWeight:
    """Round each weight to the nearest level, as the format's own quantiser does."""
    weight_OI = weight_OI.float()
    naive = number_format.naive(number_format.blocks(weight_OI))
    codes_OI = number_format.codes(weight_OI, *number_format.per_weight(naive, weight_OI))
    return RoundedWeight(number_format, codes_OI.to(torch.uint8), number_format.store(naive))


def round_compensated(
    weight_OI: Tensor, moments_II: Tensor, number_format: NumberFormat
) -> RoundedWeight:
    """Round so that a layer's outputs change little for inputs x with mean x x^T = `moments_II`.

    Each block takes the scale with the least squared error, weighted by the power of the inputs,
    out of several near the naive scale. Raises `ModelError` for moments that are not finite.
    """
    weight_OI, moments_II = weight_OI.float(), moments_II.float()
    if not moments_II.diagonal().any():  # e.g. an expert that received no token
        moments_II = torch.eye(len(moments_II), device=moments_II.device)
    scales = number_format.store(_search_scales(weight_OI, moments_II.diagonal(), number_format))
    order_I = moments_II.diagonal().argsort(descending=True)
    factor_II = _inverse_factor(moments_II[order_I][:, order_I])
    scale_OI, shift_OI = number_format.per_weight(scales, weight_OI)
    scale_IO = scale_OI.T[order_I].contiguous()
    shift_IO = None if shift_OI is None else shift_OI.T[order_I].contiguous()
    codes_IO = _compensate(
        weight_OI.T[order_I].contiguous(), factor_II, number_format, scale_IO, shift_IO
    )
    codes_OI = torch.empty_like(weight_OI, dtype=torch.uint8)
    codes_OI[:, order_I] = codes_IO.T
    return RoundedWeight(number_format, codes_OI, scales)


def _search_scales(weight_OI: Tensor, importance_I: Tensor, number_format: NumberFormat) -> Scales:
    """Return the scales with the least squared error, weighted by the inputs' power."""
    blocks_KS = number_format.blocks(weight_OI)
    importance_KS = number_format.blocks(importance_I.expand_as(weight_OI))
    naive = number_format.naive(blocks_KS)
    best = number_format.scaled(naive, 1.0)
    least_K = torch.full_like(best.scale_K, torch.inf)
    for factor in number_format.scale_factors:
        tried = number_format.scaled(naive, factor)
        scale_K1 = tried.scale_K[:, None]
        shift_K1 = None if tried.shift_K is None else tried.shift_K[:, None]
        codes_KS = number_format.codes(blocks_KS, scale_K1, shift_K1)
        error_KS = number_format.values(codes_KS, scale_K1, shift_K1) - blocks_KS
        cost_K = (error_KS.square() * importance_KS).sum(-1)
        better_K = cost_K < least_K
        least_K = torch.where(better_K, cost_K, least_K)
        scale_K = torch.where(better_K, tried.scale_K, best.scale_K)
        shift_K = best.shift_K
        if shift_K is not None and tried.shift_K is not None:
            shift_K = torch.where(better_K, tried.shift_K, shift_K)
        best = Scales(scale_K, shift_K)
    return best


def _inverse_factor(moments_II: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse moments, with as much damping as needed."""
    eye_II = torch.eye(len(moments_II), device=moments_II.device)
    damping = DAMPING_SHARE * float(moments_II.diagonal().mean())
    for _ in range(4):
        lower_II, failed = torch.linalg.cholesky_ex(moments_II + damping * eye_II)
        if not failed:
            inverse_II = torch.cholesky_inverse(lower_II)
            upper_II, failed = torch.linalg.cholesky_ex(inverse_II, upper=True)
            if not failed:
                found: Tensor = upper_II
                return found
        damping *= 10
    raise ModelError(
        "The inputs of a linear layer on the calibration text are not finite or hardly vary; use "
        "more calibration text, or `rounding: nearest`."
    )


def _compensate(
    weight_IO: Tensor,
    factor_II: Tensor,
    number_format: NumberFormat,
    scale_IO: Tensor,
    shift_IO: Tensor | None,
) -> Tensor:
    """Return codes (I, O), computed input by input; overwrites `weight_IO`."""
    inputs = len(weight_IO)
    codes_IO = torch.empty_like(weight_IO, dtype=torch.uint8)
    for start in range(0, inputs, PANEL_INPUTS):
        stop = min(start + PANEL_INPUTS, inputs)
        errors_PO = torch.empty_like(weight_IO[start:stop])
        for i in range(start, stop):
            shift_O = None if shift_IO is None else shift_IO[i]
            codes_O = number_format.codes(weight_IO[i], scale_IO[i], shift_O)
            codes_IO[i] = codes_O
            error_O = weight_IO[i] - number_format.values(codes_O, scale_IO[i], shift_O)
            error_O = error_O / factor_II[i, i]
            errors_PO[i - start] = error_O
            weight_IO[i + 1 : stop] -= torch.outer(factor_II[i, i + 1 : stop], error_O)
        weight_IO[stop:] -= factor_II[start:stop, stop:].T @ errors_PO
    return codes_IO


# A whole model -----------------------------------------------------------------------------------


def roundable_linears(model: Any) -> dict[str, nn.Linear]:
    """Return every `nn.Linear` but the head, by name: the layers that bitsandbytes quantises."""
    head = unwrap(model).get_output_embeddings()
    found = model.named_modules()
    return {name: m for name, m in found if isinstance(m, nn.Linear) and m is not head}


@torch.no_grad()
def round_model(
    model: Any,
    number_format: NumberFormat,
    input_ids_BT: Tensor | None,
) -> dict[str, RoundedWeight]:
    """Round every linear layer but the head, in place; return the rounded weights by name.

    With calibration ids, rounding is compensated and goes block by block, on inputs from the blocks
    already rounded, with two forwards per block; only the hidden states (B, T, H) are kept in
    memory. Without, it is to nearest.
    """
    linears = roundable_linears(model)
    rounded: dict[str, RoundedWeight] = {}
    if input_ids_BT is not None:
        names = {module: name for name, module in linears.items()}
        stream = BlockwiseForward(model, input_ids_BT)
        numbered = list(enumerate(stream.blocks))
        for number, block in tracked(numbered, f"rounding to {number_format.name}", "blocks"):
            for module, moments_II in stream.moments(number).items():
                found = round_compensated(module.weight, moments_II, number_format)
                rounded[names[module]] = found
                module.weight.copy_(found.weight())
            stream.advance(block, number)
    left = [(name, module) for name, module in linears.items() if name not in rounded]
    for name, module in tracked(left, f"rounding to {number_format.name}", "layers"):
        rounded[name] = round_nearest(module.weight, number_format)
        module.weight.copy_(rounded[name].weight())
    return rounded
