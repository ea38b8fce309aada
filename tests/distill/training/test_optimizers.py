"""Optimisers of a recipe: they learn, they hold what the plan says, they go on where they were."""

import importlib.util
import json
import random

import pytest
import torch

from attar.errors import RecipeError
from distill.training.config import LoopConfig
from distill.training.loop import train
from distill.training.optimizers import (
    OPTIMIZERS,
    check_optimizer,
    make_optimizer,
    restore_paged_state,
)
from students.save import save_student
from tests.helpers.training import attached, job_of, learned, prepared, train_until

CPU = torch.device("cpu")
HERE = [name for name, found in OPTIMIZERS.items() if not found.paged]
ALL = list(OPTIMIZERS)
WORDS = ["teacher", "says", "what", "the", "student", "learns", "nobody", "listens"]


@pytest.fixture
def student(make_model, tokenizer, tmp_path, training_loop):
    """A folder with a student whose matrices have 4,096 numbers and more."""
    save_student(make_model(1, width=64, vocabulary=320), tokenizer, tmp_path / "student")
    return tmp_path / "student"


@pytest.fixture
def examples(tokenizer, tmp_path):
    dice = random.Random(0)
    rows = [{"text": " ".join(dice.choices(WORDS, k=30))} for _ in range(40)]
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepared(tokenizer, tmp_path / "data", file)


def state_bytes(made):
    """Bytes of moving averages and their scales; tables of codes are shared and small."""
    kept = 0
    for state in made.state.values():
        tables = {"step", "qmap1", "qmap2"}
        kept += sum(v.nbytes for k, v in state.items() if k not in tables and torch.is_tensor(v))
    return kept


def one_step(module, name):
    made = make_optimizer(module, name, 1e-3, (0.9, 0.95), 0.01)
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    made.step()
    return made


@pytest.mark.parametrize("name", HERE)
def test_the_state_is_as_large_as_the_plan_says(name, make_model):
    model = make_model(1, width=64, vocabulary=320)
    sizes = [p.numel() for p in model.parameters()]
    assert state_bytes(one_step(model, name)) == OPTIMIZERS[name].state_bytes(sizes)


def test_8_bit_averages_take_a_quarter(make_model):
    full, quantised = (
        state_bytes(one_step(make_model(1, width=128, vocabulary=320), name))
        for name in ("adamw", "adamw_8bit")
    )
    assert 0.25 < quantised / full < 0.26


def fall(student, examples, folder, name):
    """How far the loss falls, nats a token."""
    lr = 7e-4 if name == "lion_8bit" else 2e-3
    options = {"optimizer": name, "epochs": 2, "lr": lr, "evaluate_every": 1000}
    history = train(job_of(attached(student, "full"), examples, folder, **options)).history
    return history[0]["0:cross_entropy"] - history[-1]["validation"]


def test_8_bit_trainings_learn_like_adamw(student, examples, tmp_path):
    falls = {name: fall(student, examples, tmp_path / name, name) for name in HERE}
    assert falls["adamw"] > 1
    assert {name: f > 0.8 * falls["adamw"] for name, f in falls.items()} == dict.fromkeys(
        HERE, True
    )


@pytest.mark.parametrize("name", HERE)
def test_stopped_and_resumed_is_uninterrupted_bit_for_bit(name, student, examples, tmp_path):
    def job(folder):
        return job_of(
            attached(student, "full"), examples, tmp_path / folder,
            optimizer=name, max_steps=4, checkpoint_every=100, evaluate_every=100,
        )  # fmt: skip

    whole = job("whole")
    train(whole)
    train_until(job("stopped"), 2)
    resumed = job("stopped")
    result = train(resumed)
    expected, found = learned(whole), learned(resumed)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert result.peak_memory_bytes > 0


def test_decay_is_on_matrices_alone(make_model):
    made = make_optimizer(make_model(), "adamw", 1e-3, (0.9, 0.95), 0.1)
    for group in made.param_groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] == 0.1}


def test_frozen_parts_take_no_state(student):
    model = attached(student, "lora", rank=2)
    made = make_optimizer(model, "adamw", 1e-3, (0.9, 0.95), 0.01)
    mine = {id(p) for group in made.param_groups for p in group["params"]}
    assert mine == {id(p) for name, p in model.named_parameters() if "lora_" in name}


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="adamw_8bit"):
        LoopConfig.model_validate({"objective": [], "optimizer": "adam_8bit"})


@pytest.mark.parametrize("name", [name for name in ALL if name not in HERE])
def test_pages_without_a_gpu_are_refused_with_what_to_write(name):
    with pytest.raises(RecipeError, match=f"`train.optimizer: {name}`.*`{name[6:]}`"):
        check_optimizer("train.optimizer", name, CPU)


def test_bitsandbytes_that_is_absent_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="bitsandbytes, which is not installed"):
        check_optimizer("train.optimizer", "adamw_8bit", CPU)
    check_optimizer("train.optimizer", "adamw", CPU)


def test_a_run_refuses_before_any_work(workshop):
    change = ("--set", "train.optimizer=paged_adamw_8bit")
    result = workshop("plan", "recipe.yaml", "--run-dir", "out", *change, ok=False)
    assert result.exit_code == 1
    assert "there is no GPU here; use `adamw_8bit`" in result.output


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="pages lie between a GPU and memory")
@pytest.mark.parametrize("name", [name for name in ALL if name not in HERE])
def test_loaded_averages_are_paged_again(name):
    module = torch.nn.Linear(512, 512, device="cuda")
    made = one_step(module, name)
    again = make_optimizer(module, name, 1e-3, (0.9, 0.95), 0.01)
    again.load_state_dict(made.state_dict())
    restore_paged_state(again)
    before, after = made.state[module.weight], again.state[module.weight]
    assert after["state1"].is_paged
    assert torch.equal(after["state1"].cpu(), before["state1"].cpu())
    module.weight.grad = torch.ones_like(module.weight)
    again.step()
