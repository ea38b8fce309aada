"""Hand-derived value and gradient of the common objectives: cross-entropy, forward KL, or both.

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
    """Return whether `value_and_gradient` can do these terms: at most one of each loss."""
    names = [term.loss.name for term in terms]
    return len(set(names)) == len(names) and all(_known(term) for term in terms)


def _known(term: HeadTerm) -> bool:
    if term.is_nll:
        return True
    closed = isinstance(term.target, SparseDistribution) and term.target.closed
    return term.loss.name == "forward_kl" and not closed


def value_and_gradient(
    logits_NV: Tensor, labels_N: Tensor, terms: Sequence[HeadTerm], grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Return (sum of each term over the block, gradient of the scaled sum at the logits).

    The logits, and a teacher's `KnownLogits`, are overwritten; the targets are the block's own.
    """
    by_name = {term.loss.name: term for term in terms}
    kl, ce = by_name.get("forward_kl"), by_name.get("cross_entropy")
    values: dict[str, Tensor] = {}
    label_gradient_NV = None
    if ce is not None and kl is not None and kl.temperature != 1:
        label_gradient_NV, values["cross_entropy"] = _cross_entropy(
            logits_NV.clone(), labels_N, ce, grad
        )
        ce = None
    if kl is None:
        assert ce is not None
        gradient_NV, values["cross_entropy"] = _cross_entropy(logits_NV, labels_N, ce, grad)
    else:
        if kl.temperature != 1:
            logits_NV.div_(kl.temperature)
        distil = _dense if isinstance(kl.target, KnownLogits) else _sparse
        gradient_NV, found = distil(logits_NV, labels_N, kl, ce, grad)
        values.update(found)
    if grad and label_gradient_NV is not None:
        gradient_NV.add_(label_gradient_NV)
    sums = torch.stack([values[term.loss.name].sum().double() for term in terms])
    return sums, gradient_NV if grad else None


def _cross_entropy(
    logits_NV: Tensor, labels_N: Tensor, ce: HeadTerm, grad: bool
) -> tuple[Tensor, Tensor]:
    """Return (gradient, written over the logits; values (N, 1)): s, less 1 at the label."""
    labels_N1 = labels_N.unsqueeze(-1)
    picked_N1 = logits_NV.gather(-1, labels_N1)
    peak_N1 = logits_NV.amax(-1, keepdim=True)
    weights_NV = logits_NV.sub_(peak_N1).exp_()
    total_N1 = weights_NV.sum(-1, keepdim=True)
    values_N1 = peak_N1 + total_N1.log() - picked_N1
    if grad:
        if ce.scale == 0:  # measured, not learned
            return weights_NV.zero_(), values_N1
        weights_NV.mul_(ce.scale / total_N1)
        weights_NV.scatter_add_(-1, labels_N1, torch.full_like(picked_N1, -ce.scale))
    return weights_NV, values_N1


def _dense(
    logits_NV: Tensor, labels_N: Tensor, kl: HeadTerm, ce: HeadTerm | None, grad: bool
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
    on_student = factor = kl.scale / kl.temperature
    if ce is not None:
        values["cross_entropy"] = peak_N1 + total_N1.log() - picked_N1
        on_student = factor + ce.scale
    if grad:
        weights_NV.mul_(on_student / total_N1)
        weights_NV.addcmul_(teacher_NV, factor / teacher_total_N1, value=-1)
        if ce is not None and ce.scale != 0:
            weights_NV.scatter_add_(-1, labels_N1, torch.full_like(picked_N1, -ce.scale))
    return weights_NV, values


def _sparse(
    logits_NV: Tensor, labels_N: Tensor, kl: HeadTerm, ce: HeadTerm | None, grad: bool
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
    factor = kl.scale / kl.temperature
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
    on_labels = 0.0 if ce is None else ce.scale
    if ce is not None:
        values["cross_entropy"] = log_total_N1 - picked_N1
    if grad:
        on_entries_NK = entries_NK / total_N1 * (factor * on_entries_N1 + on_labels)
        weights_NV.mul_((factor * on_rest_N1 + on_labels) / total_N1)
        weights_NV.scatter_add_(-1, target.ids_NK, on_entries_NK - factor * mass_NK)
        if on_labels != 0:
            weights_NV.scatter_add_(-1, labels_N1, torch.full_like(picked_N1, -on_labels))
    return weights_NV, values
