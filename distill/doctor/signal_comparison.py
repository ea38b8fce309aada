"""Cached signals against the teacher's own on the same tokens: what is right, and within what.

Legend: N tokens counted, K entries, O outcomes, V vocabulary, H width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distill.data.batching import Batch
from distill.doctor.findings import brief
from distill.doctor.fixture import DoctorFixture
from distill.objective.losses import LOSSES, on_outcomes
from distill.objective.term_protocols import TermKey
from distill.objective.terms import source_of
from teachers.signals import SparseDistribution

FLOAT32_ROUNDING = 1e-4  # nats a token (or the loss's unit) that rounding explains, in float32
SIXTEEN_BIT_ROUNDING = 1e-2  # ... where the teacher is held in 16 bits: batches round differently
STORED_ROUNDING = 1e-3  # ... of what the cache stores in 16 bits
MAX_CACHE_ERROR = 0.3  # of a value, between cache and teacher
MAX_STANDARD_ERRORS = 5.0  # by which the mean of draws may miss the distribution's


@dataclass(frozen=True)
class Divergence:
    """A term of the objective that compares with the teacher, and how its signals reach it.

    drawn: it reads drawn entries, which are right on average: its gradient is unbiased and its
    value is off by a constant. cut: it drops the mass outside the stored entries, so that it is
    not 0 at the teacher.
    """

    key: TermKey
    term: Any
    cached: bool
    drawn: bool
    cut: bool

    @property
    def reads(self) -> str:
        """Return which kind of signal the loss reads."""
        return LOSSES[self.term.loss].reads


def divergences_of(fixture: DoctorFixture) -> list[Divergence]:
    """Return the recipe's terms that compare with the teacher, numbered as the fixture has them."""
    found, drawing = [], fixture.run.recipe.cache.codec.tail == "sampled"
    for index, term in enumerate(fixture.divergences):
        cached = source_of(term, fixture.config.source) == "cache"
        drawn = cached and drawing and LOSSES[term.loss].reads == "distribution"
        cut = getattr(term, "tail", None) in ("drop", "renormalize")
        found.append(Divergence(TermKey(index, term.loss), term, cached, drawn, cut))
    return found


def rounding(fixture: DoctorFixture) -> float:
    """Return the difference in nats a token that rounding explains."""
    dtype = next(p for p in fixture.teacher.parameters() if p.is_floating_point()).dtype
    return FLOAT32_ROUNDING if dtype == torch.float32 else SIXTEEN_BIT_ROUNDING


def explained_difference(fixture: DoctorFixture) -> float:
    """Return the same with what the codec itself may lose, and 16 bits of what it stores."""
    promised = getattr(fixture.run.recipe.cache.codec, "kl", 0.0)
    return max(rounding(fixture), STORED_ROUNDING, 3 * promised)


@dataclass
class Collected:
    """What a check collects: parts of its sentence, faults, and numbers."""

    parts: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)


def compare_cached(fixture: DoctorFixture, one: Divergence, report: Collected) -> None:
    """Compare a term's cached signals with the teacher's own; add what is found to the report."""
    cached, online = (
        fixture.divergence_step.means.terms[one.key],
        fixture.divergence_step_online.means.terms[one.key],
    )
    if one.drawn:  # the constant of the draws is the same at the teacher
        cached -= fixture.step_at_teacher.means.terms[one.key]
    match one.reads:
        case "hidden":
            known, fault = _compare_layers(fixture, one)
        case "distribution":
            known, fault = _compare_distribution(fixture, one)
        case _:
            known, fault = "", _fault_of_value(cached, online, explained_difference(fixture))
    report.parts.append(f"{one.key.loss} {cached:.4g} from the cache, {online:.4g} online{known}")
    report.numbers |= {f"{one.key}, cached": cached, f"{one.key}, online": online}
    if fault is not None:
        report.faults.append(f"{one.key} {fault}")


def _fault_of_value(cached: float, online: float, floor: float) -> str | None:
    if abs(cached - online) <= max(floor, MAX_CACHE_ERROR * abs(online)):
        return None
    return f"is {cached:.3g} from the cache, {online:.3g} online"


