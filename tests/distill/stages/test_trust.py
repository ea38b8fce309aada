"""Trust in one model is no trust in another: code that came with it never runs."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

EVIL = """
from pathlib import Path
from transformers import LlamaForCausalLM, LlamaConfig, PreTrainedTokenizerFast

Path({mark!r}).write_text("ran")


class Config(LlamaConfig):
    pass


class Model(LlamaForCausalLM):
    config_class = Config


class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


def with_code(folder, mark):
    """Give a model folder code of its own, which leaves a mark where it runs."""
    (folder / "code_of_its_own.py").write_text(EVIL.format(mark=str(mark)))
    where = f"{folder}--code_of_its_own"
    model = {"AutoConfig": f"{where}.Config", "AutoModelForCausalLM": f"{where}.Model"}
    both = {"AutoTokenizer": [None, f"{where}.Tokenizer"]}
    for name, code in (("config.json", {**model, **both}), ("tokenizer_config.json", both)):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, "auto_map": code}))


@pytest.fixture
def other_model(workshop):
    """A copy of the teacher with code of its own; gives the mark that the code would leave."""
    shutil.copytree("teacher", "other")
    mark = Path("mark").absolute()
    with_code(Path("other").absolute(), mark)
    return mark


def write_recipe(**changes):
    values = yaml.safe_load(Path("recipe.yaml").read_text())
    for section, keys in changes.items():
        values[section] = {**values.get(section, {}), **keys} if keys is not None else None
    Path("recipe.yaml").write_text(yaml.safe_dump(values))


def test_the_code_of_an_untrusted_student_never_runs(workshop, other_model):
    write_recipe(
        teacher={"trust_remote_code": True},
        student={"from": str(Path("other").absolute()), "layers": None},
        train={"max_steps": 2},
        specialize={"method": "lora", "max_steps": 1, "precision": "float32"},
        export={"artifacts": ["adapter", "bf16", "merged-requantized-nf4"]},
    )
    workshop("run", "recipe.yaml", "--run-dir", "out")
    workshop("doctor", "recipe.yaml", "--run-dir", "out")
    workshop("chat", "out", "--prompt", "light", "--max-tokens", "2")
    assert not other_model.exists()
    for file in Path("out").rglob("*config.json"):
        assert "code_of_its_own" not in file.read_text(), file


def test_the_code_of_an_untrusted_teacher_never_runs(workshop, other_model):
    shutil.copytree("teacher", "mine")
    shutil.rmtree("teacher")
    Path("other").rename("teacher")
    with_code(Path("teacher").absolute(), other_model)
    write_recipe(
        student={"from": "mine", "layers": None, "trust_remote_code": True},
        train={"max_steps": 2, "arms": []},
    )
    workshop("run", "recipe.yaml", "--run-dir", "out")
    assert not other_model.exists()
    for file in Path("out").rglob("*config.json"):
        assert "code_of_its_own" not in file.read_text(), file


def test_a_model_of_features_is_trusted_by_itself(workshop, other_model):
    rows = [{"text": f"light falls {i}", "label": "ab"[i % 2]} for i in range(40)]
    Path("text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_recipe(
        teacher={"trust_remote_code": True},
        data={"label_column": "label"},
        features={"model": str(Path("other").absolute())},
    )
    workshop("features", "recipe.yaml", "--run-dir", "out")
    assert not other_model.exists()
    workshop("features", "recipe.yaml", "--set", "features.trust_remote_code=true", ok=False)
    assert other_model.exists(), "the code is such that it leaves a mark where it is trusted"


def test_evaluate_trusts_the_models_that_it_is_told_to(workshop, other_model):
    arguments = ["evaluate", "other", "teacher", "--data", "text.jsonl", "--set",
                 "evaluate.generate_tokens=2", "--set", "evaluate.prefill_tokens=16"]  # fmt: skip
    workshop(*arguments, "--trust-remote-code", "teacher")
    assert not other_model.exists()
    result = workshop(*arguments, "--trust-remote-code", "student", ok=False)
    assert result.exit_code == 1
    assert "`student`" in result.output
    workshop(*arguments, "--trust-remote-code", "other")
    assert other_model.exists()
