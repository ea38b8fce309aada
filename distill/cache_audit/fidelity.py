"""How far decoded signals are from the teacher's full distribution, by the student's gradient.

Legend: N tokens, K entries, V vocabulary, H width.

A codec is judged by what it does to learning: the gradient of the forward KL at temperature 1, at
the student's final hidden states (one token's error) and at the head's weights summed over many
tokens (the error that is left in a batch). Both are compared with the dense target's. Every
gradient here is one number a token times the student's distribution, plus numbers at a few ids,

    dL/dz_v = rest s_v + extra_v,   bucket:  rest = 1 - t_rest / s_rest, s_k - t_k at an entry k
                                    sampled: rest = sum(t),              s_v rest - t_v everywhere

so the product with the head is made once for the student, and each target adds little cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor
from torch.nn import functional

from attar.models.structure import Head
from teachers.signals import Distribution, SparseDistribution

SummedLoss = Callable[[Tensor], Tensor]
BINS = 15  # of confidence, equally wide
SMALL_REST = 1e-3  # below it, one minus a sum is too inexact: the rest is summed directly


@dataclass(frozen=True)
class WithLoss:
    """A sparse target with a loss other than this package's forward KL.

    loss: from the student's log-probabilities at the entries (N, K) to one value a token (N,). It
    may read nothing else of the student. Slots that it does not read get no gradient.
    """

    target: SparseDistribution
    loss: SummedLoss


AuditTarget = Distribution | WithLoss
Decoded = SparseDistribution | Tensor  # a dense one as its log-probabilities (N, V)


@dataclass(frozen=True)
class Measures:
    """The measures of one codec. Errors are relative: 0 is perfect, 1 is as bad as no gradient.

    kl: mean KL(dense || decoded), nats a token, a bucket's mass spread evenly over the ids outside
    (which its loss does not assume). Infinite where an id has no probability left; NaN for unbiased
    samples, which are right on average only.
    gradient_error, gradient_cosine: at the student's final hidden states, sqrt(sum |g' - g|^2 /
    sum |g|^2) over tokens, and the mean cosine of a token's.
    summed_error, summed_cosine: the same of the gradient at the head's weights summed over
    `summed_tokens` tokens, from all such groups together; NaN where none was asked for.
    top1_kept: share of tokens whose likeliest id still has the largest weight (ties count).
    calibration: expected calibration error, against the text, of the decoded weight of the
    teacher's likeliest id; tokens are binned by the teacher's own confidence, so that what is right
    on average counts as right. teacher_calibration: the dense teacher's own. NaN without labels.
    """

    tokens: int
    kl: float
    gradient_error: float
    gradient_cosine: float
    summed_error: float
    summed_cosine: float
    summed_tokens: int
    top1_kept: float
    calibration: float
    teacher_calibration: float


@dataclass
class Totals:
    """Sums over tokens and groups, from which measures are made; sums of two texts can be added."""

    tokens: int = 0
    kl: float = 0.0
    difference: float = 0.0  # |g' - g|^2 and |g|^2 at hidden states
    reference: float = 0.0
    cosine: float = 0.0
    kept: float = 0.0
    labelled: int = 0
    hits: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))
    dense: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))
    decoded: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))
    groups: int = 0
    summed_tokens: int = 0
    summed_difference: float = 0.0  # |G' - G|^2, |G|^2, G' G / |G'| |G| at the head's weights
    summed_reference: float = 0.0
    summed_cosine: float = 0.0

    def __add__(self, other: Totals) -> Totals:
        names = [f.name for f in fields(Totals)]
        return Totals(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def measures(self) -> Measures:
        """Return the measures of all tokens so far."""
        return Measures(
            tokens=self.tokens,
            kl=_per(self.kl, self.tokens),
            gradient_error=_per(self.difference, self.reference) ** 0.5,
            gradient_cosine=_per(self.cosine, self.tokens),
            summed_error=_per(self.summed_difference, self.summed_reference) ** 0.5,
            summed_cosine=_per(self.summed_cosine, self.groups),
            summed_tokens=self.summed_tokens // max(1, self.groups),
            top1_kept=_per(self.kept, self.tokens),
            calibration=_per(float((self.decoded - self.hits).abs().sum()), self.labelled),
            teacher_calibration=_per(float((self.dense - self.hits).abs().sum()), self.labelled),
        )


class Fidelity:
    """Takes chunks of tokens with the targets of several codecs, and measures each codec.

    Holds chunk x V numbers a few times and, for the summed measures, V x H for each target. A chunk
    of a few hundred tokens is best; with `group`, one that divides it.
    """

    def __init__(self, head: Head, *, group: int | None = 16384) -> None:
        """Take the student's head, and how many tokens a summed gradient at it covers.

        A group ends with the chunk that fills it. Tokens after the last full group are left out of
        the summed measures, unless no group is full. None: no summed measures, for half the work.
        """
        weight_VH = head.weight_VH.detach().float()
        bias_V = None if head.bias_V is None else head.bias_V.detach()
        self.head = replace(head, weight_VH=weight_VH, bias_V=bias_V)
        self.group = group
        self._totals: dict[str, Totals] = {}
        self._reference_VH: Tensor | None = None  # of the group that is open
        self._sums_VH: dict[str, Tensor] = {}
        self._open_tokens = 0

    @torch.no_grad()
    def add(
        self,
        hidden_NH: Tensor,
        teacher_NV: Tensor,
        targets: Mapping[str, AuditTarget],
        labels_N: Tensor | None = None,
        *,
        summed: bool = True,
    ) -> None:
        """Add a chunk of tokens.

        hidden_NH: the student's final hidden states. teacher_NV: the teacher's log-probabilities
        (float32, finite). targets: what each codec decodes to; every chunk has the same codecs.
        labels_N: the ids that follow. summed: whether the summed measures include the chunk.
        """
        student = _Student(hidden_NH.float(), self.head)
        teacher = _Teacher(teacher_NV, labels_N)
        dense = _DenseGradient(student.through_cap(student.probs_NV - teacher.probs_NV))
        dense_NH = dense.at_hidden(student)
        summed = summed and self.group is not None
        if summed:
            self._reference_VH = dense.added_to(self._reference_VH, student)
            self._open_tokens += len(hidden_NH)
        for name, target in targets.items():
            totals = self._totals.setdefault(name, Totals())
            decoded, loss = _decode(target, hidden_NH.device)
            teacher.compare(decoded, totals)
            gradient = _gradient(decoded, loss, student)
            _compare_tokens(gradient.at_hidden(student), dense_NH, totals)
            if summed:
                self._sums_VH[name] = gradient.added_to(self._sums_VH.get(name), student)
        if self.group is not None and self._open_tokens >= self.group:
            for name, closed in self._open_group().items():
                self._totals[name] += closed
            self._reference_VH, self._sums_VH, self._open_tokens = None, {}, 0

    def _open_group(self) -> dict[str, Totals]:
        """Return the summed part of each target's totals, for the group that is open."""
        found = {}
        for name, sum_VH in self._sums_VH.items():
            assert self._reference_VH is not None
            products = _products(sum_VH, self._reference_VH)
            lengths = (products[1, 1] * products[2, 2]).sqrt()
            found[name] = Totals(
                groups=1,
                summed_tokens=self._open_tokens,
                summed_difference=float(products[0, 0]),
                summed_reference=float(products[1, 1]),
                summed_cosine=float(products[1, 2] / lengths),
            )
        return found

    def totals(self) -> dict[str, Totals]:
        """Return the sums so far by target; those of several texts or students can be added."""
        if any(totals.groups for totals in self._totals.values()):
            return dict(self._totals)
        unfinished = self._open_group()
        return {
            name: totals + unfinished.get(name, Totals()) for name, totals in self._totals.items()
        }

    def result(self) -> dict[str, Measures]:
        """Return the measures so far by target."""
        return {name: totals.measures() for name, totals in self.totals().items()}


