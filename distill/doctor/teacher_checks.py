"""Checks of `distill doctor` on the teacher and on its signals, cached and online.

Legend: N tokens counted, V vocabulary, H width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attar.models.structure import head_of, run_body, unwrap
from distill.data.batching import collate
from distill.data.examples import Example
from distill.data.tokenize import IGNORE
from distill.doctor.findings import Finding, brief, check, judged, not_applicable
from distill.doctor.fixture import DoctorFixture
from distill.doctor.signal_comparison import (
    FLOAT32_ROUNDING,
    Collected,
    Divergence,
    compare_cached,
    divergences_of,
    explained_difference,
    rounding,
    times_chance,
)
from distill.doctor.step_comparison import Step, relative_difference, take_step
from distill.objective.losses import LOSSES
from teachers.online import OnlineTeacher

MAX_VALUE_AT_TEACHER = 0.1  # of the student's value; what a codec may add
MAX_SLOPE_AT_TEACHER = 0.25  # of the student's gradient
WARN_GRADIENT_ERROR = 0.6  # of the gradient, between cache and teacher: a warning, not a failure
MAX_TIMES_CHANCE = 3.0  # what independent draws give is 1
KINKED = {"tvd"}  # an absolute value: its gradient jumps at the teacher


# At the teacher ----------------------------------------------------------------------------------


@check("zero at teacher")
def zero(fixture: DoctorFixture) -> Finding:
    """With the teacher in the student's place every divergence is 0, and its gradient too."""
    divergences = [one for one in divergences_of(fixture) if LOSSES[one.key.loss].divergence]
    if not divergences:
        return not_applicable("no term of the objective compares with the teacher")
    means = fixture.step_at_teacher_online.means.terms
    exact = {one.key: means[one.key] for one in divergences}
    limit = rounding(fixture)
    faults = [f"{key} is {value:.2g}" for key, value in exact.items() if abs(value) > limit]
    slope = _slope(fixture, fixture.step_at_teacher_online, fixture.divergence_step_online)
    if slope > 0.01 and not faults and limit == FLOAT32_ROUNDING:
        faults.append(f"the gradient is {slope:.2g} of the student's")
    online = max(map(abs, exact.values()))
    says = f"the teacher as student has at most {brief(online)}, gradient {brief(slope)} of the "
    says += "student's"
    numbers = {"online": online, "online_slope": slope}
    if fixture.reads_cache and not faults:
        cached = _zero_from_cache(fixture, divergences)
        faults, numbers = cached.faults, numbers | cached.numbers
        says = f"{says}; from the cache {', '.join(cached.parts)}"
    if faults:
        says = f"with the teacher itself as student {'; '.join(faults)}, not 0"
    return judged(not faults, says, **numbers)


def _slope(fixture: DoctorFixture, teacher: Step, student: Step) -> float:
    """Return the gradient at the teacher by that at the student, over norms and biases."""
    if any(term.loss in KINKED for term in fixture.divergences):
        return 0.0
    mine = [g for g in student.gradient.values() if g.ndim == 1] or [*student.gradient.values()]
    norm = math.sqrt(sum(float(g.square().sum()) for g in mine))
    return teacher.norm / norm if norm > FLOAT32_ROUNDING else 0.0


def _zero_from_cache(fixture: DoctorFixture, divergences: list[Divergence]) -> Collected:
    """Compare cached signals with the teacher as student: values, then the gradient."""
    at_teacher, at_student = (
        fixture.step_at_teacher.means.terms,
        fixture.divergence_step.means.terms,
    )
    report = Collected()
    for one in divergences:
        value, student = at_teacher[one.key], at_student[one.key]
        report.numbers[f"at the teacher, {one.key}"] = value
        if not one.cached:
            continue
        part = f"{one.key.loss} {brief(value)} (the student: {student:.3g})"
        if one.drawn:
            part += ": a constant of the draws"
        elif one.cut:
            part += ": its `tail` is cut, as the recipe wants"
        elif abs(value) > max(explained_difference(fixture), MAX_VALUE_AT_TEACHER * abs(student)):
            report.faults.append(
                f"{one.key} is {value:.2g} from the cache ({student:.2g} at the student)"
            )
        report.parts.append(part)
    slope = _slope(fixture, fixture.step_at_teacher, fixture.divergence_step)
    report.numbers["cache_slope"] = slope
    if any(one.drawn for one in divergences):
        ratio = times_chance(fixture)
        report.parts.append(f"whose slopes cancel ({ratio:.1f} of chance)")
        if ratio > MAX_TIMES_CHANCE:
            report.faults.append(f"the draws' slopes add up to {ratio:.1f} times what chance gives")
    elif slope > MAX_SLOPE_AT_TEACHER and not any(one.cut for one in divergences):
        if max(abs(at_student[one.key]) for one in divergences) > explained_difference(fixture):
            report.faults.append(f"the gradient from the cache is {slope:.2g} of the student's")
    return report


