"""Checks of `distill doctor` on teacher and signals: what is compared, and with what.

Legend: N tokens counted, O outcomes, V vocabulary, H width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attar.models.structure import head_of, run_body, unwrap
from distill.data.batching import Batch, collate
from distill.data.examples import Example
from distill.data.tokenize import IGNORE
from distill.doctor.findings import Finding, brief, check, judged, not_applicable
from distill.doctor.fixture import DoctorFixture
from distill.doctor.step_comparison import Step, apart, take_step
from distill.objective.losses import LOSSES, on_outcomes
from teachers.online import OnlineTeacher
from teachers.signals import SparseDistribution

EXACT = 1e-4  # nats a token, or the loss's unit: float32 at the teacher
SIXTEEN_BITS = 1e-2  # the same where the teacher is held in 16 bits: batches round differently
STORED = 1e-3  # the same of what is stored in 16 bits
CODEC = 0.1  # of the student's value, at the teacher; what a codec may add
FLAT = 0.25  # of the student's gradient, at the teacher
PART = 0.3  # of a value, between cache and teacher
UNLIKELY = 5.0  # standard errors
TURNED = 0.6  # of the gradient, between cache and teacher: told, not judged
CHANCE = 3.0  # times what independent draws give
KINKED = {"tvd"}  # an absolute value: its gradient jumps at the teacher


def _names(fixture: DoctorFixture) -> list[str]:
    return [f"{i}:{term.loss}" for i, term in enumerate(fixture.divergences)]


def _term(fixture: DoctorFixture, name: str) -> Any:
    return fixture.divergences[int(name.split(":")[0])]


def _source(fixture: DoctorFixture, name: str) -> str:
    return str(_term(fixture, name).source or fixture.config.source)


def _is_drawn(fixture: DoctorFixture, name: str) -> bool:
    """Whether a term reads drawn entries: unbiased in the gradient, its value off by a constant."""
    if LOSSES[_term(fixture, name).loss].reads != "distribution":
        return False
    drawn = fixture.run.recipe.cache.codec.tail == "sampled"
    return drawn and _source(fixture, name) == "cache"


def _is_cut(fixture: DoctorFixture, name: str) -> bool:
    """Whether a term drops the mass outside the entries, so that it is not zero at the teacher."""
    return getattr(_term(fixture, name), "tail", None) in ("drop", "renormalize")


def _rounding(fixture: DoctorFixture) -> float:
    """Difference in nats a token that is no more than rounding."""
    dtype = next(p for p in fixture.teacher.parameters() if p.is_floating_point()).dtype
    return EXACT if dtype == torch.float32 else SIXTEEN_BITS


def _floor(fixture: DoctorFixture) -> float:
    """The same with what the codec promises of its own, and 16 bits of what it stores."""
    promised = getattr(fixture.run.recipe.cache.codec, "kl", 0.0)
    return max(_rounding(fixture), STORED, 3 * promised)


# At the teacher ----------------------------------------------------------------------------------


@check("zero at teacher")
def zero(fixture: DoctorFixture) -> Finding:
    """With the teacher in the student's place every divergence is 0, and flat."""
    terms = [term for term in fixture.divergences if LOSSES[term.loss].divergence]
    if not terms:
        return not_applicable("no term of the objective compares with the teacher")
    names = [n for n in _names(fixture) if LOSSES[n.split(":")[1]].divergence]
    exact = {name: fixture.teacher_taught_online.terms[name] for name in names}
    limit = _rounding(fixture)
    faults = [f"{name} is {value:.2g}" for name, value in exact.items() if abs(value) > limit]
    slope = _slope(fixture, fixture.teacher_taught_online, fixture.taught_online)
    if slope > 0.01 and not faults and limit == EXACT:
        faults.append(f"the gradient is {slope:.2g} of the student's")
    online = max(map(abs, exact.values()))
    says = f"the teacher as student has at most {brief(online)}, gradient {brief(slope)} of the "
    says += "student's"
    numbers = {"online": online, "online_slope": slope}
    if fixture.reads_cache and not faults:
        more, faults, found = _zero_from_cache(fixture, names)
        says, numbers = f"{says}; from the cache {more}", numbers | found
    if faults:
        says = f"with the teacher itself as student {'; '.join(faults)}, not 0"
    return judged(not faults, says, **numbers)


