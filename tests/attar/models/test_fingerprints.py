"""Fingerprints see every byte that changes what a model computes or which ids a text becomes."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from attar.models.fingerprints import tokenizer_files_fingerprint, weights_fingerprint
from attar.models.tokenizers import tokenizer_fingerprint


@pytest.fixture(scope="module")
def saved(make_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    make_model(0).save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved, tmp_path):
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def changed(model, edit):
    before = weights_fingerprint(str(model))
    assert before is not None
    edit()
    return weights_fingerprint(str(model)) != before


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "model.norm.weight", "model.layers.1.input_layernorm.weight"]
)
def test_one_number_of_any_tensor_is_another_model(model, name):
    file = model / "model.safetensors"
    weights = load_file(str(file))

    def edit():
        weights[name] = weights[name].clone()
        weights[name].view(-1)[-1] += 1
        save_file(weights, str(file), metadata={"format": "pt"})

    assert changed(model, edit)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{}"),
        ("modeling_own.py", "x = 1"),
        ("modules.json", "[]"),
        ("1_Pooling/config.json", '{"pooling_mode": "mean"}'),
        ("2_Dense/model.safetensors", "weights of a further module"),
    ],
)
def test_what_says_how_weights_are_used_counts(model, name, content):
    def edit():
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(content)

    assert changed(model, edit)


@pytest.mark.parametrize(
    "name", ["README.md", "tokenizer.json", "training_args.bin", "generation_config.json"]
)
def test_what_does_not_change_the_numbers_does_not_count(model, name):
    assert not changed(model, lambda: (model / name).write_text("other"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.gguf"])
def test_weights_of_every_kind_are_read_whole(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(bytes(1 << 20))
    source = str(file if name.endswith(".gguf") else tmp_path)
    before = weights_fingerprint(source)
    assert before is not None
    data = bytearray(file.read_bytes())
    data[(1 << 19) + 5000] ^= 1  # between the blocks that a sample of 64 would read
    file.write_bytes(data)
    assert weights_fingerprint(source) != before


def test_an_adapter_has_a_fingerprint_of_its_own(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder, file in ((base, "model.safetensors"), (adapter, "adapter_model.safetensors")):
        folder.mkdir()
        save_file({"a": torch.zeros(2)}, str(folder / file))

    def write(rank):
        config = {"r": rank, "base_model_name_or_path": str(base)}
        (adapter / "adapter_config.json").write_text(json.dumps(config))

    write(4)
    assert changed(adapter, lambda: write(8))
    other = {"a": torch.ones(2)}
    assert changed(adapter, lambda: save_file(other, str(base / "model.safetensors")))


# Tokenizers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json", "merges.txt", "vocab.txt", "tokenizer.model", "sentencepiece.bpe.model",
        "source.spm", "spiece.model", "normalizer.json", "chat_template.jinja", "bpe.codes",
        "additional_chat_templates/tools.jinja", "added_tokens.json", "special_tokens_map.json",
        "sentence_bert_config.json", "qwen.tiktoken", "tokenization_own.py",
    ],
)  # fmt: skip
def test_every_file_of_a_tokenizer_counts(tmp_path, name):
    before = tokenizer_files_fingerprint(str(tmp_path))
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("one")
    first = tokenizer_files_fingerprint(str(tmp_path))
    file.write_text("two")
    assert len({before, first, tokenizer_files_fingerprint(str(tmp_path))}) == 3


def without_a_merge(rules):
    rules["model"]["merges"].pop()


def lower_case(rules):
    rules["normalizer"] = {"type": "Lowercase"}


def ends_with_a_token(rules):
    rules["post_processor"] = {
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True,
    }  # fmt: skip


@pytest.mark.parametrize("change", [without_a_merge, lower_case, ends_with_a_token])
def test_rules_beside_the_vocabulary_count(tokenizer, change):
    from tokenizers import Tokenizer

    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    change(rules)
    other = copy.deepcopy(tokenizer)
    other._tokenizer = Tokenizer.from_str(json.dumps(rules))
    assert other.get_vocab() == tokenizer.get_vocab()
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(tokenizer)


def test_how_a_tokenizer_was_last_called_does_not_count(tokenizer):
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "the teacher says"], truncation=True, max_length=4, padding="max_length")
    assert tokenizer_fingerprint(tokenizer) == before


def test_a_further_chat_template_counts(tokenizer):
    before = tokenizer_fingerprint(tokenizer)
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tools": "{{ tools }}"}
    assert tokenizer_fingerprint(tokenizer) != before
