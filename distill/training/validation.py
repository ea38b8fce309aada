"""The one evaluation of an objective: its terms and nll a counted token, on some examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from attar.progress import tracked
from distill.data.batching import TOKEN_BATCHING, Collate, plan_in_order
from distill.data.examples import Examples, first_examples
from distill.objective.loss_sums import LossMeans, LossSums
from distill.objective.objective import Learner
from distill.training.teacher_signals import TeacherSignals


@dataclass(frozen=True)
class Evaluation:
    """What an objective comes to on some examples.

    objective: the weighted sum of the terms' means: the number that is minimised.
    means: each term, the nll where there are labels, and the accuracy of classes, or of judged
    answers and their margin.
    tokens: how many were counted.
    """

    objective: float
    means: LossMeans
    tokens: int


@torch.no_grad()
def evaluate_objective(
    learner: Learner,
    examples: Examples,
    signals: TeacherSignals | None = None,
    *,
    batch_size: int,
    tokens: int | None = None,
    collate: Collate = TOKEN_BATCHING.collate,
    accelerator: Any = None,
) -> Evaluation:
    """Return the objective, as its schedules end, on examples; one a row, longest first.

    signals: where the teacher's signals come from; may be left out where only labels are read.
    tokens: stop after the first examples that count at least this many tokens; None: use all.
    accelerator: accelerate's, where several processes share the work. The learner is left in
    evaluation mode.
    """
    learner.eval()
    signals, terms = signals or TeacherSignals(), learner.final_terms()
    chosen = range(len(examples)) if tokens is None else first_examples(examples, tokens)
    counted = examples.counted(chosen)
    plan = plan_in_order([int(examples.lengths[i]) for i in chosen], batch_size)
    rank, world = 0, 1
    if accelerator is not None:
        rank, world = accelerator.process_index, accelerator.num_processes
    device = next(learner.parameters()).device
    totals = _no_sums(learner, device)
    mine = plan[rank::world]
    for rows in tracked(mine, "validation", "batches"):
        batch = collate([[examples[chosen[i]] for i in row] for row in rows])
        reader, batch = signals.read(batch, learner, terms), batch.to(device)
        _, sums = learner(batch, reader(batch), 1.0, terms)
        totals = totals + sums
    if world > 1:
        totals = totals.map(lambda total: accelerator.reduce(total, "sum"))
    means = totals.means(counted)
    objective = sum(terms[key.index].weight * mean for key, mean in means.terms.items())
    return Evaluation(float(objective), means, counted.tokens)


def _no_sums(learner: Learner, device: torch.device) -> LossSums:
    """Return zeros for every term: a process without a batch takes part in the sum over all."""
    zero = torch.zeros((), dtype=torch.float64, device=device)
    terms = {bound.key: zero for bound in learner.bound_terms}
    readout = learner.readout
    rewards = zero.repeat(2) if learner.judges else None
    right = zero if readout.rates or learner.judges else None
    return LossSums(terms, zero if readout.labelled else None, 0, right, rewards)
