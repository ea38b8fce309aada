"""The memory of a training: counted without weights, and with or without checkpointing."""

import pytest
import torch

from distill.planning.memory import (
    FLOAT32_COPIES,
    Forward,
    footprint,
    student_skeleton,
    trace_memory,
)
from distill.training.loop import train
from students.save import save_student
from students.tuning.method import METHODS
from students.tuning.trainable import choose_trainable
from tests.helpers.training import attached, job_of, learned, prepared

BF16 = torch.bfloat16
METHOD_NAMES = list(METHODS)


@pytest.fixture
def config(make_model):
    return make_model(1, width=64, layers=4, vocabulary=320).config


@pytest.fixture
def student(make_model, tokenizer, tmp_path):
    save_student(make_model(1, width=64, vocabulary=320), tokenizer, tmp_path / "student")
    return tmp_path / "student"


@pytest.fixture
def examples(tokenizer, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(" ".join(f"{i} teaches {i * i}" for i in range(90)))
    return prepared(tokenizer, tmp_path / "data", file)


def method_of(name):
    return METHODS[name].model_validate({"method": name})


def traced(config, depth, name="full", rows=16, tokens=64, **more):
    method = method_of(name)
    forward = Forward(rows, tokens, more.pop("products", torch.float32), base=method.base, **more)
    return trace_memory(
        student_skeleton(config, depth, lambda model: method.attach(model, 0)), forward
    )


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_what_learns_is_counted_as_in_the_real_student(name, student, config):
    real = attached(student, name)
    expected = sorted(p.numel() for p in real.parameters() if p.requires_grad)
    assert sorted(traced(config, 2, name).learning) == expected


@pytest.mark.parametrize("name", ["full", "qlora"])
def test_weights_are_as_large_as_loaded(name, make_model, tokenizer, tmp_path):
    model = make_model(1, width=256, vocabulary=320)
    save_student(model, tokenizer, tmp_path / "wide")
    held = 0
    for parameter in attached(tmp_path / "wide", name).parameters():
        held += parameter.nbytes
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            held += state.absmax.nbytes + state.state2.absmax.nbytes
    weights = BF16 if name == "qlora" else torch.float32
    assert traced(model.config, 2, name, weights=weights).weights == pytest.approx(held, rel=0.02)


def test_activations_grow_with_tokens_and_blocks_and_shrink_with_the_dtype(config):
    one = traced(config, 2).kept
    assert traced(config, 2, rows=32).kept == pytest.approx(2 * one, rel=0.05)
    assert 1.7 * one < traced(config, 4).kept < 2.1 * one
    assert traced(config, 2, products=BF16).kept < one


def test_activations_are_what_autograd_keeps_of_packed_rows(make_model):
    model = make_model(1, width=64, layers=4, vocabulary=320)
    own, kept = {p.data_ptr() for p in model.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ids = torch.zeros(16, 64, dtype=torch.long)
        places = torch.arange(32).repeat(2).expand_as(ids)
        model.train().model(input_ids=ids, position_ids=places, use_cache=False)
    real = sum(size for size, _ in kept.values())
    assert traced(model.config, 4).kept == pytest.approx(real, rel=0.05)


def test_each_choice_takes_what_it_says(config):
    whole, thin = traced(config, 4), traced(config, 4, "lora")
    plain = footprint(whole, chunk=8)
    saving = footprint(whole, chunk=8, checkpointing=True)
    small = footprint(whole, chunk=8, optimizer="adamw_8bit")
    assert plain.gradients == 4 * sum(whole.learning)
    assert plain.states == 2 * plain.gradients
    assert small.states < 0.4 * plain.states
    assert small.copies == FLOAT32_COPIES * 4 * max(whole.learning)
    assert saving.activations < 0.5 * plain.activations
    assert saving.peak < plain.peak
    assert footprint(whole, chunk=8, accumulates=True).peak > plain.peak
    assert footprint(whole, chunk=8, dense=True).logits > plain.logits
    assert footprint(thin, chunk=8).states == 8 * sum(thin.learning) < plain.states


def test_a_frozen_head_waits_for_no_gradient(config):
    def last_block(model):
        choose_trainable(model, "last:1")
        return model

    model = student_skeleton(config, 2, last_block)
    assert footprint(trace_memory(model, Forward(2, 16, torch.float32)), chunk=8).waiting == 0


def test_a_model_that_cannot_be_traced_is_estimated(config):
    model = student_skeleton(config, 4, lambda model: model)
    forward = model.model.forward

    def asks_for_values(*arguments, **named):
        if named["input_ids"].sum().item() > 3:
            raise AssertionError
        return forward(*arguments, **named)

    model.model.forward = asks_for_values
    kept = trace_memory(model, Forward(16, 64, torch.float32)).kept
    assert kept == pytest.approx(traced(config, 4).kept, rel=0.4)


# Gradient checkpointing ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"), [("full", {}), ("lora", {"dropout": 0.1}), ("qlora", {}), ("ia3", {})]
)
def test_checkpointing_changes_memory_and_not_what_is_learned(
    name, options, student, examples, tmp_path, training_loop
):
    """With adapters the first block's inputs are frozen: gradients must reach it all the same."""
    found = []
    for checkpointing in (False, True):
        job = job_of(
            attached(student, name, **options), examples, tmp_path / str(checkpointing),
            gradient_checkpointing=checkpointing, max_steps=2,
        )  # fmt: skip
        before = learned(job)
        train(job)
        after = learned(job)
        moved = [name for name, value in before.items() if not torch.equal(value, after[name])]
        assert moved == list(before)
        found.append(after)
    for name, value in found[0].items():
        assert torch.equal(found[1][name], value), name
