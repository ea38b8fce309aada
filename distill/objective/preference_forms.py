"""Forms of preference losses: functions of the log-probabilities of whole answers.

Legend: P pairs, C chosen and R rejected answers.

An answer's score s is the sum of the log-probabilities of its counted tokens; where the form reads
a reference, less the same sum under the reference; where lengths are divided out, over the number
of these tokens. s_c belongs to the chosen answer of a pair, s_r to the rejected one, and
m = beta (s_c - s_r) is the pair's margin. σ is the logistic function, e the label smoothing.

Forms of the peers that include the chosen answers' cross-entropy (CPO, ORPO) do not include it
here: it is a term of its own. docs/reference/losses.md is generated from this registry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from attar.registry import Registry
from distill.objective.losses import keyword_parameters

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Noise = Annotated[float, Field(ge=0, lt=0.5)]  # at one half a pair says nothing
SomeNoise = Annotated[float, Field(gt=0, lt=0.5)]


@dataclass(frozen=True)
class Answers:
    """Chosen answers, or rejected ones: float32 or float64, (P,) each, or (C,) and (R,).

    logprob_P: sums over the counted tokens, differentiable. reference_P: the same under the
    reference; None for a form that reads none. tokens_P: how many tokens are counted.
    """

    logprob_P: Tensor
    reference_P: Tensor | None
    tokens_P: Tensor

    def score(self, per_token: bool = False) -> Tensor:
        """Return each answer's score (P,); per_token: its length is divided out."""
        score_P = self.logprob_P
        if self.reference_P is not None:
            score_P = score_P - self.reference_P
        return score_P / self.tokens_P.clamp(min=1) if per_token else score_P


@dataclass(frozen=True)
class Form:
    """A registered form.

    `reference`: its scores are less those of a reference. `pairs`: it compares the two answers of a
    pair; else it rates answers one by one, and takes a baseline. `per_token`: it always divides
    lengths out; a form that may do so has a parameter of this name.
    """

    name: str
    function: Callable[..., Tensor]
    reference: bool
    pairs: bool
    per_token: bool
    source: str

    def parameters(self) -> dict[str, tuple[Any, Any]]:
        """Return (type, default) of each keyword-only parameter: these are keys of its term."""
        return keyword_parameters(self.function)


FORMS: Registry[Form] = Registry("form of preference")


