"""Runs on classes of texts, from teacher to report; and recipes that cannot be."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file
from transformers import pipeline

from attar.errors import RecipeError
from distill.pipeline import run_stages
from distill.run.context import Run
from distill.run.load import check_recipe, load_recipe
from tests.conftest import Workshop
from tests.helpers.classifying import (
    classification_recipe,
    fill_workshop,
    sentences,
    tiny_bert,
    tiny_llama,
    word_tokenizer,
    write_recipe,
    write_rows,
)

OUT = Path("out")
EXAMPLE = Path(__file__).parents[4] / "examples" / "classification.yaml"


@pytest.fixture
def classroom(tmp_path, monkeypatch):
    """A folder with an encoder, labelled texts and a recipe; and how to run commands in it."""
    monkeypatch.chdir(tmp_path)
    fill_workshop()
    return Workshop()


def test_a_whole_run_teaches_and_tells(classroom):
    write_recipe(export={"artifacts": ["bf16", "int8", "onnx", "onnx-int8"]})
    said = classroom("run", "recipe.yaml", "--run-dir", "out").output
    report = classroom.report("out")
    for name in ("teacher", "distill", "finetune"):
        numbers = report["teacher"] if name == "teacher" else report["arms"][name]
        assert numbers["accuracy"] > 0.9, name
        assert numbers["accuracy_interval"][0] < numbers["accuracy"]
        assert 0 <= numbers["calibration_error"] < 0.5
        assert numbers["macro_f1"] > 0.9
        assert numbers["texts"] == 96
        assert numbers["texts_per_second"] > 0
    student = report["arms"]["distill"]
    assert student["kl_to_teacher"] < report["arms"]["finetune"]["kl_to_teacher"]
    assert student["top1_agreement"] > 0.9
    for name, found in report["artifacts"].items():
        assert abs(found["accuracy"] - student["accuracy"]) < 0.05, name
    assert report["artifacts"]["onnx"]["kl_to_teacher"] == pytest.approx(
        student["kl_to_teacher"], abs=1e-4
    )
    check_baselines(report, said)
    assert (
        report["verdict"]["accuracy"]["interval"][0] <= report["verdict"]["accuracy"]["difference"]
    )
    assert "held-out texts" in Path("out/report.html").read_text()
    assert "macro-F1" in said
    assert "Nothing to do" in classroom("run", "recipe.yaml", "--run-dir", "out").output
    check_what_is_measured_again(classroom)
    classify = pipeline("text-classification", "out/artifacts/bf16")
    assert classify("the film was lovely")[0]["label"] == "good"
    assert "text-classification" in Path("out/artifacts/bf16/README.md").read_text()


def check_baselines(report, said):
    """They are rows like models, on the same texts, and among what the verdict weighs."""
    assert set(report["baselines"]) == {"features", "tf-idf"}
    for name, numbers in report["baselines"].items():
        assert numbers["accuracy"] > 0.9, name
        assert numbers["accuracy_interval"][0] < numbers["accuracy"]
        assert numbers["texts"] == 96
        assert numbers["train_texts"] == len(Run(load_recipe("recipe.yaml"), OUT).data()[0])
        assert numbers["kl_to_teacher"] > 0
        assert numbers["texts_per_second"] > 0
        assert numbers["bytes"] > 0
        assert numbers["fit"]["reference"] == "distill"
        assert f"baseline {name}" in said
        files = [np.load(f"out/evaluation/{one}.npz") for one in (name, "distill")]
        assert (files[0]["example"] == files[1]["example"]).all()
        assert (files[0]["label"] == files[1]["label"]).all()
    verdict = report["verdict"]
    assert set(verdict["against_baselines"]) == set(report["baselines"])
    assert verdict["best"]["model"] in {"teacher", "finetune", "distill", *report["baselines"]}
    assert "The best of all that was measured is" in verdict["sentence"]
    assert report["advice"][0]["model"] == verdict["best"]["model"]
    assert "baseline tf-idf: logistic regression on TF-IDF." in Path("out/report.html").read_text()


def check_what_is_measured_again(classroom):
    """Without its record the stage is done again, and the teacher's features are still there;
    switched off, baselines are left out.
    """
    Path("out/records/evaluate.json").unlink()
    again = classroom("evaluate", "recipe.yaml", "--run-dir", "out").output
    assert "features: 0 texts run" in again
    off = ("--set", "evaluate.baselines=false")
    said = classroom("run", "recipe.yaml", "--run-dir", "out", *off).output
    assert "tf-idf" not in said
    report = classroom.report("out")
    assert report["baselines"] == report["verdict"]["against_baselines"] == {}


def test_the_example_runs_from_end_to_end(classroom):
    """With a tiny teacher and few texts in the place of its own; all else as it stands."""
    stand_ins = {
        "teacher.model": "teacher",
        "data.train": "train.jsonl",
        "data.held_out": "test.jsonl",
        "data.max_length": "24",
        "cache.hidden": "{layers: [2, 3]}",
        "student.layers": "{keep: [1, 2]}",
    }
    changes = [word for key, value in stand_ins.items() for word in ("--set", f"{key}={value}")]
    classroom("run", EXAMPLE, "--run-dir", "out", *changes)
    report = classroom.report("out")
    assert set(report["artifacts"]) == {"bf16", "int8", "onnx-int8"}
    assert set(report["baselines"]) == {"features", "tf-idf"}


def test_a_decoder_learns_from_a_decoder_in_pairs(tmp_path, monkeypatch, whole_stages):
    monkeypatch.chdir(tmp_path)
    fill_workshop(tiny_llama())
    word_tokenizer(pairs=False).save_pretrained("teacher")
    for name, number in (("train", 160), ("test", 48)):
        rows = [
            {"text": t, "other": "the film", "label": int(good)}
            for t, good in sentences(number, len(name))
        ]
        write_rows(f"{name}.jsonl", rows)
    write_recipe(
        data={"pair_column": "other"},
        cache={"hidden": {"layers": [3], "attention": [3]}},
        train={
            "objective": [{"loss": "forward_kl"}, {"loss": "relation"}, {"loss": "hidden_cosine"}]
        },
        student={"layers": {"keep": 2, "by": "influence"}},
    )
    run = Run(load_recipe("recipe.yaml"), Path("out"))
    run_stages(run, ["adapt-teacher", "cache", "build", "train", "export", "evaluate", "report"])
    assert Workshop().report("out")["teacher"]["accuracy"] > 0.8


def test_a_given_classifier_needs_no_adapting_and_a_killed_run_ends_the_same(classroom):
    model = tiny_bert()
    model.config.id2label = {0: "good", 1: "bad"}
    model.config.label2id = {"good": 0, "bad": 1}
    model.save_pretrained("teacher")
    write_recipe(teacher={"adapt": None}, train={"max_steps": 6, "evaluate_every": 2})
    for folder in ("whole", "stopped"):
        for stage in (["cache", "build"], ["build"]):
            classroom(*stage, "recipe.yaml", "--run-dir", folder)
    run = Run(load_recipe("recipe.yaml"), Path("whole"))
    assert run.classes == ["good", "bad"]
    whole, stopped = classroom.trained_twice()
    assert whole == stopped


@pytest.mark.parametrize(
    "student",
    [
        {"from": {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}},
        {"from": "other"},
    ],
)
def test_students_need_not_be_cut(classroom, student):
    tiny_bert(1, width=16).base_model.save_pretrained("other")
    word_tokenizer().save_pretrained("other")
    values = classification_recipe()
    values["student"] = student
    values["train"]["max_steps"] = 4
    Path("recipe.yaml").write_text(yaml.safe_dump(values))
    run = Run(load_recipe("recipe.yaml"), Path("out"))
    run_stages(run, ["adapt-teacher", "cache", "build", "train"])
    student = load_file("out/arms/distill/student/model.safetensors")
    assert not any("projector" in name for name in student)
    kept = Path("out/arms/distill/student/config.json").read_text()
    assert json.loads(kept)["hidden_size"] == 16
    assert json.loads(kept)["id2label"] == {"0": "bad", "1": "good"}


def test_any_classifier_is_measured_without_a_recipe(classroom):
    model = tiny_bert()
    model.config.id2label = {0: "GOOD", 1: "BAD"}
    model.config.label2id = {"GOOD": 0, "BAD": 1}
    model.save_pretrained("model")
    word_tokenizer().save_pretrained("model")
    classroom("evaluate", "model", "--data", "test.jsonl", "--teacher", "model", "--json", "n.json")
    numbers = json.loads(Path("n.json").read_text())["models"]["model"]
    labels = [json.loads(line) for line in Path("test.jsonl").read_text().splitlines()]
    classify = pipeline("text-classification", "model")
    said = [found["label"] for found in classify([row["text"] for row in labels])]
    right = sum(s.lower() == row["label"] for s, row in zip(said, labels, strict=True))
    assert numbers["accuracy"] == pytest.approx(right / len(labels))
    assert numbers["kl_to_teacher"] == pytest.approx(0, abs=1e-6)
    assert numbers["top1_agreement"] == 1


def save_classifier(folder, names, order=None):
    """A classifier whose classes have these names, its head's rows in this order."""
    model = tiny_bert(classes=len(names))
    if order is not None:
        for parameter in model.classifier.parameters():
            parameter.data = parameter.data[order]
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)


