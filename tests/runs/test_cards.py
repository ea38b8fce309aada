"""Artifacts say nothing of the machine that made them, and their cards are valid as they stand."""

import json
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM

from distill.pipeline import run_stages
from distill.run.context import Run
from distill.run.load import load_recipe
from students.artifacts.artifact import check_whole
from tests.conftest import Workshop
from tests.helpers import classifying, embedding

pytestmark = pytest.mark.usefixtures("whole_stages")

SOURCES = {"train", "held_out", "validation", "source", "model"}  # keys that may name a file
LORA = {"method": "lora", "rank": 2, "max_steps": 1, "batch_size": 4, "precision": "float32"}


def with_absolute_paths(value):
    """The recipe's values, every file and folder of them named from the root of the machine."""
    if isinstance(value, dict):
        return {
            key: str(Path(one).absolute())
            if key in SOURCES and isinstance(one, str) and Path(one).exists()
            else with_absolute_paths(one)
            for key, one in value.items()
        }
    return value


def export(**changes):
    """The artifacts of the recipe of the current folder, in the folder `out`."""
    values = yaml.safe_load(Path("recipe.yaml").read_text())
    for section, own in changes.items():
        values[section] = {**values.get(section, {}), **own}
    Path("absolute.yaml").write_text(yaml.safe_dump(with_absolute_paths(values)))
    run = Run(load_recipe("absolute.yaml"), Path("out").absolute())
    run_stages(run, ["adapt-teacher", "cache", "build", "train", "specialize", "export"])
    return {name: Path("out/artifacts", name) for name in values["export"]["artifacts"]}


def check_says_nothing_of_this_machine(artifacts):
    """No file of an artifact holds a folder of this machine."""
    places = {Path.cwd(), Path.home(), Path(tempfile.gettempdir()), Path(sys.prefix)}
    words = [os.fsencode(place) + b"/" for place in places]
    files = [file for folder in artifacts.values() for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 4 * len(artifacts)
    found = [(str(f), word) for f in files for word in words if word in f.read_bytes()]
    assert found == []


def check_card(folder, plan):
    """The recipe of a card can be planned beside its files, and the hub can read the card."""
    card = (folder / "README.md").read_text()
    (recipe,) = re.findall(r"^```yaml\n(.*?)^```", card, re.M | re.S)
    Path("from_card.yaml").write_text(recipe)
    planned = plan("plan", "from_card.yaml").output
    assert all(stage in planned for stage in ("cache", "train", "export"))
    data = ModelCard(card).data.to_dict()
    assert data["pipeline_tag"]
    assert data["library_name"]
    assert "base_model" not in data, "a local folder is nothing that the hub has"
    assert "datasets" not in data
    check_whole(folder)


def test_causal_models(workshop, monkeypatch):
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    artifacts = ["adapter", "bf16", "merged-requantized-nf4", "gguf-q4_0"]
    learned = {"max_steps": 1, "batch_size": 4, "precision": "float32"}
    made = export(
        train={"max_steps": 1}, specialize=LORA,
        export={"artifacts": artifacts, "recover": learned},
    )  # fmt: skip
    check_says_nothing_of_this_machine(made)
    for folder in made.values():
        check_card(folder, workshop)
    from gguf import GGUFReader

    name = GGUFReader(made["gguf-q4_0"] / "model.gguf").get_field("general.name").contents()
    assert name == "merged"
    assert "A student of teacher, artifact `adapter`" in (made["adapter"] / "README.md").read_text()
    settings = json.loads((made["adapter"] / "adapter/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "base"
    monkeypatch.chdir(made["adapter"])  # as the card says
    assert AutoPeftModelForCausalLM.from_pretrained("adapter").peft_config


def test_classifiers(tmp_path, monkeypatch, capsys, graph_export):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    classifying.fill_workshop()
    made = export(
        teacher={"adapt": {"max_steps": 1}},
        train={"max_steps": 1},
        export={"artifacts": ["bf16", "onnx", "onnx-int8"]},
    )
    check_says_nothing_of_this_machine(made)
    for name, folder in made.items():
        check_card(folder, Workshop())
        card = (folder / "README.md").read_text()
        program = card.split("```python\n")[1].split("```")[0].replace("PATH", str(folder))
        capsys.readouterr()
        exec(program, {})
        labels = re.findall(r"'(good|bad)'", capsys.readouterr().out)
        assert len(labels) == (1 if name == "bf16" else 2), "the card prints names of classes"


def test_sentence_encoders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    embedding.fill_workshop()
    made = export(train={"max_steps": 1})
    check_says_nothing_of_this_machine(made)
    check_card(made["bf16"], Workshop())
    card = ModelCard((made["bf16"] / "README.md").read_text())
    assert card.data.library_name == "sentence-transformers"
    assert card.data.pipeline_tag == "sentence-similarity"
