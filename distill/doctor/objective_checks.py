"""Checks of `distill doctor` on a step: how examples are batched must not change the gradient.

Legend: B rows, T tokens, N tokens counted, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attar.models.loading import resolve_precision
from distill.data.batching import Batch
from distill.data.tokenize import IGNORE
from distill.doctor.findings import Finding, brief, check, judged, not_applicable
from distill.doctor.fixture import DoctorFixture
from distill.doctor.step_comparison import Step, relative_difference, take_step, without_dropout
from distill.objective.model_outputs import LanguageReadout
from distill.objective.terms import TERM_MODELS
from distill.training.loop import train

MAX_VALUE_DIFFERENCE = 1e-4  # relative; float32 sums in another order
MAX_GRADIENT_DIFFERENCE = 5e-3  # ... where massive activations cancel (examples/demo has 1e-3)
MAX_ROUNDED_VALUE_DIFFERENCE = 0.1  # ... where products are in 16 bits
MAX_ROUNDED_GRADIENT_DIFFERENCE = 0.3
MORE_PADDING = 17  # tokens


def _same(what: str, one: Step, other: Step) -> Finding:
    """Judge whether two ways to take a step gave the same value and the same gradient."""
    value, gradient = relative_difference(one, other)
    says = f"{what}: {_differs(value, gradient)}"
    return judged(
        value <= MAX_VALUE_DIFFERENCE and gradient <= MAX_GRADIENT_DIFFERENCE,
        says,
        value=value,
        gradient=gradient,
    )


def _differs(value: float, gradient: float) -> str:
    return f"value differs by {brief(value)} of itself, gradient by {brief(gradient)}"


@check("normaliser")
def normaliser(fixture: DoctorFixture) -> Finding:
    """A step of the loop is the mean over all counted tokens, and has the gradient of that mean.

    The reference is the plain model on one example at a time, its logits in float64.
    """
    plain = without_dropout(fixture.load_student(little=True))
    nll, norm = plain_mean(plain, fixture)
    learner = fixture.learner(plain, [TERM_MODELS["cross_entropy"].model_validate({})], {})
    job = fixture.job(
        "normaliser", learner, objective=learner.terms, batch_size=2, accumulate=64,
        max_steps=1, epochs=1,
    )  # fmt: skip
    seen = train(job).history[0]
    value, gradient = abs(seen["nll"] - nll) / nll, abs(seen["norm"] - norm) / norm
    terms, means = fixture.learner_of_all.final_terms(), fixture.reference_step.means
    parts = sum(terms[key.index].weight * mean for key, mean in means.terms.items())
    total = abs(fixture.reference_step.value - parts) / max(abs(parts), 1e-12)
    assert means.nll is not None, "texts of a language model have labels"
    ours = abs(means.nll - nll) / nll
    says = (
        f"nll {seen['nll']:.4f} in a step of {fixture.examples.num_tokens} tokens, {nll:.4f} from "
        f"the plain model; gradient's norm {seen['norm']:.4f}, {norm:.4f}"
    )
    if total > MAX_VALUE_DIFFERENCE:
        says += (
            f"; the objective is {fixture.reference_step.value:.4f}, its terms sum to {parts:.4f}"
        )
    same_value = max(value, ours, total) <= MAX_VALUE_DIFFERENCE
    well = same_value and gradient <= MAX_GRADIENT_DIFFERENCE
    return judged(well, says, nll=seen["nll"], plain_nll=nll, norm=seen["norm"], plain_norm=norm)


def plain_mean(model: Any, fixture: DoctorFixture) -> tuple[float, float]:
    """Return (mean nll of the next ids at counted positions, norm of its gradient)."""
    model.zero_grad(set_to_none=True)
    total, counted = 0.0, fixture.examples.num_tokens
    for example in fixture.examples:
        ids_1T = torch.from_numpy(example.input_ids)[None].to(fixture.device)
        at_N = torch.from_numpy(example.counted).to(fixture.device)
        logits_NV = model(input_ids=ids_1T, use_cache=False).logits[0, at_N]
        logprobs_NV = logits_NV[:, : fixture.run.vocabulary].double().log_softmax(-1)
        nll = -logprobs_NV.gather(-1, ids_1T[0, at_N + 1].unsqueeze(-1)).sum() / counted
        nll.backward()
        total += nll.item()
    gradients = [p.grad.double() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return total, math.sqrt(sum(float(g.square().sum()) for g in gradients))


@check("accumulation")
def accumulation(fixture: DoctorFixture) -> Finding:
    """One micro-batch of all examples, or one for each, give the same step."""
    parts = [fixture.batch([row]) for row in fixture.one_a_row]
    other = take_step(fixture.learner_of_all, parts, fixture.sources)
    return _same(f"1 micro-batch or {len(parts)}", fixture.reference_step, other)


@check("padding")
def padding(fixture: DoctorFixture) -> Finding:
    """More padding, with other ids, gives the same step."""
    batch = more_padding(fixture.batch(fixture.one_a_row), fixture.run.vocabulary)
    other = take_step(fixture.learner_of_all, [batch], fixture.sources)
    return _same(
        f"{MORE_PADDING} more columns of padding, other ids", fixture.reference_step, other
    )


def more_padding(batch: Batch, vocabulary: int) -> Batch:
    """The same rows with more padding on the right, its ids drawn from the vocabulary."""
    rows, length = batch.input_ids_BT.shape
    steps = torch.arange(1, MORE_PADDING + 1, device=batch.input_ids_BT.device)

    def wider(tensor_BT: Tensor, more_BP: Tensor) -> Tensor:
        return torch.cat([tensor_BT, more_BP], 1)

    ids_BT = wider(batch.input_ids_BT, steps.expand(rows, -1))
    positions_BT = wider(batch.position_ids_BT, batch.position_ids_BT[:, -1:] + steps)
    labels_BT = wider(batch.labels_BT, torch.full_like(steps, IGNORE).expand(rows, -1))
    last_B1 = torch.where(labels_BT != IGNORE, torch.arange(length + MORE_PADDING).to(ids_BT), 0)
    unseen_BT = torch.arange(length + MORE_PADDING).to(ids_BT) > last_B1.amax(1, keepdim=True) + 1
    drawn_BT = torch.randint(0, vocabulary, ids_BT.shape, generator=_fixed()).to(ids_BT)
    ids_BT = torch.where(unseen_BT, drawn_BT, ids_BT)
    return replace(batch, input_ids_BT=ids_BT, position_ids_BT=positions_BT, labels_BT=labels_BT)


def _fixed() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@check("packing")
def packing(fixture: DoctorFixture) -> Finding:
    """Several examples in a row, or one, give the same step."""
    rows = [list(range(0, len(fixture.examples), 2)), list(range(1, len(fixture.examples), 2))]
    other = take_step(fixture.learner_of_all, [fixture.batch(rows)], fixture.sources)
    found = _same(f"{len(fixture.examples)} examples in 2 rows", fixture.reference_step, other)
    if fixture.run.recipe.data.packing:
        return found
    mixed = "" if found.outcome == "pass" else "; leave it so: this model would mix examples"
    return not_applicable(f"the recipe does not pack{mixed} ({found.says})")


@check("chunk")
def chunk(fixture: DoctorFixture) -> Finding:
    """Logits of all tokens at once, of seven or of one give the same step."""
    batch, before = fixture.batch(fixture.short_rows), fixture.learner_of_all.readout
    assert isinstance(before, LanguageReadout)
    steps = []
    try:
        for size in (batch.num_counted, 7, 1):
            fixture.learner_of_all.readout = replace(before, chunk=size)
            steps.append(take_step(fixture.learner_of_all, [batch], fixture.sources))
    finally:
        fixture.learner_of_all.readout = before
    worst = max(steps[1:], key=lambda step: max(relative_difference(steps[0], step)))
    return _same(f"logits of {batch.num_counted}, 7 or 1 tokens at once", steps[0], worst)


@check("precision")
def precision(fixture: DoctorFixture) -> Finding:
    """The recipe's precision changes value and gradient by no more than rounding."""
    dtype = resolve_precision(fixture.config.precision, fixture.run.student_config)
    if dtype == torch.float32:
        says = f"`train.precision: {fixture.config.precision}` is float32 on this machine"
        return not_applicable(says)
    learner = fixture.learner(
        fixture.student, fixture.config.objective, fixture.pairs(fixture.config.objective), dtype
    )
    other = take_step(learner, [fixture.batch(fixture.one_a_row)], fixture.sources)
    value, gradient = relative_difference(fixture.reference_step, other)
    name = str(dtype).removeprefix("torch.")
    says = f"{name} against float32: {_differs(value, gradient)}"
    return judged(
        value <= MAX_ROUNDED_VALUE_DIFFERENCE and gradient <= MAX_ROUNDED_GRADIENT_DIFFERENCE,
        says,
        value=value,
        gradient=gradient,
    )
