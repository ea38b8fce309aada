"""A checkpoint that is not as it was written is never loaded; the training ends as if it were."""

import copy
import json
import os
import random
import shutil
import signal
from itertools import cycle, product

import pytest
import torch

from attar.errors import RunError
from distill.training import checkpoint as checkpoints
from distill.training.interrupts import stop_requests
from distill.training.loop import train
from distill.training.state import TrainingState
from students.save import save_student
from tests.helpers.training import attached, job_of, learned, prepared, train_until

FILES = ["learned.safetensors", "optimizer.bin", "random_states_0.pkl", "progress.json"]
WORDS = ["teacher", "says", "what", "student", "learns", "light", "falls", "water"]


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
    file.write_bytes(b"")


def delete(file):
    file.unlink()


DAMAGES = [flip, cut, empty, delete]


@pytest.fixture
def work(make_model, tokenizer, tmp_path, training_loop):
    """`work(name, **keys)`: a job of eight steps, a checkpoint every two, in its own folder."""
    save_student(make_model(1, width=32, vocabulary=320), tokenizer, tmp_path / "student")
    dice = random.Random(0)
    rows = [{"text": " ".join(dice.choices(WORDS, k=30))} for _ in range(40)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = prepared(tokenizer, tmp_path / "data", tmp_path / "text.jsonl")

    def make(name, **keys):
        keys = {"keep": "best", "evaluate_every": 2, "checkpoint_every": 2, **keys}
        model = attached(tmp_path / "student", "full")
        return job_of(model, examples, tmp_path / name, max_steps=8, **keys)

    return make


def check_same(job, whole):
    for name, parameter in learned(whole).items():
        assert torch.equal(learned(job)[name], parameter), name


@pytest.fixture
def whole(work):
    job = work("whole")
    train(job)
    return job


@pytest.fixture
def stopped(work, tmp_path):
    """A training that was stopped after its sixth step, with two checkpoints."""
    train_until(work("stopped"), 6 + 3 * 2)
    folder = tmp_path / "stopped"
    assert {path.name for path in folder.iterdir()} == {"best.safetensors", "last", "previous"}
    return folder


def check_falls_back(whole, stopped, work, name, damage, caplog):
    """Damage a file of the last checkpoint, go on, and compare with the uninterrupted training."""
    folder = stopped.with_name(f"{name}-{damage.__name__}")
    shutil.copytree(stopped, folder)
    damage(folder / "last" / name)
    caplog.clear()
    job = work(folder.name)
    train(job)
    check_same(job, whole)
    assert f"{folder / 'last' / name} is" in caplog.text
    assert "the checkpoint before it is tried" in caplog.text


def test_damage_to_a_file_of_the_last_checkpoint_falls_back_to_the_one_before(
    whole, stopped, work, caplog
):
    for name, damage in zip([*FILES, "files.json"], cycle(DAMAGES), strict=False):
        check_falls_back(whole, stopped, work, name, damage, caplog)


def test_every_damage_to_every_file_of_the_last_checkpoint_falls_back(
    full_product, whole, stopped, work, caplog
):
    for name, damage in product([*FILES, "files.json"], DAMAGES):
        check_falls_back(whole, stopped, work, name, damage, caplog)


def test_damage_to_both_checkpoints_starts_the_training_anew(whole, stopped, work, caplog):
    flip(stopped / "last" / "optimizer.bin")
    delete(stopped / "previous" / "learned.safetensors")
    job = work("stopped")
    train(job)
    check_same(job, whole)
    assert "this training starts anew" in caplog.text
    assert {path.name for path in stopped.iterdir()} == {"best.safetensors", "last"}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_best_weights_are_made_again_never_replaced_by_the_last(
    whole, stopped, work, damage, caplog
):
    damage(stopped / "best.safetensors")
    job = work("stopped")
    train(job)
    check_same(job, whole)
    assert "best.safetensors is" in caplog.text


def test_the_same_best_weights_are_the_same_bytes(tiny_model, tmp_path):
    learner = copy.deepcopy(tiny_model).requires_grad_(True)
    for name in "ab":
        checkpoints.save_learned(learner, tmp_path / name, 4)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert checkpoints.step_of_learned(tmp_path / "a") == 4


def test_best_weights_of_another_step_are_noticed(whole, work, tmp_path, caplog):
    checkpoints.save_learned(whole.learner, tmp_path / "whole" / "best.safetensors", 2)
    job = work("whole")
    train(job)
    check_same(job, whole)
    assert "best.safetensors is of step 2, not of step" in caplog.text


def test_best_weights_that_vanish_at_the_end_are_not_replaced_by_the_last(whole, work, tmp_path):
    state = TrainingState(work("whole"))
    state.resume()
    (tmp_path / "whole" / "best.safetensors").unlink()
    with pytest.raises(RunError, match=r"best\.safetensors is missing; run the same command again"):
        state.load_best()
    state.job.source.close()


def test_a_file_beside_the_checkpoints_that_changed_voids_them(whole, stopped, work, caplog):
    """As `examples.json`, which names what an unfinished cache held when the training began."""
    (stopped / "examples.json").write_text("[]")
    for name in ("last", "previous"):
        checkpoints.seal(stopped / name, stopped)
    (stopped / "examples.json").write_text('["other"]')
    job = work("stopped")
    train(job)
    check_same(job, whole)
    assert "examples.json is not as written" in caplog.text


def test_a_kill_between_two_renames_goes_on_from_the_checkpoint_before(whole, stopped, work):
    shutil.rmtree(stopped / "last")
    job = work("stopped")
    train(job)
    check_same(job, whole)


def test_a_checkpoint_on_a_full_disk_names_it_and_keeps_the_one_before(
    stopped, work, whole, monkeypatch
):
    def full(*_arguments, **_more):
        raise RuntimeError("[enforce fail] . unexpected pos 5211648 vs 5211536")

    with monkeypatch.context() as patch:
        patch.setattr("accelerate.accelerator.save_accelerator_state", full)
        with pytest.raises(OSError, match="No space left on device") as told:
            train(work("stopped"))
    assert told.value.filename == str(stopped / "last")
    assert (stopped / "last" / "files.json").exists()
    assert not (stopped / "last.partial").exists()
    job = work("stopped")
    train(job)
    check_same(job, whole)


def test_a_jump_of_the_clock_changes_no_seconds(work, monkeypatch):
    monkeypatch.setattr("time.time", lambda: -1e9)
    assert 0 < train(work("whole")).seconds < 600


# Signals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_stop_signal_is_noted_and_a_second_of_another_kind_does_not_break_in(number):
    with stop_requests() as asked:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
    assert asked == [number]


def test_a_second_ctrl_c_stops_at_once():
    with stop_requests() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert asked == [signal.SIGTERM]


def test_nohup_keeps_a_training_alive():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
        assert asked == []
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
