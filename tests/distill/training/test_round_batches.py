"""Trainings whose student writes its own text: what decides the texts, and what must not."""

from functools import partial
from itertools import chain

import numpy as np
import pytest
import torch

from attar.errors import RunError
from distill.data.examples import WRITTEN, counted_in
from distill.objective.objective import Learner
from distill.rollouts.measures import check_answers
from distill.rollouts.written import read_round
from distill.training.batch_source import PlannedBatches
from distill.training.job import Job
from distill.training.loop import train
from distill.training.state import TrainingState
from distill.training.teacher_signals import TeacherSignals
from teachers.cache.config import CacheConfig
from teachers.cache.joined import JoinedCaches
from tests.helpers.rollouts import (
    loop_config,
    online_signals,
    plan_of,
    prepared_answers,
    rollout_job,
)
from tests.helpers.training import VOCABULARY, learned, train_until


@pytest.fixture
def examples(tokenizer, tmp_path):
    return prepared_answers(tokenizer, tmp_path)


@pytest.fixture
def ready(make_model, examples, tmp_path):
    """`ready(name, rollouts, **keys)`: the job of a training that has not begun."""

    def make(name, rollouts, *, teacher_seed=7, **keys):
        packing = keys.pop("packing", True)
        judge = keys.pop("judge", None)
        given = online_signals(
            make_model(teacher_seed, vocabulary=VOCABULARY).requires_grad_(False)
        )
        job = rollout_job(
            new_student(make_model), examples, tmp_path / name, loop_config(rollouts, **keys),
            *given, judge=judge, packing=packing,
        )  # fmt: skip
        return job

    return make


@pytest.fixture
def trained(ready):
    """`trained(name, rollouts, **keys)`: the job of a training that is over."""

    def run(name, rollouts, *, until=None, **keys):
        job = ready(name, rollouts, **keys)
        (train if until is None else partial(train_until, forwards=until))(job)
        return job

    return run


def new_student(make_model):
    return make_model(1, vocabulary=VOCABULARY)


def written_texts(source, step):
    """Texts of the student in a step, in order."""
    micro = source._entered(step).micro[step]
    return [x for rows in micro for row in rows for x in row if x.role == WRITTEN]


def assert_same(one, other, **tolerance):
    tolerance = tolerance or {"rtol": 0, "atol": 0}
    one, other = learned(one), learned(other)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], **tolerance, msg=lambda m, n=name: n + m)


def test_share_0_learns_what_an_offline_training_does(trained, make_model, examples, tmp_path):
    job = trained("rollouts", {"share": 0, "new_tokens": 6})
    config = job.config.model_copy(update={"rollouts": None})
    learner = Learner(
        new_student(make_model), config.objective, vocabulary=VOCABULARY, chunk=64,
        dtype=torch.float32, source="online",
    )  # fmt: skip
    signals, _ = online_signals(make_model(7, vocabulary=VOCABULARY).requires_grad_(False))
    offline = Job(
        name="test", learner=learner, config=config, validation=examples[1], signals=signals,
        source=PlannedBatches(plan_of(examples[0], config), learner, signals, 0),
        folder=tmp_path / "offline", seed=0,
    )  # fmt: skip
    train(offline)
    assert_same(job, offline)


def test_each_step_has_its_own_students_text(trained):
    job = trained("every 1", {"new_tokens": 6})
    assert [one["round"] for one in job.source.records] == list(range(6))
    rounds = [read_round(job.source.writer.file(n)) for n in range(6)]
    for step, found in enumerate(rounds):
        assert len(found.answers) == len(job.source.rounds.numbers[step])
        assert all(1 <= len(one.answer.ids) <= 6 for one in chain(*found.answers))


