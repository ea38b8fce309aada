"""What arcee-ai/DistillKit stores of a token, and how its KL reads that: for cache_codecs.py.

Written anew from what its source says at commit a61c2e7d25c2e990d45832e12bd8542bdee9c810:

- distillkit/compression/config.py: bits of a token. exact_k values of `exact_dtype`, one number of
  `term_dtype` a polynomial term, and k ids of ceil(log2 V) bits, each part rounded up to bytes.
- distillkit/compression/monotonic_logprobs.py: the k largest log-probabilities by falling value;
  the first exact_k are rounded to `exact_dtype`, the others replaced by a least-squares fit over
  their positions 0, 1, 2, ... with the given powers and `sqrt`, solved through an SVD in float32
  whose singular values up to 1e-5 are dropped.
- distillkit/missing_probability.py, lossfuncs/common.py, lossfuncs/kl.py: `zero` rescales the k
  probabilities to sum to one, and the loss is KL over them with the student's own
  log-probabilities; `symmetric_uniform` leaves them and adds one term for the missing mass of both
  sides, each clamped to 1e-8 .. 1 - 1e-8.
- README.md: the two settings below.

Two kindnesses: student logits stay float32 here (there, the dtype of the model), and where the
stored probabilities sum to one or more the term of the missing mass is 0 (there, 1 - 1e-8 rounds to
1 in float32, log1p(-1) is -inf, and the batch's loss is 0 x inf = NaN).

Legend: N tokens, K entries, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, log2

import torch
from torch import Tensor

from distill.cache_audit.fidelity import WithLoss
from teachers.signals import SparseDistribution

EPSILON = 1e-8
HANDLINGS = ("zero", "symmetric_uniform")


@dataclass(frozen=True)
class Setting:
    """One of its compression settings: entries, those stored in bfloat16, and terms of the fit."""

    name: str
    k: int
    exact_k: int
    terms: tuple[int | str, ...]

    def bytes_per_token(self, vocabulary: int) -> int:
        """By its own formula."""
        values = 2 * self.exact_k + 4 * len(self.terms)
        return values + ceil(self.k * ceil(log2(vocabulary)) / 8)

    def stored(self, top_NK: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """(N, k) log-probabilities as they come back, float32; takes at least k, by falling value.

        It fits in float32, which with powers up to 4 of positions up to 111 loses most of the fit;
        `dtype` float64 shows what the same bytes could hold.
        """
        exact = top_NK[:, : self.exact_k].bfloat16().float()
        rest = top_NK[:, self.exact_k : self.k].to(dtype)
        design, solver = _fit(self.k - self.exact_k, self.terms, dtype)
        coefficients = (rest @ solver.T).float()
        return torch.cat([exact, (coefficients.to(dtype) @ design.T).float()], dim=-1)


BUDGET = Setting("budget", 50, 1, (0, 1, "sqrt"))
RECOMMENDED = Setting("recommended", 128, 16, (0, 1, 2, 3, 4, "sqrt"))


@lru_cache
def _fit(count: int, terms: tuple[int | str, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The terms at each position, and the map from values to coefficients."""
    positions = torch.arange(count, dtype=dtype)
    columns = [positions.sqrt() if isinstance(term, str) else positions**term for term in terms]
    design = torch.stack(columns, dim=-1)
    left, singular, right = torch.linalg.svd(design, full_matrices=False)
    inverse = torch.where(singular > 1e-5, 1 / singular, 0.0)
    return design, right.T @ (inverse.unsqueeze(-1) * left.T)


def target(ids_NK: Tensor, values_NK: Tensor, handling: str) -> WithLoss:
    """The decoded distribution and the loss on it. What is missing is spread evenly, or is zero."""
    if handling == "zero":
        teacher_NK = values_NK.log_softmax(-1)
        none_N = torch.full(values_NK.shape[:1], -torch.inf)
        decoded = SparseDistribution(ids_NK, teacher_NK, none_N)
        return WithLoss(decoded, lambda student_NK: _inner(student_NK, teacher_NK))
    mass_N = values_NK.exp().sum(-1)
    missing_N = torch.log1p(-mass_N.clamp(min=EPSILON, max=1 - EPSILON))
    total_N = torch.logaddexp(values_NK.logsumexp(-1), missing_N)
    decoded = SparseDistribution(ids_NK, values_NK - total_N.unsqueeze(-1), missing_N - total_N)

    def loss(student_NK: Tensor) -> Tensor:
        student_mass_N = student_NK.exp().sum(-1).clamp(min=EPSILON, max=1 - EPSILON)
        gap_N = missing_N - torch.log1p(-student_mass_N)
        whole_N = missing_N == -torch.inf
        tail_N = missing_N.exp() * gap_N.masked_fill(whole_N, 0.0)
        return _inner(student_NK, values_NK) + tail_N

    return WithLoss(decoded, loss)


def _inner(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """Sum of t (log t - log s) over the entries."""
    return (teacher_NK.exp() * (teacher_NK - student_NK)).sum(-1)
