"""Runs whose training answers a model writes: from prompts to the report."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from attar.errors import DataError, RecipeError, RunError
from attar.files import read_json
from distill.answers.written_part import example_of_answer
from distill.data.examples import Examples
from distill.data.held_out_prompts import last_prompt
from distill.planning.estimate import estimates
from distill.run.context import Run
from distill.run.load import load_recipe
from distill.stages import answer as stage
from distill.stages.answer_writers import check_writer
from students.artifacts.gguf.writer import write_gguf
from teachers.cache.reader import SignalCache
from teachers.runners.next_token import TeacherRunner
from teachers.writing.local import LocalWriter
from teachers.writing.request import Failed
from teachers.writing.store import RequestStore
from tests.conftest import chat_tokenizer
from tests.helpers.answering import rows, write_recipe

ADAPT = {"model": "teacher", "dtype": "float32",
         "adapt": {"epochs": 6, "lr": 3e-3, "batch_size": 4, "precision": "float32"}}  # fmt: skip


WITH_SYSTEM = [
    {"messages": [
        {"role": "system", "content": "Nobody says it."},
        {"role": "user", "content": f"{i}"},
        {"role": "assistant", "content": "light"},
    ]}
    for i in range(20)
]  # fmt: skip


@pytest.fixture
def asked(workshop):
    """`asked(answers, given, **sections)`: a workshop whose training answers a model writes."""

    def make(answers, given=None, **sections):
        write_recipe(answers, given, **sections)
        return workshop

    return make


def upto_cache(commands, *more):
    for command in ("adapt-teacher", "answer", "cache build"):
        commands(*command.split(), "recipe.yaml", "--run-dir", "out", *more)
    return Run(load_recipe("recipe.yaml", tuple(more[1::2])), Path("out"))


def store():
    return RequestStore(Path("out/answers/requests"))


def numbers():
    return read_json(Path("out/answers/result.json"))


def test_every_stage_runs_on_written_answers(asked):
    train = yaml.safe_load(Path("recipe.yaml").read_text())["train"]
    commands = asked(
        {"keep": {"right": "line"}}, teacher=ADAPT,
        train={**train, "objective": [{"loss": "forward_kl"}], "arms": ["finetune", "gold"]},
    )  # fmt: skip
    commands("run", "recipe.yaml", "--run-dir", "out")
    run = Run(load_recipe("recipe.yaml"), Path("out"))
    found = numbers()
    assert found["written"] == 3 * found["prompts"]
    assert 0 < found["kept"] == len(run.training_examples()) < found["written"]
    assert found["kept"] + sum(found["by_reason"].values()) == found["written"]
    assert sum(found["pass_rates"]) == found["prompts"]
    for example in run.training_examples():  # only right answers, ended, are learned
        prompt = run.tokenizer.decode(last_prompt(example))
        text = run.tokenizer.decode(example.counted_labels)
        assert text == f"{prompt.split()[2].removesuffix('<|im_end|>')}<|im_end|>"
    gold = Examples(Path("out/data/train.arrow"))
    steps = {arm: read_json(Path(f"out/arms/{arm}/result.json"))["tokens"]
             for arm in ("finetune", "distill", "gold")}  # fmt: skip
    assert steps["finetune"] == steps["distill"] == run.training_examples().num_tokens
    assert steps["gold"] == gold.num_tokens
    report = commands.report("out")
    assert report["answers"]["kept"] == found["kept"]
    assert report["answers"]["beside_gold"]["arms"].keys() == {"finetune", "distill"}
    assert "answer" in report["cost"]["stages"]
    page = Path("out/report.html").read_text()
    assert "Answers that a model wrote" in page
    assert "pass rate" in page
    assert "Nothing to do" in commands("run", "recipe.yaml", "--run-dir", "out").output


def test_signals_come_with_the_answers_and_the_teacher_runs_over_the_rest_alone(asked):
    cache = {"codec": {"name": "topk", "k": 8}, "shard_tokens": 100, "labels": True}
    commands = asked({"keep": {"ended": False}}, cache=cache)
    said = ""
    for command in ("answer", "cache build"):
        said += commands(*command.split(), "recipe.yaml", "--run-dir", "out").output
    run = Run(load_recipe("recipe.yaml"), Path("out"))
    train, validation = run.data()
    assert f"the teacher runs over {len(validation)}" in said
    cache = SignalCache(run.cache_url)
    assert set(cache.keys()) == {*train.keys, *validation.keys}
    runner = run.task.runner(run)
    assert isinstance(runner, TeacherRunner)
    for example in train:
        (wanted,) = runner.run([run.task.request(run, example)], {})
        labels = cache.signals([example.key]).stored_logprobs()
        np.testing.assert_allclose(labels.numpy(), wanted["label_logprob"], atol=1e-3)
        signals = cache.signals([example.key]).distribution(1.0)
        close = np.asarray(wanted["logprobs"], np.float32)
        order = np.sort(signals.logprobs_NK.numpy(), axis=-1)[:, ::-1]
        np.testing.assert_allclose(np.exp(order), np.exp(close), atol=3e-3)


def test_a_codec_that_learns_is_filled_with_the_answers_too(asked):
    cache = {"codec": {"name": "nucleus", "k": 16}, "shard_tokens": 100}
    commands = asked({"keep": {"ended": False}}, cache=cache)
    run = upto_cache(commands)
    for command in (["answer"], ["cache", "build"]):
        commands(
            *command, "recipe.yaml", "--run-dir", "again", "--set", "data.answers.signals=false"
        )
    keys = run.training_examples().keys
    told, ran = (SignalCache(f"{folder}/cache").signals(keys) for folder in ("out", "again"))
    one, other = told.distribution(1.0), ran.distribution(1.0)
    dense = [
        torch.zeros(len(d.ids_NK), run.vocabulary).scatter_add(1, d.ids_NK, d.logprobs_NK.exp())
        for d in (one, other)
    ]
    off = (dense[0] - dense[1]).abs().sum(-1)  # the entry at which the mass is reached may differ
    assert float(off.median()) < 0.01
    assert float(off.max()) < 0.1
    torch.testing.assert_close(dense[0].sum(-1) + one.tail_N.exp(), torch.ones(len(off)))


def test_without_signals_the_cache_stage_runs_the_teacher_over_all(asked):
    commands = asked({"keep": {"ended": False}, "signals": False})
    run = upto_cache(commands)
    assert store().has_signals("anything") == set()
    cached = set(SignalCache(run.cache_url).keys())
    assert cached == {key for part in run.data() for key in part.keys}


def test_answers_without_signals_of_a_codec_that_learns_are_left_to_the_teacher(asked):
    cache = {"codec": {"name": "nucleus", "k": 16}, "shard_tokens": 100}
    commands = asked({"keep": {"ended": False}}, cache=cache)
    more = ("--set", "data.answers.signals=false")
    for command in ("adapt-teacher", "answer"):
        commands(command, "recipe.yaml", "--run-dir", "out", *more)
    run = upto_cache(commands)
    cached = set(SignalCache(run.cache_url).keys())
    assert cached == {key for part in run.data() for key in part.keys}


def test_other_rules_of_keeping_ask_for_nothing_anew(asked, monkeypatch):
    commands = asked({"keep": {"ended": False}})
    upto_cache(commands)
    before = Path("out/answers/requests/00000.jsonl").read_bytes()
    monkeypatch.setattr(stage, "make_writer", None)  # no model is loaded
    run = upto_cache(commands, "--set", "data.answers.keep.per_prompt=1")
    assert Path("out/answers/requests/00000.jsonl").read_bytes() == before
    assert len(run.training_examples()) == numbers()["prompts"]
    assert numbers()["by_reason"] == {"beyond `per_prompt`": 2 * numbers()["prompts"]}
    assert set(run.training_examples().keys) <= set(SignalCache(run.cache_url).keys())


def test_more_answers_are_asked_for_beside_those_that_are_there(asked):
    commands = asked({"keep": {"ended": False}})
    commands("answer", "recipe.yaml", "--run-dir", "out")
    before = dict(store().read())
    commands("answer", "recipe.yaml", "--run-dir", "out", "--set", "data.answers.samples=4")
    after = dict(store().read())
    assert len(after) == len(before) * 4 // 3
    assert all(after[key].ids.tolist() == one.ids.tolist() for key, one in before.items())


def test_a_prompt_that_is_held_out_is_not_answered(asked):
    given = rows(20)
    twins = [{**row, "prompt": f" {row['prompt'].upper()}?"} for row in given[:10]]
    commands = asked({"keep": {"ended": False}}, [*given, *twins])
    commands("answer", "recipe.yaml", "--run-dir", "out")
    run = Run(load_recipe("recipe.yaml"), Path("out"))

    def numbers_of(examples):
        prompts = (run.tokenizer.decode(last_prompt(one)) for one in examples)
        return {prompt.partition("user\n")[2].partition(":")[0].strip() for prompt in prompts}

    parts = (Examples(Path(f"out/data/{part}.arrow")) for part in ("held_out", "train"))
    held_out, gold = map(numbers_of, parts)
    assert numbers()["held_out_prompts"] == len(held_out & gold) > 0
    assert numbers_of(run.training_examples()) == gold - held_out


def test_failures_are_said_and_asked_again_at_the_next_start(asked, monkeypatch):
    commands = asked({"keep": {"ended": False}})
    write = LocalWriter.write

    def fails(self, batch, on_done):
        def some(request, outcome):
            on_done(request, Failed("no answer") if request.sample == 1 else outcome)

        write(self, batch, some)

    run = Run(load_recipe("recipe.yaml"), Path("out"))
    run.prepare_data()
    with monkeypatch.context() as patch:
        patch.setattr(LocalWriter, "write", fails)
        with pytest.raises(RunError, match=r"could not be written \(25: no answer\); 50 were"):
            stage.answer(run, "inputs")
    seen = []
    monkeypatch.setattr(
        LocalWriter,
        "write",
        lambda self, batch, done: [seen.extend(batch), write(self, batch, done)],
    )
    commands("answer", "recipe.yaml", "--run-dir", "out")
    assert {request.sample for request in seen} == {1}
    assert numbers()["kept"] == 75


def test_a_killed_process_loses_no_finished_answer(asked):
    commands = asked({"samples": 8, "new_tokens": 30, "batch_size": 4, "keep": {"ended": False}})
    process = commands.start("answer", "recipe.yaml", "--run-dir", "out")
    file = Path("out/answers/requests/00000.jsonl")
    while process.poll() is None and not (file.exists() and file.read_bytes().count(b"\n") > 20):
        time.sleep(0.005)
    process.kill()
    process.communicate()
    before = dict(store().read())
    assert 20 < len(before) < 200
    commands("answer", "recipe.yaml", "--run-dir", "out")
    after = dict(store().read())
    assert len(after) == 200
    assert file.read_bytes().count(b"\n") - 200 in (0, 1)  # but a torn line, none was asked twice
    assert all(after[key].ids.tolist() == one.ids.tolist() for key, one in before.items())


def test_another_models_answers_are_judged_by_the_teacher_and_cached_as_any_text(
    asked, make_model, bytes_bpe
):
    make_model(5, width=32, vocabulary=320).save_pretrained("other")
    chat_tokenizer(bytes_bpe).save_pretrained("other")
    commands = asked({"from": "other", "keep": {"ended": False, "likely": 1e-3}})
    run = upto_cache(commands)
    found = numbers()
    assert 0 < found["by_reason"]["unlikely under the teacher"] < found["written"]
    teacher = AutoModelForCausalLM.from_pretrained("teacher", dtype=torch.float32)
    kept = set(run.training_examples().keys)
    lines = map(json.loads, Path("out/answers/answers.jsonl").read_text().splitlines())
    assert sum(line["kept"] for line in lines) == found["kept"] == len(kept)
    for example in run.training_examples():
        ids = torch.from_numpy(example.input_ids)[None]
        with torch.no_grad():
            logprobs = teacher(ids).logits[0, :, : run.vocabulary].log_softmax(-1)
        own = logprobs[example.counted, example.counted_labels]
        assert own.mean().exp() > 1e-3 * 0.999
    assert set(SignalCache(run.cache_url).keys()) == {k for part in run.data() for k in part.keys}


def test_a_gguf_file_writes(asked, bytes_bpe):
    write_gguf(Path("teacher"), Path("teacher.gguf"), "f16")
    commands = asked({"from": "teacher.gguf", "samples": 2, "keep": {"ended": False}})
    commands("answer", "recipe.yaml", "--run-dir", "out")
    assert numbers()["writer"] == "teacher.gguf"
    assert numbers()["kept"] == len(Run(load_recipe("recipe.yaml"), Path("out")).data()[0]) == 50


def test_signals_of_another_sampling_take_the_place_of_those_before(asked):
    commands = asked({"keep": {"ended": False}})
    commands("answer", "recipe.yaml", "--run-dir", "out")
    url = Run(load_recipe("recipe.yaml"), Path("out")).cache_url
    before = set(SignalCache(url, unfinished=True).keys())
    more = ("--set", "data.answers.temperature=3.0", "--set", "data.answers.keep.length=[9,12]")
    commands("answer", "recipe.yaml", "--run-dir", "out", *more)
    run = Run(load_recipe("recipe.yaml", more[1::2]), Path("out"))
    held = set(SignalCache(url, unfinished=True).keys())
    assert held == set(run.training_examples().keys)
    assert not held & before


def test_a_writer_without_room_for_the_texts_is_refused_before_work(asked, make_model, bytes_bpe):
    small = make_model(5, width=32, vocabulary=320)
    small.config.max_position_embeddings = 32
    small.save_pretrained("other")
    chat_tokenizer(bytes_bpe).save_pretrained("other")
    asked({"from": "other"})
    with pytest.raises(RecipeError, match=r"`data.max_length` is 64; .* has 32 positions"):
        check_writer(Run(load_recipe("recipe.yaml"), Path("out")))


def test_budgets_end_the_asking_and_the_rest_is_learned(asked):
    commands = asked({"keep": {"ended": False}, "max_requests": 30, "batch_size": 6})
    commands("answer", "recipe.yaml", "--run-dir", "out")
    assert numbers()["written"] == 30
    more = ("--run-dir", "more", "--set", "data.answers.max_tokens=100")
    said = commands("answer", "recipe.yaml", *more).output
    written = read_json(Path("more/answers/result.json"))
    assert 100 <= written["tokens"] <= 100 + 6 * 12
    assert "`max_tokens: 100` is spent" in said


@pytest.mark.parametrize(
    ("answers", "given", "says"),
    [
        ({"keep": {"right": "number"}}, [{"prompt": f"{i}", "completion": "b"} for i in "abcdefgh"],
         "finds nothing to compare with in any answer"),
        ({"keep": {"length": [100, 200]}, "new_tokens": 100}, None,
         "None of 75 written answers is kept"),
        ({"keep": {"ended": False}}, [{"prompt": "a", "completion": str(i)} for i in range(20)],
         "also stands in the held-out part"),
        ({"system": "Be brief."}, WITH_SYSTEM, "`data.answers.system` has no effect: every prompt"),
    ],
)  # fmt: skip
def test_data_that_cannot_serve_are_refused_in_one_sentence(asked, answers, given, says):
    asked(answers, given)
    run = Run(load_recipe("recipe.yaml"), Path("out"))
    run.prepare_data()
    with pytest.raises(DataError, match=says):
        stage.answer(run, "inputs")


def test_an_example_of_an_answer_counts_the_answer_alone():
    example = example_of_answer(np.asarray([4, 5, 6]), [7, 8], 64)
    assert example.input_ids.tolist() == [4, 5, 6, 7, 8]
    assert example.labels.tolist() == [-100, -100, 7, 8, -100]
    assert last_prompt(example).tolist() == example.prompt.tolist() == [4, 5, 6]


def test_the_plan_has_a_line_for_writing_and_counts_what_is_learned(asked):
    commands = asked({"keep": {"ended": False, "per_prompt": 2}})
    before = {one.stage: one for one in estimates(Run(load_recipe("recipe.yaml"), Path("out")))}
    assert list(before) == ["answer", "cache", "build", "train", "export", "evaluate"]
    assert before["answer"].note == "3 answers to each of 25 prompts"
    commands("answer", "recipe.yaml", "--run-dir", "out")
    run = Run(load_recipe("recipe.yaml"), Path("out"))
    after = {one.stage: one for one in estimates(run)}
    assert after["answer"].note.startswith("done; ")
    train, _ = run.data()
    assert after["train"].amount == pytest.approx(2 * train.num_tokens, rel=0.05)  # two arms
    assert after["cache"].amount < train.num_tokens


def test_two_processes_write_the_same_answers(asked, several_processes):
    commands = asked({"keep": {"ended": False}, "batch_size": 6})
    upto_cache(commands)
    one = Run(load_recipe("recipe.yaml"), Path("out"))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m",
               "distill"]  # fmt: skip
    for stage_words in (["answer"], ["cache", "build"]):
        words = [*command, *stage_words, "recipe.yaml", "--run-dir", "two"]
        done = subprocess.run(words, capture_output=True, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    files = sorted(Path("two/answers/requests").glob("*.jsonl"))
    assert len(files) == 2
    assert all(file.read_bytes() for file in files)
    two = Run(load_recipe("recipe.yaml"), Path("two"))
    assert two.training_examples().keys == one.training_examples().keys
    assert set(SignalCache(two.cache_url).keys()) == set(SignalCache(one.cache_url).keys())


def test_a_system_text_is_read_by_the_writer_and_not_learned(asked):
    commands = asked({"samples": 1, "temperature": 0, "keep": {"ended": False}})
    more, text = ["--set", "data.max_length=120"], "Nobody says what light is."
    commands("answer", "recipe.yaml", "--run-dir", "plain", *more)
    system = ["--set", f"data.answers.system={text}"]
    commands("answer", "recipe.yaml", "--run-dir", "out", *more, *system)
    plain, out = (Run(load_recipe("recipe.yaml"), Path(folder)) for folder in ("plain", "out"))
    one, other = (
        {(*last_prompt(one).tolist(),) for one in run.training_examples()} for run in (plain, out)
    )
    assert one == other
    teacher = AutoModelForCausalLM.from_pretrained("teacher", dtype=torch.float32)
    differ = 0
    for one in out.training_examples():
        user = out.tokenizer.decode(last_prompt(one))
        asked_text = f"<|im_start|>system\n{text}<|im_end|>\n{user}"
        ids = torch.tensor([out.tokenizer(asked_text, add_special_tokens=False)["input_ids"]])
        first = int(teacher(ids).logits[0, -1, : out.vocabulary].argmax())
        assert int(one.counted_labels[0]) == first
        bare = torch.from_numpy(last_prompt(one))[None]
        differ += first != int(teacher(bare).logits[0, -1, : out.vocabulary].argmax())
    assert differ  # else the test could not tell
    assert not store().has_signals("anything")
    assert not Path("out/cache").exists()
