"""TRL's preference trainers, as recorded on the same tensors, and how each follows from ours.

tests/references/record_preferences.py ran their code; preferences.json holds what it gave: the loss
of a batch of three pairs (or six rated answers), its gradient at all logits, and the mean margin of
rewards. EXPLANATIONS say of each setting which form it is, with which parameters, and which terms
on cross-entropy stand beside it. Every entry is asserted twice: with the form under autograd on
float64 logits, and as a step has it, through the head with one weight a token.

Legend: R rows (chosen answers first), T tokens, V vocabulary, N tokens in the head's pass.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from attar.models.structure import Head
from distill.data.examples import CHOSEN, REJECTED
from distill.objective.chunked_head import head_logprobs, head_losses
from distill.objective.head_term import HeadTerm
from distill.objective.losses import LOSSES
from distill.objective.preference_forms import FORMS, Answers
from distill.objective.sequence_value import sequence_value
from tests.references.inputs import (
    IDS,
    PAIRS,
    RATED,
    pair_answers,
    pair_attention,
    pair_ids,
    policy_logits,
    reference_logits,
)

RECORDED = Path(__file__).parents[2] / "references" / "preferences.json"
ENTRIES = json.loads(RECORDED.read_text(encoding="utf8"))["entries"]


@dataclass(frozen=True)
class Ours:
    """A form and its parameters; weight of cross-entropy, and over which of the chosen tokens."""

    form: str
    parameters: dict = field(default_factory=dict)
    nll: float = 0.0
    nll_over: str = "answer"


def dpo(given):
    """The names are the same; `sigmoid_norm` divides lengths out, `aot` of one pair is cDPO."""
    name, beta = given["loss_type"], given["beta"]
    if name == "sigmoid_norm":
        return Ours("sigmoid", {"beta": beta, "per_token": True})
    noise = {"label_smoothing": given["label_smoothing"]} if "label_smoothing" in given else {}
    return Ours("sigmoid" if name == "aot" else name, {"beta": beta, **noise})


def cpo(given):
    """The term on cross-entropy is the mean over the chosen answers' tokens of the micro-batch."""
    parameters = {"beta": given["beta"], "label_smoothing": given.get("label_smoothing", 0.0)}
    if given["loss_type"] == "simpo":
        return Ours("simpo", {**parameters, "margin": given["simpo_gamma"]}, given["cpo_alpha"])
    return Ours("cpo", parameters, given["cpo_alpha"])


def orpo(given):
    """The mean is over the tokens of the chosen answers and of their prompts, but for the first."""
    return Ours("orpo", {"beta": given["beta"]}, 1.0, "text")


def kto(given):
    names = {"desirable_weight": "desirable", "undesirable_weight": "undesirable"}
    weights = {names[key]: value for key, value in given.items() if key in names}
    return Ours("kto", {"beta": given["beta"], **weights})  # `apo_zero_unpaired`: no baseline


EXPLANATIONS = {
    "trl.trainer.dpo_trainer.DPOTrainer": dpo,
    "trl.experimental.cpo.cpo_trainer.CPOTrainer": cpo,
    "trl.experimental.orpo.orpo_trainer.ORPOTrainer": orpo,
    "trl.trainer.kto_trainer.KTOTrainer": kto,
}


def shown(entry):
    parameters = ",".join(f"{name}={value}" for name, value in entry["parameters"].items())
    return f"{entry['function'].split('.')[-1]}-{parameters}"


every_entry = pytest.mark.parametrize("entry", ENTRIES, ids=shown)


class Batch:
    """The rows of an entry, in the order of a step: each rejected answer after its chosen one."""

    def __init__(self, entry):
        self.ours = EXPLANATIONS[entry["function"]](entry["parameters"])
        self.form = FORMS[self.ours.form]
        pairs = entry["parameters"].get("pairs", PAIRS)
        order = [row for pair in range(pairs) for row in (pair, pair + PAIRS)]
        self.good = [row < PAIRS for row in order]
        if not self.form.pairs:
            order, self.good = list(range(2 * PAIRS)), [bool(rated) for rated in RATED]
        self.rows = torch.tensor(order)
        # Labels are shifted once: the logits at t belong to the id at t + 1.
        self.labels = pair_ids()[self.rows, 1:]
        self.answer = pair_answers()[self.rows, 1:].bool()
        self.text = pair_attention()[self.rows, 1:].bool()
        self.count = pairs if self.form.pairs else len(order)
        self.baseline = entry.get("kl", 0.0)

    def logprobs(self, logits):
        """(R, T - 1) of the labels."""
        shifted = logits[self.rows, :-1].log_softmax(-1)
        return shifted.gather(-1, self.labels.unsqueeze(-1)).squeeze(-1)

    def nll_mask(self):
        mask = self.answer if self.ours.nll_over == "answer" else self.text
        return mask & torch.tensor(self.good).unsqueeze(-1)

    def recorded(self, entry):
        """(value, gradient at the logits of all rows of inputs.py)."""
        gradient = torch.zeros(policy_logits().shape, dtype=torch.float64)
        own = torch.tensor(entry["gradient"], dtype=torch.float64)
        gradient[self.rows.sort().values] = own
        return entry["value"], gradient


