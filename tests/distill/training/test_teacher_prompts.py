"""A teacher with a prompt of its own: its signals in the step, from a cache, and of rounds."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from attar.models.loading import load_causal_lm
from attar.models.tokenizers import load_tokenizer, vocabulary_size
from distill.data.batching import collate
from distill.data.config import DataConfig
from distill.data.examples import example_of
from distill.data.reader import NextTokenTexts
from distill.data.row_list import RowList
from distill.data.teacher_prompts import TeacherPrompts, as_teacher_reads
from distill.data.tokenize import IGNORE
from distill.objective.objective import Learner
from distill.stages.round_signals import RoundSignals
from distill.tasks.causal_lm.task import CausalLM
from distill.training.batch_source import PlannedBatches
from distill.training.teacher_signals import TeacherSignals, asked
from teachers.cache.config import CacheConfig
from teachers.cache.joined import JoinedCaches
from teachers.online import OnlineTeacher
from tests.helpers.rollouts import (
    loop_config,
    online_signals,
    plan_of,
    prepared_answers,
    rollout_job,
)
from tests.helpers.training import VOCABULARY

EXACT = CacheConfig.model_validate({"codec": {"name": "topk", "k": VOCABULARY}})
PRIVILEGED = "{prompt} Reference: {answer}"


@pytest.fixture
def examples_of(tokenizer, tmp_path):
    """`examples_of(template)`: prompts with answers; what the teacher reads in their place."""

    def make(template):
        folder = tmp_path / str(hash(template))
        folder.mkdir(exist_ok=True)
        return prepared_answers(tokenizer, folder, teacher_prompt=template)

    return make


@pytest.fixture
def models(make_model):
    """(student, teacher), the teacher frozen."""
    student, teacher = (make_model(seed, vocabulary=VOCABULARY) for seed in (1, 7))
    return student, teacher.requires_grad_(False)


@pytest.fixture
def cache_of_texts(make_cache, tmp_path):
    """`cache_of_texts(name, teacher, examples)`: a cache as the task's requests fill it."""

    def make(name, teacher, examples):
        unique = {one.key: as_teacher_reads(one) for one in examples}.values()
        return make_cache(tmp_path / name, teacher, list(unique), EXACT, vocabulary=VOCABULARY)

    return make


def test_a_request_is_of_what_the_teacher_reads_and_predicts_the_same(examples_of):
    for example in examples_of(PRIVILEGED)[0]:
        request = CausalLM().request(None, example)
        assert request.key == example.key
        assert request.labels.tolist() == example.counted_labels.tolist()
        assert request.input_ids[request.counted + 1].tolist() == request.labels.tolist()
        assert len(request.input_ids) > len(example.input_ids)


@pytest.mark.parametrize("packed", [True, False])
def test_in_the_step_signals_are_those_after_the_teachers_prompt(make_examples, models, packed):
    dice = np.random.default_rng(0)
    examples = [
        example_of(one.input_ids, one.labels, teacher_prompt=dice.integers(0, 97, 3 + i).tolist())
        for i, one in enumerate(make_examples(6, seed=3))
    ]
    batch = collate([examples[:4], examples[4:]] if packed else [[one] for one in examples])
    teacher = OnlineTeacher(models[1], VOCABULARY, [1], [1])
    found = asked(teacher, batch)
    alone = [asked(teacher, collate([[as_teacher_reads(one)]])) for one in examples]
    close = {"rtol": 1e-4, "atol": 1e-4}
    for one, wanted in (
        (found.final_NH, [one.final_NH for one in alone]),
        (found.hidden(1), [one.hidden(1) for one in alone]),
        (found.attention(1).keys_ND, [one.attention(1).keys_ND for one in alone]),
    ):
        torch.testing.assert_close(one, torch.cat(wanted), **close)
    wanted = []
    for one in map(as_teacher_reads, examples):  # by the definition
        logits_TV = models[1](torch.from_numpy(one.input_ids)[None]).logits[0]
        wanted.append(logits_TV.log_softmax(-1)[torch.from_numpy(one.counted)])
    torch.testing.assert_close(found.distribution(1.0).logprobs(), torch.cat(wanted), **close)


def test_a_step_from_an_exact_cache_is_that_of_a_teacher_in_the_step(
    examples_of, models, cache_of_texts
):
    student, teacher = models
    train_part = examples_of(PRIVILEGED)[0]
    cached = cache_of_texts("data", teacher, train_part)
    found = []
    for source, signals in (
        ("online", online_signals(teacher)[0]),
        ("cache", TeacherSignals(cached)),
    ):
        config = loop_config(None, source=source, objective=[{"loss": "forward_kl"}])
        learner = Learner(
            student, config.objective, vocabulary=VOCABULARY, chunk=64, dtype=torch.float32,
            source=source,
        )  # fmt: skip
        batches = PlannedBatches(plan_of(train_part, config), learner, signals, 0)
        (one, *_) = batches.batches(0)
        loss, _ = learner(one.batch, one.signals(one.batch), batches.counted(0).scales(1.0))
        loss.backward()
        batches.close()
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in student.parameters()])))
        student.zero_grad()
    (online, gradient), (stored, other) = found
    assert online == pytest.approx(stored, rel=1e-3)
    assert float((gradient - other).norm() / gradient.norm()) < 2e-3