# Gradients of one target -----------------------------------------------------------------------


def _decode(target: AuditTarget, device: torch.device) -> tuple[Decoded, SummedLoss | None]:
    """Return the decoded target, and its own loss where it has one."""
    loss = target.loss if isinstance(target, WithLoss) else None
    plain = (target.target if isinstance(target, WithLoss) else target).to(device)
    return plain if isinstance(plain, SparseDistribution) else plain.logprobs(), loss


class _Student:
    """A student on a chunk: its distribution, and the head that gradients flow back through."""

    def __init__(self, hidden_NH: Tensor, head: Head) -> None:
        logits_NV = head.logits(hidden_NH)
        # d/d(raw product) = d/d(logit) (1 - (z / cap)^2) scale; scale cancels in what is relative.
        cap = head.softcap
        self.slope_NV = None if cap is None else 1 - (logits_NV / cap).square()
        self.hidden_NH, self.weight_VH = hidden_NH, head.weight_VH
        self.logprobs_NV = logits_NV.log_softmax(-1)
        self.probs_NV = self.logprobs_NV.exp()
        self.capped_NV = self.through_cap(self.probs_NV)
        self.mean_NH = (
            self.capped_NV @ self.weight_VH
        )  # the gradient at hidden states of a rest of 1

    def through_cap(self, gradient_NV: Tensor) -> Tensor:
        """Return the gradient at the raw product from that at the logits, without the scale."""
        return gradient_NV if self.slope_NV is None else gradient_NV * self.slope_NV

    def mass_outside(self, ids_NK: Tensor, entries_NK: Tensor) -> Tensor:
        """Return the probability (N,) of all ids but the entries', to full relative precision."""
        rest_N = 1 - entries_NK.double().sum(-1)
        small = rest_N < SMALL_REST
        if small.any():
            others = self.probs_NV[small].scatter(-1, ids_NK[small], 0.0)
            rest_N[small] = others.double().sum(-1)
        return rest_N.float()


