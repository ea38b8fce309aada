"""Losses: one value a token, in nats, in log space.

The objective masks, weights and averages these values.

Legend: N tokens counted, O outcomes (V ids; or K entries and `the rest`), V vocabulary, H width,
P pairs of answers, of which the chosen one's reward comes first.

A loss over distributions sees log-probabilities of the same outcomes for student and teacher, so
one definition serves the full vocabulary, every sparse codec, and classes; they are finite.
Temperature (both at T, value times T^2) is applied by the objective.
docs/reference/losses.md is generated from this registry.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from attar.registry import Registry
from teachers.signals import SparseDistribution, Target

Reads = Literal[
    "distribution", "labels", "sequence", "hidden", "relation", "vector", "similarity", "order",
    "rewards", "rollouts",
]  # fmt: skip


@dataclass(frozen=True)
class Loss:
    """A registered loss: what it reads, its function, and some of its properties.

    `divergence`: it is zero at the teacher. `linear`: its gradient is linear in the teacher's
    probabilities, so that an unbiased sample of them gives an unbiased gradient. `full`: it needs
    the probability of every id; entries and a rest are not enough. `needs_mass`: it is infinite
    where the student has mass and the teacher none. `ordered`: its function takes a third argument,
    whether the last outcome is a rest of many ids.
    """

    name: str
    reads: Reads
    function: Callable[..., Tensor]
    divergence: bool
    linear: bool
    full: bool
    needs_mass: bool
    ordered: bool
    source: str

    def parameters(self) -> dict[str, tuple[Any, Any]]:
        """Return (type, default) of each keyword-only parameter: these are keys of its term."""
        return keyword_parameters(self.function)


@cache  # asked in every step, and annotations are evaluated
def keyword_parameters(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Return (type, default) of each keyword-only parameter of a registered function."""
    signature = inspect.signature(function, eval_str=True)
    return {
        p.name: (p.annotation, p.default)
        for p in signature.parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }


LEAST = -1e4  # stands for log 0 where a sum must stay differentiable; exp of it is 0
LOSSES: Registry[Loss] = Registry("loss")
F = TypeVar("F", bound=Callable[..., Any])


def loss(
    name: str,
    *,
    reads: Reads,
    divergence: bool = True,
    linear: bool = False,
    full: bool = False,
    needs_mass: bool = False,
    ordered: bool = False,
    source: str,
) -> Callable[[F], F]:
    """Register a loss; this enrols it in the recipe, the tests and docs/reference/losses.md."""

    def enrol(function: F) -> F:
        properties = (divergence, linear, full, needs_mass, ordered)
        LOSSES.add(name)(Loss(name, reads, function, *properties, source))
        return function

    return enrol


# Parameters strictly between 0 and 1, and from 0 to below 1.
Between = Annotated[float, Field(gt=0, lt=1)]
Smoothing = Annotated[float, Field(ge=0, lt=1)]
Coefficient = Annotated[float, Field(ge=0)]


# Distributions -----------------------------------------------------------------------------------


def _expected(logprobs_NO: Tensor, values_NO: Tensor) -> Tensor:
    """Return sum_o p_o v_o, the mean of values under the distribution."""
    return (logprobs_NO.exp() * values_NO).sum(-1)


def _mixture(first_NO: Tensor, second_NO: Tensor, share: float) -> Tensor:
    """Return log(share x first + (1 - share) x second), three times faster than `logaddexp`.

    A sum below the smallest normal number is clamped; its weight is then as small.
    """
    mixture_NO = torch.lerp(second_NO.exp(), first_NO.exp(), share)
    return mixture_NO.clamp(min=torch.finfo(mixture_NO.dtype).tiny).log()


@loss("forward_kl", reads="distribution", linear=True, source="Hinton et al. 2015, 1503.02531")
def forward_kl(student_NO: Tensor, teacher_NO: Tensor) -> Tensor:
    """KL(teacher || student) = sum_o t_o (log t_o - log s_o). Covers all the teacher's modes."""
    return _expected(teacher_NO, teacher_NO - student_NO)


@loss("reverse_kl", reads="distribution", needs_mass=True, source="MiniLLM, 2306.08543")
def reverse_kl(student_NO: Tensor, teacher_NO: Tensor) -> Tensor:
    """KL(student || teacher) = sum_o s_o (log s_o - log t_o). Seeks the teacher's main mode."""
    return _expected(student_NO, student_NO - teacher_NO)


@loss("jsd", reads="distribution", source="GKD, 2306.13649, equation 1")
def jsd(student_NO: Tensor, teacher_NO: Tensor, *, beta: Between = 0.5) -> Tensor:
    """beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student.

    Bounded by log 2. Divided by beta it tends to the forward KL as beta goes to 0; by 1 - beta, to
    the reverse KL as beta goes to 1: for those ends name `forward_kl` and `reverse_kl`.
    """
    mixture_NO = _mixture(teacher_NO, student_NO, beta)
    ahead = _expected(teacher_NO, teacher_NO - mixture_NO)
    return beta * ahead + (1 - beta) * _expected(student_NO, student_NO - mixture_NO)


