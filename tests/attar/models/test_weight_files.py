"""Weights that are missing, cut or overwritten are named before any is read."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from attar.errors import ModelError
from attar.models.loading import load_causal_lm
from attar.models.weight_files import check_weights


def write_safetensors(make_model, folder):
    make_model(0).save_pretrained(folder)
    return folder / "model.safetensors"


def write_shards(make_model, folder):
    make_model(0).save_pretrained(folder, max_shard_size="20KB")
    return sorted(folder.glob("model-*.safetensors"))[-1]


def write_pickle(make_model, folder):
    model = make_model(0)
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def write_gguf(make_model, folder):
    folder.mkdir()
    file = folder / "model.gguf"
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.ones((8, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


WAYS = {
    "one file": write_safetensors,
    "shards": write_shards,
    "pickle": write_pickle,
    "gguf": write_gguf,
}
DAMAGES = {
    "cut in half": lambda data: data[: len(data) // 2],
    "cut in its header": lambda data: data[:40],
    "emptied": lambda data: b"",
    "zeroed": lambda data: bytes(len(data)),
    "noise": lambda data: np.random.default_rng(0).bytes(len(data)),
}


def source_of(file):
    return str(file if file.suffix == ".gguf" else file.parent)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_damaged_weights_are_named(make_model, tmp_path, way):
    file = way(make_model, tmp_path / "model")
    check_weights(source_of(file))
    whole = file.read_bytes()
    for damage in DAMAGES.values():
        file.unlink()
        file.write_bytes(damage(whole))
        with pytest.raises(ModelError, match=f"{file.name} is damaged") as caught:
            check_weights(source_of(file))
        assert "\n" not in str(caught.value)
        with pytest.raises(ModelError, match=file.name):
            load_causal_lm(source_of(file), dtype="auto")


def test_weights_that_are_missing_are_named(make_model, tmp_path):
    shard = write_shards(make_model, tmp_path / "model")
    shard.unlink()
    with pytest.raises(ModelError, match=shard.name):
        check_weights(str(shard.parent))
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text('{"weight_map": []}')
    with pytest.raises(ModelError, match=r"index\.json names no files"):
        check_weights(str(shard.parent))
    for file in (tmp_path / "model").glob("*safetensors*"):
        file.unlink()
    with pytest.raises(ModelError, match="has no weights"):
        check_weights(str(tmp_path / "model"))


def test_a_folder_with_a_gguf_file_tells_to_name_the_file(make_model, tmp_path):
    file = write_gguf(make_model, tmp_path / "model")
    with pytest.raises(ModelError, match=f"name the file itself: {file}"):
        check_weights(str(file.parent))


def test_a_body_that_would_be_random_in_part_is_refused(make_model, tmp_path):
    make_model(0).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 3}))
    with pytest.raises(ModelError, match=r"lack 9 weights .* model\.layers\.2"):
        load_causal_lm(str(tmp_path), dtype="auto")


def test_plan_names_the_damaged_file(workshop):
    file = Path("teacher/model.safetensors")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    for command in (["plan"], ["cache", "build"], ["run"]):
        result = workshop(*command, "recipe.yaml", ok=False)
        assert result.exit_code == 1
        assert "teacher/model.safetensors is damaged" in result.output
        assert result.output.count("Error") == 1
