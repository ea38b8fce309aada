"""Form `kto` whole: baseline from mismatched answers, value and gradient of a step of the learner.

The witness is float64 autograd through all logits of the model, one text at a time.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from distill.data.batching import Batch, collate
from distill.data.counted import Counted
from distill.data.examples import CHOSEN, REJECTED
from distill.data.tokenize import IGNORE
from distill.objective.chunked_head import logit_losses
from distill.objective.objective import Learner
from distill.objective.term_protocols import OfMismatched
from distill.objective.terms import TERM_MODELS
from distill.training.teacher_signals import TeacherSignals
from distill.training.validation import evaluate_objective
from teachers.cache.config import CacheConfig
from teachers.online import OnlineTeacher
from tests.helpers.judging import preferences, prepare_parts, ratings
from tests.helpers.preparing import texts, write_jsonl
from tests.helpers.training import VOCABULARY
from tests.references.inputs import (
    PAIRS,
    RATED,
    pair_answers,
    pair_ids,
    policy_logits,
    reference_logits,
    unrelated_logits,
)

MAX_LENGTH = 64
LABEL = CacheConfig.model_validate({"codec": {"name": "label"}})
BETA, DESIRABLE, UNDESIRABLE = 0.4, 1.5, 0.7
KTO = TERM_MODELS["preference"](
    form="kto", beta=BETA, desirable=DESIRABLE, undesirable=UNDESIRABLE, weight=0.8
)
NLL = TERM_MODELS["cross_entropy"](weight=0.3)


@pytest.fixture
def examples(tokenizer, tmp_path):
    """Texts, pairs and rated answers, with their mismatched texts."""
    files = [
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
        for name, rows in (
            ("texts", [{"text": text} for text in texts(6, 3)]),
            ("pairs", preferences(8)),
            ("ratings", [{**row, "prompt": f"so {row['prompt']}"} for row in ratings(9)]),
        )
    ]
    parts, _ = prepare_parts(tokenizer, tmp_path, None, train=files, held_out=0.1)
    return parts["train"].with_mismatched(MAX_LENGTH)


@pytest.fixture
def student(make_model, examples):
    """The reference after two steps on all answers, which gained behind other prompts, too."""
    model = make_model(0, vocabulary=VOCABULARY)
    learner = learner_of(model, TERM_MODELS["cross_entropy"](on="all"))
    batch = replace(collate([[one] for one in examples]), mismatched=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(2):
        gradients(learner, TeacherSignals(), batch)
        optimizer.step()
    return model


@pytest.fixture
def reference(make_model):
    return make_model(0, vocabulary=VOCABULARY).requires_grad_(False)


@pytest.fixture
def signals(make_cache, reference, examples, tmp_path):
    """The reference's cache of all texts, as a run makes it."""
    wanted = {
        one.key: one
        for example in examples
        for text in example.texts
        for one in (text, text.mismatched)
        if one is not None
    }
    cache = make_cache(
        tmp_path / "cache", reference, list(wanted.values()), LABEL, vocabulary=VOCABULARY
    )
    return TeacherSignals(reference=cache)


def learner_of(student, *terms):
    terms = list(terms or [KTO])
    return Learner(student, terms, vocabulary=VOCABULARY, dtype=torch.float32, chunk=7)


def forward(learner, signals, batch):
    """(loss, sums) of a step of one micro-batch."""
    sources = signals.read(batch, learner, learner.final_terms())(batch)
    return learner(batch, sources, batch.counted.scales(1.0))


def gradients(learner, signals, batch):
    learner.zero_grad()
    loss, sums = forward(learner, signals, batch)
    loss.backward()
    named = learner.student.named_parameters()
    return loss.item(), sums, {name: p.grad.clone() for name, p in named}


def score(model, reference, text):
    """Sum of the log-probabilities of a text's counted tokens, less the reference's, float64."""
    ids_1T, at = torch.from_numpy(text.input_ids)[None], text.counted
    sides = [
        one(input_ids=ids_1T).logits[0, at].log_softmax(-1)[torch.arange(len(at)), text.labels[at]]
        for one in (model, reference)
    ]
    return (sides[0] - sides[1]).sum()


