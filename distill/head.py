"""Loss terms over the vocabulary without the logits of all tokens: chunk by chunk, with gradients.

Legend: N tokens counted, V vocabulary, H width, K entries.

From final hidden states (N, H) and the head (V, H): for each chunk of tokens, float32 logits are
made, every term's value and the gradient at the logits are formed, and that gradient is multiplied
back into hidden states and head at once (as Liger's fused losses do). Only chunk x V numbers exist
at any moment. Any registered loss works through autograd on the chunk; cross-entropy with a sparse
forward KL at temperature 1, the common case, has its gradient derived by hand:

    d/dz_j [KL] = s_j - t_j                   for an entry j
                = s_j (1 - t_rest / s_rest)   for any other id

and where the entries are an unbiased sample, sum(t) s_j - t_j.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attar.anatomy import Head, matmul_float32
from distill.losses import Loss, on_outcomes
from teachers.signals import Distribution, SparseDistribution


@dataclass(frozen=True)
class HeadTerm:
    """One term of the objective that reads logits: `scale` holds its weight and T^2."""

    loss: Loss
    scale: float
    temperature: float = 1.0
    parameters: dict[str, Any] = field(default_factory=dict)
    target: Distribution | None = None

    def values(self, logits_NV: Tensor, labels_N: Tensor, rows: slice) -> Tensor:
        """The loss of each token of a chunk, (N,), before `scale`."""
        if self.loss.reads == "labels":
            return self.loss.function(logits_NV.log_softmax(-1), labels_N, **self.parameters)
        assert self.target is not None
        target = self.target.rows(rows.start, rows.stop)
        student, teacher = on_outcomes(logits_NV, target, self.temperature)
        return self.loss.function(student, teacher, **self.parameters)

    @property
    def is_fast(self) -> bool:
        """Whether the hand-derived gradient covers this term."""
        if self.loss.name == "cross_entropy":
            return not self.parameters
        sparse = isinstance(self.target, SparseDistribution)
        return self.loss.name == "forward_kl" and sparse and self.temperature == 1.0


def head_losses(
    hidden_NH: Tensor,
    head: Head,
    labels_N: Tensor,
    terms: Sequence[HeadTerm],
    *,
    chunk: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """(sum of scaled terms over all tokens, differentiable; sums of each term, unscaled, detached).

    The first is a scalar; the second has one entry a term. Products run in `dtype`; gradients of
    the head are summed in float32 whatever it is.
    """
    grad = torch.is_grad_enabled()
    total, sums = _HeadLosses.apply(
        hidden_NH, head.weight_VH, head.bias_V, head, labels_N, terms, chunk, dtype, grad
    )
    return total, sums


class _HeadLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        head: Head,
        labels_N: Tensor,
        terms: Sequence[HeadTerm],
        chunk: int,
        dtype: torch.dtype,
        grad: bool,
    ) -> tuple[Tensor, Tensor]:
        needs_hidden, needs_weight, needs_bias = (grad and n for n in ctx.needs_input_grad[:3])
        weight_VH = weight_VH.to(dtype)
        sums = torch.zeros(len(terms), dtype=torch.float64, device=hidden_NH.device)
        grad_hidden = torch.empty_like(hidden_NH) if needs_hidden else None
        grad_weight = (
            torch.zeros(weight_VH.shape, dtype=torch.float32, device=weight_VH.device)
            if needs_weight
            else None
        )
        grad_bias = torch.zeros_like(bias_V) if needs_bias and bias_V is not None else None
        for start in range(0, len(hidden_NH), chunk):
            rows = slice(start, min(start + chunk, len(hidden_NH)))
            hidden = hidden_NH[rows].to(dtype)
            logits = head.finish(matmul_float32(hidden, weight_VH.T))
            values, grad_logits = _chunk(logits, labels_N[rows], terms, rows, grad)
            sums += values
            if grad_logits is None:
                continue
            grad_raw = _through_finish(grad_logits, logits, head)
            if grad_bias is not None:
                grad_bias += grad_raw.sum(0)
            grad_raw = grad_raw.to(dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = matmul_float32(grad_raw, weight_VH).to(hidden_NH.dtype)
            if grad_weight is not None:
                if dtype == torch.float32:
                    grad_weight.addmm_(grad_raw.T, hidden)
                else:
                    grad_weight += matmul_float32(grad_raw.T, hidden)
        ctx.gradients = grad_hidden, grad_weight, grad_bias
        scales = torch.tensor([term.scale for term in terms], dtype=sums.dtype, device=sums.device)
        sums = sums.detach()
        ctx.mark_non_differentiable(sums)
        return (sums @ scales).float(), sums

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _grad_sums: Tensor) -> Any:
        scaled = (None if g is None else g.mul_(grad_total.to(g.dtype)) for g in ctx.gradients)
        return (*scaled, None, None, None, None, None, None)


def _through_finish(grad_logits: Tensor, logits: Tensor, head: Head) -> Tensor:
    """The gradient before the head's scale and soft-cap."""
    if head.softcap is not None:
        grad_logits = grad_logits * (1 - (logits / head.softcap).square())
    return grad_logits * head.scale if head.scale != 1.0 else grad_logits