@loss("skew_kl", reads="distribution", source="DistiLLM, 2402.03898")
def skew_kl(student_NO: Tensor, teacher_NO: Tensor, *, alpha: Between = 0.1) -> Tensor:
    """KL(teacher || alpha teacher + (1 - alpha) student). Never more than -log alpha."""
    mixture_NO = _mixture(teacher_NO, student_NO, alpha)
    return _expected(teacher_NO, teacher_NO - mixture_NO)


@loss("skew_reverse_kl", reads="distribution", source="DistiLLM, 2402.03898")
def skew_reverse_kl(student_NO: Tensor, teacher_NO: Tensor, *, alpha: Between = 0.1) -> Tensor:
    """KL(student || alpha student + (1 - alpha) teacher). Never more than -log alpha."""
    mixture_NO = _mixture(student_NO, teacher_NO, alpha)
    return _expected(student_NO, student_NO - mixture_NO)


@loss(
    "adaptive_kl",
    reads="distribution",
    needs_mass=True,
    ordered=True,
    source="AKL, 2404.02657, section 4",
)
def adaptive_kl(
    student_NO: Tensor, teacher_NO: Tensor, rest: bool = False, *, head: Between = 0.5
) -> Tensor:
    """w KL(teacher || student) + (1 - w) KL(student || teacher), w the head's share of the gap.

    The gap is sum_o |t_o - s_o|; the head are the teacher's likeliest ids until their mass reaches
    `head`, the id that reaches it included. w takes no gradient. The rest outside stored entries
    belongs to the tail.
    """
    with torch.no_grad():
        teacher, gap_NO = teacher_NO.exp(), (teacher_NO.exp() - student_NO.exp()).abs()
        known = teacher.clone()
        if rest:
            known[..., -1] = -1.0  # sorted to the end, with any mass
        order_NO = known.argsort(dim=-1, descending=True, stable=True)
        ranked_NO = teacher.gather(-1, order_NO)
        before_NO = ranked_NO.cumsum(-1) - ranked_NO
        in_head_NO = before_NO < head
        if rest:
            in_head_NO[..., -1] = False
        ranked_gap_NO = gap_NO.gather(-1, order_NO)
        in_head_N = (ranked_gap_NO * in_head_NO).sum(-1)
        in_all_N = gap_NO.sum(-1)
        share_N = torch.where(in_all_N > 0, in_head_N / in_all_N.clamp(min=1e-30), 0.5)
    ahead_N, back_N = forward_kl(student_NO, teacher_NO), reverse_kl(student_NO, teacher_NO)
    return share_N * ahead_N + (1 - share_N) * back_N


@loss("tvd", reads="distribution", source="f-distill, 2307.15190")
def tvd(student_NO: Tensor, teacher_NO: Tensor) -> Tensor:
    """1/2 sum_o |t_o - s_o|: total variation distance, in probability (0 to 1), not in nats."""
    return 0.5 * (teacher_NO.exp() - student_NO.exp()).abs().sum(-1)


