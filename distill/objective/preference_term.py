"""A term on preferences, bound to a student: sums of log-probabilities of answers become a loss.

Legend: N tokens counted, S texts of a batch.

The logits never exist all at once, and no second model is in memory. One pass over the head gives
the log-probabilities of the labels, without a gradient. A form turns their sums, and the
reference's, into its value and into the slope at each sum (`preference_forms.py`). That slope is
then one weight a token in the pass over the head that all terms share, whose gradient is the
form's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from distill.objective.head_term import HeadTerm
from distill.objective.losses import LOSSES
from distill.objective.preference_forms import FORMS
from distill.objective.sequence_value import sequence_value
from distill.objective.term_protocols import Needs, SignalSources, StudentOutputs, TermKey
from distill.objective.terms import Source

if TYPE_CHECKING:
    from teachers.signals import GivesSignals


@dataclass(frozen=True)
class JudgedTexts:
    """What a form says of the judged texts of a batch, all detached.

    value: its sum over pairs, or over rated answers. weight_N: with which cross-entropy at each
    token has its gradient. right: how many pairs have the higher reward for their chosen answer, a
    tie as one half. margin: the sum of the pairs' margins of reward.
    """

    value: Tensor
    weight_N: Tensor
    right: Tensor
    margin: Tensor

    def gradient_term(self, scale: float) -> HeadTerm:
        """Return the term whose gradient at the logits is that of `scale` times the value."""
        return HeadTerm(LOSSES["cross_entropy"], scale, weight_N=self.weight_N)


@dataclass(frozen=True)
class PreferenceTerm:
    """A term on preferences. source: of the reference's log-probabilities; None where its form
    reads none.
    """

    key: TermKey
    source: Source | None
    needs: Needs = field(default_factory=Needs)

    def decode(self, term: Any, signals: GivesSignals) -> None:
        """Decode nothing ahead: log-probabilities are one number a token."""

    def judge(
        self, term: Any, outputs: StudentOutputs, sources: SignalSources, logprobs_N: Tensor
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
        )
        right_P = (found.margin_P > 0).double() + 0.5 * (found.margin_P == 0)
        weight_N = found.token_weights(text_of_token_N)
        return JudgedTexts(found.value, weight_N, right_P.sum(), found.margin_P.sum())
