"""The reference of preferences is made once, and follows its texts and its model."""

from types import SimpleNamespace

import pytest
import torch

from distill.run.folder import RunFolder
from distill.stages.reference import Reference, Start, reference_cache
from distill.tasks.causal_lm.task import CausalLM
from distill.training.config import LoopConfig

CONFIG = LoopConfig(objective=[{"loss": "preference"}])


class Counting(CausalLM):
    """A task that says how often a runner was made."""

    def __init__(self):
        self.runners = 0

    def runner_of(self, context, model, config):
        self.runners += 1
        return super().runner_of(context, model, config)


@pytest.fixture
def read(make_model, tokenizer, tmp_path):
    """`read(examples, seed)`: (keys that a reference serves, how many runners were made so far)."""
    task = Counting()
    run = SimpleNamespace(
        folder=RunFolder(tmp_path / "run"),
        task=task,
        tokenizer=tokenizer,
        vocabulary=97,
        recipe=SimpleNamespace(data=SimpleNamespace(max_length=64)),
    )

    def make(examples, seed=3):
        model = make_model(seed)
        model.save_pretrained(tmp_path / f"student{seed}")
        start = Start(str(tmp_path / f"student{seed}"))
        reference = Reference("train", CONFIG, model, start, torch.float32)
        cache = reference_cache(run, reference, [examples])
        return {one.key for one in examples if one.key in cache}, task.runners

    return make


def test_a_reference_is_made_once_and_grows(read, make_examples):
    first, more = make_examples(4, seed=1), make_examples(3, seed=2)
    assert read(first) == ({one.key for one in first}, 1)
    assert read(first)[1] == 1
    assert read([*first, *more]) == ({one.key for one in [*first, *more]}, 2)
    assert read(more)[1] == 2


def test_a_reference_of_other_texts_or_another_model_is_made_anew(read, make_examples):
    first, other = make_examples(4, seed=1), make_examples(3, seed=2)
    read(first)
    assert read(other) == ({one.key for one in other}, 2)
    assert read(other, seed=4) == ({one.key for one in other}, 3)