@dataclass
class ByHand:
    """The term of some examples in float64: z, the sum over answers, scores and their number."""

    model: torch.nn.Module
    reference: torch.nn.Module
    examples: list

    def __post_init__(self):
        answers = [t for e in self.examples for t in e.texts if t.role in (CHOSEN, REJECTED)]
        with torch.no_grad():
            others = [score(self.model, self.reference, text.mismatched) for text in answers]
        self.z = max(0.0, float(sum(others)) / len(others))
        self.scores = [score(self.model, self.reference, text) for text in answers]
        self.good = [text.role == CHOSEN for text in answers]
        self.sum = sum(
            DESIRABLE * (1 - torch.sigmoid(BETA * (s - self.z)))
            if good
            else UNDESIRABLE * (1 - torch.sigmoid(BETA * (self.z - s)))
            for s, good in zip(self.scores, self.good, strict=True)
        )
        self.value = float(self.sum.detach())


@pytest.fixture
def by_hand(student, reference, make_model):
    def make(examples):
        copies = [make_model(0, vocabulary=VOCABULARY).double() for _ in range(2)]
        copies[0].load_state_dict(student.state_dict())
        return ByHand(*copies, examples)

    return make


def test_value_and_gradient_of_a_step_are_those_of_float64_autograd(
    student, examples, signals, by_hand
):
    learner = learner_of(student)
    want = by_hand(list(examples))
    assert want.z > 0.05, "else the baseline would not be seen"
    (want.sum * 0.8 / len(want.scores)).backward()
    loss, sums, found = gradients(learner, signals, collate([[one] for one in examples]))
    (value,) = sums.terms.values()
    assert float(value) == pytest.approx(want.value, rel=1e-6)
    assert loss == pytest.approx(0.8 * want.value / len(want.scores), rel=1e-6)
    for name, parameter in want.model.named_parameters():
        size = parameter.grad.abs().max().item()
        torch.testing.assert_close(
            found[name].double(), parameter.grad, rtol=1e-4, atol=1e-6 * max(1.0, size)
        )


def test_the_mean_is_over_answers_and_accuracy_and_margin_are_of_rewards(
    student, examples, signals, by_hand
):
    some = list(examples)
    batch, want = collate([[one] for one in some]), by_hand(some)
    _, sums = forward(learner_of(student), signals, batch)
    means = sums.means(examples.counted())
    answers = sum(len(one.texts) for one in some if one.role)
    assert answers == len(want.scores) > examples.counted().judged
    assert list(means.terms.values()) == pytest.approx([want.value / answers], rel=1e-6)
    scores, good = torch.stack(want.scores).detach(), torch.tensor(want.good)
    right = torch.where(good, scores > want.z, scores < want.z)
    assert 0 < right.sum() < len(right)
    assert means.accuracy == pytest.approx(right.double().mean().item(), rel=1e-9)
    margin = BETA * (scores[good].mean() - scores[~good].mean()).item()
    assert means.margin == pytest.approx(margin, rel=1e-4)


def test_a_step_of_one_kind_has_no_margin(student, examples, signals):
    good = [one for one in examples if one.role == CHOSEN and one.rejected is None]
    batch = collate([[one] for one in good])
    _, sums = forward(learner_of(student), signals, batch)
    assert sums.means(batch.counted).margin is None
    assert "margin" not in sums.means(batch.counted).named()
    assert sums.means(batch.counted).accuracy is not None


def test_packing_changes_nothing(student, examples, signals):
    some = list(examples)
    apart = collate([[one] for one in some])
    packed = collate([some[0:9], some[9:12], some[12:]])
    assert len(packed.mismatched.input_ids_BT) < len(apart.mismatched.input_ids_BT)
    learner = learner_of(student)
    one, other = (gradients(learner, signals, batch) for batch in (apart, packed))
    assert one[0] == pytest.approx(other[0], rel=1e-6)
    for name, gradient in one[2].items():
        size = gradient.abs().max().item()
        torch.testing.assert_close(other[2][name], gradient, rtol=1e-4, atol=1e-6 * max(1, size))