def test_classifiers_are_compared_by_the_names_of_their_classes(classroom):
    """The same classifier with its classes the other way round is the same classifier."""
    save_classifier("a", ["good", "bad"])
    save_classifier("b", ["BAD", "GOOD"], [1, 0])
    save_classifier("has_default_labels", ["LABEL_0", "LABEL_1"])
    given = ["--data", "test.jsonl", "--teacher", "a", "--json", "n.json"]
    classroom("evaluate", "a", "b", "has_default_labels", *given)
    numbers = json.loads(Path("n.json").read_text())["models"]
    for one in (numbers["a"], numbers["b"], numbers["has_default_labels"]):
        assert one["top1_agreement"] == 1
        assert one["kl_to_teacher"] == pytest.approx(0, abs=1e-6)
        assert one["accuracy"] == numbers["a"]["accuracy"]
        assert one["nll"] == pytest.approx(numbers["a"]["nll"])


@pytest.mark.parametrize("names", [["good", "bad", "odd"], ["fine", "bad"]])
def test_classifiers_of_other_classes_are_not_compared(classroom, names):
    save_classifier("a", ["good", "bad"])
    save_classifier("b", names)
    result = classroom("evaluate", "a", "b", "--data", "test.jsonl", ok=False)
    assert result.exit_code == 1
    assert f"The classes of b are {', '.join(names)}, and the data has good, bad" in (
        " ".join(result.output.split())
    )


