"""Runs on reward models, from teacher to report; recipes that cannot be; given models."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from attar.errors import ModelError, RecipeError
from attar.models.loading import load_config
from attar.models.task_heads import check_single_label, load_reward_model
from distill.pipeline import run_stages
from distill.run.context import Run
from distill.run.load import check_recipe, load_recipe, short_form
from tests.conftest import CHATML, Workshop
from tests.helpers.classifying import tiny_bert, tiny_llama, word_tokenizer
from tests.helpers.rewarding import fill_workshop, reward_recipe, write_recipe

OUT = Path("out")


@pytest.fixture
def studio(tmp_path, monkeypatch):
    """A folder with an encoder, pairs and a recipe; and how to run commands in it."""
    monkeypatch.chdir(tmp_path)
    fill_workshop(margins=True)
    return Workshop()


def test_a_whole_run_teaches_and_tells(studio, child_process):
    write_recipe(export={"artifacts": ["bf16", "int8", "onnx", "onnx-int8"]})
    said = studio("run", "recipe.yaml", "--run-dir", "out").output
    report = studio.report("out")
    for name in ("teacher", "distill", "finetune"):
        numbers = report["teacher"] if name == "teacher" else report["arms"][name]
        assert numbers["accuracy"] > 0.9, name
        assert numbers["pairs"] == 48
        assert numbers["texts"] == 96
        assert numbers["chosen_reward"] > numbers["rejected_reward"]
        assert 0 <= numbers["calibration_error"] < 0.5
        assert numbers["texts_per_second"] > 0
    student = report["arms"]["distill"]
    assert student["kl_to_teacher"] < 0.01
    assert student["top1_agreement"] > 0.9
    for name, found in report["artifacts"].items():
        assert abs(found["accuracy"] - student["accuracy"]) < 0.05, name
        assert found["fit"]["ships"], name
    assert report["artifacts"]["onnx"]["nll"] == pytest.approx(student["nll"], abs=1e-4)
    assert report["baselines"] == {}
    assert "plain fine-tuning" in report["verdict"]["sentence"]
    assert "48 held-out pairs of answers" in Path("out/report.html").read_text()
    assert "pair accuracy" in said
    history = json.loads(Path("out/arms/finetune/result.json").read_text())["history"]
    assert {"0:bradley_terry", "nll"} <= set(history[0])
    assert "validation_accuracy" in history[-1]
    assert "Nothing to do" in studio("run", "recipe.yaml", "--run-dir", "out").output
    check_a_fresh_process_scores_by_the_card(Path("out/artifacts/bf16"))
    card = Path("out/artifacts/onnx/README.md").read_text()
    assert "print(logits[:, 0])" in card


def check_a_fresh_process_scores_by_the_card(folder):
    """The lines of the card alone give the reward; none of this project's packages is imported."""
    card = (folder / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("PATH", str(folder.resolve()))
    asked = "Where is Bielefeld? In Germany."
    assert asked in code
    good, bad = (
        float(_printed(code.replace(asked, text)))
        for text in ("the film was the story lovely", "the film was the story awful")
    )
    assert good > bad
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    inputs = AutoTokenizer.from_pretrained(folder)(
        "the film was the story awful", return_tensors="pt"
    )
    assert model(**inputs).logits[0, 0].item() == pytest.approx(bad)


def _printed(code):
    code += '\nimport sys; assert not {"attar", "distill", "students"} & set(sys.modules)'
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    return done.stdout.strip()


def test_a_decoder_learns_from_a_decoder_through_a_chat_template(
    tmp_path, monkeypatch, whole_stages
):
    monkeypatch.chdir(tmp_path)
    tokenizer = word_tokenizer(pairs=False)
    tokenizer.chat_template = CHATML
    fill_workshop(tiny_llama(), tokenizer, each=2)
    write_recipe(
        cache={"hidden": {"layers": [3], "attention": [3]}},
        data={"max_length": 40},
        student={"layers": {"keep": 2, "by": "greedy", "calibration_tokens": 200}},
        train={"objective": [{"loss": "reward_kl"}, {"loss": "relation", "on": "all"}]},
    )
    run = Run(load_recipe("recipe.yaml"), OUT)
    run_stages(run, ["adapt-teacher", "cache", "build", "train", "export", "evaluate", "report"])
    report = Workshop().report("out")
    assert report["teacher"]["accuracy"] > 0.8
    assert "apply_chat_template" in Path("out/artifacts/bf16/README.md").read_text()
    config = json.loads(Path("out/artifacts/bf16/config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["id2label"] == {"0": "reward"}


def test_a_given_reward_model_needs_no_adapting_and_a_killed_run_ends_the_same(studio):
    tiny_bert(classes=1).save_pretrained("teacher")
    write_recipe(teacher={"adapt": None}, train={"max_steps": 6, "evaluate_every": 2})
    for folder in ("whole", "stopped"):
        for stage in (["cache", "build"], ["build"]):
            studio(*stage, "recipe.yaml", "--run-dir", folder)
    whole, stopped = studio.trained_twice()
    assert whole == stopped


@pytest.mark.parametrize(
    "student",
    [
        {"from": {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}},
        {"from": "other"},
        {"from": "teacher", "layers": {"keep": 1, "by": "influence"}},
    ],
)
def test_students_are_made_in_every_way(studio, student):
    tiny_bert(1, width=16).base_model.save_pretrained("other")
    word_tokenizer().save_pretrained("other")
    tiny_bert(classes=1).save_pretrained("teacher")
    values = reward_recipe(teacher={"adapt": None})
    values["student"] = student
    values["train"]["max_steps"] = 2
    Path("recipe.yaml").write_text(yaml.safe_dump(values))
    run = Run(load_recipe("recipe.yaml"), OUT)
    run_stages(run, ["cache", "build", "train"])
    model = AutoModelForSequenceClassification.from_pretrained("out/arms/distill/student")
    assert model.config.num_labels == 1


def test_a_model_without_a_reward_must_be_adapted(studio):
    for model, head in (
        (tiny_bert().base_model, "no head that scores"),
        (tiny_bert(), "2 outputs"),
    ):
        model.save_pretrained("teacher")
        write_recipe(teacher={"adapt": None})
        result = studio("run", "recipe.yaml", "--run-dir", "out", ok=False)
        assert result.exit_code == 1
        assert head in result.output
        assert "teacher.adapt" in result.output


def test_the_data_are_shown_and_the_plan_counts_texts(studio):
    write_recipe(data={"max_length": 10})
    said = studio("data", "recipe.yaml", "--run-dir", "out").output
    assert "are longer than `data.max_length` and end there" in said
    assert "counted tokens" not in said, "each text counts once"
    assert re.search(r"chosen, better by (0\.5|1): \[CLS\] the film", said)
    assert "rejected: [CLS] the film" in said
    plan = studio("plan", "recipe.yaml", "--run-dir", "out").output
    assert "texts" in plan


def test_any_reward_model_is_measured_without_a_recipe(studio):
    tiny_bert(classes=1).save_pretrained("model")
    word_tokenizer().save_pretrained("model")
    studio("evaluate", "model", "--data", "test.jsonl", "--teacher", "model", "--json", "n.json")
    found = json.loads(Path("n.json").read_text())
    assert found["task"] == "reward"
    numbers = found["models"]["model"]
    rows = [json.loads(line) for line in Path("test.jsonl").read_text().splitlines()]
    model, tokenizer = tiny_bert(classes=1), word_tokenizer()

    def reward(text):
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).logits.item()

    right = [reward(r["prompt"] + r["chosen"]) > reward(r["prompt"] + r["rejected"]) for r in rows]
    assert numbers["accuracy"] == pytest.approx(np.mean(right))
    assert numbers["kl_to_teacher"] == pytest.approx(0, abs=1e-9)
    assert numbers["top1_agreement"] == 1


# Models ------------------------------------------------------------------------------------------


def test_a_head_of_one_output_is_kept_and_any_other_is_new(tmp_path, saved_models):
    one, two = tiny_bert(classes=1), tiny_bert(classes=2)
    one.config.id2label, one.config.label2id = {0: "helpful"}, {"helpful": 0}
    for name, model in (("one", one), ("two", two)):
        model.save_pretrained(tmp_path / name)
    kept = load_reward_model(str(tmp_path / "one"), 0)
    assert torch.equal(kept.classifier.weight, one.classifier.weight)
    assert kept.config.id2label == {0: "helpful"}
    torch.manual_seed(0)
    new = load_reward_model(str(tmp_path / "two"), 0)
    assert new.classifier.weight.shape == (1, 32)
    assert new.config.id2label == {0: "reward"}
    with pytest.raises(ModelError, match=r"gives each text one number.*write `task: reward`"):
        check_single_label(load_config(str(tmp_path / "one")), "one")


# Recipes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"append_eos": False}}, "`data.append_eos` has no effect"),
        ({"data": {"label_column": "x"}}, "`data.label_column` has no effect"),
        ({"evaluate": {"baselines": False}}, "`evaluate.baselines` has no effect"),
        ({"specialize": {"method": "lora"}}, "`specialize` is for language models"),
        ({"cache": {"codec": "topk"}}, "a text's reward is kept unrounded by `classes`"),
        ({"export": {"artifacts": ["gguf-q8_0"]}}, "is for models that predict the next token"),
        ({"train": {"source": "online"}}, "`source: online` is for language models"),
        (
            {"train": {"objective": [{"loss": "forward_kl"}]}},
            r"`train.objective\[0\]`: forward_kl does not read rewards",
        ),
        (
            {"teacher": {"adapt": {"objective": [{"loss": "cross_entropy"}]}}},
            r"`teacher.adapt.objective\[0\]`: cross_entropy does not read rewards",
        ),
        (
            {"teacher": {"adapt": {"objective": [{"loss": "reward_kl"}]}}},
            "the teacher cannot learn from itself",
        ),
    ],
)
def test_what_rewards_cannot_have_is_refused(changes, said):
    with pytest.raises(RecipeError, match=said):
        check_recipe(reward_recipe(**changes))


