"""Checks of `distill doctor` on weights: resuming after a kill, and the saved checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attar.models.loading import resolve_precision
from distill.doctor.findings import Finding, brief, check, judged
from distill.doctor.fixture import DoctorFixture
from distill.training.checkpoint import learned
from distill.training.loop import train
from students.save import OUTPUT_TOLERANCE, save_student, what_differs

STEPS = 3
MAX_LOGIT_DIFFERENCE = 1e-3  # of the largest logit: one token at a time rounds differently
MAX_STRAYING = 0.01  # of the way learned: weights lie elsewhere in memory, which moves last bits


class _Killed(Exception):
    """Raised inside a forward, in place of a kill."""


@check("resume")
def resume(fixture: DoctorFixture) -> Finding:
    """Three steps without a stop, or one, a kill and two more, end at the same weights."""
    start, unbroken, steps = _train(fixture, "stretch", None)
    _train(fixture, "killed", 2)
    _, resumed, later = _train(fixture, "killed", None)
    changed = sum(t.numel() for t in unbroken.values())
    if later != steps - 1:
        return judged(False, f"a run killed in step 2 did {later} steps more, not {steps - 1}")
    differ = [name for name, tensor in unbroken.items() if not tensor.equal(resumed[name])]
    off = _distance(resumed, unbroken) / max(_distance(start, unbroken), 1e-30)
    if off <= MAX_STRAYING:
        same = f"within {brief(off)} of the way" if differ else "bit for bit"
        says = f"{steps} steps, or 1, a kill and {steps - 1}: {changed:,} weights {same} the same"
        return judged(True, says, off=off, weights=changed)
    says = f"after a kill {len(differ)} of {len(unbroken)} tensors end elsewhere, e.g. "
    return judged(False, f"{says}{differ[0]} (off by {brief(off)} of the way)", off=off,
                  weights=changed)  # fmt: skip


def _distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The Euclidean distance of all weights."""
    squares = [float((one[n].float() - t.float()).square().sum()) for n, t in other.items()]
    return math.sqrt(sum(squares))


def _train(
    fixture: DoctorFixture, folder: str, kill: int | None
) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Train, killed in step `kill` if given; return (weights before and afterwards, steps done)."""
    config, steps = fixture.config, list[int]()
    learner = fixture.learner(
        fixture.load_student(little=True),
        config.objective,
        fixture.pairs(config.objective),
        resolve_precision(config.precision, fixture.run.student_config),
    )

    def count(module: nn.Module, _args: Any) -> None:
        if module.training:
            steps.append(1)
        if len(steps) == kill:
            raise _Killed

    start = {name: tensor.clone() for name, tensor in learned(learner).items()}
    learner.register_forward_pre_hook(count)
    job = fixture.job(
        folder, learner, batch_size=1, accumulate=1, max_steps=STEPS, epochs=STEPS,
        evaluate_every=STEPS,
    )  # fmt: skip
    try:
        train(job)
    except _Killed:
        return start, {}, len(steps)
    ends = {name: tensor.clone() for name, tensor in learned(learner).items()}
    return start, ends, len(steps)


@check("checkpoint")
def checkpoint(fixture: DoctorFixture) -> Finding:
    """The saved student loads with `transformers` alone, as the same model, KV cache or not."""
    folder, student = fixture.folder / "checkpoint", fixture.student
    _ = fixture.reference_step  # after a step, with what a learner adds to the student
    save_student(student, fixture.run.tokenizer, folder)
    reloaded, complaints = _load_with_transformers(folder, fixture)
    if complaints:
        return judged(False, f"it does not load without this package: {complaints}")
    example = fixture.examples[0]
    ids_1T = torch.from_numpy(example.input_ids)[None].to(fixture.device)
    with torch.no_grad():
        sides = [model(input_ids=ids_1T).logits for model in (student, reloaded)]
    off = float((sides[0] - sides[1]).abs().max() / sides[0].abs().max())
    found = what_differs(student, reloaded)
    if found is None and not off <= OUTPUT_TOLERANCE:
        found = f"its logits are off by {brief(off)} of the largest"
    if found is not None:
        return judged(False, f"loaded again it is another model: {found}", logits=off)
    hooked = [name for name, m in student.named_modules() if m._forward_hooks]
    if hooked:
        return judged(False, f"{len(hooked)} modules keep a hook after a step, e.g. {hooked[0]}")
    same, difference = _same_with_cache(reloaded, ids_1T[:, : max(2, ids_1T.shape[1] // 2)])
    says = (
        "reloads to the same weights and logits; generates the same with and without its KV cache"
    )
    if not same:
        says = f"with a KV cache its logits are off by {brief(difference)} of the largest"
    return judged(same, says, logits=off, kv_cache=difference)


def _load_with_transformers(folder: Path, fixture: DoctorFixture) -> tuple[Any, str]:
    """Return (the model, what `transformers` complained about when it loaded the file)."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        trust_remote_code=fixture.run.trusts_student,
        output_loading_info=True,
    )
    model, about = loaded
    found = {kind: sorted(map(str, names)) for kind, names in about.items() if names}
    complaints = "; ".join(f"{kind} {', '.join(names[:3])}" for kind, names in found.items())
    return model.to(fixture.device).eval(), complaints


@torch.no_grad()
def _same_with_cache(model: Any, prompt_1T: Tensor, tokens: int = 8) -> tuple[bool, float]:
    """Return (whether greedy steps have the same logits with a KV cache, the largest difference).

    Steps after the first token that differs have other contexts and are not compared.
    """
    settings = {
        "max_new_tokens": tokens,
        "min_new_tokens": tokens,
        "do_sample": False,
        "attention_mask": torch.ones_like(prompt_1T),
        "pad_token_id": 0,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    both = [model.generate(prompt_1T, use_cache=use, **settings) for use in (True, False)]
    worst = 0.0
    for one, other in zip(both[0].logits, both[1].logits, strict=False):
        worst = max(worst, float((one - other).abs().max() / other.abs().max()))
        if not one.argmax(-1).equal(other.argmax(-1)):
            break
    return worst <= MAX_LOGIT_DIFFERENCE, worst