def test_splitting_a_batch_changes_the_baseline_and_nothing_else(
    student, examples, signals, by_hand
):
    some = [one for one in examples if one.role]
    learner, parts = learner_of(student), (some[:4], some[4:])
    found = [forward(learner, signals, collate([[e] for e in part]))[1] for part in parts]
    want = [by_hand(part) for part in parts]
    assert abs(want[0].z - want[1].z) > 1e-3
    for sums, one in zip(found, want, strict=True):
        assert float(*sums.terms.values()) == pytest.approx(one.value, rel=1e-6)


def test_mismatched_texts_count_for_no_other_term(student, examples, signals):
    batch = collate([[one] for one in examples])
    both = gradients(learner_of(student, KTO, NLL), signals, batch)
    rated = gradients(learner_of(student, KTO), signals, batch)
    plain = gradients(learner_of(student, NLL), TeacherSignals(), replace(batch, mismatched=None))
    means = [sums.means(batch.counted).nll for _, sums, _ in (both, rated, plain)]
    assert means == pytest.approx([means[2]] * 3, rel=1e-6)
    nll = {str(key): float(value) for key, value in both[1].terms.items()}["1:cross_entropy"]
    assert nll == pytest.approx(float(*plain[1].terms.values()), rel=1e-6)
    assert both[0] == pytest.approx(rated[0] + plain[0], rel=1e-6)
    for name, gradient in both[2].items():
        size = gradient.abs().max().item()
        torch.testing.assert_close(
            rated[2][name] + plain[2][name], gradient, rtol=1e-4, atol=1e-6 * max(1, size)
        )


def test_other_objectives_run_no_mismatched_texts(student, examples, signals):
    seen = []
    handle = student.model.register_forward_hook(lambda *_: seen.append(1))
    batch = collate([[one] for one in examples])
    forward(learner_of(student, NLL), TeacherSignals(), batch)
    forward(
        learner_of(student, TERM_MODELS["preference"](form="cpo")),
        TeacherSignals(),
        paired(examples),
    )
    assert len(seen) == 2
    alone = collate([[one] for one in examples if not one.role])
    forward(learner_of(student, KTO, NLL), signals, alone)
    assert len(seen) == 3, "no text of this batch is judged"
    forward(learner_of(student, KTO), signals, batch)
    assert len(seen) == 5
    handle.remove()


def paired(examples):
    return collate([[one] for one in examples if one.rejected is not None])


def test_judged_answers_without_mismatched_texts_are_refused(student, examples, signals):
    batch = replace(collate([[one] for one in examples]), mismatched=None)
    with pytest.raises(AssertionError, match="judged answers come with mismatched texts"):
        forward(learner_of(student), signals, batch)


def test_an_evaluation_is_the_mean_over_its_answers_and_a_teacher_in_the_step_serves_too(
    student, examples, signals, reference, by_hand
):
    found = evaluate_objective(learner_of(student), examples, signals, batch_size=len(examples))
    want = by_hand(list(examples))
    assert found.objective == pytest.approx(0.8 * want.value / len(want.scores), rel=1e-6)
    online = TeacherSignals(online=OnlineTeacher(reference, VOCABULARY, [], []))
    term = KTO.model_copy(update={"source": "online"})
    beside = evaluate_objective(
        learner_of(student, term), examples, online, batch_size=len(examples)
    )
    assert beside.objective == pytest.approx(found.objective, rel=1e-5)
    assert beside.means.accuracy == found.means.accuracy


# TRL's trainer -----------------------------------------------------------------------------------

RECORDED = Path(__file__).parents[2] / "references" / "preferences.json"
ENTRIES = [
    entry
    for entry in json.loads(RECORDED.read_text(encoding="utf8"))["entries"]
    if entry["parameters"].get("loss_type") == "kto"
]