@pytest.mark.parametrize("forwards", [5, 18])
@pytest.mark.parametrize("rollouts", [{}, {"every": 3, "share": 0.6}, {"every": 2, "keep": 2}])
def test_a_training_that_was_stopped_ends_as_one_that_was_not(trained, rollouts, forwards):
    rollouts = {"new_tokens": 6, **rollouts}
    straight = trained("straight", rollouts, checkpoint_every=2)
    trained("stopped", rollouts, until=forwards, checkpoint_every=2)
    again = trained("stopped", rollouts, checkpoint_every=2)
    assert_same(straight, again)
    kept = [
        [{k: v for k, v in one.items() if k != "seconds"} for one in job.source.records]
        for job in (straight, again)
    ]
    assert kept[0] == kept[1]


def test_what_a_lost_checkpoint_leaves_of_later_rounds_is_read_again(trained, tmp_path):
    straight = trained("straight", {"new_tokens": 6, "every": 2}, checkpoint_every=2)
    trained("killed", {"new_tokens": 6, "every": 2}, until=18, checkpoint_every=2)
    for name in ("last", "previous"):
        for file in (tmp_path / "killed" / name).glob("*"):
            file.unlink()
    first = tmp_path / "killed" / "rollouts" / "00000.arrow"
    first.write_bytes(first.read_bytes()[:100])  # a damaged round is written anew
    assert_same(straight, trained("killed", {"new_tokens": 6, "every": 2}, checkpoint_every=2))


def test_rounds_by_an_exact_cache_learn_what_rounds_online_do(
    ready, make_model, make_cache, examples, tmp_path
):
    rollouts = {"new_tokens": 6, "every": 2, "share": 0.5}
    teacher = make_model(7, vocabulary=VOCABULARY).requires_grad_(False)
    exact = CacheConfig.model_validate({"codec": {"name": "topk", "k": VOCABULARY}})
    data = make_cache(tmp_path / "data", teacher, examples[0], exact, vocabulary=VOCABULARY)

    def signals_of(number, texts):
        texts = list({one.key: one for one in texts}.values())
        rounds = make_cache(tmp_path / "round", teacher, texts, exact, vocabulary=VOCABULARY)
        return TeacherSignals(JoinedCaches([data, rounds]))

    config, student = loop_config(rollouts, source="cache"), new_student(make_model)
    given = TeacherSignals(data), signals_of
    jobs = [
        ready("online", rollouts),
        rollout_job(student, examples, tmp_path / "cached", config, *given),
    ]
    losses, gradients = [], []
    for job in jobs:
        counted, (one, *_) = job.source.counted(1), job.source.batches(1)
        loss, _ = job.learner(one.batch, one.signals(one.batch), counted.scales(1.0))
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append(torch.cat([p.grad.flatten() for p in job.learner.parameters()]))
    assert {x.key for x in written_texts(jobs[0].source, 1)} == {
        x.key for x in written_texts(jobs[1].source, 1)
    }
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 2e-3
    mine, other = (job.source.records[0] for job in jobs)
    for name in ("reverse_kl", "top1", "teacher_nll", "kept"):
        assert mine[name] == pytest.approx(other[name], rel=1e-3)


def test_the_teacher_itself_as_student_learns_nothing(trained, monkeypatch):
    steps = []
    monkeypatch.setattr(TrainingState, "after_step", lambda self, record, *_: steps.append(record))
    for share in (0.5, 1.0):
        job = trained(f"share {share}", {"share": share, "new_tokens": 6}, teacher_seed=1,
                      max_steps=1, batch_size=8)  # fmt: skip
        assert job.source.records[0]["reverse_kl"] == pytest.approx(0, abs=1e-6)
        assert job.source.records[0]["top1"] == 1
        assert steps[-1]["0:reverse_kl"] == pytest.approx(0, abs=1e-6)
        assert steps[-1]["norm"] == pytest.approx(0, abs=1e-5)


