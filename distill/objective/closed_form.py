"""Hand-derived value and gradient of the common objectives: cross-entropy, forward KL, or both.

One forward KL may stand with several cross-entropies: the nll of a token is the same for all of
them, so they share one pass and the gradient has the sum of their factors, scale x weight.

Legend: N tokens of a block, V vocabulary, K entries.

With s the student's and t the teacher's probabilities at temperature T, the gradient of the forward
KL at the logits is, divided by T,

    s_j - t_j                   against the full distribution, and for a stored entry j
    s_j (1 - t_rest / s_rest)   for any other id, where one outcome holds the rest
    sum(t) s_j - t_j            where there is no rest (an unbiased sample, or a dropped tail)

Everything is written over the logits in place: a block is small enough for a core's cache, so each
pass over it costs arithmetic, not memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from teachers.signals import KnownLogits, SparseDistribution

if TYPE_CHECKING:
    from distill.objective.head_term import HeadTerm


def covers(terms: Sequence[HeadTerm]) -> bool:
    """Return whether `value_and_gradient` can do these terms: plain nlls and at most one KL."""
    others = [term for term in terms if not term.reads_nll]
    return len(others) <= 1 and all(_known(term) for term in others)


def _known(term: HeadTerm) -> bool:
    closed = isinstance(term.target, SparseDistribution) and term.target.closed
    return term.loss.name == "forward_kl" and not closed


def value_and_gradient(
    logits_NV: Tensor, labels_N: Tensor, terms: Sequence[HeadTerm], grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Return (sum of each term over the block, gradient of the scaled sum at the logits).

    The logits, and a teacher's `KnownLogits`, are overwritten; the targets are the block's own.
    """
    kl = next((term for term in terms if not term.reads_nll), None)
    on_labels = _factor([term for term in terms if term.reads_nll])
    values: dict[str, Tensor] = {}
    label_gradient_NV = None
    if kl is None:
        assert on_labels is not None
        gradient_NV, values["cross_entropy"] = _cross_entropy(logits_NV, labels_N, on_labels, grad)
    else:
        if on_labels is not None and kl.temperature != 1:
            label_gradient_NV, values["cross_entropy"] = _cross_entropy(
                logits_NV.clone(), labels_N, on_labels, grad
            )
            on_labels = None
        if kl.temperature != 1:
            logits_NV.div_(kl.temperature)
        distil = _dense if isinstance(kl.target, KnownLogits) else _sparse
        gradient_NV, found = distil(logits_NV, labels_N, kl, on_labels, grad)
        values.update(found)
    if grad and label_gradient_NV is not None:
        gradient_NV.add_(label_gradient_NV)
    sums = [term.weigh(values[term.loss.name].squeeze(-1)).sum().double() for term in terms]
    return torch.stack(sums), gradient_NV if grad else None