@pytest.fixture
def round_of(examples_of, make_model, cache_of_texts, tmp_path):
    """`round_of(template, source, seed)`: the job of one step on a student's own answers."""

    def make(template, source, seed):
        examples = examples_of(template)
        teacher = make_model(seed, vocabulary=VOCABULARY).requires_grad_(False)
        rollouts = {"new_tokens": 6, "every": 1 + (source == "cache")}
        config = loop_config(rollouts, source=source, max_steps=1, batch_size=8)
        given = online_signals(teacher)
        if source == "cache":
            data = cache_of_texts(f"data {template}", teacher, [*examples[0], *examples[1]])

            def signals_of(number, texts):
                written = cache_of_texts(f"round {template}", teacher, texts)
                return TeacherSignals(JoinedCaches([data, written]))

            given = TeacherSignals(data), signals_of
        folder = tmp_path / f"{template} {source} {seed}"
        return rollout_job(make_model(1, vocabulary=VOCABULARY), examples, folder, config, *given)

    return make


@pytest.mark.parametrize("source", ["online", "cache"])
def test_a_student_that_reads_what_its_teacher_does_learns_nothing(round_of, source):
    norms = []
    for template in ("{prompt}", PRIVILEGED):
        job = round_of(template, source, 1)
        (one, *_), counted = job.source.batches(0), job.source.counted(0)
        loss, _ = job.learner(one.batch, one.signals(one.batch), counted.scales(1.0))
        loss.backward()
        norms.append(torch.cat([p.grad.flatten() for p in job.learner.parameters()]).norm())
        equal = pytest.approx(0, abs=1e-5)
        assert (job.source.records[0]["reverse_kl"] == equal) == (template == "{prompt}")
        assert (float(loss.detach()) == equal) == (template == "{prompt}")
        job.source.close()
    assert norms[0] < 0.02 * norms[1]


def test_rounds_from_an_exact_cache_learn_what_rounds_in_the_step_do(round_of):
    found = []
    for source in ("online", "cache"):
        job = round_of(PRIVILEGED, source, 7)
        (one, *_), counted = job.source.batches(0), job.source.counted(0)
        assert all(x.teacher_prompt is not None for x in job.source._examples[0][0])
        loss, _ = job.learner(one.batch, one.signals(one.batch), counted.scales(1.0))
        job.source.close()
        found.append([float(loss.detach()), *(
            job.source.records[0][name] for name in ("reverse_kl", "teacher_nll", "top1")
        )])  # fmt: skip
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_the_reference_of_a_reward_reads_the_students_prompts(examples_of, monkeypatch, tmp_path):
    texts = list(examples_of(PRIVILEGED)[0])[:3]
    seen = []
    monkeypatch.setattr(
        RoundSignals, "_reference_cache", lambda self, number, requests: seen.extend(requests)
    )
    run = SimpleNamespace(task=CausalLM())
    RoundSignals(run, TeacherSignals(), tmp_path, 1, None, object()).of_round(0, texts)
    assert [request.key for request in seen] == [text.key for text in texts]
    assert all(
        request.input_ids.tolist() == text.input_ids.tolist()
        for request, text in zip(seen, texts, strict=True)
    )


def test_a_teacher_that_is_shown_the_answer_finds_it_likelier(demo_teacher):
    folder = str(demo_teacher)
    tokenizer = load_tokenizer(folder)
    model = load_causal_lm(folder, dtype=torch.float32).requires_grad_(False)
    config = DataConfig(train="rows", max_length=128)
    rows = [
        {"prompt": f"{name} looked at the {thing} and said", "answer": f"that {other} was {how}"}
        for name in ("Alice", "The Queen", "The Hatter")
        for thing, other, how in (("door", "the key", "gone"), ("cat", "the cake", "curious"))
    ]
    nll = []
    for template in ("{prompt}", "She said {answer}. She said {answer}. {prompt}"):
        (reading,) = NextTokenTexts(TeacherPrompts(template)).open(
            tokenizer, config, [RowList(rows)], ["rows"]
        )
        examples = [example_of(*one) for row in rows for one in reading(row, Counter())]
        batch = collate([[one] for one in examples])
        teacher = OnlineTeacher(model, vocabulary_size(tokenizer), [], [])
        labels_N = batch.labels_BT[batch.labels_BT != IGNORE]
        nll.append(-float(asked(teacher, batch).label_logprobs(labels_N).mean()))
    assert nll[1] < nll[0] - 0.5
