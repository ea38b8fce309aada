"""A term on preferences in a whole step: against full logits, and however pairs are batched."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.data.batching import collate
from distill.data.examples import CHOSEN, REJECTED, example_of
from distill.data.tokenize import IGNORE
from distill.objective.model_outputs import LanguageReadout
from distill.objective.objective import Learner
from distill.objective.terms import TERM_MODELS
from teachers.cache.config import CacheConfig
from teachers.online import OnlineTeacher

VOCABULARY = 97
PAIRED = ["sigmoid", "hinge", "ipo", "robust", "apo_zero", "apo_down", "simpo", "cpo", "orpo"]
ALONE = ["simpo", "cpo", "orpo"]  # forms without a reference


def a_pair(dice, prompt=5, chosen=7, rejected=4):
    """A prompt with two answers, whose tokens count."""
    asked = list(dice.integers(0, VOCABULARY, prompt))

    def text(length):
        ids = [*asked, *dice.integers(0, VOCABULARY, length)]
        labels = [*([IGNORE] * (prompt - 1)), *ids[prompt:], IGNORE]
        return ids, labels

    return example_of(*text(chosen), role=CHOSEN, rejected=text(rejected))


@pytest.fixture(scope="module")
def pairs():
    dice = np.random.default_rng(0)
    lengths = [(3, 7, 4), (5, 2, 9), (4, 6, 6), (6, 1, 3)]
    return [a_pair(dice, *lengths_of) for lengths_of in lengths]


@pytest.fixture(scope="module")
def texts(make_examples):
    return make_examples(3, seed=4)


@pytest.fixture(scope="module")
def reference_of(make_cache, pairs, texts, tmp_path_factory):
    """`reference_of(model)`: its log-probabilities of all answers, from a cache."""

    def make(model):
        every = [text for example in [*pairs, *texts] for text in example.texts]
        config = CacheConfig.model_validate({"codec": "label"})
        return make_cache(tmp_path_factory.mktemp("reference"), model, every, config)

    return make


def learner_of(model, *terms, **options):
    made = [TERM_MODELS[term["loss"]].model_validate(term) for term in terms]
    options = {"vocabulary": VOCABULARY, "dtype": torch.float32, "chunk": 5, **options}
    return Learner(model.train(), made, **options)


def step(learner, batches, reference=None, **more):
    """(loss, means, gradients) of one optimiser step over micro-batches."""
    learner.zero_grad()
    counted = batches[0].counted
    for batch in batches[1:]:
        counted = counted + batch.counted
    total, sums = 0.0, None
    for batch in batches:
        sources = {} if reference is None else {"reference": reference.signals(batch.keys)}
        sources |= {name: of(batch) for name, of in more.items()}
        loss, found = learner(batch, sources, counted.scales(1.0))
        loss.backward()
        total += loss.item()
        sums = found if sums is None else sums + found
    gradients = {n: p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None}
    return total, sums.means(counted), gradients


def assert_same(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-5, abs=1e-7)
    for name, gradient in one[2].items():
        atol = 1e-5 * gradient.abs().max().item() + 1e-8
        torch.testing.assert_close(other[2][name], gradient, rtol=1e-3, atol=atol)


def answer_logprobs(model, texts):
    """Sums of the counted tokens' log-probabilities, from all logits, in float64."""
    found = []
    for text in texts:
        logits = model(torch.from_numpy(text.input_ids)[None]).logits[0].double().log_softmax(-1)
        where = torch.from_numpy(text.counted)
        found.append(logits[where, torch.from_numpy(text.counted_labels)].sum())
    return torch.stack(found)