def _compare_layers(fixture: DoctorFixture, one: Divergence) -> tuple[str, str | None]:
    """Return (what is known of a term's cached layers, their fault or None)."""
    share = _share_of_others(fixture, fixture.batch(fixture.one_a_row), one.key.index)
    known = f" (layers {brief(share)} as far off as others' are)"
    if share <= MAX_CACHE_ERROR:
        return known, None
    return known, f"is {share:.0%} as far from these tokens' states as from others'"


def _compare_distribution(fixture: DoctorFixture, one: Divergence) -> tuple[str, str | None]:
    """Return (what is known of a term's cached distribution, its fault or None)."""
    batch, temperature = fixture.batch(fixture.one_a_row), one.term.at(1, 1).temperature
    target = fixture.cache.signals(batch.keys).distribution(temperature).to(fixture.device)
    dense = fixture.online_sources(batch)["online"].distribution(temperature)
    exact_NV = dense.logprobs()  # type: ignore[union-attr]
    if isinstance(target, SparseDistribution) and target.tail_N is None:
        errors = _standard_errors(exact_NV, target)
        fault = f"is {errors:.1f} standard errors off"
        known = f" (draws {errors:+.1f} standard errors off)"
        return known, fault if abs(errors) > MAX_STANDARD_ERRORS else None
    kl = _coarse_kl(exact_NV * temperature, target, temperature)
    rest = ", the rest being one outcome" if isinstance(target, SparseDistribution) else ""
    known = f" (KL {brief(kl)} to what is stored{rest})"
    return known, None if kl <= explained_difference(fixture) else f"is KL {kl:.2g} off"


def times_chance(fixture: DoctorFixture) -> float:
    """Return |sum of the tokens' slopes|^2 / sum of |slope|^2 of drawn targets at the teacher.

    It is about 1 where draws are independent and right on average, about N where they are biased.
    """
    batch = fixture.batch(fixture.one_a_row)
    target = fixture.cache.signals(batch.keys).distribution(1.0)
    assert isinstance(target, SparseDistribution)
    dense = fixture.online_sources(batch)["online"].distribution(1.0)
    teacher_NV = dense.logprobs().exp()  # type: ignore[union-attr]
    weights_NK = target.to(teacher_NV.device).logprobs_NK.exp()
    slopes_NV = teacher_NV * weights_NK.sum(-1, keepdim=True)
    slopes_NV.scatter_add_(-1, target.to(teacher_NV.device).ids_NK, -weights_NK)
    together = float(slopes_NV.sum(0).square().sum())
    return together / max(float(slopes_NV.square().sum()), 1e-12)


def _share_of_others(fixture: DoctorFixture, batch: Batch, number: int) -> float:
    """Return the worst ratio, over a term's layers, of two errors of the cached states.

    They are the errors against these tokens' states and against their neighbours'. The ratio is
    near 0, but for the codec's error, and near 1 where the cached states are of other tokens.
    """
    signals, online = fixture.cache.signals(batch.keys), fixture.online_sources(batch)["online"]
    worst = 0.0
    for layer in {t for _, t in fixture.pairs(fixture.divergences)[number]}:
        stored_NH, exact_NH = signals.hidden(layer).to(fixture.device), online.hidden(layer)
        own, other = (
            float((stored_NH - exact_NH.roll(by, 0)).double().square().mean()) for by in (0, 1)
        )
        worst = max(worst, own / max(other, 1e-30))
    return worst


def _coarse_kl(exact_NV: Tensor, target: Any, temperature: float) -> float:
    """Return KL(teacher || stored) over the target's outcomes: what rounding costs."""
    exact_NO, stored_NO = on_outcomes(exact_NV, target, temperature)
    kl_NO = exact_NO.double().exp() * (exact_NO - stored_NO)
    return float(torch.where(exact_NO > -math.inf, kl_NO, 0).sum(-1).mean())


def _standard_errors(exact_NV: Tensor, target: SparseDistribution) -> float:
    """Return the error of the draws' mean log-probability, in standard errors.

    It is right on average for any draws; entries drawn for other tokens would be far less likely.
    """
    weights_NK = target.logprobs_NK.exp()
    drawn_N = (weights_NK * exact_NV.gather(-1, target.ids_NK)).double().sum(-1)
    gap_N = drawn_N - (exact_NV.exp() * exact_NV).double().sum(-1)
    return float(gap_N.mean() / (gap_N.std() / math.sqrt(len(gap_N)) + 1e-6))