def form(
    name: str, *, reference: bool = True, pairs: bool = True, per_token: bool = False, source: str
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a form; this enrols it in the tests and in docs/reference/losses.md."""

    def enrol(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        FORMS.add(name)(Form(name, function, reference, pairs, per_token, source))
        return function

    return enrol


# Pairs, with a reference -------------------------------------------------------------------------


def _logistic(margin_P: Tensor, label_smoothing: float) -> Tensor:
    """Return -(1 - e) log σ(m) - e log σ(-m)."""
    value_P = -(1 - label_smoothing) * logsigmoid(margin_P)
    return value_P - label_smoothing * logsigmoid(-margin_P) if label_smoothing else value_P


@form("sigmoid", source="DPO, 2305.18290, equation 7; e > 0: cDPO, Mitchell 2023")
def sigmoid(
    chosen: Answers,
    rejected: Answers,
    *,
    beta: Positive = 0.1,
    label_smoothing: Noise = 0.0,
    per_token: bool = False,
) -> Tensor:
    """-(1 - e) log σ(m) - e log σ(-m): logistic regression on the margin, DPO. It is log 2 where
    the policy is the reference.

    Use it first: it is the best known. `label_smoothing` is the share of pairs thought to be the
    wrong way round, which keeps margins finite. `per_token` divides lengths out (length-normalised
    DPO, `sigmoid_norm` in TRL); margins are then in nats a token, so `beta` must be larger (5 in
    Tülu 3).

    Known problems: it lowers the rejected answer more readily than it raises the chosen one, whose
    probability often falls as well; a term on the chosen answers' cross-entropy holds it up. Sums
    grow with length, so longer answers weigh more.
    """
    margin_P = beta * (chosen.score(per_token) - rejected.score(per_token))
    return _logistic(margin_P, label_smoothing)


@form("hinge", source="SLiC-HF, 2305.10425; with a reference as in RSO, 2309.06657")
def hinge(chosen: Answers, rejected: Answers, *, beta: Positive = 0.1) -> Tensor:
    """max(0, 1 - m): a pair stops counting once its margin is 1.

    Use it where margins must not grow without end.

    Known problems: the size of the gradient is the same for a pair just short of its margin and for
    one far from it, and it jumps to 0 at the margin. The paper's calibration has neither reference
    nor beta.
    """
    return torch.relu(1 - beta * (chosen.score() - rejected.score()))


@form("ipo", source="IPO, 2310.12036, equation 17; divided by lengths as in TRL")
def ipo(
    chosen: Answers, rejected: Answers, *, beta: Positive = 0.1, per_token: bool = True
) -> Tensor:
    """(s_c - s_r - 1 / (2 beta))^2: the difference of scores is drawn to a fixed size.

    Use it where few pairs are seen many times: `sigmoid` drives the margin of a pair that always
    wins to infinity, this form does not. beta is the paper's tau. `per_token: false` is the formula
    as the paper prints it; the default is what its authors ran, by TRL's account.

    Known problems: the target 1 / (2 beta) is 5 nats a token with the defaults, beyond reach; beta
    of 1 and more brings it near. The value's scale is not that of the other forms, so learning
    rates do not carry over.
    """
    return (chosen.score(per_token) - rejected.score(per_token) - 1 / (2 * beta)).square()


@form("robust", source="rDPO, 2403.00409, section 3")
def robust(
    chosen: Answers, rejected: Answers, *, beta: Positive = 0.1, label_smoothing: SomeNoise = 0.1
) -> Tensor:
    """(-(1 - e) log σ(m) + e log σ(-m)) / (1 - 2 e): on average over pairs of which the share e is
    the wrong way round, it equals `sigmoid` on the right ones.

    Use it where the share of wrong labels is known. With e = 0, TRL's default, it would be
    `sigmoid`, so the paper's 0.1 is the default here.

    Known problems: it has no lower bound, since it pays for margins that grow; where e is guessed
    too large it learns worse than `sigmoid` with `label_smoothing`.
    """
    margin_P = beta * (chosen.score() - rejected.score())
    right_P, wrong_P = -logsigmoid(margin_P), -logsigmoid(-margin_P)
    kept = 1 - label_smoothing
    return (kept * right_P - label_smoothing * wrong_P) / (1 - 2 * label_smoothing)


@form("apo_zero", source="APO, 2408.06266, equation 7")
def apo_zero(chosen: Answers, rejected: Answers, *, beta: Positive = 0.1) -> Tensor:
    """1 - σ(beta s_c) + σ(beta s_r): raise the chosen answer, lower the rejected one, each against
    the reference alone.

    Use it where the chosen answers are better than what the model writes.

    Known problems: its gradient vanishes for a score far from 0 on either side, so with sums over
    long answers a large learning rate ends it early.
    """
    return torch.sigmoid(-beta * chosen.score()) + torch.sigmoid(beta * rejected.score())


@form("apo_down", source="APO, 2408.06266, equation 8")
def apo_down(chosen: Answers, rejected: Answers, *, beta: Positive = 0.1) -> Tensor:
    """σ(beta s_c) + 1 - σ(m): lower both answers, the rejected one more.

    Use it where the model already writes better than the chosen answers.

    Known problems: it unlearns the chosen answers, which is wrong where they are better than the
    model. Two identical answers still have a gradient.
    """
    chosen_P, rejected_P = chosen.score(), rejected.score()
    return torch.sigmoid(beta * chosen_P) + torch.sigmoid(beta * (rejected_P - chosen_P))


# Pairs, without a reference ----------------------------------------------------------------------


@form("simpo", reference=False, per_token=True, source="SimPO, 2405.14734, equation 6")
def simpo(
    chosen: Answers,
    rejected: Answers,
    *,
    beta: Positive = 2.0,
    margin: NonNegative = 0.5,
    label_smoothing: Noise = 0.0,
) -> Tensor:
    """-(1 - e) log σ(m - gamma) - e log σ(gamma - m), of log-probabilities a token; gamma is
    `margin`.

    Use it to do without a reference, or where answers differ much in length. `margin` is gamma
    itself, as in the paper and in TRL's `simpo_gamma`; the authors' code has gamma / beta, and they
    advise to start from 0.5, which is `margin: 1.0` here. beta is theirs, 2.0 (they report gains up
    to 10); TRL's trainer has 0.1, with which the target gap is 5 nats a token.

    Known problems: nothing holds the policy near where it began, so it depends much on the learning
    rate (the authors: 3e-7 to 1e-6). A term on the chosen answers' cross-entropy, as `cpo` has it,
    holds it back (CPO-SimPO).
    """
    margin_P = beta * (chosen.score(per_token=True) - rejected.score(per_token=True))
    return _logistic(margin_P - margin, label_smoothing)


@form("cpo", reference=False, source="CPO, 2401.08417, equation 3")
def cpo(
    chosen: Answers, rejected: Answers, *, beta: Positive = 0.1, label_smoothing: Noise = 0.0
) -> Tensor:
    """-(1 - e) log σ(m) - e log σ(-m), of log-probabilities: DPO with a uniform reference.

    Use it together with a term on the chosen answers' cross-entropy, its other half: the paper's
    objective is the sum. TRL's `cpo_alpha` (1.0) is that term's weight where it is divided by the
    chosen answers' tokens.

    Known problems: without the second term nothing holds up the chosen answer. A shorter rejected
    answer begins with a large negative margin, since sums grow with length.
    """
    return _logistic(beta * (chosen.score() - rejected.score()), label_smoothing)


@form("orpo", reference=False, per_token=True, source="ORPO, 2403.07691, equations 6 and 7")
def orpo(chosen: Answers, rejected: Answers, *, beta: Positive = 0.1) -> Tensor:
    """-beta log σ(log odds_c - log odds_r), odds = p / (1 - p), log p the mean log-probability of
    the answer's tokens. The factor beta is the paper's lambda.

    Use it together with a term on cross-entropy, weight 1, which it regularises: base model to
    preferences in one run. TRL takes that cross-entropy over the prompt as well as the chosen
    answer, and divides by the tokens of both.

    Known problems: only the ratio of odds counts, so without cross-entropy both answers may become
    unlikely. The factor 1 / (1 - p) in its gradient is large for a rejected answer of which the
    policy is sure.
    """

    def log_odds(answers: Answers) -> Tensor:
        mean_P = answers.score(per_token=True).clamp(max=-1e-7)  # odds of certainty are infinite
        return mean_P - torch.log(-torch.expm1(mean_P))

    return -beta * logsigmoid(log_odds(chosen) - log_odds(rejected))


# Answers rated one by one ------------------------------------------------------------------------


@form("kto", pairs=False, source="KTO, 2402.01306, section 4")
def kto(
    chosen: Answers,
    rejected: Answers,
    baseline: Tensor | float = 0.0,
    *,
    beta: Positive = 0.1,
    desirable: NonNegative = 1.0,
    undesirable: NonNegative = 1.0,
) -> Tensor:
    """desirable (1 - σ(beta (s_c - z))) of a good answer, undesirable (1 - σ(beta (z - s_r))) of a
    bad one; z is the baseline.

    Use it where answers are rated, not compared: good and bad ones need not belong together, nor be
    as many. The two answers of a pair are a good and a bad one. Where good and bad answers are
    unequal in number, set the weights so that weight times number is about equal.

    The baseline estimates KL(policy || reference): it is the mean score of mismatched texts, each
    the prompt of one answer of the micro-batch with an answer to another prompt, which the data
    decide (the next judged text whose prompt differs, in the order of their keys). It is taken as 0
    where it is negative and has no gradient. It takes one more forward a step. Since it is of one
    micro-batch and process, `batch_size` is part of the method: splitting a batch changes the
    baseline and nothing else.

    Known problems: the estimate is noisy in small batches; with a baseline of 0 this is `apo_zero`
    without pairs. Its gradient vanishes for scores far from the baseline.
    """
    sums_C = chosen.logprob_P
    z = torch.as_tensor(baseline, dtype=sums_C.dtype, device=sums_C.device).detach().clamp(min=0)
    good_C = desirable * torch.sigmoid(beta * (z - chosen.score()))
    return torch.cat([good_C, undesirable * torch.sigmoid(beta * (rejected.score() - z))])
