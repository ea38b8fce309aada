"""Wrong input on the command line: one clear sentence, exit 1, before any work."""

import gzip
import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from distill.commands.main import main

COMMANDS = ["init", "schema", "data", "plan", "run", "adapt-teacher", "cache", "build", "train",
            "specialize", "export", "evaluate", "report", "chat"]  # fmt: skip


@pytest.fixture
def bench(make_model, tokenizer, tmp_path, monkeypatch):
    """A folder with a valid recipe; gives a function that changes it and plans it."""
    monkeypatch.chdir(tmp_path)
    make_model(0, vocabulary=320).save_pretrained("teacher")
    tokenizer.save_pretrained("teacher")
    rows = [{"text": f"light falls on water {i} times " * 5, "n": i} for i in range(9)]
    with gzip.open("text.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    recipe = {
        "data": {"train": "text.jsonl.gz", "held_out": 0.2, "max_length": 32},
        "teacher": {"model": "teacher"},
        "student": {"from": "teacher", "layers": {"keep": 1}},
        "export": {"artifacts": ["bf16"]},  # no processor is too old for it
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))

    def plan(*changes, command="run"):
        arguments = [command, "recipe.yaml", "--run-dir", "out"]
        for change in changes:
            arguments += ["--set", change]
        return CliRunner().invoke(main, arguments)

    return plan


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_no_such_command_is_bad_usage():
    assert CliRunner().invoke(main, ["distil"]).exit_code == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("train.learning_rate=1", "`train.learning_rate` is not a key"),
        ("train.lrr=1e-4", "Did you mean `lr`?"),
        ("train.lr=fast", "`train.lr`"),
        ("train.lr=-1", "`train.lr`"),
        ("train.objective=[{loss: forward_k}]", "Did you mean `forward_kl`?"),
        ("train.objective=[{loss: forward_kl, temprature: 2}]", "Did you mean `temperature`?"),
        ("train.objective=[{loss: forward_kl, temperature: 2}]", "cache.codec.temperatures"),
        ("train.objective=[{loss: hidden_mse, layers: [[1, 2]]}]", "cache.hidden.layers"),
        ("train.trainable=body", "body"),
        ("export.artifacts=[nf5]", "nf4"),
        ("task=translation", "task"),
        ("data.train=text.jsonl", "Did you mean `text.jsonl.gz`?"),
        ("data.held_out=1.5", "between 0 and 1"),
        ("data.text_column=txt", "Did you mean `text`?"),
        ("teacher.model=./nowhere", "./nowhere"),
        ("student.layers.keep=9", "blocks 0 to 1"),
        ("student.layers.keep=[0, 2]", "blocks 0 to 1"),
        ("cache.hidden.attention=[7]", "`cache.hidden.attention`: Block 7 does not exist"),
        ("cache.hidden.layers=[7]", "`cache.hidden.layers`: Layer 7 does not exist"),
        ("student={from: ./nobody}", "./nobody"),
        ("train.trackers=[wandb]", "not installed"),
        ("data.max_length=999", "128 positions"),
        ("train", "KEY=VALUE"),
    ],
)
def test_wrong_input_is_one_sentence_before_any_work(bench, change, says):
    result = bench(change)
    assert result.exit_code == 1, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert says in result.output
    assert not Path("out/cache").exists()
    assert not Path("out/student").exists()


@pytest.mark.parametrize(
    ("rows", "says"), [("", "is empty"), ('{"text": ""}\n{"text": ""}\n', "empty after tokenising")]
)
def test_data_without_a_token_is_refused(bench, rows, says):
    Path("empty.jsonl").write_text(rows)
    result = bench("data.train=empty.jsonl")
    assert result.exit_code == 1
    assert says in result.output


def test_a_student_of_another_vocabulary_is_told_what_it_cannot_have(
    bench, make_model, bare_tokenizer
):
    make_model(1, vocabulary=320).save_pretrained("other")
    bare_tokenizer.add_tokens(["<new>"])
    bare_tokenizer.save_pretrained("other")
    result = bench("student={from: other}", "train.source=online")
    assert result.exit_code == 1
    assert "has another vocabulary than the teacher" in result.output


