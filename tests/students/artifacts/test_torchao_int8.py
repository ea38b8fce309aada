"""The torchao artifact: plain `from_pretrained` loads it, close to the student and smaller."""

import importlib.util
import re
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from attar.errors import RecipeError
from attar.models.loading import load_causal_lm
from students.artifacts.artifact import (
    ArtifactInputs,
    check_installed,
    check_whole,
    export_artifact,
)
from students.artifacts.torchao_int8 import with_torchao
from students.save import save_student

IDS = torch.randint(4, 300, (2, 10), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def artifact(make_model, tokenizer, tmp_path):
    """(the student, the folder of the artifact made from it)."""
    student = make_model(1, width=64, vocabulary=320)
    save_student(student, tokenizer, tmp_path / "student")
    given = ArtifactInputs(tmp_path / "student", tmp_path / "student")
    export_artifact("torchao-int8", given, tmp_path / "artifact", "a card")
    return student, tmp_path / "artifact"


def test_it_loads_and_generates_without_this_package(artifact, child_process):
    _, folder = artifact
    assert check_whole(folder)["runtime"] == "transformers"
    code = re.search(
        r"```python\n(.*?)```", with_torchao(ArtifactInputs(folder, folder)), re.DOTALL
    )[1]
    code = code.replace("PATH", str(folder))
    code += "import sys; assert not {'attar', 'students', 'distill'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_it_is_close_to_the_student_and_eight_bits_wide(artifact, capfd):
    student, folder = artifact
    capfd.readouterr()
    model = load_causal_lm(str(folder), dtype="auto")
    said = capfd.readouterr()
    assert "torchao" not in said.out + said.err
    with torch.inference_mode():
        found, expected = model(input_ids=IDS).logits.float(), student(input_ids=IDS).logits
    assert 0 < (found - expected).norm() / expected.norm() < 0.05
    with safe_open(folder / "model.safetensors", "pt") as file:
        widths = {file.get_slice(name).get_dtype() for name in file.keys() if "mlp" in name}  # noqa: SIM118
    assert "I8" in widths


def test_without_torchao_the_extra_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, p=None: None if n == "torchao" else find(n, p)
    )
    with pytest.raises(RecipeError, match=r'torchao.*pip install "attar\[torchao\]"'):
        check_installed("torchao-int8")
