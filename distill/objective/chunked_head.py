"""Loss terms over the vocabulary, chunk by chunk: the logits of all tokens never exist at once.

Legend: N tokens counted, V vocabulary, H width.

The inputs are final hidden states (N, H) and the head (V, H). For each chunk of tokens, one product
makes the logits. Block by block they become every term's value and the gradient at the logits,
which is written over them. Two more products take that gradient back to hidden states and head, as
in Liger's fused losses. At most chunk x V numbers exist at once, twice that where the teacher gives
its full distribution. A block is a few tokens on a CPU, so that the passes between the products
stay in its caches (benchmarks/step.py), and the whole chunk on a GPU. Any registered loss works
through autograd on the block; `closed_form.py` has hand-derived gradients of the common ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attar.models.structure import Head, matmul_float32
from distill.objective.closed_form import covers, label_nll, value_and_gradient
from distill.objective.head_term import HeadTerm
from teachers.signals import DenseDistribution, KnownLogits

CHUNK_TOKENS = 512  # the head's gradient is read and written once a chunk: 3% of the time at 512
CHUNK_BYTES = {"cpu": 512 << 20, "cuda": 1 << 30}  # ... unless the logits would take more than this
GRADIENT_ROWS = 8192  # ids of one 16-bit product that is added to the head's float32 gradient
BLOCK_BYTES = 8 << 20  # of the logits in one block on a CPU


def tokens_per_chunk(vocabulary: int, device: torch.device) -> int:
    """Return how many tokens' logits a training holds at once; chosen by measurement."""
    most = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) // (4 * vocabulary)
    wanted = CHUNK_TOKENS if device.type == "cpu" else 4 * CHUNK_TOKENS
    return max(16, min(wanted, most))


