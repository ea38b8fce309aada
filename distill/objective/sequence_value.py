"""The value of a preference loss over a batch of texts, and what it says of each of their tokens.

Legend: N tokens counted, S texts of a batch, P pairs.

A form reads one number a text, so a step needs the logits of no whole text: one pass over the head
without gradient gives the labels' log-probabilities, the form gives the derivative at each text's
sum, and cross-entropy with this derivative as the weight of the text's tokens (`HeadTerm.weight_N`)
has the form's gradient, exactly, in the pass that all terms share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.data.examples import CHOSEN, REJECTED
from distill.objective.losses import loss
from distill.objective.preference_forms import Answers, Form


@dataclass(frozen=True)
class SequenceValue:
    """What a form gives for the texts of a batch: detached, float64.

    value: the sum over pairs, or over rated answers. coefficient_S: its derivative at each text's
    sum of log-probabilities; 0 for a text alone. reward_S: beta x score, the implicit reward; 0 for
    a text alone. margin_P: reward of the chosen answer less that of the rejected one; for a form
    without pairs, of each answer by how much its reward is on the right side of beta x baseline,
    good answers first. count: how many pairs or rated answers there are.
    """

    value: Tensor
    coefficient_S: Tensor
    reward_S: Tensor
    margin_P: Tensor
    count: int

    def token_weights(self, text_of_token_N: Tensor) -> Tensor:
        """Return float32 (N,) weights with which cross-entropy has the form's gradient."""
        return -self.coefficient_S[text_of_token_N].float()


@loss("preference", reads="sequence", divergence=False, source="that of its form")
@torch.inference_mode(False)  # the form is differentiated where a model is only evaluated, too
@torch.enable_grad()
def sequence_value(
    form: Form,
    parameters: Mapping[str, Any],
    logprobs_N: Tensor,
    text_of_token_N: Tensor,
    roles_S: Tensor,
    reference_N: Tensor | None = None,
    baseline: Tensor | float = 0.0,
) -> SequenceValue:
    """form(chosen, rejected): one value a pair, of sums of both answers' log-probabilities. The
    [forms](#forms-of-preference) say what each makes of them.

    Return it over a batch, with its derivative at each text's log-probability.

    logprobs_N, reference_N: the labels' log-probabilities under policy and reference; the latter is
    needed if the form reads one, else not looked at. text_of_token_N: int64, the text of each
    token, 0 to S - 1. roles_S: int8, on the CPU, as in `distill.data.examples`; the rejected answer
    of a pair directly follows the chosen one. parameters: the form's own, those that are missing
    have their defaults. baseline: read by forms without pairs; one below 0 is taken as 0.
    """
    num_texts = len(roles_S)
    sums_S = _by_text(logprobs_N, text_of_token_N, num_texts).requires_grad_()
    tokens_S = _by_text(torch.ones_like(logprobs_N), text_of_token_N, num_texts)
    reference_S = None
    if form.reference:
        assert reference_N is not None, f"`{form.name}` reads a reference"
        reference_S = _by_text(reference_N, text_of_token_N, num_texts)
    chosen, rejected = ((roles_S == role).nonzero().squeeze(-1) for role in (CHOSEN, REJECTED))
    if form.pairs:
        assert torch.equal(chosen + 1, rejected), "a rejected answer follows its chosen one"
    chosen, rejected = (texts.to(logprobs_N.device) for texts in (chosen, rejected))

    def answers(texts: Tensor) -> Answers:
        reference = None if reference_S is None else reference_S[texts]
        return Answers(sums_S[texts], reference, tokens_S[texts])

    sides = answers(chosen), answers(rejected)
    more = () if form.pairs else (baseline,)
    values = form.function(*sides, *more, **parameters)
    (coefficient_S,) = torch.autograd.grad(values.sum(), sums_S)
    defaults = {name: default for name, (_, default) in form.parameters().items()}
    keys = {**defaults, **parameters}
    per_token = form.per_token or keys.get("per_token", False)
    reward_S = torch.zeros_like(sums_S)
    for texts, side in zip((chosen, rejected), sides, strict=True):
        reward_S[texts] = keys["beta"] * side.score(per_token).detach()
    if form.pairs:
        margin_P = reward_S[chosen] - reward_S[rejected]
    else:
        z = keys["beta"] * torch.as_tensor(baseline, dtype=reward_S.dtype).clamp(min=0)
        z = z.to(reward_S.device)
        margin_P = torch.cat([reward_S[chosen] - z, z - reward_S[rejected]])
    return SequenceValue(values.sum().detach(), coefficient_S, reward_S, margin_P, len(values))


def _by_text(values_N: Tensor, text_of_token_N: Tensor, num_texts: int) -> Tensor:
    """Return the sum of each text's values, (S,), in float64: order changes next to nothing."""
    sums_S = torch.zeros(num_texts, dtype=torch.float64, device=values_N.device)
    return sums_S.index_add_(0, text_of_token_N, values_N.detach().double())