def _chunk(
    logits: Tensor, labels: Tensor, terms: Sequence[HeadTerm], rows: slice, grad: bool
) -> tuple[Tensor, Tensor | None]:
    """(sum of each term over the chunk, gradient of the scaled total at the logits)."""
    names = [term.loss.name for term in terms]
    if all(term.is_fast for term in terms) and len(set(names)) == len(names):
        return _chunk_by_hand(logits, labels, terms, rows, grad)
    with torch.set_grad_enabled(grad):
        logits = logits.detach().requires_grad_(grad)
        values = torch.stack([term.values(logits, labels, rows).sum() for term in terms])
        scales = values.new_tensor([term.scale for term in terms])
        if not grad:
            return values.detach(), None
        (grad_logits,) = torch.autograd.grad(values @ scales, logits)
    return values.detach(), grad_logits


def _chunk_by_hand(
    logits: Tensor, labels: Tensor, terms: Sequence[HeadTerm], rows: slice, grad: bool
) -> tuple[Tensor, Tensor | None]:
    """`_chunk` for cross-entropy and sparse forward KL: one exponential, no autograd."""
    kl = next((term for term in terms if term.loss.name == "forward_kl"), None)
    ce = next((term for term in terms if term.loss.name == "cross_entropy"), None)
    labels = labels.unsqueeze(-1)
    peak = logits.amax(-1, keepdim=True)
    label_logits = logits.gather(-1, labels)
    sparse = None
    if kl is not None:
        assert isinstance(kl.target, SparseDistribution)
        sparse = _Entries(kl.target.rows(rows.start, rows.stop), logits, peak)
    weights = (logits - peak).exp_()
    if sparse is not None:
        weights.scatter_(-1, sparse.ids, 0.0)
    rest = weights.sum(-1, keepdim=True)  # over all ids when there is no KL
    total = rest if sparse is None else rest + sparse.weights.sum(-1, keepdim=True)
    log_total = peak + total.log()
    values = {"cross_entropy": (log_total - label_logits).sum()}
    coefficient = torch.full_like(total, ce.scale if ce else 0.0)
    if kl is not None and sparse is not None:
        values["forward_kl"], on_rest, on_entries = sparse.finish(rest, total, log_total)
        entry_gradient = coefficient * sparse.weights / total + kl.scale * on_entries
        coefficient = coefficient + kl.scale * on_rest
    result = torch.stack([values[term.loss.name].double() for term in terms])
    if not grad:
        return result, None
    gradient = weights.mul_(coefficient / total)
    if sparse is not None:
        gradient.scatter_add_(-1, sparse.ids, entry_gradient)
    if ce is not None:
        gradient.scatter_add_(-1, labels, torch.full_like(label_logits, -ce.scale))
    return result, gradient


class _Entries:
    """The entries of a sparse forward KL on a chunk of logits: value and gradient by hand."""

    def __init__(self, target: SparseDistribution, logits: Tensor, peak: Tensor) -> None:
        self.target, self.ids = target, target.ids_NK
        self.used = target.logprobs_NK > -torch.inf
        self.logits = logits.gather(-1, self.ids)
        self.weights = torch.where(self.used, (self.logits - peak).exp(), 0.0)

    def finish(
        self, rest: Tensor, total: Tensor, log_total: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(value of the chunk, factor on s_j of the other ids (N, 1), gradient at entries (N, K)).

        `rest` and `total`: sums of exponentials, below the peak, of the other and of all ids.
        """
        teacher = torch.where(self.used, self.target.logprobs_NK, 0.0)
        mass = torch.where(self.used, teacher.exp(), 0.0)
        value = (mass * (teacher - self.logits + log_total)).sum()
        student = self.weights / total
        if self.target.tail_N is None:  # an unbiased sample: sum(t) s - t
            sum_N1 = mass.sum(-1, keepdim=True)
            return value, sum_N1, sum_N1 * student - mass
        tail = self.target.tail_N.unsqueeze(-1)
        rest = rest.clamp(min=1e-37)
        has_tail = tail > -torch.inf
        value = (
            value + torch.where(has_tail, tail.exp() * (tail - rest.log() + total.log()), 0).sum()
        )
        ratio = torch.where(has_tail, tail.exp() * (total / rest), 0.0)
        return value, 1 - ratio, student - mass