@dataclass(frozen=True)
class _DenseGradient:
    """A gradient at the head's raw product, in full."""

    gradient_NV: Tensor

    def at_hidden(self, student: _Student) -> Tensor:
        """Return the gradient (N, H) at the student's final hidden states."""
        return self.gradient_NV @ student.weight_VH

    def added_to(self, sum_VH: Tensor | None, student: _Student) -> Tensor:
        """Add the gradient at the head's weights to a sum (V, H); return the sum."""
        sum_VH = torch.zeros_like(student.weight_VH) if sum_VH is None else sum_VH
        return sum_VH.addmm_(self.gradient_NV.T, student.hidden_NH)


@dataclass(frozen=True)
class _SparseGradient:
    """`rest` times the student's distribution, plus `extra` at some ids (0 in unused slots)."""

    rest_N: Tensor
    ids_NK: Tensor
    extra_NK: Tensor

    def _capped_extra(self, student: _Student) -> Tensor:
        slope_NV = student.slope_NV
        return self.extra_NK * (1 if slope_NV is None else slope_NV.gather(-1, self.ids_NK))

    def at_hidden(self, student: _Student) -> Tensor:
        """Return the gradient (N, H) at the student's final hidden states."""
        extra_NK, weight_VH = self._capped_extra(student), student.weight_VH
        entries_NH = functional.embedding_bag(
            self.ids_NK, weight_VH, per_sample_weights=extra_NK, mode="sum"
        )
        return self.rest_N.unsqueeze(-1) * student.mean_NH + entries_NH

    def added_to(self, sum_VH: Tensor | None, student: _Student) -> Tensor:
        """Add the gradient at the head's weights to a sum (V, H); return the sum."""
        sum_VH = torch.zeros_like(student.weight_VH) if sum_VH is None else sum_VH
        hidden_NH = student.hidden_NH
        sum_VH.addmm_(student.capped_NV.T, self.rest_N.unsqueeze(-1) * hidden_NH)
        tokens_E, slots_E = self.extra_NK.nonzero(as_tuple=True)
        extra_E1 = self._capped_extra(student)[tokens_E, slots_E].unsqueeze(-1)
        return sum_VH.index_add_(0, self.ids_NK[tokens_E, slots_E], extra_E1 * hidden_NH[tokens_E])


def _products(mine_VH: Tensor, reference_VH: Tensor) -> Tensor:
    """Return inner products (3, 3) of G' - G, G and G' in float64, made a few rows at a time."""
    products = torch.zeros(3, 3, dtype=torch.float64, device=mine_VH.device)
    for mine, reference in zip(mine_VH.split(512), reference_VH.split(512), strict=True):
        rows = torch.stack([mine - reference, reference, mine]).double().flatten(1)
        products += rows @ rows.T
    return products.cpu()


def _gradient(
    decoded: Decoded, loss: SummedLoss | None, student: _Student
) -> _DenseGradient | _SparseGradient:
    """Return the gradient of the decoded target's loss at the student's logits."""
    if isinstance(decoded, Tensor):
        return _DenseGradient(student.through_cap(student.probs_NV - decoded.exp()))
    if loss is not None:
        return _gradient_of_loss(decoded.ids_NK, loss, student)
    weights_NK = decoded.logprobs_NK.exp()  # 0 in unused slots
    if decoded.tail_N is None:
        return _SparseGradient(weights_NK.sum(-1), decoded.ids_NK, -weights_NK)
    entries_NK = student.probs_NV.gather(-1, decoded.ids_NK).masked_fill(weights_NK == 0, 0.0)
    rest_N = torch.ones_like(decoded.tail_N)
    some_N = _ids_outside(decoded, student.probs_NV.shape[-1]) > 0
    outside_N = student.mass_outside(decoded.ids_NK, entries_NK).clamp(min=1e-37)
    rest_N[some_N] -= (decoded.tail_N.exp() / outside_N)[some_N]
    extra_NK = entries_NK * (1 - rest_N.unsqueeze(-1)) - weights_NK
    return _SparseGradient(rest_N, decoded.ids_NK, extra_NK)


