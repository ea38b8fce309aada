"""The one evaluation: the same mean as one example at a time, for any batch size."""

import pytest
import torch

from distill.data.examples import first_examples
from distill.objective.layer_map import LayerMap
from distill.objective.objective import Learner
from distill.objective.term_protocols import TermKey
from distill.objective.terms import TERM_MODELS
from distill.training.teacher_signals import TeacherSignals
from distill.training.validation import evaluate_objective
from teachers.cache.config import CacheConfig
from teachers.online import OnlineTeacher
from tests.helpers.training import VOCABULARY, prepared

TERMS = [
    TERM_MODELS["forward_kl"](weight={"schedule": "linear", "from": 0.0, "to": 0.5}),
    TERM_MODELS["hidden_mse"](weight=0.2, layers=[(1, 2)]),
]


@pytest.fixture
def examples(tokenizer, tmp_path):
    lines = [" ".join(["the teacher says what"] * (1 + i % 5)) for i in range(30)]
    (tmp_path / "text.txt").write_text("\n\n".join(lines))
    return prepared(tokenizer, tmp_path / "data", tmp_path / "text.txt")[0]


@pytest.fixture
def learner(make_model):
    student = make_model(7, vocabulary=VOCABULARY)
    pairs = LayerMap(2, 2).pairs(TERMS, "cache")
    return Learner(student, TERMS, vocabulary=VOCABULARY, dtype=torch.float32, chunk=8, pairs=pairs)


@pytest.fixture
def teacher(make_model):
    return make_model(0, vocabulary=VOCABULARY).requires_grad_(False)


@pytest.fixture
def signals(make_cache, teacher, examples, tmp_path):
    config = CacheConfig.model_validate({"hidden": {"layers": [2], "codec": "bf16"}})
    url = tmp_path / "cache"
    return TeacherSignals(make_cache(url, teacher, examples, config, vocabulary=VOCABULARY))


def by_hand(model, examples):
    """Mean nll of the counted tokens, in float64."""
    total = 0.0
    for example in examples:
        ids_1T, at = torch.from_numpy(example.input_ids)[None], example.counted
        with torch.no_grad():
            logprobs = model(input_ids=ids_1T).logits[0, at].double().log_softmax(-1)
        total -= float(logprobs[torch.arange(len(at)), example.labels[at]].sum())
    return total / sum(len(example.counted) for example in examples)


def test_the_mean_is_over_counted_tokens_for_any_batch_size(learner, examples, signals):
    whole = evaluate_objective(learner, examples, signals, batch_size=len(examples))
    assert whole.tokens == examples.num_tokens
    assert whole.means.nll == pytest.approx(by_hand(learner.student, examples), rel=1e-5)
    for size in (1, 3):
        found = evaluate_objective(learner, examples, signals, batch_size=size)
        assert found.objective == pytest.approx(whole.objective, rel=1e-5)
        assert found.means.terms == pytest.approx(whole.means.terms, rel=1e-5)


def test_the_objective_weighs_the_terms_as_their_schedules_end(learner, examples, signals):
    found = evaluate_objective(learner, examples, signals, batch_size=4)
    kl, mse = (found.means.terms[TermKey(i, term.loss)] for i, term in enumerate(TERMS))
    assert found.objective == pytest.approx(0.5 * kl + 0.2 * mse, rel=1e-9)
    names = ["0:forward_kl", "1:hidden_mse", "nll"]
    assert list(found.means.named("validation_")) == [f"validation_{name}" for name in names]


def test_a_limit_in_tokens_takes_the_first_examples(learner, examples, signals):
    chosen = first_examples(examples, 40)
    assert 0 < len(chosen) < len(examples)
    found = evaluate_objective(learner, examples, signals, batch_size=4, tokens=40)
    first = [examples[i] for i in chosen]
    assert found.tokens == sum(len(example.counted) for example in first)
    assert found.means.nll == pytest.approx(by_hand(learner.student, first), rel=1e-5)


def test_a_teacher_that_runs_beside_serves_in_place_of_a_cache(
    make_model, examples, teacher, learner
):
    terms = [term.model_copy(update={"source": "online"}) for term in TERMS]
    pairs = LayerMap(2, 2).pairs(terms, "cache")
    there = Learner(
        make_model(0, vocabulary=VOCABULARY), terms, vocabulary=VOCABULARY, dtype=torch.float32,
        chunk=8, pairs={**pairs, 1: [(2, 2)]},
    )  # fmt: skip
    online = TeacherSignals(online=OnlineTeacher(teacher, VOCABULARY, [2], []))
    found = evaluate_objective(there, examples, online, batch_size=4)
    assert found.objective == pytest.approx(0, abs=1e-5), "the student is the teacher"


def test_labels_alone_need_no_signals_and_no_graph_is_kept(make_model, examples):
    model = make_model(7, vocabulary=VOCABULARY)
    terms = [TERM_MODELS["cross_entropy"]()]
    learner = Learner(model, terms, vocabulary=VOCABULARY, dtype=torch.float32, chunk=8).train()
    found = evaluate_objective(learner, examples, batch_size=4)
    assert found.objective == pytest.approx(found.means.nll, rel=1e-12)
    assert not learner.training
    assert all(parameter.grad is None for parameter in model.parameters())
