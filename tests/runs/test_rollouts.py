"""Whole runs whose student writes its own text in rounds, and learns from it."""

import json
import os
import random
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from attar.models.tokenizers import load_tokenizer, vocabulary_size
from distill.rollouts.written import example_of_answer, read_round
from teachers.cache.reader import SignalCache

SETTINGS = {
    "data": {"train": "rows.jsonl", "held_out": 0.2, "max_length": 40},
    "cache": {"codec": {"name": "final_hidden"}},
    "student": {"from": "teacher", "layers": {"keep": 1}},
    "train": {
        "objective": [{"loss": "reverse_kl"}],
        "source": "online",
        "rollouts": {"new_tokens": 8},
        "lr": 1e-3,
        "batch_size": 4,
        "max_steps": 6,
        "precision": "float32",
        "arms": [],
    },
    "export": {"artifacts": ["bf16"]},
    "evaluate": {
        "tokens": 400, "prefill_tokens": 32, "generate_tokens": 4, "agreement_prompts": 0
    },
}  # fmt: skip


@pytest.fixture
def rows(workshop):
    """A recipe on prompts and answers whose student answers the prompts itself."""
    dice = random.Random(0)
    rows = [
        {
            "prompt": f"the teacher says {dice.choice('abcdefgh')}{number}",
            "answer": f"{dice.choice(['light', 'water'])} {number % 7}",
        }
        for number in range(60)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {"teacher": {"model": "teacher", "dtype": "float32"}, **SETTINGS}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    return workshop


def result_of(folder, arm="distill"):
    return json.loads(Path(folder, "arms", arm, "result.json").read_text())


def train(rows, folder, *settings):
    options = [word for setting in settings for word in ("--set", setting)]
    for stage in (["cache", "build"], ["build"], ["train"]):
        rows(*stage, "recipe.yaml", "--run-dir", folder, *options)
    return result_of(folder)


def test_a_student_learns_from_its_own_text(rows):
    result = train(rows, "out")
    assert [one["round"] for one in result["rounds"]] == list(range(6))
    assert all(one["answers"] == 4 for one in result["rounds"])
    assert {"reverse_kl", "top1", "teacher_nll", "kept"} <= result["rounds"][0].keys()


def test_rounds_get_their_signals_from_a_cache_of_their_own(rows):
    more = ["train.source=cache", "train.rollouts={new_tokens: 8, every: 3, share: 0.7}"]
    result = train(rows, "cached", *more, "cache.labels=true")
    online = train(rows, "online", more[1])
    assert len(result["rounds"]) == 2
    for name in ("answers", "tokens", "reverse_kl", "top1", "teacher_nll"):
        assert result["rounds"][0][name] == pytest.approx(online["rounds"][0][name], rel=1e-2)
    first, other = result["history"][0], online["history"][0]
    assert first["0:reverse_kl"] == pytest.approx(other["0:reverse_kl"], rel=1e-2)
    kept = sorted(one.name for one in Path("cached/arms/distill/rollouts").glob("*.signals"))
    assert kept == ["00001.signals"]  # of the rounds that were still learned from
    written = SignalCache(f"cached/arms/distill/rollouts/{kept[0]}")
    assert (written.signals(written.keys()).stored_logprobs() < 0).all()
    shown = rows("cache", "verify", "cached/cache")
    assert "whole" in shown.output or shown.exit_code == 0


def test_a_model_that_is_told_more_teaches_itself(rows):
    same = ["student={from: teacher}", "train.max_steps=4"]
    plain = train(rows, "plain", *same, 'teacher.prompt="{prompt}"')
    assert plain["history"][0]["0:reverse_kl"] == pytest.approx(0, abs=1e-5)
    same += ['teacher.prompt="{prompt}, and it is {answer}"']
    same.append("train.rollouts={new_tokens: 8, every: 2}")
    told = train(rows, "told", *same)
    assert told["history"][0]["0:reverse_kl"] > 1e-3
    cached = train(rows, "cached", *same, "train.source=cache")
    for name in ("answers", "tokens", "reverse_kl", "top1", "teacher_nll"):
        assert cached["rounds"][0][name] == pytest.approx(told["rounds"][0][name], rel=1e-2)
    first, other = told["history"][0], cached["history"][0]
    assert first["0:reverse_kl"] == pytest.approx(other["0:reverse_kl"], rel=1e-2)
    shown = rows("data", "recipe.yaml", "--run-dir", "cached", "--rows", "1", "--set", same[2])
    assert re.search(r"the teacher's prompt: .*the teacher says .*, and it is ", shown.output)


def test_rewarded_answers_become_more_frequent_at_a_price_in_kl(rows):
    objective = "train.objective=[{loss: rloo}]"
    rollouts = "train.rollouts={new_tokens: 6, every: 2, samples: 4, reward: {verifier: {extract: number}, kl: 0.01}}"  # noqa: E501
    result = train(rows, "out", objective, rollouts, "train.source=cache", "train.lr=0.01",
                   "train.batch_size=8")  # fmt: skip
    assert all(0 <= one["reward"] <= 1 for one in result["rounds"])
    kept = [one.name for one in Path("out/arms/distill/rollouts").glob("*.reference")]
    assert kept == ["00002.reference"]
    assert "0:rloo" in result["history"][0]


def test_a_rewarded_adapter_pays_for_the_distance_to_itself_without(rows):
    special = "specialize={method: lora, rank: 2, max_steps: 2, batch_size: 4, lr: 0.01, precision: float32, objective: [{loss: rloo}], rollouts: {new_tokens: 6, samples: 2, reward: {verifier: {extract: number}, kl: 0.1}}}"  # noqa: E501
    plain = ("train.objective=[{loss: cross_entropy}]", "train.rollouts=null", special)
    options = [word for one in (*plain, "train.source=cache") for word in ("--set", one)]
    for stage in (["cache", "build"], ["build"], ["train"], ["specialize"]):
        rows(*stage, "recipe.yaml", "--run-dir", "out", *options)
    folder = Path("out/specialized/run/rollouts")
    student = AutoModelForCausalLM.from_pretrained("out/arms/distill/student")
    cache = SignalCache(str(folder / "00001.reference"))
    known = vocabulary_size(load_tokenizer("teacher"))
    for written in chain(*read_round(folder / "00001.arrow").answers):
        example = example_of_answer(written)
        ids = torch.from_numpy(example.input_ids)[None]
        with torch.no_grad():
            logprobs = student(ids).logits[0, :, :known].log_softmax(-1)
        labels = torch.from_numpy(example.counted_labels)
        wanted = logprobs[torch.from_numpy(example.counted), labels]
        found = cache.signals([example.key]).label_logprobs(labels)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_an_adapter_writes_and_learns_from_its_text(rows):
    special = "specialize={method: lora, rank: 2, max_steps: 2, batch_size: 4, precision: float32, objective: [{loss: reverse_kl}], source: online, rollouts: {new_tokens: 6}}"  # noqa: E501
    options = ("--set", special, "--set", "train.objective=[{loss: cross_entropy}]")
    options += ("--set", "train.rollouts=null", "--set", "train.source=cache")
    options += ("--set", "export.artifacts=[adapter]")
    rows("run", "recipe.yaml", "--run-dir", "out", *options)
    found = json.loads(Path("out/specialized/result.json").read_text())
    assert [one["round"] for one in found["rounds"]] == [0, 1]


@pytest.mark.parametrize("source", ["online", "cache"])
def test_two_processes_write_the_same_answers_and_train_the_same_student(
    rows, several_processes, source
):
    rounds = "every: 1, share: 0.3" if source == "online" else "every: 3, share: 0.7"
    settings = [f"train.source={source}", f"train.rollouts={{new_tokens: 8, {rounds}}}"]
    train(rows, "one", *settings, "train.accumulate=2", "train.batch_size=2")
    options = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for stage in (["cache", "build"], ["build"], ["train"]):
        arguments = [*stage, "recipe.yaml", "--run-dir", "two", *options]
        arguments += ["--set", "train.batch_size=2"]
        done = subprocess.run(
            [*command, "-m", "distill", *arguments], env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    found = [
        [read_round(file) for file in sorted(Path(name).glob("arms/distill/rollouts/*.arrow"))]
        for name in ("one", "two")
    ]
    first = [next(one for one in rounds if one.answers) for rounds in found]
    texts = [[a.answer.ids.tolist() for one in r.answers for a in one] for r in first]
    assert texts[0] == texts[1]
    students = [
        AutoModelForCausalLM.from_pretrained(f"{name}/arms/distill/student").state_dict()
        for name in ("one", "two")
    ]
    for name, tensor in students[0].items():
        assert (tensor - students[1][name]).abs().max() < 1e-4, name
