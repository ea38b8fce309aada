"""`final_hidden`: the teacher's final hidden state, from which its head gives all logits.

It serves any divergence at any temperature without the teacher's body in memory. States are coded
as in `basis`, but in the metric of the head: to second order KL(p || p') = d^T A d / 2 for an error
d of the state, with A the covariance of the head's rows under p, averaged over a sample of tokens.
In that metric the principal directions come first and all get one step, chosen for the KL that the
recipe allows.

Assets: the head (weight in the teacher's dtype, bias, scale, soft-cap), the mean, and the maps to
and from codes. The state is the one after the final norm, so the norm itself is not needed.

Legend: N tokens, H width, V vocabulary.
"""

from __future__ import annotations

from math import log2, sqrt
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from attar.config import Section
from attar.errors import RecipeError
from attar.models.structure import Head
from teachers.codecs.codec import CODECS, Assets, Gives, SignalColumns
from teachers.codecs.pca_basis import from_bands, principal, to_bands
from teachers.signals import DenseDistribution, TeacherChunk

MAX_LEARNED_CODE = 16_000  # in the learning sample: half of what 16 bits hold


@CODECS.add("final_hidden")
class FinalHidden(Section):
    """The final hidden state and the frozen head: the full distribution, any temperature."""

    gives: ClassVar[Gives] = "distribution"
    tail: ClassVar[str] = "none"
    learns: ClassVar[bool] = True
    name: Literal["final_hidden"] = "final_hidden"
    kl: float = Field(
        1e-4, gt=0, description="KL of the stored to the true distribution allowed, nats a token"
    )

    def learn(self, chunk: TeacherChunk) -> Assets:
        """Learn a basis in the head's metric, and keep the head."""
        hidden_NH = chunk.hidden_NH.double()
        mean_H = hidden_NH.mean(0)
        root_HH, inverse_HH = _roots(_metric(chunk))
        directions_HH = principal((hidden_NH - mean_H) @ root_HH)
        step = sqrt(24 * self.kl / len(mean_H))  # H coefficients, each off by step^2 / 12
        forward_HH = root_HH @ directions_HH / step
        largest = float(((hidden_NH - mean_H) @ forward_HH).abs().max())
        if largest > MAX_LEARNED_CODE:
            raise RecipeError(
                f"`cache.codec.kl` {self.kl:g} needs codes up to {largest:.0f}, beyond the 16 bits "
                f"that are stored; use {self.kl * (largest / MAX_LEARNED_CODE) ** 2:.0e} or more."
            )
        head = chunk.head
        assets = {
            "mean": mean_H.float(),
            "forward": forward_HH.float(),
            "backward": (step * directions_HH.T @ inverse_HH).float(),
            "head_weight": head.weight_VH.detach().clone(),
            "head_scale": torch.tensor(head.scale),
            "head_softcap": torch.tensor(head.softcap or torch.inf),
        }
        if head.bias_V is not None:
            assets["head_bias"] = head.bias_V.detach().clone()
        return {name: tensor.cpu() for name, tensor in assets.items()}

    def encode(self, chunk: TeacherChunk, assets: Assets) -> SignalColumns:
        """Codes in bands."""
        centred_NH = chunk.hidden_NH.float() - assets["mean"].to(chunk.hidden_NH.device)
        codes_NH = centred_NH @ assets["forward"].to(chunk.hidden_NH.device)
        return {f"final_{name}": column for name, column in to_bands(codes_NH).items()}

    def decode(
        self, columns: SignalColumns, num_tokens: int, temperature: float, assets: Assets
    ) -> DenseDistribution:
        """The decoded states with the frozen head."""
        mean_H = assets["mean"]
        bands = {name.removeprefix("final_"): column for name, column in columns.items()}
        codes_NH = from_bands(bands, num_tokens, mean_H.device)
        softcap = float(assets["head_softcap"])
        head = Head(
            assets["head_weight"],
            assets.get("head_bias"),
            float(assets["head_scale"]),
            None if softcap == torch.inf else softcap,
        )
        return DenseDistribution(codes_NH @ assets["backward"] + mean_H, head, temperature)

    def check_temperature(self, temperature: float) -> None:
        """Accept every temperature: the full distribution is known."""

    def bytes_per_token(self, vocabulary: int, width: int) -> float:
        """As measured (benchmarks/codecs.md): half a bit more when the KL is halved."""
        return width * max(0.5, 4.95 - 0.5 * log2(self.kl / 1e-3)) / 8


def _metric(chunk: TeacherChunk) -> Tensor:
    """E[Cov_p(w)] over tokens, (H, H) float64: W^T diag(mean p) W - E[(W^T p)(W^T p)^T]."""
    weight_VH = chunk.head.weight_VH.float()
    mean_V = torch.zeros(len(weight_VH), device=weight_VH.device)
    products_HH = torch.zeros(weight_VH.shape[1], weight_VH.shape[1], device=weight_VH.device)
    for hidden_NH in chunk.hidden_NH.split(256):
        p_NV = chunk.head.logits(hidden_NH).softmax(-1)
        mean_V += p_NV.sum(0)
        expected_NH = p_NV @ weight_VH
        products_HH += expected_NH.T @ expected_NH
    num_tokens = len(chunk.hidden_NH)
    second_HH = weight_VH.T @ (weight_VH * (mean_V / num_tokens).unsqueeze(-1))
    return (second_HH - products_HH / num_tokens).double() * chunk.head.scale**2


def _roots(metric_HH: Tensor) -> tuple[Tensor, Tensor]:
    """Square root of the metric and its inverse; a small ridge keeps every direction invertible."""
    values_H, vectors_HH = torch.linalg.eigh(metric_HH)
    values_H = values_H.clamp(min=0) + 1e-3 * values_H.mean().clamp(min=1e-12)
    root_H = values_H.sqrt()
    return (vectors_HH * root_H) @ vectors_HH.T, (vectors_HH / root_H) @ vectors_HH.T
