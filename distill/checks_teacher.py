"""Checks of `distill doctor` on teacher and signals: what is compared, and with what.

Legend: N tokens counted, O outcomes, V vocabulary, H width.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from distill.checkup import Finding, check, judged, not_applicable
from distill.losses import LOSSES
from distill.patient import Patient, Step
from teachers.signals import SparseDistribution

EXACT = 1e-4  # nats a token, or the loss's unit: float32 at the teacher
SIXTEEN_BITS = 1e-2  # the same where the teacher is held in 16 bits: batches round differently
CODEC = 0.1  # of the student's value, at the teacher; what a codec may add
FLAT = 0.25  # of the student's gradient, at the teacher
PART = 0.3  # of a value, between cache and teacher
TURNED = 0.6  # of the gradient, between cache and teacher
CHANCE = 3.0  # times what independent draws give
KINKED = {"tvd"}  # an absolute value: its gradient jumps at the teacher


def _names(patient: Patient) -> list[str]:
    return [f"{i}:{term.loss}" for i, term in enumerate(patient.divergences)]


def _is_drawn(patient: Patient, name: str) -> bool:
    """Whether a term reads drawn entries: unbiased in the gradient, its value off by a constant."""
    term = patient.divergences[int(name.split(":")[0])]
    return _reads_entries(patient, term) and patient.cache.config.codec.tail == "sampled"


def _reads_entries(patient: Patient, term: Any) -> bool:
    source = term.source or patient.config.source
    return LOSSES[term.loss].reads == "distribution" and source == "cache"


def _is_cut(patient: Patient, name: str) -> bool:
    """Whether a term drops the mass outside the entries, so that it is not zero at the teacher."""
    tail = getattr(patient.divergences[int(name.split(":")[0])], "tail", None)
    return tail in ("drop", "renormalize")


def _floor(patient: Patient) -> float:
    """Difference in nats a token that is no more than rounding and what the codec promises."""
    dtype = next(p for p in patient.teacher.parameters() if p.is_floating_point()).dtype
    exact = EXACT if dtype == torch.float32 else SIXTEEN_BITS
    promised = getattr(patient.cache.config.codec, "kl", 0.0) if patient.reads_cache else 0.0
    return max(exact, 3 * promised, 1e-3 if patient.reads_cache else 0.0)


# At the teacher ----------------------------------------------------------------------------------


@check("zero")
def zero(patient: Patient) -> Finding:
    """With the teacher in the student's place every divergence is 0, and flat."""
    terms = [term for term in patient.divergences if LOSSES[term.loss].divergence]
    if not terms:
        return not_applicable("no term of the objective compares with the teacher")
    names = [n for n in _names(patient) if LOSSES[n.split(":")[1]].divergence]
    exact = {name: patient.teacher_taught_online.terms[name] for name in names}
    limit = EXACT if _floor(patient) < SIXTEEN_BITS else SIXTEEN_BITS
    faults = [f"{name} is {value:.2g}" for name, value in exact.items() if abs(value) > limit]
    slope = _slope(patient, patient.teacher_taught_online, patient.taught_online)
    if slope > 0.01 and not faults and limit == EXACT:
        faults.append(f"the gradient is {slope:.2g} of the student's")
    online = max(map(abs, exact.values()))
    says = f"at the teacher at most {online:.1e}, slope {slope:.1e} of the student's"
    numbers = {"online": online, "online_slope": slope}
    if patient.reads_cache and not faults:
        more, faults, found = _zero_from_cache(patient, names)
        says, numbers = f"{says}; from the cache {more}", numbers | found
    if faults:
        says = f"with the teacher itself as student {'; '.join(faults)}, not 0"
    return judged(not faults, says, **numbers)


def _slope(patient: Patient, teacher: Step, student: Step) -> float:
    """Gradient at the teacher by the gradient at the student, over norms and biases."""
    if any(term.loss in KINKED for term in patient.divergences):
        return 0.0
    mine = [g for g in student.gradient.values() if g.ndim == 1] or [*student.gradient.values()]
    norm = math.sqrt(sum(float(g.square().sum()) for g in mine))
    return teacher.norm / norm if norm > EXACT else 0.0


def _zero_from_cache(patient: Patient, names: list[str]) -> tuple[str, list[str], dict[str, float]]:
    """(sentence, faults, numbers) of the cached signals with the teacher as student."""
    at_teacher, at_student = patient.teacher_taught.terms, patient.taught.terms
    parts, faults = [], []
    drawn = [name for name in names if _is_drawn(patient, name)]
    for name in names:
        value = at_teacher[name]
        parts.append(f"{name.split(':')[1]} {value:.1e} ({at_student[name]:.3g} at the student)")
        if name in drawn:
            parts[-1] = f"{parts[-1]}: a constant of the draws"
        elif _is_cut(patient, name):
            parts[-1] += ": its `tail` is cut, as the recipe wants"
        elif abs(value) > max(_floor(patient), CODEC * abs(at_student[name])):
            faults.append(f"{name} is {value:.2g} from the cache ({at_student[name]:.2g} at the "
                          "student)")  # fmt: skip
    slope = _slope(patient, patient.teacher_taught, patient.taught)
    if drawn:
        ratio = _noise(patient)
        parts.append(f"whose slopes cancel ({ratio:.1f} of chance)")
        if ratio > CHANCE:
            faults.append(f"the draws' slopes add up to {ratio:.1f} times what chance gives")
    elif slope > FLAT and not any(_is_cut(patient, name) for name in names):
        if max(abs(at_student[name]) for name in names) > _floor(patient):
            faults.append(f"the gradient from the cache is {slope:.2g} of the student's")
    return ", ".join(parts), faults, {"cache_slope": slope} | {f"at_teacher {n}": at_teacher[n] for n in names}  # fmt: skip


def _noise(patient: Patient) -> float:
    """|sum of the tokens' slopes|^2 / sum of |slope|^2 of drawn targets at the teacher's logits.

    About 1 where draws are independent and right on average; about N where they are biased.
    """
    batch = patient.batch(patient.one_a_row)
    target = patient.cache.signals(batch.keys).distribution(1.0)
    assert isinstance(target, SparseDistribution)
    dense = patient.all_online(batch)["online"].distribution(1.0)
    teacher_NV = dense.logprobs().exp()  # type: ignore[union-attr]
    weights_NK = target.to(teacher_NV.device).logprobs_NK.exp()
    slopes_NV = teacher_NV * weights_NK.sum(-1, keepdim=True)
    slopes_NV.scatter_add_(-1, target.to(teacher_NV.device).ids_NK, -weights_NK)
    together = float(slopes_NV.sum(0).square().sum())
    return together / max(float(slopes_NV.square().sum()), 1e-12)