def _gradient_of_loss(ids_NK: Tensor, loss: SummedLoss, student: _Student) -> _SparseGradient:
    """Return the gradient at the logits: log s_k = z_k - log sum exp z, so a_k - s sum(a)."""
    entries_NK = student.logprobs_NV.gather(-1, ids_NK)
    with torch.enable_grad():
        entries_NK.requires_grad_()
        (gradient_NK,) = torch.autograd.grad(loss(entries_NK).sum(), entries_NK)
    return _SparseGradient(-gradient_NK.sum(-1), ids_NK, gradient_NK)


def _compare_tokens(mine_NH: Tensor, dense_NH: Tensor, totals: Totals) -> None:
    totals.difference += float((mine_NH - dense_NH).double().square().sum())
    totals.reference += float(dense_NH.double().square().sum())
    totals.cosine += float(torch.cosine_similarity(mine_NH, dense_NH, dim=-1).double().sum())


# The decoded distribution itself ---------------------------------------------------------------


class _Teacher:
    """The dense teacher on a chunk, and the ids that follow in the text."""

    def __init__(self, logprobs_NV: Tensor, labels_N: Tensor | None) -> None:
        self.labels_N = labels_N
        self.probs_NV = logprobs_NV.exp()
        self.negative_entropy_N = (self.probs_NV * logprobs_NV).sum(-1)
        self.confidence_N, self.likeliest_N = self.probs_NV.max(-1)

    def compare(self, decoded: Decoded, totals: Totals) -> None:
        """Add a comparison of the decoded distribution with the dense one to the totals."""
        totals.tokens += len(self.likeliest_N)
        if isinstance(decoded, SparseDistribution):
            kl_N, weight_N, largest_N = self._compare_sparse(decoded)
        else:
            kl_N = self.negative_entropy_N - (self.probs_NV * decoded).sum(-1)
            weight_N = decoded.gather(-1, self.likeliest_N.unsqueeze(-1)).squeeze(-1).exp()
            largest_N = decoded.amax(-1).exp()
        totals.kl += float(kl_N.double().sum())
        totals.kept += float((weight_N >= largest_N).sum())
        if self.labels_N is not None:
            self._calibrate(weight_N, totals)

    def _compare_sparse(self, target: SparseDistribution) -> tuple[Tensor, Tensor, Tensor]:
        """Return (KL, weight of the likeliest id, largest weight), each (N,)."""
        weights_NK = target.logprobs_NK.exp()
        used_NK = weights_NK > 0
        is_likeliest_NK = target.ids_NK == self.likeliest_N.unsqueeze(-1)
        weight_N = weights_NK.masked_fill(~is_likeliest_NK, 0.0).sum(-1)
        largest_N = weights_NK.amax(-1)
        if target.tail_N is None:
            return torch.full_like(weight_N, torch.nan), weight_N, largest_N
        outside_N = _ids_outside(target, self.probs_NV.shape[-1])
        share_N = target.tail_N - outside_N.clamp(min=1).log()
        weight_N = torch.where(is_likeliest_NK.any(-1), weight_N, share_N.exp())
        entries_NK = self.probs_NV.gather(-1, target.ids_NK).masked_fill(~used_NK, 0.0)
        crossed_NK = entries_NK * target.logprobs_NK.masked_fill(~used_NK, 0.0)
        mass_N = (1 - entries_NK.double().sum(-1)).clamp(min=0.0).float()
        shared_N = (outside_N > 0) & (mass_N > 0)
        crossed_N = crossed_NK.sum(-1) + torch.where(shared_N, mass_N * share_N, 0.0)
        return self.negative_entropy_N - crossed_N, weight_N, largest_N

    def _calibrate(self, weight_N: Tensor, totals: Totals) -> None:
        """Add (hits, dense confidence, decoded confidence) to the bins of dense confidence."""
        assert self.labels_N is not None
        bins_N = (self.confidence_N * BINS).long().clamp(max=BINS - 1).cpu()
        hits_N = self.labels_N == self.likeliest_N
        totals.labelled += len(bins_N)
        sums = (totals.hits, hits_N), (totals.dense, self.confidence_N), (totals.decoded, weight_N)
        for total, values_N in sums:
            total.index_add_(0, bins_N, values_N.double().cpu())


def _ids_outside(target: SparseDistribution, vocabulary: int) -> Tensor:
    """Return how many ids are not among the entries, (N,)."""
    return vocabulary - (target.logprobs_NK > -torch.inf).sum(-1)


def _per(total: float, count: float) -> float:
    return total / count if count else float("nan")
