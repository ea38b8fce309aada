"""Losses: one value a token, in nats, in log space. Masking, weights and averages live elsewhere.

Legend: N tokens counted, O outcomes (V ids; or K entries and `the rest`), V vocabulary, H width.

A loss over distributions sees log-probabilities of the same outcomes for student and teacher, so
one definition serves the full vocabulary and every sparse codec. Temperature (both at T, value
times T^2) is applied by the objective. docs/losses.md is generated from this registry.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from attar.registry import Registry
from teachers.signals import Distribution, SparseDistribution

Reads = Literal["distribution", "labels", "hidden"]


@dataclass(frozen=True)
class Loss:
    """A registered loss: what it reads, its function, and two of its properties.

    `divergence`: zero at the teacher. `linear`: its gradient is linear in the teacher's
    probabilities, so that an unbiased sample of them gives an unbiased gradient.
    """

    name: str
    reads: Reads
    function: Callable[..., Tensor]
    divergence: bool
    linear: bool
    source: str

    def parameters(self) -> dict[str, tuple[Any, Any]]:
        """(type, default) of each keyword-only parameter: these are keys of its recipe term."""
        signature = inspect.signature(self.function, eval_str=True)
        return {
            p.name: (p.annotation, p.default)
            for p in signature.parameters.values()
            if p.kind is inspect.Parameter.KEYWORD_ONLY
        }


LOSSES: Registry[Loss] = Registry("loss")


def loss(
    name: str, *, reads: Reads, divergence: bool = True, linear: bool = False, source: str
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Decorator that enrols a loss in the recipe, the tests and the table of docs/losses.md."""

    def enrol(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        LOSSES.add(name)(Loss(name, reads, function, divergence, linear, source))
        return function

    return enrol


def _expected(logprobs_NO: Tensor, values_NO: Tensor) -> Tensor:
    """sum_o p_o v_o, with outcomes of probability zero left out (and no NaN from 0 x inf)."""
    possible = logprobs_NO > -torch.inf
    zero = torch.zeros_like(values_NO)
    weights = torch.where(possible, logprobs_NO, zero).exp()
    return torch.where(possible, weights * torch.where(possible, values_NO, zero), zero).sum(-1)


@loss("forward_kl", reads="distribution", linear=True, source="Hinton et al. 2015, 1503.02531")
def forward_kl(student_NO: Tensor, teacher_NO: Tensor) -> Tensor:
    """KL(teacher || student) = sum_o t_o (log t_o - log s_o). Covers all the teacher's modes."""
    return _expected(teacher_NO, teacher_NO - student_NO)


@loss("reverse_kl", reads="distribution", source="MiniLLM, 2306.08543")
def reverse_kl(student_NO: Tensor, teacher_NO: Tensor) -> Tensor:
    """KL(student || teacher) = sum_o s_o (log s_o - log t_o). Seeks the teacher's main mode."""
    return _expected(student_NO, student_NO - teacher_NO)


@loss("cross_entropy", reads="labels", divergence=False, source="maximum likelihood")
def cross_entropy(student_NV: Tensor, labels_N: Tensor) -> Tensor:
    """-log s(label): plain next-token loss on the text itself."""
    return -student_NV.gather(-1, labels_N.unsqueeze(-1)).squeeze(-1)


@loss("hidden_mse", reads="hidden", source="FitNets, 1412.6550; normalised here")
def hidden_mse(student_NH: Tensor, teacher_NH: Tensor) -> Tensor:
    """|s - t|^2 / |t|^2: squared error by the teacher's energy, so width does not count."""
    student_NH, teacher_NH = student_NH.float(), teacher_NH.float()
    energy_N = teacher_NH.square().mean(-1).clamp(min=1e-12)
    return (student_NH - teacher_NH).square().mean(-1) / energy_N


@loss("hidden_cosine", reads="hidden", source="DistilBERT, 1910.01108")
def hidden_cosine(student_NH: Tensor, teacher_NH: Tensor) -> Tensor:
    """1 - cos(s, t): direction only."""
    return 1 - torch.cosine_similarity(student_NH.float(), teacher_NH.float(), dim=-1)


def on_outcomes(
    student_logits_NV: Tensor, target: Distribution, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of student and teacher over the outcomes that the target tells apart.

    Dense targets: all V ids. Sparse ones with a tail: their K entries and the rest, on both sides;
    the student's rest is summed from its own logits, not taken as one minus a sum near one.
    Unbiased samples: their entries only, which serves losses that are linear in the teacher.
    """
    student_NV = (student_logits_NV / temperature).log_softmax(-1)
    if not isinstance(target, SparseDistribution):
        return student_NV, target.logprobs()
    entries_NK = student_NV.gather(-1, target.ids_NK)
    used_NK = target.logprobs_NK > -torch.inf
    entries_NK = torch.where(used_NK, entries_NK, -torch.inf)
    if target.tail_N is None:
        return entries_NK, target.logprobs_NK
    # An unused slot repeats a used id of its row, so masking by id is right for it as well.
    rest_N1 = student_NV.scatter(-1, target.ids_NK, -torch.inf).logsumexp(-1, keepdim=True)
    student = torch.cat([entries_NK, rest_N1], -1)
    return student, torch.cat([target.logprobs_NK, target.tail_N.unsqueeze(-1)], -1)