def test_a_tokenizer_without_pad_token_is_no_error(bench, bare_tokenizer):
    bare_tokenizer.save_pretrained("teacher")
    result = bench(command="plan")
    assert result.exit_code == 0, result.output


def test_plan_names_every_stage_and_makes_nothing(bench):
    result = bench(command="plan")
    assert result.exit_code == 0, result.output
    for stage in ("cache", "build", "train", "export", "evaluate"):
        assert stage in result.output
    assert not Path("out").exists()


def test_plan_says_how_many_steps_each_training_has(bench):
    result = bench("train.batch_size=8", "teacher.adapt={epochs: 40}", command="plan")
    assert result.exit_code == 0, result.output
    assert "steps (" in result.output
    warnings = [line for line in result.output.splitlines() if line.startswith("Warning: ")]
    assert len(warnings) == 1, "adapting has enough"
    assert "`train` has about" in warnings[0]
    assert "`train.epochs`" in warnings[0]


def test_plan_shows_the_memory_of_choices_the_recipes_own_first(bench):
    changes = (
        "specialize.method=ia3",
        "specialize.gradient_checkpointing=true",
        "export.artifacts=[bf16]",
    )
    arguments = ["plan", "recipe.yaml", "--run-dir", "out", "--choices"]
    for change in changes:
        arguments += ["--set", change]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    start = next(i for i, line in enumerate(lines) if line[:2] == ["method", "optimizer"])
    assert lines[start + 1][:3] == ["ia3", "adamw", "yes"]
    assert "recipe's" in result.output
    chosen = [tuple(line[:3]) for line in lines[start + 2 :]]
    assert len(chosen) == len(set(chosen)) == 12
    assert {method for method, _, _ in chosen} == {"full", "lora", "qlora"}
    assert not Path("out").exists()


def test_a_second_command_on_a_run_folder_is_refused_by_process(bench):
    Path("out").mkdir()
    import os
    import socket

    owner = {"host": socket.gethostname(), "pid": os.getpid()}
    Path("out/run.lock").write_text(json.dumps(owner))
    result = bench()
    assert result.exit_code == 1
    assert f"process {os.getpid()}" in result.output


def test_init_writes_a_recipe_that_is_valid_and_never_overwrites(tmp_path, monkeypatch):
    from distill.run.load import load_recipe

    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(main, ["init", "my.yaml"]).exit_code == 0
    assert load_recipe("my.yaml").train.arms == ["finetune"]
    again = CliRunner().invoke(main, ["init", "my.yaml"])
    assert again.exit_code == 1
    assert "exists" in again.output
    classes = ["init", "c.yaml", "--template", "sequence-classification"]
    assert CliRunner().invoke(main, classes).exit_code == 0
    assert load_recipe("c.yaml").cache.codec.name == "classes"
    for task in ("masked-lm", "embedding", "reward"):
        made = CliRunner().invoke(main, ["init", f"{task}.yaml", "--template", task])
        assert made.exit_code == 0
        assert load_recipe(f"{task}.yaml").task == task
    other = CliRunner().invoke(main, ["init", "d.yaml", "--template", "classification"])
    assert other.exit_code == 1
    assert "sequence-classification" in other.output


def test_schema_is_json_and_names_every_loss():
    from distill.objective.losses import LOSSES

    schema = json.loads(CliRunner().invoke(main, ["schema"]).output)
    text = json.dumps(schema)
    assert all(f'"{name}"' in text for name in LOSSES)


def test_chat_with_an_unknown_artifact_names_those_that_exist(tmp_path):
    (tmp_path / "recipe.yaml").write_text("seed: 0")
    (tmp_path / "artifacts" / "bf16").mkdir(parents=True)
    (tmp_path / "artifacts" / "bf16" / "config.json").write_text("{}")
    result = CliRunner().invoke(main, ["chat", str(tmp_path), "--artifact", "bf61"])
    assert result.exit_code == 1
    assert "Did you mean `bf16`?" in result.output