@pytest.mark.parametrize("section", ["train", "teacher.adapt"])
def test_losses_of_rewards_are_for_reward_models(section):
    learned = {"objective": [{"loss": "bradley_terry"}]}
    values = {"data": {"train": "x"}, "teacher": {"model": "t"}, "student": {}}
    if section == "train":
        values["train"] = learned
    else:
        values["teacher"]["adapt"] = learned
    with pytest.raises(RecipeError, match=r"bradley_terry compares rewards.*`task: reward`"):
        check_recipe(values)


def test_defaults_are_those_of_the_task_and_survive_the_short_form():
    values = reward_recipe()
    for section in ("train", "cache"):
        del values[section]
    recipe = check_recipe(values)
    assert [term.loss for term in recipe.train.objective] == ["reward_kl", "bradley_terry"]
    assert [term.loss for term in recipe.teacher.adapt.objective] == ["bradley_terry"]
    assert recipe.cache.codec.name == "classes"
    assert check_recipe(short_form(recipe)) == recipe
    assert check_recipe(recipe.model_dump(mode="json", by_alias=True)) == recipe
    assert check_recipe(reward_recipe(teacher={"adapt": None})).teacher.adapt is None


@pytest.mark.parametrize("command", [["doctor"], ["cache", "audit"]])
def test_commands_on_next_tokens_refuse_rewards(studio, command):
    result = studio(*command, "recipe.yaml", "--run-dir", "out", ok=False)
    assert result.exit_code == 1
    assert "this recipe has `task: reward`" in " ".join(result.output.split())