# The vocabulary ----------------------------------------------------------------------------------


@check("vocabulary")
def vocabulary(fixture: DoctorFixture) -> Finding:
    """Columns of the heads beyond the tokenizer's ids change nothing, with any values in them."""
    ids = fixture.run.vocabulary
    extra = {
        name: _rows_of(model) - ids
        for name, model in (("student", fixture.student), ("teacher", fixture.teacher))
    }
    if not any(extra.values()):
        return not_applicable(f"both heads have exactly the tokenizer's {ids:,} ids")
    batch = fixture.batch(fixture.short_rows)
    before = take_step(fixture.learner_of_all, [batch], fixture.sources), _logprobs(fixture)
    with scrambled(fixture.student, ids), scrambled(fixture.teacher, ids):
        after = take_step(fixture.learner_of_all, [batch], fixture.sources), _logprobs(fixture)
    value, gradient = relative_difference(before[0], after[0])
    off = float((after[1] - before[1]).abs().max())
    says = f"{extra['student']} columns of the student's head and {extra['teacher']} of the "
    says += f"teacher's made large: value differs by {brief(value)}, gradient by "
    says += f"{brief(gradient)}, teacher by {brief(off)}"
    mass = _padding_mass(fixture) if extra["teacher"] else 0.0
    says += f"; the teacher's mass on them is {brief(mass)}"
    well = max(value, gradient, off) <= FLOAT32_ROUNDING
    return judged(well, says, value=value, gradient=gradient, teacher=off, mass=mass)


def _rows_of(model: Any) -> int:
    return int(unwrap(model).get_output_embeddings().weight.shape[0])


@torch.no_grad()
def _logprobs(fixture: DoctorFixture) -> Tensor:
    """Return the teacher's log-probabilities of a few tokens, from its head as it is now."""
    batch = fixture.batch(fixture.short_rows)
    teacher = OnlineTeacher(fixture.teacher, fixture.run.vocabulary, [], [])
    signals = teacher.signals(batch.model_inputs(), batch.labels_BT != IGNORE)
    return signals.distribution(1.0).logprobs()


@torch.no_grad()
def _padding_mass(fixture: DoctorFixture) -> float:
    """Return the mean probability that the teacher gives to ids without a token."""
    batch, ids = fixture.batch(fixture.short_rows), fixture.run.vocabulary
    hidden_NH = run_body(fixture.teacher, batch.model_inputs())[batch.labels_BT != IGNORE]
    logits_NV = head_of(fixture.teacher, _rows_of(fixture.teacher)).logits(hidden_NH)
    return float(logits_NV.softmax(-1)[:, ids:].sum(-1).mean())


@contextmanager
def scrambled(model: Any, vocabulary: int) -> Iterator[None]:
    """Put large random numbers in the head's rows beyond the vocabulary, inside the block."""
    head = unwrap(model).get_output_embeddings()
    tensors = [t for t in (head.weight, getattr(head, "bias", None)) if t is not None]
    kept = [tensor.detach()[vocabulary:].clone() for tensor in tensors]
    with torch.no_grad():
        for tensor in tensors:
            tensor[vocabulary:] = 100 * torch.randn_like(tensor[vocabulary:])
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, old in zip(tensors, kept, strict=True):
                tensor[vocabulary:] = old


# The cached signals ------------------------------------------------------------------------------


