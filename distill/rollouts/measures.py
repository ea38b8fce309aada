"""What a teacher says of the student's own answers, and whether these are still answers.

Legend: N tokens counted, V vocabulary, H width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from attar.errors import RecipeError, RunError
from attar.models.structure import head_of
from distill.data.batching import Batch
from distill.data.tokenize import IGNORE
from distill.objective.losses import LOSSES, on_outcomes
from distill.objective.objective import Learner
from teachers.signals import GivesSignals, SparseDistribution, Target

WINDOW = 32  # answers, at least, by which a collapse is seen
REPEATED, FEW_REPEATED = 0.6, 0.3  # shares of 4-grams: a collapse, and a good beginning
SHORTER = 8  # times, than in the beginning: a collapse
ENDED, FEW_ENDED = 0.5, 0.02  # shares of answers: a good beginning, and none that ends


def measurable(signals: GivesSignals) -> bool:
    """Whether a teacher's distributions at temperature 1 are known, all or with their rest: samples
    of them, and entries of other temperatures, say nothing of a single answer.
    """
    try:
        target = signals.distribution(1.0)
    except RecipeError:
        return False
    return not isinstance(target, SparseDistribution) or target.tail_N is not None


@torch.no_grad()
def teacher_measures(
    learner: Learner, batch: Batch, signals: GivesSignals, vocabulary: int, chunk: int
) -> dict[str, float]:
    """Means a counted token of answers that the student wrote, at temperature 1.

    `reverse_kl`: KL(student || teacher), over the stored outcomes where the teacher's are some;
    `top1`: share of tokens at which both find the same id most likely; `teacher_nll`: -log p of the
    written ids under the teacher, where an id that is not stored has all the rest's mass; `kept`:
    the mass of stored ids, 1 where all are known. The batch is on the student's device, and the
    learner is left in evaluation mode.
    """
    learner.eval()
    student = learner.student
    with learner.autocast():
        states_NH = learner.readout.run(student, batch)
    labels_N = batch.labels_BT[batch.labels_BT != IGNORE]
    target, head = signals.distribution(1.0), head_of(student, vocabulary)
    total = torch.zeros(4, dtype=torch.float64)
    for start in range(0, len(states_NH), chunk):
        logits_NV = head.logits(states_NH[start : start + chunk])
        part = target.rows(start, start + chunk).to(logits_NV.device)
        total += _sums(logits_NV, labels_N[start : start + chunk], part).cpu()
    names = ("reverse_kl", "top1", "teacher_nll", "kept")
    return dict(zip(names, (total / max(1, len(labels_N))).tolist(), strict=True))


def _sums(logits_NV: Tensor, labels_N: Tensor, target: Target) -> Tensor:
    sides = on_outcomes(logits_NV, target, 1.0)
    reverse_kl_N = LOSSES["reverse_kl"].function(*sides)
    best_N = logits_NV.argmax(-1)
    if isinstance(target, SparseDistribution):
        best = target.logprobs_NK.argmax(-1, keepdim=True)
        teacher_best_N = target.ids_NK.gather(-1, best).squeeze(-1)
        is_label_NK = (target.ids_NK == labels_N[:, None]) & target.logprobs_NK.isfinite()
        stored_N = target.logprobs_NK.masked_fill(~is_label_NK, -torch.inf).amax(-1)
        rest_N = torch.zeros_like(stored_N) if target.tail_N is None else target.tail_N
        logprob_N = torch.where(is_label_NK.any(-1), stored_N, rest_N)
        kept_N = target.logprobs_NK.exp().sum(-1)
    else:
        logprobs_NV = target.logprobs()
        teacher_best_N = logprobs_NV.argmax(-1)
        logprob_N = logprobs_NV.gather(-1, labels_N[:, None]).squeeze(-1)
        kept_N = torch.ones_like(logprob_N)
    columns = reverse_kl_N, (best_N == teacher_best_N).float(), -logprob_N, kept_N
    return torch.stack([one.double().sum() for one in columns])


def check_answers(records: Sequence[Mapping[str, Any]], section: str) -> None:
    """Raise `RunError` where the last rounds' answers, `WINDOW` of them or more, have collapsed,
    though the first rounds' had not: into repetition, to almost nothing, or without an end.

    records: of all rounds so far (`text_measures`).
    """
    first, last = _window(records), _window(records[::-1])
    if first is None or last is None or first["answers"] + last["answers"] > _answers(records):
        return
    reason = None
    if last["repeated"] >= REPEATED and first["repeated"] < FEW_REPEATED:
        reason = (
            f"{last['repeated']:.0%} of their 4-grams repeat (at first {first['repeated']:.0%})"
        )
    elif last["tokens"] * SHORTER <= first["tokens"]:
        reason = f"they have {last['tokens']:.1f} tokens (at first {first['tokens']:.1f})"
    elif last["ended"] <= FEW_ENDED and first["ended"] >= ENDED:
        reason = f"{last['ended']:.0%} of them end (at first {first['ended']:.0%})"
    if reason is not None:
        raise RunError(
            f"The student's own answers have collapsed: {reason}. Lower `{section}.lr`, learn from "
            f"data beside them (`{section}.rollouts.share` below 1), or train offline first. The "
            "last checkpoint is kept."
        )


def _answers(records: Sequence[Mapping[str, Any]]) -> int:
    return sum(int(one["answers"]) for one in records)


def _window(records: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Means over the first records that have `WINDOW` answers; None where all have fewer."""
    answers, chosen = 0, []
    for one in records:
        answers += int(one["answers"])
        chosen.append(one)
        if answers >= WINDOW:
            break
    else:
        return None
    names = ("tokens", "ended", "repeated")
    means = {n: sum(one[n] * one["answers"] for one in chosen) / answers for n in names}
    return {"answers": answers, **means}
