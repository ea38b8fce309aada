"""A term on answers that the student wrote and that something rewarded: a policy gradient.

Legend: N tokens counted, S texts of a batch, A of them written by the student.

As terms on preferences, it needs the log-probabilities of whole answers alone, so the logits never
exist all at once: its slope at each answer's sum is one weight a token in the pass over the head
that all terms share.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill.data.examples import WRITTEN
from distill.objective.losses import LOSSES
from distill.objective.term_protocols import Needs, StudentOutputs, TermKey

if TYPE_CHECKING:
    from teachers.signals import GivesSignals


@dataclass(frozen=True)
class RewardedTexts:
    """What the term says of the written answers of a batch, detached.

    value: its sum over answers. weight_N: with which cross-entropy at each token has its gradient.
    logprobs_N: of the labels under the student, by which it judged.
    """

    value: Tensor
    weight_N: Tensor
    logprobs_N: Tensor


@dataclass(frozen=True)
class PolicyTerm:
    """A term on rewarded answers, bound to a student."""

    key: TermKey
    source: None = None
    needs: Needs = field(default_factory=Needs)

    def decode(self, term: Any, signals: GivesSignals) -> None:
        """Decode nothing: rewards come with the texts."""

    @torch.inference_mode(False)  # the loss is differentiated where a model is evaluated, too
    @torch.enable_grad()
    def judge(self, term: Any, outputs: StudentOutputs, logprobs_N: Tensor) -> RewardedTexts:
        """Return what the term says of a batch; `logprobs_N` are the student's. A batch without
        written answers has the value 0.
        """
        batch, device = outputs.batch, logprobs_N.device
        text_of_token_N = batch.text_of_token
        sums_S = torch.zeros(len(batch.keys), dtype=torch.float64, device=device)
        sums_S.index_add_(0, text_of_token_N, logprobs_N.detach().double())
        mine_A = (batch.roles == WRITTEN).nonzero().squeeze(-1).to(device)
        logprob_A = sums_S[mine_A].requires_grad_()
        now = logprob_A.tolist()
        written_A = torch.tensor(
            [
                own if one.logprob is None else one.logprob
                for one, own in zip(batch.rollouts, now, strict=True)
            ],
            dtype=torch.float64,
            device=device,
        )
        advantages = [one.advantage for one in batch.rollouts]
        advantage_A = torch.tensor(advantages, dtype=torch.float64, device=device)
        found = LOSSES[term.loss]
        values_A = found.function(logprob_A, written_A, advantage_A, **term.loss_parameters())
        (slope_A,) = torch.autograd.grad(values_A.sum(), logprob_A)
        slope_S = torch.zeros_like(sums_S).index_copy_(0, mine_A, slope_A)
        weight_N = -slope_S[text_of_token_N].float()
        return RewardedTexts(values_A.sum().detach(), weight_N, logprobs_N)