def _slope(fixture: DoctorFixture, teacher: Step, student: Step) -> float:
    """Gradient at the teacher by the gradient at the student, over norms and biases."""
    if any(term.loss in KINKED for term in fixture.divergences):
        return 0.0
    mine = [g for g in student.gradient.values() if g.ndim == 1] or [*student.gradient.values()]
    norm = math.sqrt(sum(float(g.square().sum()) for g in mine))
    return teacher.norm / norm if norm > EXACT else 0.0


def _zero_from_cache(
    fixture: DoctorFixture, names: list[str]
) -> tuple[str, list[str], dict[str, float]]:
    """(sentence, faults, numbers) of the cached signals with the teacher as student."""
    at_teacher, at_student = fixture.teacher_taught.terms, fixture.taught.terms
    parts, faults = [], []
    drawn = [name for name in names if _is_drawn(fixture, name)]
    for name in [name for name in names if _source(fixture, name) == "cache"]:
        value = at_teacher[name]
        loss = name.split(":")[1]
        parts.append(f"{loss} {brief(value)} (the student: {at_student[name]:.3g})")
        if name in drawn:
            parts[-1] = f"{parts[-1]}: a constant of the draws"
        elif _is_cut(fixture, name):
            parts[-1] += ": its `tail` is cut, as the recipe wants"
        elif abs(value) > max(_floor(fixture), CODEC * abs(at_student[name])):
            faults.append(f"{name} is {value:.2g} from the cache ({at_student[name]:.2g} at the "
                          "student)")  # fmt: skip
    slope = _slope(fixture, fixture.teacher_taught, fixture.taught)
    if drawn:
        ratio = _noise(fixture)
        parts.append(f"whose slopes cancel ({ratio:.1f} of chance)")
        if ratio > CHANCE:
            faults.append(f"the draws' slopes add up to {ratio:.1f} times what chance gives")
    elif slope > FLAT and not any(_is_cut(fixture, name) for name in names):
        if max(abs(at_student[name]) for name in names) > _floor(fixture):
            faults.append(f"the gradient from the cache is {slope:.2g} of the student's")
    numbers = {f"at the teacher, {name}": at_teacher[name] for name in names}
    return ", ".join(parts), faults, numbers | {"cache_slope": slope}


def _noise(fixture: DoctorFixture) -> float:
    """|sum of the tokens' slopes|^2 / sum of |slope|^2 of drawn targets at the teacher's logits.

    About 1 where draws are independent and right on average; about N where they are biased.
    """
    batch = fixture.batch(fixture.one_a_row)
    target = fixture.cache.signals(batch.keys).distribution(1.0)
    assert isinstance(target, SparseDistribution)
    dense = fixture.all_online(batch)["online"].distribution(1.0)
    teacher_NV = dense.logprobs().exp()  # type: ignore[union-attr]
    weights_NK = target.to(teacher_NV.device).logprobs_NK.exp()
    slopes_NV = teacher_NV * weights_NK.sum(-1, keepdim=True)
    slopes_NV.scatter_add_(-1, target.to(teacher_NV.device).ids_NK, -weights_NK)
    together = float(slopes_NV.sum(0).square().sum())
    return together / max(float(slopes_NV.square().sum()), 1e-12)


# The vocabulary ----------------------------------------------------------------------------------


@check("vocabulary")
def vocabulary(fixture: DoctorFixture) -> Finding:
    """Columns beyond the tokenizer's ids have no part, whatever stands in them."""
    ids = fixture.run.vocabulary
    extra = {
        name: _rows_of(model) - ids
        for name, model in (("student", fixture.student), ("teacher", fixture.teacher))
    }
    if not any(extra.values()):
        return not_applicable(f"both heads have exactly the tokenizer's {ids:,} ids")
    batch = fixture.batch(fixture.few)
    before = take_step(fixture.whole, [batch], fixture.given), _logprobs(fixture)
    with scrambled(fixture.student, ids), scrambled(fixture.teacher, ids):
        after = take_step(fixture.whole, [batch], fixture.given), _logprobs(fixture)
    value, gradient = apart(before[0], after[0])
    off = float((after[1] - before[1]).abs().max())
    says = f"{extra['student']} columns of the student's head and {extra['teacher']} of the "
    says += f"teacher's made large: value differs by {brief(value)}, gradient by "
    says += f"{brief(gradient)}, teacher by {brief(off)}"
    mass = _padding_mass(fixture) if extra["teacher"] else 0.0
    says += f"; the teacher's mass on them is {brief(mass)}"
    well = max(value, gradient, off) <= EXACT
    return judged(well, says, value=value, gradient=gradient, teacher=off, mass=mass)


