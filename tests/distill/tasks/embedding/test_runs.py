"""Runs on vectors of texts, from teacher to report; and recipes that cannot be."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, BertForMaskedLM

from attar.errors import RecipeError
from attar.models.pooling import Pooling, read_pooling
from distill.pipeline import run_stages
from distill.run.context import Run
from distill.run.load import check_recipe, load_recipe
from distill.stages.status import inputs_of
from tests.conftest import Workshop
from tests.helpers.classifying import tiny_bert, word_tokenizer, write_rows
from tests.helpers.embedding import embedding_recipe, encoder, fill_workshop, write_recipe


@pytest.fixture
def studio(tmp_path, monkeypatch):
    """A folder with an encoder, texts, pairs and a recipe; and how to run commands in it."""
    monkeypatch.chdir(tmp_path)
    fill_workshop()
    return Workshop()


def test_a_whole_run_teaches_and_tells(studio):
    write_recipe(export={"artifacts": ["bf16", "int8", "onnx", "onnx-int8"]})
    said = studio("run", "recipe.yaml", "--run-dir", "out").output
    report = studio.report("out")
    teacher, arms = report["teacher"], report["arms"]
    assert set(arms) == {"init", "distill"}, "there is nothing to fine-tune on"
    assert teacher["cosine_to_teacher"] == pytest.approx(1)
    assert arms["distill"]["cosine_to_teacher"] > arms["init"]["cosine_to_teacher"]
    for found in (teacher, *arms.values(), *report["artifacts"].values()):
        low, high = found["spearman_interval"]
        assert low <= found["spearman"] <= high
        assert found["pairs"] == 40
        assert found["texts"] == 40
        assert found["texts_per_second"] > 0
    onnx, student = report["artifacts"]["onnx"], arms["distill"]
    assert onnx["spearman"] == pytest.approx(student["spearman"], abs=1e-3)
    assert onnx["cosine_to_teacher"] == pytest.approx(student["cosine_to_teacher"], abs=1e-5)
    verdict = report["verdict"]
    assert "Spearman correlation on 40 pairs" in verdict["sentence"]
    assert verdict["spearman"]["difference"] == pytest.approx(
        student["spearman"] - arms["init"]["spearman"]
    )
    assert "Spearman" in said
    assert "held-out texts" in Path("out/report.html").read_text()
    assert "Nothing to do" in studio("run", "recipe.yaml", "--run-dir", "out").output


def test_what_ships_is_a_sentence_encoder_without_us(studio):
    write_recipe(export={"artifacts": ["bf16", "onnx"]}, train={"max_steps": 2})
    run = Run(load_recipe("recipe.yaml"), Path("out"))
    run_stages(run, ["cache", "build", "train", "export"])
    for folder in ("student", "arms/distill/student", "artifacts/bf16", "artifacts/onnx"):
        assert read_pooling(f"out/{folder}") == Pooling("mean", True), folder
        limits = json.loads(Path(f"out/{folder}/sentence_bert_config.json").read_text())
        assert limits["max_seq_length"] == 24
    card = Path("out/artifacts/bf16/README.md").read_text()
    assert "SentenceTransformer(" in card
    assert "pipeline_tag: sentence-similarity" in card
    student = "out/arms/distill/student"
    model, info = AutoModel.from_pretrained(student, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not any("projector" in name for name in load_file(f"{student}/model.safetensors"))
    tokens = AutoTokenizer.from_pretrained(student)("the film was warm", return_tensors="pt")
    assert model(**tokens).last_hidden_state.isfinite().all()


def test_a_killed_run_ends_the_same(studio):
    write_recipe(train={"max_steps": 8, "evaluate_every": 2})
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
    ],
)
def test_a_narrower_student_is_compared_by_its_cosines(studio, student):
    encoder(1, width=16).save_pretrained("other")
    word_tokenizer().save_pretrained("other")
    values = embedding_recipe(evaluate={"pairs": None})
    values["student"] = student
    objective = [{"loss": "vector_cosine", "weight": 0.01}, {"loss": "similarity"}]
    values["train"].update(objective=objective, epochs=12, lr=5e-3)
    Path("recipe.yaml").write_text(yaml.safe_dump(values))
    run = Run(load_recipe("recipe.yaml"), Path("out"))
    run_stages(run, ["cache", "build", "train", "export", "evaluate", "report"])
    report = studio.report("out")
    assert "cosine_to_teacher" not in report["arms"]["distill"], "widths differ"
    assert (
        report["arms"]["distill"]["similarity_error"] < report["arms"]["init"]["similarity_error"]
    )
    assert "spearman" not in report["teacher"]
    assert "cosines between texts" in report["verdict"]["sentence"]
    written = json.loads(Path("out/arms/distill/student/1_Pooling/config.json").read_text())
    assert written["word_embedding_dimension"] == 16


def test_any_sentence_encoder_is_measured_without_a_recipe(studio):
    pairs = "evaluate.pairs={source: pairs.jsonl}"
    studio(
        "evaluate", "teacher", "--data", "held.jsonl", "--teacher", "teacher", "--json", "n.json",
        "--set", pairs,
    )  # fmt: skip
    numbers = json.loads(Path("n.json").read_text())["models"]["teacher"]
    assert numbers["similarity_error"] == pytest.approx(0, abs=1e-6)
    assert numbers["cosine_to_teacher"] == pytest.approx(1)
    model, tokenizer = AutoModel.from_pretrained("teacher"), word_tokenizer()

    def vector(text):
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        return torch.nn.functional.normalize(states.mean(0), dim=-1)

    rows = [json.loads(line) for line in Path("pairs.jsonl").read_text().splitlines()]
    cosines = [float(vector(r["sentence1"]) @ vector(r["sentence2"])) for r in rows]
    order = [np.argsort(np.argsort(cosines)), [r["score"] for r in rows]]
    assert len(order[0]) == numbers["pairs"]
    from distill.data.scored_pairs import spearman

    want = spearman(np.array(cosines), np.array(order[1], float))
    assert numbers["spearman"] == pytest.approx(want, abs=1e-3)


def test_a_checkpoint_that_was_saved_with_a_head_is_an_encoder_too(studio):
    """A masked language model without files of sentence-transformers; the recipe says how."""
    config = tiny_bert(3).config
    shutil.rmtree("teacher")
    BertForMaskedLM(config).save_pretrained("teacher")
    word_tokenizer().save_pretrained("teacher")
    write_recipe(data={"pooling": "mean"}, train={"max_steps": 2})
    studio("run", "recipe.yaml", "--run-dir", "out")
    assert studio.report("out")["teacher"]["cosine_to_teacher"] == pytest.approx(1)


@pytest.mark.parametrize("stem", ["mean", "cls"])
def test_how_texts_are_pooled_must_be_known_and_agree(studio, stem):
    write_recipe(data={"pooling": stem, "normalize": False})
    result = studio("build", "recipe.yaml", "--run-dir", "out", ok=False)
    key = "normalize` is False" if stem == "mean" else "pooling` is cls"
    assert f"`data.{key}" in result.output
    assert "leave it out" in result.output
    Path("teacher/1_Pooling/config.json").unlink()
    write_recipe()
    result = studio("build", "recipe.yaml", "--run-dir", "out", ok=False)
    assert result.exit_code == 1
    assert "`data.pooling: mean`, `cls` or `last`" in result.output


def test_a_cache_of_vectors_made_otherwise_does_not_serve(studio):
    Path("teacher/1_Pooling/config.json").unlink()
    for mode in ("mean", "last"):
        write_recipe(data={"pooling": mode}, cache={"dir": "cache"})
        result = studio("cache", "build", "recipe.yaml", "--run-dir", mode, ok=mode == "mean")
    assert "pooling" in result.output


def test_pairs_that_are_not_there_are_told_before_any_work(studio):
    write_recipe(evaluate={"pairs": {"source": "pair.jsonl"}})
    result = studio("run", "recipe.yaml", "--run-dir", "out", ok=False)
    assert "There is no file or folder pair.jsonl" in result.output
    assert not Path("out/cache").exists()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"score_column": "scor"}, "no column `scor` (`evaluate.pairs.score_column`)"),
        ({"score_column": "sentence1"}, "a score is a number"),
        ({"split": "test"}, "there is no `test` in it"),
    ],
)
def test_pairs_that_cannot_be_measured_are_told_before_any_work(studio, keys, said):
    write_recipe(evaluate={"pairs": {"source": "pairs.jsonl", **keys}})
    result = studio("run", "recipe.yaml", "--run-dir", "out", ok=False)
    assert said in " ".join(result.output.split())
    assert not Path("out/data").exists()


def test_an_edited_folder_of_pairs_is_measured_anew(studio):
    rows = [{"sentence1": "the film", "sentence2": "a film", "score": i} for i in range(3)]
    Path("pairs").mkdir()
    write_rows("pairs/pairs.jsonl", rows)
    write_recipe(evaluate={"pairs": {"source": "pairs"}})
    before, after = (Run(load_recipe("recipe.yaml"), Path("out")) for _ in range(2))
    stages = {stage: inputs_of(before, stage) for stage in ("train", "evaluate")}
    write_rows("pairs/pairs.jsonl", rows[:2])
    assert inputs_of(after, "train") == stages["train"]
    assert inputs_of(after, "evaluate") != stages["evaluate"]


def test_texts_must_be_somewhere(studio):
    write_rows("texts.jsonl", [{"words": "the film"}, {"words": "was fine"}])
    result = studio("build", "recipe.yaml", "--run-dir", "out", ok=False)
    assert "which holds the texts? Name it with `data.text_column`" in result.output


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": {"arms": ["finetune"]}}, r"`train.arms: \[finetune\]` has nothing to learn"),
        ({"teacher": {"adapt": {}}}, "`teacher.adapt` has nothing to learn from"),
        ({"train": {"objective": [{"loss": "forward_kl"}]}}, "forward_kl compares outcomes"),
        ({"train": {"objective": [{"loss": "cross_entropy"}]}}, "cross_entropy compares outcomes"),
        ({"data": {"label_column": "label"}}, "`data.label_column` has no effect"),
        ({"data": {"masking": {"share": 0.3}}}, "`data.masking` has no effect"),
        ({"cache": {"codec": "classes"}}, "`cache.codec: classes` is for another task"),
        ({"export": {"artifacts": ["gguf-q8_0"]}}, "is for models that predict the next token"),
        ({"train": {"source": "online"}}, "`source: online` is for language models"),
        ({"specialize": {"method": "lora"}}, "`specialize` is for language models"),
        (
            {"student": {"hidden": {"keep": 0.5, "by": "pca"}}},
            "`student.hidden.by: pca` needs a head",
        ),
        ({"evaluate": {"prefill_tokens": 9}}, "`evaluate.prefill_tokens` has no effect"),
    ],
)
def test_what_vectors_cannot_have_is_refused(changes, said):
    with pytest.raises(RecipeError, match=said):
        check_recipe(embedding_recipe(**changes))


@pytest.mark.parametrize("task", ["causal-lm", "sequence-classification"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"pooling": "mean"}}, "`data.pooling` has no effect"),
        ({"evaluate": {"pairs": {"source": "x"}}}, "`evaluate.pairs` has no effect"),
        ({"train": {"objective": [{"loss": "similarity"}]}}, "compares vectors of texts"),
    ],
)
def test_other_tasks_have_no_vectors(task, changes, said):
    values = {
        "task": task, "data": {"train": "x"}, "teacher": {"model": "t"}, "student": {}, **{},
    }  # fmt: skip
    for section, own in changes.items():
        values[section] = {**values.get(section, {}), **own}
    with pytest.raises(RecipeError, match=said):
        check_recipe(values)


def test_a_recipe_with_its_defaults_filled_in_is_the_same():
    recipe = check_recipe(embedding_recipe())
    assert check_recipe(recipe.model_dump(mode="json", by_alias=True)) == recipe
    plain = {k: v for k, v in embedding_recipe().items() if k not in ("train", "cache")}
    filled = check_recipe(plain)
    assert [term.loss for term in filled.train.objective] == ["vector_mse", "similarity"]
    assert filled.train.arms == []
