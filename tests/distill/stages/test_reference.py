"""The reference of preferences is made once, and follows its texts and its model."""

from types import SimpleNamespace

import pytest
import torch

from distill.data.batching import collate
from distill.data.examples import ALONE, Examples
from distill.run.folder import RunFolder
from distill.stages import reference as stage
from distill.stages.reference import Reference, Start, reference_cache
from distill.tasks.causal_lm.task import CausalLM
from distill.training.config import LoopConfig
from distill.training.teacher_signals import TeacherSignals
from tests.helpers.judging import preferences, prepare_parts
from tests.helpers.preparing import texts, write_jsonl

CONFIG = LoopConfig(objective=[{"loss": "preference"}])


class Counting(CausalLM):
    """A task that says how often a runner was made, and of which texts requests."""

    def __init__(self):
        self.runners, self.requested = 0, []

    def runner_of(self, context, model, config):
        self.runners += 1
        return super().runner_of(context, model, config)

    def request(self, run, example):
        self.requested.append(example.key)
        return super().request(run, example)


@pytest.fixture
def task():
    return Counting()


@pytest.fixture
def make(make_model, tokenizer, tmp_path, task):
    """`make(examples, seed)`: the cache of a reference."""
    run = SimpleNamespace(
        folder=RunFolder(tmp_path / "run"),
        task=task,
        tokenizer=tokenizer,
        vocabulary=320,
        recipe=SimpleNamespace(data=SimpleNamespace(max_length=64)),
    )

    def made(examples, seed=3):
        model = make_model(seed, vocabulary=320)
        model.save_pretrained(tmp_path / f"student{seed}")
        start = Start(str(tmp_path / f"student{seed}"))
        reference = Reference("train", CONFIG, model, start, torch.float32)
        return reference_cache(run, reference, [examples])

    return made


@pytest.fixture
def mixed(tokenizer, tmp_path):
    """Training examples that are texts and pairs."""
    files = [
        write_jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in texts(6, 3)]),
        write_jsonl(tmp_path / "pairs.jsonl", preferences(12)),
    ]
    parts, _ = prepare_parts(tokenizer, tmp_path, None, train=files, held_out=0.1)
    return parts["train"]


def judged_texts(examples):
    return {text.key for one in examples if one.role != ALONE for text in one.texts}


def part_of(examples, *numbers):
    """Some of the pairs."""
    pairs = [i for i, one in enumerate(examples) if one.role != ALONE]
    return examples.numbered(pairs[slice(*numbers)])


def test_a_reference_is_made_once_and_grows(make, mixed, task):
    first = part_of(mixed, 4)
    assert set(make(first).keys()) == judged_texts(first)
    make(first)
    assert task.runners == 1
    assert set(make(mixed).keys()) == judged_texts(mixed)
    make(part_of(mixed, 4, None))
    assert task.runners == 2


def test_a_reference_of_other_texts_or_another_model_is_made_anew(make, mixed, task):
    make(part_of(mixed, 4))
    other = part_of(mixed, 4, None)
    assert set(make(other).keys()) == judged_texts(other)
    make(other, seed=4)
    assert task.runners == 3


def test_what_other_libraries_computed_is_made_anew(make, mixed, task, monkeypatch):
    make(mixed)
    monkeypatch.setattr(stage, "library_versions", lambda *names: dict.fromkeys(names, "0"))
    make(mixed)
    assert task.runners == 2


def test_texts_without_a_judgement_are_compared_with_nothing(make, mixed, task):
    alone = [one for one in mixed if one.role == ALONE]
    cache = make(mixed)
    assert alone
    assert not {one.key for one in alone} & set(task.requested)
    batch = collate([[alone[0]], [part_of(mixed, 1)[0]]])
    found = TeacherSignals(reference=cache).read(batch, SimpleNamespace(baseline_sources=set()), [])
    labels_N = torch.cat([torch.from_numpy(text.counted_labels)
                          for text in (alone[0], *part_of(mixed, 1)[0].texts)])  # fmt: skip
    logprobs_N = found(batch)["reference"].label_logprobs(labels_N)
    first = len(alone[0].counted)
    assert (logprobs_N[:first] == 0).all()
    assert (logprobs_N[first:] < 0).all()


def test_no_row_is_read_of_a_reference_that_is_complete(make, mixed, task, monkeypatch):
    make(mixed)
    task.requested.clear()
    monkeypatch.setattr(Examples, "__getitem__", lambda *_: pytest.fail("a row was read"))
    make(mixed)
    assert task.requested == []