def _rows_of(model: Any) -> int:
    return int(unwrap(model).get_output_embeddings().weight.shape[0])


@torch.no_grad()
def _logprobs(fixture: DoctorFixture) -> Tensor:
    """The teacher's log-probabilities of a few tokens, as losses read them, from its head now."""
    batch = fixture.batch(fixture.few)
    teacher = OnlineTeacher(fixture.teacher, fixture.run.vocabulary, [], [])
    signals = teacher.signals(batch.model_inputs(), batch.labels_BT != IGNORE)
    return signals.distribution(1.0).logprobs()


@torch.no_grad()
def _padding_mass(fixture: DoctorFixture) -> float:
    """Mean probability that the teacher gives to ids without a token."""
    batch, ids = fixture.batch(fixture.few), fixture.run.vocabulary
    hidden_NH = run_body(fixture.teacher, batch.model_inputs())[batch.labels_BT != IGNORE]
    logits_NV = head_of(fixture.teacher, _rows_of(fixture.teacher)).logits(hidden_NH)
    return float(logits_NV.softmax(-1)[:, ids:].sum(-1).mean())


@contextmanager
def scrambled(model: Any, vocabulary: int) -> Iterator[None]:
    """Large random numbers in the head's rows beyond the vocabulary, while the block runs."""
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


# The teacher in the step -------------------------------------------------------------------------


@check("cache")
def cache(fixture: DoctorFixture) -> Finding:
    """The cached signals are the teacher's on these very tokens, but for the codec's error."""
    if not fixture.reads_cache:
        return not_applicable("no term of `train` reads the cache")
    cached, online = fixture.taught, fixture.taught_online
    parts, faults, telling = [], [], False
    numbers: dict[str, float] = {}
    for number, (name, term) in enumerate(zip(_names(fixture), fixture.divergences, strict=True)):
        if _source(fixture, name) != "cache":
            continue
        value, there = cached.terms[name], online.terms[name]
        if _is_drawn(fixture, name):  # the constant of the draws is the same at the teacher
            value -= fixture.teacher_taught.terms[name]
        part, fault = _compared(fixture, number, value, there)
        parts.append(f"{term.loss} {value:.4g} from the cache, {there:.4g} online{part}")
        faults += [f"{name} {fault}"] if fault else []
        telling |= abs(there) > _floor(fixture) and not _is_cut(fixture, name)
        numbers |= {f"{name}, cached": value, f"{name}, online": there}
    numbers["gradient"] = gradient = apart(online, cached)[1]
    if faults:
        return judged(False, f"not these tokens' signals? {'; '.join(faults)}", **numbers)
    codec = fixture.cache.config.codec.name
    says = f"{'; '.join(parts)}; gradient off by {gradient:.3f} (codec {codec})"
    if telling and gradient > TURNED:
        return Finding("warn", f"{says}: few bytes for this teacher; see `distill cache audit`",
                       numbers)  # fmt: skip
    return judged(True, says, **numbers)