@loss("logit_mse", reads="distribution", full=True, source="Ba and Caruana 2014, 1312.6184")
def logit_mse(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """mean_v (log s_v - log t_v - c)^2, c the mean difference: logits, each side less its mean.

    Every id counts the same, so the many unlikely ones set its value. Needs the full vocabulary.
    """
    difference_NV = student_NV - teacher_NV
    return (difference_NV - difference_NV.mean(-1, keepdim=True)).square().mean(-1)


# Labels ------------------------------------------------------------------------------------------


@loss("cross_entropy", reads="labels", divergence=False, source="maximum likelihood")
def cross_entropy(
    student_NV: Tensor, labels_N: Tensor, *, label_smoothing: Smoothing = 0.0
) -> Tensor:
    """-(1 - e) log s(label) - e mean_v log s_v, e the label smoothing: the text itself as target.

    Positions labelled -100 are not counted, so they are never passed in.
    """
    hit_N = -student_NV.gather(-1, labels_N.unsqueeze(-1)).squeeze(-1)
    if label_smoothing == 0:
        return hit_N
    return (1 - label_smoothing) * hit_N - label_smoothing * student_NV.mean(-1)


# Hidden states -----------------------------------------------------------------------------------


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


@loss("relation", reads="relation", source="MiniLMv2, 2012.15828, section 3")
def relation(
    student_AND: Tensor,
    teacher_ANE: Tensor,
    first: int = 0,
    last: int | None = None,
    both_ways: bool = False,
) -> Tensor:
    """mean_a KL(softmax(t_i t_j / sqrt E) || softmax(s_i s_j / sqrt D)) over tokens j <= i, and
    over all tokens j of a text in models that read both ways.

    For vectors s and t of a relation head a: queries to queries, keys to keys, values to values.
    Widths, heads and their number may differ between the models.
    """

    def logprobs(vectors: Tensor) -> Tensor:
        rows = vectors[:, first:last]
        columns = vectors if both_ways else vectors[:, :last]
        scores = rows @ columns.transpose(-1, -2) / math.sqrt(vectors.shape[-1])
        if both_ways:
            return scores.log_softmax(-1)
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(
            scores.shape[-1] - scores.shape[-2] + 1
        )
        return scores.masked_fill(later, LEAST).log_softmax(-1)

    with torch.no_grad():
        teacher = logprobs(teacher_ANE)
    return forward_kl(logprobs(student_AND), teacher).mean(0)


# Vectors of texts --------------------------------------------------------------------------------


@loss("vector_mse", reads="vector", source="2004.09813, section 2; normalised here")
def vector_mse(student_BH: Tensor, teacher_BH: Tensor) -> Tensor:
    """|s - t|^2 / |t|^2 of a text's vectors. Of length 1 it is 2 - 2 cos(s, t)."""
    return hidden_mse(student_BH, teacher_BH)


@loss("vector_cosine", reads="vector", source="Reimers and Gurevych 2019, 1908.10084")
def vector_cosine(student_BH: Tensor, teacher_BH: Tensor) -> Tensor:
    """1 - cos(s, t) of a text's vectors."""
    return hidden_cosine(student_BH, teacher_BH)


@loss("similarity", reads="similarity", source="similarity-preserving KD, 1907.09682; by cosines")
def similarity(student_BH: Tensor, teacher_BH: Tensor) -> Tensor:
    """mean_(j != i) (cos(s_i, s_j) - cos(t_i, t_j))^2: how a text is like the others of its batch.

    Widths may differ. The others are those of the same micro-batch, so the value depends on
    `batch_size`; it is 0 for a text alone.
    """

    def cosines(vectors_BH: Tensor) -> Tensor:
        unit_BH = torch.nn.functional.normalize(vectors_BH.float(), dim=-1)
        return unit_BH @ unit_BH.T

    gap_BB = (cosines(student_BH) - cosines(teacher_BH)).square()
    others = max(1, len(gap_BB) - 1)
    return gap_BB.fill_diagonal_(0).sum(-1) / others


# Rewards of pairs of answers ---------------------------------------------------------------------


@loss("bradley_terry", reads="order", divergence=False, source="InstructGPT, 2203.02155, eq. 1")
def bradley_terry(student_P2: Tensor, margin_P: Tensor, *, center: Coefficient = 0.0) -> Tensor:
    """-log σ(r_c - r_r - m) + center (r_c + r_r)^2, r_c and r_r the rewards, m the pair's margin.

    The margin is the column `margin` of the data, 0 where there is none (Llama 2, 2307.09288). Only
    differences of rewards are learned; `center` draws their mean to 0 (2312.09244), e.g. 0.01.
    """
    chosen_P, rejected_P = student_P2.unbind(-1)
    values_P = -logsigmoid(chosen_P - rejected_P - margin_P)
    return values_P if center == 0 else values_P + center * (chosen_P + rejected_P).square()


@loss("reward_kl", reads="rewards", source="forward KL of Bradley-Terry preferences")
def reward_kl(student_P2: Tensor, teacher_P2: Tensor) -> Tensor:
    """KL(t || s) of two outcomes, t = σ(r_c - r_r) of the teacher's rewards and s of the student's.

    Which answer is better, and how surely, is learned; a reward's level is not.
    """
    student_P, teacher_P = (
        rewards[..., 0] - rewards[..., 1] for rewards in (student_P2, teacher_P2)
    )
    student_PO, teacher_PO = (
        torch.stack([logsigmoid(gap), logsigmoid(-gap)], -1) for gap in (student_P, teacher_P)
    )
    return forward_kl(student_PO, teacher_PO)


# Outcomes ----------------------------------------------------------------------------------------


def on_outcomes(
    student_logits_NV: Tensor, target: Target, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of student and teacher over the target's outcomes.

    Dense targets: all V ids. Sparse ones with a tail: their K entries and the rest, on both sides;
    the student's rest is summed from its own logits, not taken as one minus a sum near one.
    Closed ones: the K entries, both sides scaled to sum to one over them. Else (unbiased samples)
    the entries only, which serves losses that are linear in the teacher. All are finite: LEAST
    stands for log 0.
    """
    student_NV = (student_logits_NV / temperature).log_softmax(-1)
    if not isinstance(target, SparseDistribution):
        return student_NV, target.logprobs()
    entries_NK = student_NV.gather(-1, target.ids_NK)
    used_NK = target.logprobs_NK > -torch.inf
    entries_NK = torch.where(used_NK, entries_NK, LEAST)
    teacher_NK = target.logprobs_NK.clamp(min=LEAST)
    if target.closed:
        return entries_NK - entries_NK.logsumexp(-1, keepdim=True), teacher_NK
    if target.tail_N is None:
        return entries_NK, teacher_NK
    # An unused slot repeats a used id of its row, so masking by id is right for it as well.
    rest_N1 = student_NV.scatter(-1, target.ids_NK, LEAST).logsumexp(-1, keepdim=True)
    tail_N1 = target.tail_N.unsqueeze(-1).clamp(min=LEAST)
    return torch.cat([entries_NK, rest_N1], -1), torch.cat([teacher_NK, tail_N1], -1)