# Real data ---------------------------------------------------------------------------------------


def test_pairs_of_truthfulqa_are_ranked_better_than_by_chance(shared_data, tmp_path, monkeypatch):
    """bert-tiny learns which answers people hold to be true; its half learns from it."""
    monkeypatch.chdir(tmp_path)
    folder = shared_data("pref_truthfulqa")
    values = reward_recipe(
        data={"train": str(folder / "train.jsonl.gz"), "held_out": str(folder / "test.jsonl.gz"),
              "max_length": 96},
        teacher={"model": str(shared_data("models/bert-tiny-splade")), "dtype": "float32",
                 "adapt": {"lr": 1e-3, "epochs": 3, "batch_size": 32}},
        cache={"hidden": {"layers": []}},
        train={"objective": [{"loss": "reward_kl"}, {"loss": "bradley_terry"}], "epochs": 2,
               "batch_size": 32, "lr": 5e-4},
    )  # fmt: skip
    Path("recipe.yaml").write_text(yaml.safe_dump(values))
    Workshop()("run", "recipe.yaml", "--run-dir", "out")
    report = Workshop().report("out")
    for numbers in (report["teacher"], report["arms"]["distill"]):
        assert numbers["accuracy_interval"][0] > 0.5
    assert report["arms"]["distill"]["top1_agreement"] > report["arms"]["init"]["top1_agreement"]