def label_nll(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Return -log softmax at the labels, (N,), by the arithmetic of the terms; logits are lost."""
    return _cross_entropy(logits_NV, labels_N, 0.0, grad=False)[1].squeeze(-1)


def _factor(terms: Sequence[HeadTerm]) -> float | Tensor | None:
    """Return the sum of scale x weight: one number or, if a term has weights, (N, 1).

    None without terms.
    """
    total: float | Tensor | None = None
    for term in terms:
        weight_N = term.weight_N
        own = term.scale if weight_N is None else term.scale * weight_N.unsqueeze(-1)
        total = own if total is None else total + own
    return total


def _subtract_at_labels(weights_NV: Tensor, labels_N1: Tensor, factor: float | Tensor) -> None:
    """Subtract the factor at each token's label."""
    if isinstance(factor, Tensor):
        weights_NV.scatter_add_(-1, labels_N1, -factor)
    else:
        size = labels_N1.shape
        weights_NV.scatter_add_(-1, labels_N1, weights_NV.new_full(size, -factor))


def _is_zero(factor: float | Tensor) -> bool:
    """Return whether nothing is learned from labels; weights are not looked at: that is slow."""
    return not isinstance(factor, Tensor) and factor == 0


def _cross_entropy(
    logits_NV: Tensor, labels_N: Tensor, factor: float | Tensor, grad: bool
) -> tuple[Tensor, Tensor]:
    """Return (gradient, written over the logits; values (N, 1)): s, less 1 at the label."""
    labels_N1 = labels_N.unsqueeze(-1)
    picked_N1 = logits_NV.gather(-1, labels_N1)
    peak_N1 = logits_NV.amax(-1, keepdim=True)
    weights_NV = logits_NV.sub_(peak_N1).exp_()
    total_N1 = weights_NV.sum(-1, keepdim=True)
    values_N1 = peak_N1 + total_N1.log() - picked_N1
    if grad:
        if _is_zero(factor):  # measured, not learned
            return weights_NV.zero_(), values_N1
        weights_NV.mul_(factor / total_N1)
        _subtract_at_labels(weights_NV, labels_N1, factor)
    return weights_NV, values_N1


def _kl_factor(kl: HeadTerm) -> float | Tensor:
    """Return what the gradient of the forward KL at the logits is multiplied by, with weights."""
    factor = kl.scale / kl.temperature
    return factor if kl.weight_N is None else factor * kl.weight_N.unsqueeze(-1)


def _dense(
    logits_NV: Tensor, labels_N: Tensor, kl: HeadTerm, on_labels: float | Tensor | None, grad: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Forward KL against the teacher's full distribution, and cross-entropy from the same pass."""
    assert isinstance(kl.target, KnownLogits)
    labels_N1 = labels_N.unsqueeze(-1)
    picked_N1 = logits_NV.gather(-1, labels_N1)
    peak_N1 = logits_NV.amax(-1, keepdim=True)
    shifted_NV = logits_NV.sub_(peak_N1)
    gap_NV = kl.target.logits_NV
    if kl.temperature != 1:
        gap_NV.div_(kl.temperature)
    gap_NV.sub_(gap_NV.amax(-1, keepdim=True))
    teacher_NV = gap_NV.exp()
    teacher_total_N1 = teacher_NV.sum(-1, keepdim=True)
    gap_NV.sub_(shifted_NV).mul_(teacher_NV)  # t (log t - log s), both without their normaliser
    weights_NV = shifted_NV.exp_()
    total_N1 = weights_NV.sum(-1, keepdim=True)
    mean_N1 = gap_NV.sum(-1, keepdim=True) / teacher_total_N1
    values = {"forward_kl": mean_N1 - teacher_total_N1.log() + total_N1.log()}
    factor = _kl_factor(kl)
    on_student = factor
    if on_labels is not None:
        values["cross_entropy"] = peak_N1 + total_N1.log() - picked_N1
        on_student = factor + on_labels
    if grad:
        weights_NV.mul_(on_student / total_N1)
        weights_NV.addcmul_(teacher_NV, factor / teacher_total_N1, value=-1)
        if on_labels is not None and not _is_zero(on_labels):
            _subtract_at_labels(weights_NV, labels_N1, on_labels)
    return weights_NV, values


def _sparse(
    logits_NV: Tensor, labels_N: Tensor, kl: HeadTerm, on_labels: float | Tensor | None, grad: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Forward KL against stored entries, and cross-entropy from the same pass."""
    assert isinstance(kl.target, SparseDistribution)
    target, labels_N1 = kl.target, labels_N.unsqueeze(-1)
    picked_N1 = logits_NV.gather(-1, labels_N1)
    entry_logits_NK = logits_NV.gather(-1, target.ids_NK)
    peak_N1 = logits_NV.amax(-1, keepdim=True)
    used_NK = target.logprobs_NK > -torch.inf
    entries_NK = torch.where(used_NK, (entry_logits_NK - peak_N1).exp(), 0.0)
    weights_NV = logits_NV.sub_(peak_N1).exp_()
    weights_NV.scatter_(-1, target.ids_NK, 0.0)
    rest_N1 = weights_NV.sum(-1, keepdim=True)  # summed, not one minus a sum near one
    total_N1 = rest_N1 + entries_NK.sum(-1, keepdim=True)
    log_total_N1 = peak_N1 + total_N1.log()

    teacher_NK = torch.where(used_NK, target.logprobs_NK, 0.0)
    mass_NK = torch.where(used_NK, teacher_NK.exp(), 0.0)
    value_N1 = (mass_NK * (teacher_NK - entry_logits_NK + log_total_N1)).sum(-1, keepdim=True)
    factor = _kl_factor(kl)
    if target.tail_N is None:
        on_rest_N1 = on_entries_N1 = mass_NK.sum(-1, keepdim=True)
    else:
        tail_N1, rest_N1 = target.tail_N.unsqueeze(-1), rest_N1.clamp(min=1e-37)
        has_tail_N1 = tail_N1 > -torch.inf
        gap_N1 = tail_N1 - rest_N1.log() + total_N1.log()
        value_N1 = value_N1 + torch.where(has_tail_N1, tail_N1.exp() * gap_N1, 0.0)
        ratio_N1 = torch.where(has_tail_N1, tail_N1.exp() * (total_N1 / rest_N1), 0.0)
        on_rest_N1, on_entries_N1 = 1 - ratio_N1, torch.ones_like(ratio_N1)
    values = {"forward_kl": value_N1}
    if on_labels is not None:
        values["cross_entropy"] = log_total_N1 - picked_N1
    on_labels = 0.0 if on_labels is None else on_labels
    if grad:
        on_entries_NK = entries_NK / total_N1 * (factor * on_entries_N1 + on_labels)
        weights_NV.mul_((factor * on_rest_N1 + on_labels) / total_N1)
        weights_NV.scatter_add_(-1, target.ids_NK, on_entries_NK - factor * mass_NK)
        if not _is_zero(on_labels):
            _subtract_at_labels(weights_NV, labels_N1, on_labels)
    return weights_NV, values
