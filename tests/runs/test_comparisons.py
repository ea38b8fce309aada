"""Whole comparisons: tiny models, the command, what a kill leaves, the same rows for all arms."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from distill.comparison.arms import ARMS_COMPARED
from distill.comparison.cells import Comparison
from distill.comparison.compare import compare
from distill.comparison.registry import known_arms
from distill.run.load import load_recipe
from tests.helpers.classifying import sentences, write_rows
from tests.helpers.command_line import invoke
from tests.helpers.compared_folder import NAMES, fill_folder, values

pytestmark = pytest.mark.usefixtures("whole_stages", "child_process", "saved_models")
ROOT = Path(__file__).parents[2]
SECTION = {"labels": [12], "test": 24, "selection": 16, "validation": 8, "least_steps": 2}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a model, rows and recipe.yaml."""
    monkeypatch.chdir(tmp_path)
    fill_folder(tmp_path)
    rows = [{"text": text, "label": NAMES[good]} for text, good in sentences(160)]
    write_rows(tmp_path / "train.jsonl", rows)
    recipe = values(tmp_path, compare=SECTION, prompt={"pool": 16, "candidates": 4, "shots": [0]})
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def compared(*changes):
    overrides = [f"compare.{change}" for change in changes]
    return compare(Comparison(load_recipe("recipe.yaml", tuple(overrides)), Path("out")))


def rows_of(arm, part):
    with np.load(f"out/cells/n12-seed0/{arm}/{part}.npz") as found:
        return {name: found[name].tolist() for name in found.files}


def test_every_arm_of_classes_is_measured_on_the_same_rows(folder):
    found = compared("forget={text: general.jsonl, tokens: 200}", "elsewhere=other.jsonl")
    arms = found["points"]["12"]["arms"]
    assert set(found["refused"]) == {"distill-answers", "preference"}
    assert set(arms) | set(found["refused"]) == set(known_arms())
    assert {name: one for name, one in arms.items() if "test" not in one} == {}
    for part, rows in (("selection", 16), ("test", 24), ("elsewhere", 24)):
        assert {tuple(rows_of(arm, part)["document"]) for arm in arms} == {
            tuple(rows_of("majority", part)["document"])
        }
        assert len(rows_of("majority", part)["document"]) == rows
    assert arms["head"]["cost"]["trained"] == 2 * 32
    assert arms["lora"]["cost"]["trained"] < arms["full"]["cost"]["trained"]
    assert arms["zero-shot"]["query_tokens"] < arms["few-shot"]["query_tokens"]
    for name in ("full", "lora"):
        assert arms[name]["forgets"]["nll_difference"]["documents"] >= 8
        assert "accuracy" in arms[name]["more"]["elsewhere"]
    outcome = json.loads(Path("out/cells/n12-seed0/lora/result.json").read_text())
    assert outcome["serving"]["mixed_batch"]["tasks"] == 4
    assert "<svg" in Path("out/comparison.html").read_text()


def test_adding_an_arm_after_a_kill_changes_no_others_number(folder, monkeypatch):
    def stop(self, work):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ARMS_COMPARED["full"], "work", stop)
        with pytest.raises(KeyboardInterrupt):
            compared("arms=[tf-idf, features, full]")
    before = {arm: rows_of(arm, "test") for arm in ("tf-idf", "features")}
    made = {arm: Path(f"out/cells/n12-seed0/{arm}/result.json").stat().st_mtime_ns
            for arm in before}  # fmt: skip
    found = compared("arms=[tf-idf, head, features, full]")
    assert set(found["points"]["12"]["arms"]) == {"tf-idf", "head", "features", "full"}
    for arm, rows in before.items():
        assert rows_of(arm, "test") == rows
        assert Path(f"out/cells/n12-seed0/{arm}/result.json").stat().st_mtime_ns == made[arm]


def test_answers_in_words_are_compared_by_their_nll(folder):
    rows = [{"prompt": text, "response": text.split()[-1]} for text, _ in sentences(120)]
    write_rows(folder / "answers.jsonl", rows)
    recipe = {
        "task": "causal-lm", "data": {"train": "answers.jsonl", "max_length": 40},
        "teacher": {"model": "model", "dtype": "float32"}, "student": {"from": "model"},
        "cache": {"codec": {"name": "topk", "k": 4}},
        "train": {"objective": [{"loss": "forward_kl"}], "precision": "float32", "lr": 3e-3},
        "prompt": {"new_tokens": 2},
        "compare": {**SECTION, "arms": ["few-shot", "full", "prefix", "distill", "teacher"]},
    }  # fmt: skip
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    found = compared()
    arms = found["points"]["12"]["arms"]
    assert found["measure"] == "minus nll"
    assert set(arms) == {"few-shot", "full", "prefix", "distill", "teacher"}
    for name, one in arms.items():
        assert -10 < one["test"]["value"] < 0, name
    assert rows_of("full", "test")["document"] == rows_of("few-shot", "test")["document"]


def test_the_command_prints_a_table_and_goes_on(folder):
    done = invoke("compare", "recipe.yaml", "--arms", "majority,tf-idf", "--dir", "out")
    assert done.exit_code == 0, done.output
    assert "(recommended)" in done.output
    assert "With 12 labels:" in done.output
    assert "Page: out/comparison.html" in done.output


def test_an_encoder_is_compared_without_prompts(folder):
    from tests.helpers.classifying import tiny_bert, word_tokenizer

    tiny_bert().base_model.save_pretrained("encoder")
    word_tokenizer().save_pretrained("encoder")
    recipe = yaml.safe_load(Path("recipe.yaml").read_text())
    recipe["teacher"]["model"], recipe["student"]["from"] = "encoder", "encoder"
    recipe.pop("prompt")
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    found = compared("arms=[head, lora, zero-shot, teacher-few-shot]")
    assert set(found["points"]["12"]["arms"]) == {"head"}
    assert "no language model that writes" in found["refused"]["zero-shot"]


def test_the_example_runs_as_it_stands(folder):
    """With a tiny model and few rows in the place of its own."""
    rows = [{"text": text, "label": "positive" if good else "negative"}
            for text, good in sentences(160)]  # fmt: skip
    write_rows(folder / "rows.jsonl", rows)
    stand_ins = {
        "teacher.model": "model", "student.from": "model", "data.train": "rows.jsonl",
        "data.held_out": "0.2", "data.max_length": "24", "compare.labels": "[4, 12]",
        "compare.test": "24", "compare.selection": "16", "compare.validation": "8",
        "compare.least_steps": "2",
    }  # fmt: skip
    changes = [word for key, value in stand_ins.items() for word in ("--set", f"{key}={value}")]
    done = invoke("compare", str(ROOT / "examples" / "compare.yaml"), "--dir", "out", *changes)
    assert done.exit_code == 0, done.output
    assert "With 12 labels:" in done.output