class KnownSignals:
    """Log-probabilities of labels that are known."""

    def __init__(self, logprobs_N):
        self._logprobs_N = logprobs_N

    def label_logprobs(self, labels_N):
        return self._logprobs_N


class KnownReadout:
    """A student whose logits (R, T, V) of two batches are known: of answers, and of mismatched."""

    labelled, rates = True, False

    def __init__(self, logits, mismatched):
        self._logits, self._mismatched = logits, mismatched

    def run(self, student, batch):
        logits = self._logits if batch.mismatched is not None else self._mismatched
        return logits[batch.labels_BT != IGNORE]

    def losses(self, student, output, labels_N, terms):
        return logit_losses(output, labels_N, terms)

    def label_logprobs(self, student, output, labels_N):
        return logprobs_of(output.detach(), labels_N)


def logprobs_of(logits_NV, labels_N):
    return logits_NV.log_softmax(-1).gather(-1, labels_N.unsqueeze(-1)).squeeze(-1)


def recorded_batch():
    """The rated rows of inputs.py; mismatched texts are the same ids."""
    answers = pair_answers()[:, 1:].bool()
    labels = torch.full(pair_ids().shape, IGNORE)
    labels[:, :-1] = pair_ids()[:, 1:].masked_fill(~answers, IGNORE)
    ids = pair_ids()
    keys, counts = [str(row) for row in range(2 * PAIRS)], answers.sum(-1).tolist()
    other = Batch(ids, torch.arange(ids.shape[1]).expand_as(ids), labels, keys, counts)
    roles = torch.tensor([CHOSEN if rated else REJECTED for rated in RATED], dtype=torch.int8)
    return replace(other, roles_S=roles, judged=len(keys), mismatched=other)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: str(entry["parameters"]))
def test_a_step_is_that_of_trl(entry, make_model):
    """Its baseline, the mean over rated answers, the gradient at all logits, and the margin."""
    given, batch = entry["parameters"], recorded_batch()
    mismatched, other = reference_logits().flip(0), unrelated_logits()
    if given.get("kl") == "negative":
        mismatched, other = other, mismatched
    logits = policy_logits().requires_grad_()
    term = TERM_MODELS["preference"](
        form="kto",
        beta=given["beta"],
        desirable=given.get("desirable_weight", 1.0),
        undesirable=given.get("undesirable_weight", 1.0),
    )
    learner = Learner(
        make_model(0), [term], vocabulary=97, dtype=torch.float32, chunk=5,
        readout=KnownReadout(logits, mismatched),
    )  # fmt: skip
    counted_BT = batch.labels_BT != IGNORE
    labels_N = batch.labels_BT[counted_BT]
    sources = {
        "reference": KnownSignals(logprobs_of(reference_logits()[counted_BT], labels_N)),
        OfMismatched("reference"): KnownSignals(logprobs_of(other[counted_BT], labels_N)),
    }
    assert batch.counted == Counted(
        len(labels_N), sum(n for n, r in zip(batch.counts, RATED, strict=True) if not r), 6, 3, 3
    )
    loss, sums = learner(batch, sources, batch.counted.scales(1.0))
    assert loss.item() == pytest.approx(entry["value"], rel=1e-6)
    means = sums.means(batch.counted)
    assert list(means.terms.values()) == pytest.approx([entry["value"]], rel=1e-6)
    assert means.margin == pytest.approx(entry["margin"], rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    want = torch.tensor(entry["gradient"], dtype=torch.float64)
    torch.testing.assert_close(gradient, want, rtol=1e-5, atol=1e-7)
    (bound,) = learner.bound_terms
    with torch.no_grad():
        mine = logprobs_of(mismatched[counted_BT], labels_N)
    z = bound.baseline(batch.mismatched, labels_N, sources, mine)
    assert float(z) == pytest.approx(entry["kl"], rel=1e-6, abs=1e-9)


def test_trl_was_recorded_with_baselines_above_and_below_0():
    assert [entry["kl"] > 0 for entry in ENTRIES].count(True) == 2
    assert len(ENTRIES) == 3