def _compared(fixture: DoctorFixture, number: int, value: float, there: float) -> tuple[str, str]:
    """(what is known of a term's signals, what is wrong with them)."""
    term = fixture.divergences[number]
    reads, batch = LOSSES[term.loss].reads, fixture.batch(fixture.one_a_row)
    if reads == "hidden":
        share = _share_of_others(fixture, batch, number)
        wrong = f"is {share:.0%} as far from these tokens' states as from others'"
        return f" (layers {brief(share)} as far off as others' are)", wrong * (share > PART)
    if reads != "distribution":
        wrong = f"is {value:.3g} from the cache, {there:.3g} online"
        return "", wrong * (abs(value - there) > max(_floor(fixture), PART * abs(there)))
    temperature = term.at(1, 1).temperature
    target = fixture.cache.signals(batch.keys).distribution(temperature).to(fixture.device)
    dense = fixture.all_online(batch)["online"].distribution(temperature)
    exact_NV = dense.logprobs()  # type: ignore[union-attr]
    if isinstance(target, SparseDistribution) and target.tail_N is None:
        z = _surprise(exact_NV, target)
        off = abs(z) > UNLIKELY
        return f" (draws {z:+.1f} standard errors off)", f"is {z:.1f} standard errors off" * off
    kl = _coarse_kl(exact_NV * temperature, target, temperature)
    rest = ", the rest being one outcome" if isinstance(target, SparseDistribution) else ""
    off = not kl <= _floor(fixture)
    return f" (KL {brief(kl)} to what is stored{rest})", f"is KL {kl:.2g} off" * off


def _share_of_others(fixture: DoctorFixture, batch: Batch, number: int) -> float:
    """Error of the cached layers that a term reads, by that against the tokens before; the worst.

    Near 0 but for the codec's error; near 1 where they are of other tokens.
    """
    signals, online = fixture.cache.signals(batch.keys), fixture.all_online(batch)["online"]
    worst = 0.0
    for layer in {t for _, t in fixture.pairs(fixture.divergences)[number]}:
        stored_NH, exact_NH = signals.hidden(layer).to(fixture.device), online.hidden(layer)
        own, other = (
            float((stored_NH - exact_NH.roll(by, 0)).double().square().mean()) for by in (0, 1)
        )
        worst = max(worst, own / max(other, 1e-30))
    return worst


def _coarse_kl(exact_NV: Tensor, target: Any, temperature: float) -> float:
    """KL(teacher || stored) over the outcomes that are told apart: what rounding costs."""
    exact_NO, stored_NO = on_outcomes(exact_NV, target, temperature)
    kl_NO = exact_NO.double().exp() * (exact_NO - stored_NO)
    return float(torch.where(exact_NO > -math.inf, kl_NO, 0).sum(-1).mean())


def _surprise(exact_NV: Tensor, target: SparseDistribution) -> float:
    """How far the draws' mean log-probability is from the distribution's, in standard errors.

    Right on average, whatever was drawn: entries of other tokens would be far less likely.
    """
    weights_NK = target.logprobs_NK.exp()
    drawn_N = (weights_NK * exact_NV.gather(-1, target.ids_NK)).double().sum(-1)
    gap_N = drawn_N - (exact_NV.exp() * exact_NV).double().sum(-1)
    return float(gap_N.mean() / (gap_N.std() / math.sqrt(len(gap_N)) + 1e-6))


@check("frozen teacher")
def frozen(fixture: DoctorFixture) -> Finding:
    """No gradient reaches the teacher, and it shares nothing with what learns."""
    if not fixture.divergences:
        return not_applicable("no term of the objective compares with the teacher")
    _ = fixture.taught_online  # a step with the teacher in it
    teacher = dict(fixture.teacher.named_parameters())
    learns = [name for name, p in teacher.items() if p.requires_grad or p.grad is not None]
    ours = {p.data_ptr() for p in fixture.student.parameters()}
    shared = [name for name, p in teacher.items() if p.data_ptr() in ours]
    batch = fixture.batch(fixture.few)
    signals = fixture.all_online(batch)["online"]
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
    """Whether the teacher knows the held-out text better than the untrained student."""
    teacher, tokens = mean_nll(fixture.teacher, fixture)
    student, _ = mean_nll(fixture.student, fixture)
    says = f"nll {teacher:.3f} on {tokens} held-out tokens, the untrained student {student:.3f}"
    numbers = {"teacher": teacher, "student": student, "tokens": float(tokens)}
    if teacher < student:
        return judged(True, says, **numbers)
    about = "it has little to teach on this text; adapt it first (`teacher.adapt`)?"
    return Finding("warn", f"{says}: {about}", numbers)


@torch.no_grad()
def mean_nll(model: nn.Module, fixture: DoctorFixture) -> tuple[float, int]:
    """(nll in nats a token, tokens) on the held-out examples."""
    head, total, counted = head_of(model, fixture.run.vocabulary), 0.0, 0
    for example in fixture.held_out:
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