def test_dpo_is_that_of_all_logits(pairs, reference_of, make_model):
    """Value and gradient, from a policy and a reference that run one text at a time."""
    policy, reference = make_model(7), make_model(3)
    term = {"loss": "preference", "beta": 0.3, "label_smoothing": 0.1, "weight": 0.7}
    batch = collate([[pair] for pair in pairs])
    loss, means, gradients = step(learner_of(policy, term), [batch], reference_of(reference))

    policy.zero_grad()
    sides = [[pair.texts[i] for pair in pairs] for i in (0, 1)]
    scores = [
        answer_logprobs(policy, side) - answer_logprobs(reference, side).detach() for side in sides
    ]
    margin = 0.3 * (scores[0] - scores[1])
    log_sigmoid = torch.nn.functional.logsigmoid
    want = -(0.9 * log_sigmoid(margin) + 0.1 * log_sigmoid(-margin)).mean()
    (0.7 * want).backward()
    assert loss == pytest.approx(0.7 * want.item(), rel=1e-5)
    assert means.margin == pytest.approx(margin.mean().item(), rel=1e-4)
    assert means.accuracy == pytest.approx((margin > 0).double().mean().item())
    for name, parameter in policy.named_parameters():
        got = gradients[f"student.{name}"]
        atol = 1e-5 * got.abs().max().item() + 1e-8
        torch.testing.assert_close(parameter.grad, got, rtol=1e-3, atol=atol)


def test_a_policy_that_is_its_reference_has_no_margin(pairs, reference_of, make_model):
    model = make_model(7)
    learner = learner_of(model, {"loss": "preference"})
    batch = collate([[pair] for pair in pairs])
    loss, means, _ = step(learner, [batch], reference_of(model.eval()))
    assert loss == pytest.approx(np.log(2), abs=1e-5)
    assert means.margin == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("form", PAIRED)
def test_how_pairs_are_batched_changes_nothing(pairs, reference_of, make_model, form):
    model = make_model(7)
    learner = learner_of(model, {"loss": "preference", "form": form})
    reference = None if form in ALONE else reference_of(make_model(3))
    whole = step(learner, [collate([[pair] for pair in pairs])], reference)
    assert len(whole[2])
    assert_same(whole, step(learner, [collate([[pair]]) for pair in pairs], reference))
    assert_same(whole, step(learner, [collate([[pair] for pair in pairs[::-1]])], reference))
    assert_same(whole, step(learner, [collate([pairs[:2], pairs[2:]])], reference))


def test_texts_alone_beside_pairs_count_for_the_labels_only(pairs, texts, reference_of, make_model):
    """A step of both has the mean over pairs, and over the tokens that are to be learned."""
    model, reference = make_model(7), reference_of(make_model(3))
    preference = {"loss": "preference", "beta": 0.2}
    labels = {"loss": "cross_entropy", "weight": 0.5}
    both = collate([[example] for example in [*pairs, *texts]])
    chosen = collate([[text] for text in [*(pair.texts[0] for pair in pairs), *texts]])
    judged = collate([[pair] for pair in pairs])
    one = step(learner_of(model, preference), [judged], reference)
    other = step(learner_of(model, labels), [replace(chosen, roles_S=None, judged=0)])
    got = step(learner_of(model, preference, labels), [both], reference)
    assert got[0] == pytest.approx(one[0] + other[0], rel=1e-5)
    assert got[1].nll == pytest.approx(other[1].nll, rel=1e-5)
    for name, gradient in got[2].items():
        atol = 1e-5 * gradient.abs().max().item() + 1e-8
        want = one[2][name] + other[2][name]
        torch.testing.assert_close(gradient, want, rtol=1e-3, atol=atol)


@pytest.mark.parametrize("on", ["chosen", "rejected", "all"])
@pytest.mark.parametrize(
    "term", [{"loss": "cross_entropy"}, {"loss": "forward_kl"}, {"loss": "hidden_mse"}]
)
def test_on_says_whose_tokens_count(pairs, make_model, term, on):
    model, teacher = make_model(7), make_model(3)
    online = OnlineTeacher(teacher, VOCABULARY, [2], [])

    def signals(batch):
        return online.signals(batch.model_inputs(), batch.labels_BT != IGNORE)

    options = {"pairs": {0: [(2, 2)]}} if term["loss"] == "hidden_mse" else {}
    wanted = [
        replace(text, role=0)
        for pair in pairs
        for text in pair.texts
        if on == "all" or (text.role == CHOSEN) == (on == "chosen")
    ]
    batch, alone = collate([[pair] for pair in pairs]), collate([[text] for text in wanted])
    got = step(learner_of(model, {**term, "on": on}, **options), [batch], cache=signals)
    want = step(learner_of(model, term, **options), [alone], cache=signals)
    assert_same(want, got)