def head_losses(
    hidden_NH: Tensor,
    head: Head,
    labels_N: Tensor,
    terms: Sequence[HeadTerm],
    *,
    chunk: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return (sum of scaled terms, differentiable; sum of each term, unscaled, detached).

    The first is a scalar over all tokens; the second has one entry a term. Products run in `dtype`;
    gradients of the head are always summed in float32.
    """
    grad = torch.is_grad_enabled()
    total, sums = _HeadLosses.apply(
        hidden_NH, head.weight_VH, head.bias_V, head, labels_N, terms, chunk, dtype, grad
    )
    return total, sums


def logit_losses(
    logits_NC: Tensor, labels_N: Tensor, terms: Sequence[HeadTerm]
) -> tuple[Tensor, Tensor]:
    """Do what `head_losses` does on known logits: of C classes, one row a text.

    Targets are `KnownLogits` (N, C). Plain autograd is enough, since classes are few.
    """
    values = torch.stack([term.values(logits_NC.float(), labels_N).sum() for term in terms])
    scales = values.new_tensor([term.scale for term in terms])
    return values @ scales, values.detach().double()


@torch.no_grad()
def head_logprobs(
    hidden_NH: Tensor, head: Head, labels_N: Tensor, *, chunk: int, dtype: torch.dtype
) -> Tensor:
    """Return the labels' log-probabilities, float32 (N,), without gradient.

    They are those whose negative sum `head_losses` gives for cross-entropy, from the same products
    in `dtype`, so a model compared with itself gives the same numbers; `label_logprobs` of
    attar/models/structure.py, for frozen models, agrees up to rounding. At most a chunk's logits
    exist at once.
    """
    head = replace(head, weight_VH=head.weight_VH.to(dtype))
    size = max(1, min(chunk, len(hidden_NH)))
    products = _Products(head, size, ())
    logprobs_N = torch.empty(len(hidden_NH), dtype=torch.float32, device=hidden_NH.device)
    for start in range(0, len(hidden_NH), size):
        raw = products.student(hidden_NH[start : start + size].to(dtype))
        block = _block_size(raw)
        for first in range(0, len(raw), block):
            logits = head.finish(raw[first : first + block].float())
            own = slice(start + first, start + first + len(logits))
            logprobs_N[own] = -label_nll(logits, labels_N[own])
    return logprobs_N


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
        needs = tuple(grad and need for need in ctx.needs_input_grad[:3])
        head = replace(head, weight_VH=weight_VH.to(dtype))
        size = max(1, min(chunk, len(hidden_NH)))
        made = _Gradients(hidden_NH, head, needs)
        products = _Products(head, size, terms)
        sums = torch.zeros(len(terms), dtype=torch.float64, device=hidden_NH.device)
        for start in range(0, len(hidden_NH), size):
            stop = min(start + size, len(hidden_NH))
            hidden = hidden_NH[start:stop].to(dtype)
            raw, part = products.student(hidden), products.terms(start, stop)
            sums += _over_blocks(raw, labels_N[start:stop], part, head, any(needs))
            if any(needs):
                made.add(start, raw.to(dtype), hidden)
        ctx.gradients = made.hidden_NH, made.weight_VH, made.bias_V
        scales = torch.tensor([term.scale for term in terms], dtype=sums.dtype, device=sums.device)
        sums = sums.detach()
        ctx.mark_non_differentiable(sums)
        return (sums @ scales).float(), sums

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _grad_sums: Tensor) -> Any:
        gradients = ctx.gradients
        del ctx.gradients  # with no other reference, they become .grad without a copy
        if grad_total.device.type != "cpu" or grad_total != 1:
            gradients = [None if g is None else g.mul_(grad_total.to(g.dtype)) for g in gradients]
        return (*gradients, None, None, None, None, None, None)


class _Products:
    """The logits of a chunk, the student's and the teacher's, in memory that all chunks share."""

    def __init__(self, head: Head, size: int, terms: Sequence[HeadTerm]) -> None:
        self._head, self._terms, self._size = head, terms, size
        self._memory: dict[int, Tensor] = {}

    def _room(self, weight_VH: Tensor, owner: int, rows: int) -> Tensor | None:
        """Return the memory for a product of `rows` rows; None on a GPU.

        There, a product of 16-bit matrices gives float32, so the memory cannot be shared.
        """
        if weight_VH.is_cuda:
            return None
        if owner not in self._memory:
            self._memory[owner] = weight_VH.new_empty(self._size, weight_VH.shape[0])
        return self._memory[owner][:rows]

    def student(self, hidden: Tensor) -> Tensor:
        """Return the raw product (n, V): in float32, or on a CPU in the dtype of the weight."""
        weight_VH = self._head.weight_VH
        room = self._room(weight_VH, id(self), len(hidden))
        if room is None:
            return matmul_float32(hidden, weight_VH.T)
        return torch.mm(hidden, weight_VH.T, out=room)

    def terms(self, start: int, stop: int) -> list[HeadTerm]:
        """Return the terms of a chunk, with a teacher's hidden states turned into its logits."""
        found: dict[int, KnownLogits] = {}
        result = []
        for term in self._terms:
            target = term.target
            if isinstance(target, DenseDistribution):
                if id(target) not in found:
                    part = target.rows(start, stop)
                    room = self._room(target.head.weight_VH, id(target), stop - start)
                    logits = part.head.logits(part.hidden_NH, room)
                    found[id(target)] = KnownLogits(logits, target.temperature)
                weight_N = term.weight_of(start, stop)
                result.append(replace(term, target=found[id(target)], weight_N=weight_N))
            elif isinstance(target, KnownLogits):  # a copy: closed forms write over it
                logits = target.logits_NV[start:stop].to(torch.float32, copy=True)
                known = KnownLogits(logits, target.temperature)
                result.append(replace(term, target=known, weight_N=term.weight_of(start, stop)))
            else:
                result.append(term.rows(start, stop))
        return result


class _Gradients:
    """Gradients of hidden states, head and bias, summed over chunks."""

    def __init__(self, hidden_NH: Tensor, head: Head, needs: tuple[bool, ...]) -> None:
        self._head, self._needs = head, needs
        self.hidden_NH = torch.empty_like(hidden_NH) if needs[0] else None
        self.weight_VH: Tensor | None = None
        self.bias_V: Tensor | None = None

    def add(self, start: int, grad: Tensor, hidden: Tensor) -> None:
        """Add one chunk: the gradient at its raw logits (n, V), and its hidden states (n, H)."""
        if self.hidden_NH is not None:
            mine, weight = self.hidden_NH[start : start + len(hidden)], self._head.weight_VH
            if mine.dtype == grad.dtype and not mine.is_cuda:
                torch.mm(grad, weight, out=mine)
            else:
                mine.copy_(matmul_float32(grad, weight))
        if self._needs[1]:
            self._add_to_weight(grad.T, hidden)
        if self._needs[2]:
            ones = grad.sum(0, dtype=torch.float32)
            self.bias_V = ones if self.bias_V is None else self.bias_V.add_(ones)

    def _add_to_weight(self, grad_VN: Tensor, hidden: Tensor) -> None:
        """Add the product to the sum; in 16 bits a few rows at a time.

        So a whole second matrix of V x H is never held beside the sum.
        """
        if self.weight_VH is None and grad_VN.dtype == torch.float32:
            self.weight_VH = torch.mm(grad_VN, hidden)
        elif grad_VN.dtype == torch.float32:
            assert self.weight_VH is not None
            self.weight_VH.addmm_(grad_VN, hidden)
        else:
            first = self.weight_VH is None
            if self.weight_VH is None:
                size = grad_VN.shape[0], hidden.shape[1]
                self.weight_VH = torch.empty(size, dtype=torch.float32, device=hidden.device)
            parts = zip(
                grad_VN.split(GRADIENT_ROWS), self.weight_VH.split(GRADIENT_ROWS), strict=True
            )
            for part, rows in parts:
                product = matmul_float32(part, hidden)
                rows.copy_(product) if first else rows.add_(product)


def _block_size(raw: Tensor) -> int:
    """Return how many rows of a chunk's logits are passed over at once."""
    if raw.device.type != "cpu":
        return max(1, len(raw))
    return max(torch.get_num_threads(), BLOCK_BYTES // (4 * raw.shape[1]))


def _over_blocks(
    raw: Tensor, labels_N: Tensor, terms: list[HeadTerm], head: Head, grad: bool
) -> Tensor:
    """Return each term's sum over a chunk; write the total's gradient over its raw logits."""
    by_hand = covers(terms) and head.softcap is None
    size = _block_size(raw)
    sums = torch.zeros(len(terms), dtype=torch.float64, device=raw.device)
    for start in range(0, len(raw), size):
        rows = raw[start : start + size]
        logits = head.finish(rows.float())
        labels = labels_N[start : start + size]
        mine = [term.rows(start, start + len(rows)) for term in terms]
        if by_hand:
            values, gradient = value_and_gradient(logits, labels, mine, grad)
        else:
            values, gradient = _by_autograd(logits, labels, mine, grad)
        sums += values
        if gradient is not None:
            gradient = _through_finish(gradient, logits, head)
            if gradient.data_ptr() != rows.data_ptr():
                rows.copy_(gradient)
    return sums


def _by_autograd(
    logits: Tensor, labels: Tensor, terms: Sequence[HeadTerm], grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Return (sum of each term over the block, gradient of the scaled total at the logits)."""
    with torch.set_grad_enabled(grad):
        logits = logits.detach().requires_grad_(grad)
        values = torch.stack([term.values(logits, labels).sum() for term in terms])
        scales = values.new_tensor([term.scale for term in terms])
        if not grad:
            return values.detach(), None
        (gradient,) = torch.autograd.grad(values @ scales, logits)
    return values.detach(), gradient


def _through_finish(gradient: Tensor, logits: Tensor, head: Head) -> Tensor:
    """Return the gradient at the raw logits, before the head's scale and soft-cap."""
    if head.softcap is not None:
        gradient = gradient * (1 - (logits / head.softcap).square())
    return gradient.mul_(head.scale) if head.scale != 1.0 else gradient
