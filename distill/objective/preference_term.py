"""A term on preferences, bound to a student: sums of log-probabilities of answers become a loss.

Legend: N tokens counted, S texts of a batch; of the mismatched texts where a baseline is made.

The logits never exist all at once, and no second model is in memory. One pass over the head gives
the log-probabilities of the labels, without a gradient. A form turns their sums, and the
reference's, into its value and into the slope at each sum (`preference_forms.py`). That slope is
then one weight a token in the pass over the head that all terms share, whose gradient is the
form's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill.data.batching import Batch
from distill.data.examples import CHOSEN, REJECTED
from distill.objective.preference_forms import FORMS
from distill.objective.sequence_value import sequence_value
from distill.objective.term_protocols import (
    Needs,
    OfMismatched,
    SignalSources,
    StudentOutputs,
    TermKey,
)
from distill.objective.terms import Source

if TYPE_CHECKING:
    from teachers.signals import GivesSignals


@dataclass(frozen=True)
class JudgedTexts:
    """What a form says of the judged texts of a batch, all detached.

    value: its sum over pairs, or over rated answers. weight_N: with which cross-entropy at each
    token has its gradient. right: how many pairs have the higher reward for their chosen answer, or
    how many rated answers have their reward on the right side of the baseline, a tie as one half.
    rewards: sums of the rewards of chosen answers, and of rejected ones, (2,). logprobs_N: the
    student's, that all this follows from.
    """

    value: Tensor
    weight_N: Tensor
    right: Tensor
    rewards: Tensor
    logprobs_N: Tensor


@dataclass(frozen=True)
class PreferenceTerm:
    """A term on preferences. source: of the reference's log-probabilities; None where its form
    reads none. reads_baseline: whether its form rates answers against the mean score of mismatched
    texts.
    """

    key: TermKey
    source: Source | None
    reads_baseline: bool = False
    needs: Needs = field(default_factory=Needs)

    def decode(self, term: Any, signals: GivesSignals) -> None:
        """Decode nothing ahead: log-probabilities are one number a token."""

    def baseline(
        self, mismatched: Batch, labels_N: Tensor, sources: SignalSources, logprobs_N: Tensor
    ) -> Tensor:
        """Return the mean score of the mismatched texts, float64, 0 where it is negative: it
        estimates KL(student || reference). `logprobs_N` are the student's at their counted tokens.
        """
        assert self.source is not None, "a form with a baseline reads a reference"
        signals = sources[OfMismatched(self.source)]
        reference_N = signals.label_logprobs(labels_N).to(labels_N.device)
        scores_N = logprobs_N.double() - reference_N.double()
        return (scores_N.sum() / len(mismatched.keys)).clamp(min=0)

    def judge(
        self,
        term: Any,
        outputs: StudentOutputs,
        sources: SignalSources,
        logprobs_N: Tensor,
        baseline: Tensor | float = 0.0,
    ) -> JudgedTexts:
        """Return what the term's form says of a batch; `logprobs_N` are the student's.

        A batch without judged texts has the value 0.
        """
        batch, text_of_token_N = outputs.batch, outputs.batch.text_of_token
        reference_N = None
        if self.source is not None:
            labels_N = outputs.labels_N
            reference_N = sources[self.source].label_logprobs(labels_N).to(labels_N.device)
        found = sequence_value(
            FORMS[term.form],
            term.loss_parameters(),
            logprobs_N,
            text_of_token_N,
            batch.roles,
            reference_N,
            baseline,
        )
        right_P = (found.margin_P > 0).double() + 0.5 * (found.margin_P == 0)
        weight_N = found.token_weights(text_of_token_N)
        roles_S = batch.roles.to(found.reward_S.device)
        sides = (
            found.reward_S.masked_fill(roles_S != role, 0.0).sum() for role in (CHOSEN, REJECTED)
        )
        rewards = torch.stack(list(sides))
        return JudgedTexts(found.value, weight_N, right_P.sum(), rewards, logprobs_N)