def test_packing_changes_no_text_and_no_gradient(ready):
    keys = {"batch_size": 40, "max_steps": 1}
    found = []
    for name, packing in (("packed", True), ("alone", False)):
        job = ready(name, {"new_tokens": 6}, packing=packing, **keys)
        counted, (one,) = job.source.counted(0), job.source.batches(0)
        loss, _ = job.learner(one.batch, one.signals(one.batch), counted.scales(1.0))
        loss.backward()
        texts = {x.key for x in written_texts(job.source, 0)}
        gradients = {n: p.grad for n, p in job.learner.named_parameters()}
        found.append((len(one.batch.input_ids_BT), counted, texts, gradients))
    packed, alone = found
    assert packed[0] < alone[0]
    assert packed[1:3] == alone[1:3]
    for name, gradient in packed[3].items():
        torch.testing.assert_close(gradient, alone[3][name], rtol=1e-4, atol=1e-6)


def test_only_generated_tokens_divide_the_loss(ready):
    job = ready("counted", {"new_tokens": 6, "count_tokens": 4}, max_steps=1)
    counted, texts = job.source.counted(0), written_texts(job.source, 0)
    assert counted.tokens == counted.rollouts == sum(len(x.counted) for x in texts)
    assert counted.written == len(texts)
    assert max(len(x.counted) for x in texts) == 4
    for text in texts:
        first = text.counted[0]
        assert (text.labels[first:] == np.append(text.input_ids[first + 1 :], -100)).all()


def test_terms_count_on_the_texts_they_name(ready):
    share = {"share": 0.5, "new_tokens": 6}
    objective = [
        {"loss": "reverse_kl", "on": "rollouts"},
        {"loss": "cross_entropy", "on": "data", "weight": 0.5},
    ]
    job = ready("on", share, objective=objective, batch_size=40)
    counted, (one,) = job.source.counted(0), job.source.batches(0)
    assert 0 < counted.of("rollouts") < counted.tokens
    assert counted.of("data") + counted.of("rollouts") == counted.tokens
    scales = counted.scales(1.0)
    _, sums = job.learner(one.batch, one.signals(one.batch), scales)
    means = sums.means(counted).named()
    for unit, term in (("rollouts", "0:reverse_kl"), ("data", "1:cross_entropy")):
        texts = one.batch.keys
        roles = one.batch.roles.tolist()
        mine = {k for k, role in zip(texts, roles, strict=True) if (role == 3) == (unit != "data")}
        rows = [x for x in chain(*job.source._now.micro[0][0]) if x.key in mine]
        batch = job.source.plan.collate([[x] for x in rows])
        _, alone = job.learner(batch, one.signals(batch), counted_in(rows).scales(1.0))
        assert alone.means(counted_in(rows)).named()[term] == pytest.approx(means[term], rel=1e-4)
    assert means["nll"] == pytest.approx(means["1:cross_entropy"])


def test_answers_of_kept_rounds_are_learned_from_again(trained):
    job = trained("kept", {"new_tokens": 6, "every": 2, "keep": 2}, max_steps=6)
    rounds = job.source.rounds
    slots = [len(rounds.numbers[0]) + len(rounds.numbers[1])] * 3
    prompts = [len(rounds.prompts(n)) for n in range(3)]
    assert prompts == [slots[0], slots[1] // 2, slots[2] // 2]
    ages = {s.round for step in rounds.steps_of(2) for s in rounds.sources(step).values()}
    assert ages == {1, 2}


def rounds_with(number, **values):
    healthy = {"answers": 16, "tokens": 40.0, "ended": 0.9, "repeated": 0.05}
    return [{**healthy, **values}] * number


def test_a_collapse_is_told_and_what_is_no_collapse_is_not():
    good = rounds_with(4)
    check_answers(good + rounds_with(4, repeated=0.5, tokens=12.0), "train")
    check_answers(rounds_with(3) + rounds_with(1, repeated=1.0), "train")  # too few answers
    check_answers(rounds_with(8, repeated=0.9), "train")  # so it was from the beginning
    for values, said in (
        ({"repeated": 0.8}, "80% of their 4-grams repeat"),
        ({"tokens": 2.0}, "2.0 tokens"),
        ({"ended": 0.0}, "0% of them end"),
    ):
        with pytest.raises(RunError, match=said):
            check_answers(good + rounds_with(2, **values), "train")