def test_a_body_without_classes_must_be_adapted(classroom):
    write_recipe(teacher={"adapt": None})
    result = classroom("run", "recipe.yaml", "--run-dir", "out", ok=False)
    assert result.exit_code == 1
    assert "has no head over classes" in result.output
    assert "teacher.adapt" in result.output


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"prompt": "{text}\nLabel:"}}, "`data.prompt` has no effect"),
        ({"data": {"append_eos": False}}, "`data.append_eos` has no effect"),
        (
            {"task": "masked-lm", "evaluate": {"baselines": False}},
            "`evaluate.baselines` has no effect",
        ),
        ({"evaluate": {"prefill_tokens": 9}}, "`evaluate.prefill_tokens` has no effect"),
        ({"specialize": {"method": "lora"}}, "`specialize` is for language models"),
        ({"cache": {"codec": "topk"}}, "`cache.codec: topk` is for another task"),
        ({"export": {"artifacts": ["gguf-q8_0"]}}, "is for models that predict the next token"),
        ({"train": {"source": "online"}}, "`source: online` is for language models"),
        ({"task": "causal-lm"}, "`cache.codec: classes`|cache.codec"),
        ({"task": "classification"}, "task"),
    ],
)
def test_what_classes_cannot_have_is_refused(changes, said):
    values = classification_recipe(**changes)
    if changes.get("task") == "causal-lm":
        values["cache"]["codec"] = "classes"
    with pytest.raises(RecipeError, match=said):
        check_recipe(values)


def test_a_recipe_with_its_defaults_filled_in_is_the_same():
    recipe = check_recipe(classification_recipe())
    assert check_recipe(recipe.model_dump(mode="json", by_alias=True)) == recipe


def test_pairs_are_for_classes_alone():
    values = {
        "data": {"train": "x", "pair_column": "y"}, "teacher": {"model": "t"}, "student": {},
    }  # fmt: skip
    with pytest.raises(RecipeError, match=r"`data.pair_column` has no effect with `task: causal"):
        check_recipe(values)


@pytest.mark.parametrize("command", [["doctor"], ["cache", "audit"]])
def test_commands_on_next_tokens_refuse_classes(classroom, command):
    result = classroom(*command, "recipe.yaml", "--run-dir", "out", ok=False)
    assert result.exit_code == 1
    assert "sequence-classification" in result.output