@pytest.mark.parametrize("on", ["chosen", "rejected", "all"])
def test_the_nll_is_that_of_chosen_answers_whatever_is_learned(pairs, make_model, on):
    bad = [replace(pair.rejected, role=REJECTED) for pair in pairs[:2]]  # rated answers, all bad
    batches = [collate([[pair] for pair in pairs]), collate([[text] for text in bad])]
    learner = learner_of(make_model(7), {"loss": "cross_entropy", "on": on})
    _, means, _ = step(learner, batches)
    chosen = [pair.texts[0] for pair in pairs]
    want = -answer_logprobs(learner.student, chosen).sum() / sum(len(t.counted) for t in chosen)
    assert means.nll == pytest.approx(want.item(), rel=1e-5)


def test_a_batch_without_pairs_has_no_preference(texts, reference_of, make_model):
    learner = learner_of(make_model(7), {"loss": "preference"}, {"loss": "cross_entropy"})
    batch = collate([[text] for text in texts])
    loss, means, gradients = step(learner, [batch], reference_of(make_model(3)))
    alone = step(learner_of(learner.student, {"loss": "cross_entropy"}), [batch])
    assert_same(alone, (loss, means, gradients))


def test_the_reference_may_run_in_the_step(pairs, reference_of, make_model):
    model, other = make_model(7), make_model(3)
    online = OnlineTeacher(other, VOCABULARY, [], [])
    batch = collate([[pair] for pair in pairs])
    cached = step(learner_of(model, {"loss": "preference"}), [batch], reference_of(other))
    learner = learner_of(model, {"loss": "preference", "source": "online"})
    asked = step(
        learner,
        [batch],
        online=lambda b: online.signals(b.model_inputs(), b.labels_BT != IGNORE),
    )
    assert_same(cached, asked)


def test_an_evaluation_has_value_and_margin_without_a_gradient(pairs, reference_of, make_model):
    learner = learner_of(make_model(7), {"loss": "preference"}, {"loss": "cross_entropy"})
    reference = reference_of(make_model(3))
    batch = collate([[pair] for pair in pairs])
    trained = step(learner, [batch], reference)
    learner.eval()
    with torch.no_grad():
        loss, sums = learner(
            batch, {"reference": reference.signals(batch.keys)}, batch.counted.scales(1.0)
        )
    assert loss.item() == pytest.approx(trained[0], rel=1e-5)
    assert sums.means(batch.counted).margin == pytest.approx(trained[1].margin, rel=1e-5)


@pytest.mark.parametrize("texts_beside", [False, True])
def test_an_evaluation_of_preferences_alone_reads_the_logits_once(
    pairs, texts, reference_of, make_model, texts_beside, monkeypatch
):
    terms = {"loss": "preference"}, {"loss": "preference", "form": "ipo", "weight": 0.5}
    learner = learner_of(make_model(7), *terms)
    reference = reference_of(make_model(3))
    batch = collate([[one] for one in (*pairs, *(texts if texts_beside else ()))])
    trained = step(learner, [batch], reference)
    monkeypatch.setattr(LanguageReadout, "losses", lambda *_: pytest.fail("a second pass"))
    learner.eval()
    with torch.no_grad():
        loss, sums = learner(
            batch, {"reference": reference.signals(batch.keys)}, batch.counted.scales(1.0)
        )
    assert loss.item() == pytest.approx(trained[0], rel=1e-5)
    means = sums.means(batch.counted)
    assert means.nll == pytest.approx(trained[1].nll, rel=1e-5)
    assert means.terms == pytest.approx(trained[1].terms, rel=1e-5)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"margin": 0.3}, "`margin` has no effect with `form: sigmoid`; it is a key of `simpo`"),
        ({"form": "simpo", "source": "cache"}, "`source` has no effect with `form: simpo`"),
        ({"form": "dpo"}, "form"),
        ({"beta": 0}, "greater than 0"),
    ],
)
def test_keys_without_effect_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        TERM_MODELS["preference"].model_validate({"loss": "preference", **values})
