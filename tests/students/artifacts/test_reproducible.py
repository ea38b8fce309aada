"""The same student gives the same bytes, in whatever folder and process it is exported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")
pytest.importorskip("torchao")
pytest.importorskip("onnxruntime")

EXPORT = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
import students.artifacts
from students.artifacts.artifact import ArtifactInputs, ARTIFACTS, export_artifact
from students.save import save_student
from students.tuning.adapters import load_base, save_adapter
from students.tuning.lora import QLora

source, folder = Path(sys.argv[1]), Path(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(source)
model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
save_student(model, tokenizer, folder / "student")
attached = QLora(rank=2).attach(load_base(folder / "student", "nf4"), 0)
save_adapter(attached, folder / "adapter", folder / "student", "nf4")
given = ArtifactInputs(
    folder / "student", folder / "student", folder / "adapter", "nf4",
    calibration=lambda: torch.arange(4, 68).view(2, -1),
)
for name in sys.argv[3:] or ARTIFACTS:
    if not name.endswith(("_k", "_k_m")):  # by a tool of the user's
        export_artifact(name, given, folder / "artifacts" / name, "a card")
"""


def files_of(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture
def exported_twice(make_model, tokenizer, tmp_path):
    """A function from names of artifacts to their files, exported in two processes and folders."""
    make_model(0, width=64, vocabulary=320).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")

    def export(*names):
        found = []
        for seed, where in (("1", "one"), ("2", "another/folder/two")):
            env = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
            places = [str(tmp_path / "teacher"), str(tmp_path / where)]
            command = [sys.executable, "-c", EXPORT, *places, *names]
            root = Path(__file__).resolve().parents[3]
            done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-2000:]
            found.append(files_of(tmp_path / where / "artifacts"))
        return found

    return export


def check_same(found, *paths):
    """Both have the same files of the same bytes, and none holds the path of a run folder."""
    one, other = found
    assert set(one) == set(other)
    assert [name for name in one if one[name] != other[name]] == []
    for path in paths:
        assert [name for name in one if str(path).encode() in one[name]] == []


def test_artifacts_are_the_same_bytes_in_two_run_folders(exported_twice, child_process, tmp_path):
    check_same(exported_twice("adapter", "nf4", "torchao-int8", "gguf-q4_0"), tmp_path)


def test_so_is_every_artifact(exported_twice, child_process, full_product, tmp_path):
    found = exported_twice()
    assert len({name.split("/")[0] for name in found[0]}) > 12
    check_same(found, tmp_path)