@check("cache")
def cache(fixture: DoctorFixture) -> Finding:
    """The cached signals are the teacher's on these very tokens, but for the codec's error."""
    if not fixture.reads_cache:
        return not_applicable("no term of `train` reads the cache")
    report, telling = Collected(), False
    for one in divergences_of(fixture):
        if one.cached:
            compare_cached(fixture, one, report)
            online = fixture.divergence_step_online.means.terms[one.key]
            telling |= abs(online) > explained_difference(fixture) and not one.cut
    gradient = relative_difference(fixture.divergence_step_online, fixture.divergence_step)[1]
    numbers = {**report.numbers, "gradient": gradient}
    if report.faults:
        return judged(False, f"not these tokens' signals? {'; '.join(report.faults)}", **numbers)
    codec = fixture.cache.config.codec.name
    says = f"{'; '.join(report.parts)}; gradient off by {gradient:.3f} (codec {codec})"
    if telling and gradient > WARN_GRADIENT_ERROR:
        says += ": few bytes for this teacher; see `distill cache audit`"
        return Finding("warn", says, numbers)
    return judged(True, says, **numbers)


@check("frozen teacher")
def frozen(fixture: DoctorFixture) -> Finding:
    """No gradient reaches the teacher, and it shares no tensor with the student."""
    if not fixture.divergences:
        return not_applicable("no term of the objective compares with the teacher")
    _ = fixture.divergence_step_online  # a step with the teacher in it
    teacher = dict(fixture.teacher.named_parameters())
    learns = [name for name, p in teacher.items() if p.requires_grad or p.grad is not None]
    ours = {p.data_ptr() for p in fixture.student.parameters()}
    shared = [name for name, p in teacher.items() if p.data_ptr() in ours]
    batch = fixture.batch(fixture.short_rows)
    signals = fixture.online_sources(batch)["online"]
    tensors = [signals.distribution(1.0).logprobs()]  # type: ignore[union-attr]
    tensors += [signals.hidden(layer) for layer in fixture.online.layers]
    graph = any(tensor.requires_grad for tensor in tensors)
    modes = [name for name, module in fixture.teacher.named_modules() if module.training]
    faults = [
        says
        for wrong, says in (
            (learns, f"{len(learns)} of its tensors would learn, e.g. {learns[:1]}"),
            (shared, f"{len(shared)} of its tensors are the student's too, e.g. {shared[:1]}"),
            (graph, "its signals require a gradient"),
            (modes, "it is in training mode, so dropout acts"),
        )
        if wrong
    ]
    says = f"after a step none of its {len(teacher)} tensors has a gradient"
    return judged(not faults, f"the teacher is not frozen: {'; '.join(faults)}" if faults else says)


@check("fitness")
def fitness(fixture: DoctorFixture) -> Finding:
    """The teacher predicts validation text better than the untrained student does."""
    teacher, tokens = mean_nll(fixture.teacher, fixture)
    student, _ = mean_nll(fixture.student, fixture)
    says = f"nll {teacher:.3f} on {tokens} validation tokens, the untrained student {student:.3f}"
    numbers = {"teacher": teacher, "student": student, "tokens": float(tokens)}
    if teacher < student:
        return judged(True, says, **numbers)
    about = "it has little to teach on this text; adapt it first (`teacher.adapt`)?"
    return Finding("warn", f"{says}: {about}", numbers)


@torch.no_grad()
def mean_nll(model: nn.Module, fixture: DoctorFixture) -> tuple[float, int]:
    """Return (nll in nats a token, tokens) on the validation examples."""
    head, total, counted = head_of(model, fixture.run.vocabulary), 0.0, 0
    for example in fixture.validation:
        total += _nll(model, head, example, fixture)
        counted += len(example.counted)
    return total / max(1, counted), counted


def _nll(model: nn.Module, head: Any, example: Example, fixture: DoctorFixture) -> float:
    batch = collate([[example]]).to(fixture.device)
    where_BT = batch.labels_BT != IGNORE
    hidden_NH = run_body(model, batch.model_inputs())[where_BT]
    total = 0.0
    parts = zip(hidden_NH.split(64), batch.labels_BT[where_BT].split(64), strict=True)
    for hidden, labels in parts:
        logprobs = head.logits(hidden).log_softmax(-1)
        total -= float(logprobs.gather(-1, labels.unsqueeze(-1)).sum())
    return total