@every_entry
def test_recorded_loss_is_the_form_under_autograd(entry):
    batch = Batch(entry)
    logits = policy_logits().requires_grad_()
    logprobs = batch.logprobs(logits)
    sums = (logprobs * batch.answer).sum(-1)
    reference = (batch.logprobs(reference_logits()) * batch.answer).sum(-1)
    good = torch.tensor(batch.good)

    def answers(of):
        theirs = reference[of] if batch.form.reference else None
        return Answers(sums[of], theirs, batch.answer.sum(-1)[of])

    more = () if batch.form.pairs else (batch.baseline,)
    values = batch.form.function(answers(good), answers(~good), *more, **batch.ours.parameters)
    loss = values.mean()
    if batch.ours.nll:
        loss = loss - batch.ours.nll * logprobs[batch.nll_mask()].mean()
    value, gradient = batch.recorded(entry)
    assert loss.item() == pytest.approx(value, rel=1e-6)
    (slope,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(slope, gradient, rtol=1e-5, atol=1e-8)


@every_entry
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_recorded_loss_is_a_weighted_cross_entropy_through_the_head(entry, chunk):
    """The head is the identity, so that hidden states are logits; all in float32."""
    batch = Batch(entry)
    hidden = policy_logits().float().requires_grad_()
    counted = batch.text  # of prompts as well: only what has a weight learns
    hidden_NH = hidden[batch.rows, :-1][counted]
    labels_N, in_answer_N = batch.labels[counted], batch.answer[counted]
    text_N = torch.arange(len(batch.rows)).unsqueeze(-1).expand(counted.shape)[counted]
    head = Head(torch.eye(IDS))
    how = {"chunk": chunk, "dtype": torch.float32}
    logprobs_N = head_logprobs(hidden_NH, head, labels_N, **how)
    result = sequence_value(
        batch.form,
        batch.ours.parameters,
        logprobs_N[in_answer_N],
        text_N[in_answer_N],
        torch.tensor([CHOSEN if good else REJECTED for good in batch.good], dtype=torch.int8),
        batch.logprobs(reference_logits()).float()[counted][in_answer_N],
        batch.baseline,
    )
    assert result.count == batch.count
    weight_N = result.token_weights(text_N) * in_answer_N
    nll = LOSSES["cross_entropy"]
    chosen_N = batch.nll_mask()[counted].float()
    terms = [
        HeadTerm(nll, 1 / result.count, weight_N=weight_N),
        HeadTerm(nll, batch.ours.nll / chosen_N.sum().item(), weight_N=chosen_N),
    ]
    total, sums = head_losses(hidden_NH, head, labels_N, terms, **how)
    value, gradient = batch.recorded(entry)
    ours = result.value / result.count + terms[1].scale * sums[1]
    assert ours.item() == pytest.approx(value, rel=1e-6)
    (slope,) = torch.autograd.grad(total, hidden)
    torch.testing.assert_close(slope.double(), gradient, rtol=1e-5, atol=1e-6)


@every_entry
def test_recorded_margin_of_rewards_is_ours(entry):
    """TRL logs sums where the loss has means (`ipo`, `sigmoid_norm`): there ours differ."""
    batch = Batch(entry)
    text = torch.arange(len(batch.rows)).unsqueeze(-1).expand(batch.answer.shape)[batch.answer]
    roles = torch.tensor([CHOSEN if good else REJECTED for good in batch.good], dtype=torch.int8)
    sides = [batch.logprobs(x())[batch.answer] for x in (policy_logits, reference_logits)]
    result = sequence_value(
        batch.form, batch.ours.parameters, sides[0], text, roles, sides[1], batch.baseline
    )
    good, bad = result.reward_S[roles == CHOSEN], result.reward_S[roles == REJECTED]
    margin = (good.mean() - bad.mean()).item()
    if batch.form.pairs:
        assert result.margin_P.mean().item() == pytest.approx(margin)
    if entry["parameters"].get("loss_type") in ("ipo", "sigmoid_norm"):
        assert margin != pytest.approx(entry["margin"], rel=1e-2)
    else:
        assert margin == pytest.approx(entry["margin"], rel=1e-6)


def test_every_form_has_a_recorded_loss():
    forms = {EXPLANATIONS[entry["function"]](entry["parameters"]).form for entry in ENTRIES}
    assert forms == set(FORMS)
