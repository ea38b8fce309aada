"""Runs on masked tokens, from teacher to report; and recipes that cannot be."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from transformers import AutoModelForMaskedLM, pipeline

from attar.errors import RecipeError
from distill.run.context import Run
from distill.run.load import check_recipe, load_recipe
from distill.stages.preflight import check_before_work
from tests.conftest import Workshop
from tests.helpers.classifying import tiny_bert
from tests.helpers.masking import fill_workshop, masked_recipe, tiny, tokenizer, write_recipe


@pytest.fixture
def studio(tmp_path, monkeypatch):
    """A folder with a masked language model, texts and a recipe; and how to run commands in it."""
    monkeypatch.chdir(tmp_path)
    fill_workshop()
    return Workshop()


def test_a_whole_run_teaches_and_tells(studio):
    write_recipe(export={"artifacts": ["bf16", "int8", "onnx", "onnx-int8"]})
    said = studio("run", "recipe.yaml", "--run-dir", "out").output
    report = studio.report("out")
    arms = report["arms"]
    assert set(arms) == {"init", "finetune", "distill"}
    assert arms["distill"]["kl_to_teacher"] < arms["init"]["kl_to_teacher"]
    assert arms["distill"]["kl_to_teacher"] < arms["finetune"]["kl_to_teacher"]
    for found in (report["teacher"], *arms.values(), *report["artifacts"].values()):
        assert found["perplexity"] == pytest.approx(np.exp(found["nll"]))
        assert found["texts"] == 80, "two copies of forty"
        assert found["texts_per_second"] > 0
    student, onnx = arms["distill"], report["artifacts"]["onnx"]
    assert onnx["nll"] == pytest.approx(student["nll"], abs=1e-4)
    assert onnx["kl_to_teacher"] == pytest.approx(student["kl_to_teacher"], abs=1e-4)
    assert "distilling" in report["verdict"]["sentence"]
    assert "ppl" in said
    assert "masked" in Path("out/report.html").read_text()
    assert "Nothing to do" in studio("run", "recipe.yaml", "--run-dir", "out").output
    _, info = AutoModelForMaskedLM.from_pretrained("out/artifacts/bf16", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    fill = pipeline("fill-mask", "out/arms/distill/student")
    assert len(fill("the film was [MASK]")) == 5
    assert "pipeline_tag: fill-mask" in Path("out/artifacts/bf16/README.md").read_text()


def test_a_killed_run_ends_the_same(studio):
    write_recipe(train={"max_steps": 8, "evaluate_every": 2, "arms": []})
    for folder in ("whole", "stopped"):
        for stage in (["cache", "build"], ["build"]):
            studio(*stage, "recipe.yaml", "--run-dir", folder)
    whole, stopped = studio.trained_twice()
    assert whole == stopped


def test_a_real_encoder_is_cut_and_its_student_comes_closer(studio, shared_data):
    values = masked_recipe(cache={"codec": "topk", "hidden": {"layers": [2]}})
    values["teacher"]["model"] = str(shared_data("models/bert-tiny-splade"))
    values["train"].update(arms=[], lr=5e-4, max_steps=20)
    Path("recipe.yaml").write_text(yaml.safe_dump(values))
    studio("run", "recipe.yaml", "--run-dir", "out")
    arms = studio.report("out")["arms"]
    assert arms["distill"]["nll"] < arms["init"]["nll"]


@pytest.mark.parametrize(
    "student",
    [
        {"from": {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}},
        {"from": "other"},
    ],
)
def test_students_need_not_be_cut(studio, student):
    tiny("distilbert").save_pretrained("other")
    tokenizer().save_pretrained("other")
    values = masked_recipe(train={"max_steps": 4, "arms": []})
    values["student"] = student
    Path("recipe.yaml").write_text(yaml.safe_dump(values))
    for stage in (["cache", "build"], ["build"], ["train"]):
        studio(*stage, "recipe.yaml", "--run-dir", "out")
    found = AutoModelForMaskedLM.from_pretrained("out/arms/distill/student")
    assert not any("projectors" in name for name in found.state_dict())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"max_length": 39}}, None),
        ({"data": {"max_length": 40}}, "is 40; the teacher has 39 positions for a text"),
        ({"student": {"layers": None, "from": {"max_position_embeddings": 24}}}, "student has 23"),
    ],
)
def test_texts_fit_into_the_positions_behind_the_padding(studio, changes, said):
    tiny("roberta").save_pretrained("teacher")
    write_recipe(**changes)
    run = Run(load_recipe("recipe.yaml"), Path("out"))
    if said is None:
        check_before_work(run)
        return
    with pytest.raises(RecipeError, match=said):
        check_before_work(run)


def test_a_body_without_a_head_must_be_adapted(studio):
    tiny().base_model.save_pretrained("teacher")
    result = studio("run", "recipe.yaml", "--run-dir", "out", ok=False)
    assert result.exit_code == 1
    assert "without a head over masked tokens (BertModel)" in result.output


@pytest.mark.parametrize(
    ("model", "task"),
    [
        (lambda: tiny(), "masked-lm"),
        (lambda: tiny().base_model, "embedding"),
        (lambda: tiny_bert(), "sequence-classification"),
    ],
)
@pytest.mark.parametrize("key", ["teacher.model", "student.from"])
def test_who_does_not_predict_the_next_token_is_refused_where_no_task_is_named(
    workshop, model, task, key
):
    made = model()
    made.resize_token_embeddings(len(tokenizer()))
    made.save_pretrained("other")
    tokenizer().save_pretrained("other")
    recipe = yaml.safe_load(Path("recipe.yaml").read_text())
    section, name = key.split(".")
    recipe["student"] = {}
    recipe[section][name] = "other"
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = workshop("run", "recipe.yaml", "--run-dir", "out", ok=False)
    assert f"`{key}` (other) was saved as" in result.output.replace("\n", " ")
    assert f"`task: {task}`" in result.output
    assert not Path("out/student").exists()


def test_who_does_not_predict_the_next_token_has_nothing_to_say(studio):
    for model in (tiny(), tiny().base_model):
        model.save_pretrained("other")
        result = studio("chat", "other", "--prompt", "the film", ok=False)
        assert result.exit_code == 1
        assert f"other was saved as {type(model).__name__}" in result.output


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"label_column": "label"}}, "`data.label_column` has no effect"),
        ({"data": {"append_eos": False}}, "`data.append_eos` has no effect"),
        ({"data": {"masking": {"share": 1.5}}}, "data.masking.share"),
        ({"data": {"masking": {"copy": 2}}}, "`data.masking.copy` is not a key.*`copies`"),
        ({"cache": {"codec": "classes"}}, "`cache.codec: classes` holds one signal a text"),
        ({"export": {"artifacts": ["gguf-q8_0"]}}, "is for models that predict the next token"),
        ({"export": {"artifacts": ["merged-requantized-nf4"]}}, "that predict the next token"),
        ({"specialize": {"method": "lora"}}, "`specialize` is for models that predict"),
        ({"evaluate": {"generate_tokens": 9}}, "`evaluate.generate_tokens` has no effect"),
    ],
)
def test_what_masked_tokens_cannot_have_is_refused(changes, said):
    with pytest.raises(RecipeError, match=said):
        check_recipe(masked_recipe(**changes))


def test_a_recipe_with_its_defaults_filled_in_is_the_same():
    recipe = check_recipe(masked_recipe())
    assert check_recipe(recipe.model_dump(mode="json", by_alias=True)) == recipe
