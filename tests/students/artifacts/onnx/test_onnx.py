"""ONNX artifacts: the graph computes what the model computes, for any batch and length."""

import copy
import json
import re
import subprocess
import sys

import numpy as np
import onnx_ir
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from attar.errors import ModelError, RecipeError
from students.artifacts.artifact import (
    ARTIFACTS,
    ArtifactInputs,
    check_installed,
    check_whole,
    export_artifact,
)
from students.artifacts.onnx import graph as graphs
from students.artifacts.onnx.int8 import BLOCK_INPUTS, round_blocks, round_dynamic, round_weights
from students.save import save_student

pytestmark = pytest.mark.usefixtures("graph_export")
SHAPES = [(1, 1), (2, 9), (3, 16), (1, 40)]


def padded(rows, tokens, vocabulary, seed=0):
    """(ids, mask), int64 (B, T): row b ends b tokens early, but keeps one."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (rows, tokens), generator=generator)
    lengths = (tokens - torch.arange(rows)).clamp(min=1)
    return ids, (torch.arange(tokens) < lengths.unsqueeze(1)).long()


def run(folder, ids, mask):
    session = graphs.open_session(folder / graphs.ONNX_FILE, 1)
    values = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    return torch.from_numpy(values[0])


def reference(model, ids, mask, output="logits"):
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask)[output]


@pytest.fixture(scope="module")
def decoder(make_model):
    """Its head is tied to an embedding of a width that blocks of 64 do not divide."""
    return make_model(1, width=96, vocabulary=3000, spread=1.0, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def make_encoder():
    def make(kind):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=320,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=64,
            initializer_range=0.2,
            num_labels=3,
        )
        return kind(config).eval()

    return make


class Saved:
    """A stand-in for a tokenizer where only the graph matters."""

    def save_pretrained(self, folder):
        (folder / "tokenizer.json").write_text("{}")


@pytest.fixture(scope="module")
def exported(decoder, make_encoder, tmp_path_factory):
    """`exported(name)`: a model, the folder with its graph, and its output, made once."""
    made = {}
    models = {
        "decoder": (lambda: decoder, "logits"),
        "classifier": (lambda: make_encoder(BertForSequenceClassification), "logits"),
        "masked": (lambda: make_encoder(BertForMaskedLM), "logits"),
        "embedder": (lambda: make_encoder(BertModel), "last_hidden_state"),
    }

    def make(name):
        if name not in made:
            build, output = models[name]
            folder = tmp_path_factory.mktemp(name)
            model = build()
            graphs.export_onnx(model, Saved(), folder, outputs=(output,))
            made[name] = model, folder, output
        return made[name]

    return make


@pytest.mark.parametrize("name", ["decoder", "classifier", "embedder"])
def test_the_graph_computes_what_the_model_computes(name, exported):
    model, folder, output = exported(name)
    for rows, tokens in SHAPES:
        ids, mask = padded(rows, tokens, 320)
        found, expected = run(folder, ids, mask), reference(model, ids, mask, output)
        assert found.shape == expected.shape
        if found.dim() == 3:
            found, expected = found[mask.bool()], expected[mask.bool()]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture
def rounded(exported, tmp_path):
    """`rounded(name)`: the same with 8-bit weights."""

    def make(name):
        model, folder, output = exported(name)
        graph = onnx_ir.load(folder / graphs.ONNX_FILE)
        (round_weights if name == "decoder" else round_dynamic)(graph)
        onnx_ir.save(graph, tmp_path / graphs.ONNX_FILE)
        return model, tmp_path, output

    return make


def rounded_weights(model, block, tables):
    """A copy of a model with weights of linear layers and `tables` rounded and dequantised."""
    copied = copy.deepcopy(model)
    for name, module in copied.named_modules():
        if isinstance(module, torch.nn.Linear) or name.endswith(tables):
            weight = module.weight.detach().numpy()
            whole, scale = round_blocks(weight, block or weight.shape[1])
            back = (whole * scale[..., None]).reshape(len(weight), -1)[:, : weight.shape[1]]
            module.weight.data = torch.from_numpy(back)
    return copied


@pytest.mark.parametrize(
    ("name", "block", "table"),
    [("decoder", BLOCK_INPUTS, "embed_tokens"), ("masked", None, "word_embeddings")],
)
def test_eight_bits_are_those_of_the_weights(name, block, table, rounded):
    model, folder, output = rounded(name)
    ids, mask = padded(3, 40, 320)
    found = run(folder, ids, mask)[mask.bool()]
    expected = reference(rounded_weights(model, block, table), ids, mask, output)[mask.bool()]
    plain = reference(model, ids, mask, output)[mask.bool()]
    error = (found - expected).norm() / expected.norm()
    # The error is from rounding the inputs; products of eight bits may saturate where a processor
    # has no instructions of its own for them.
    assert error < (0.02 if name == "decoder" else 0.16)
    assert 0 < (found - plain).norm() / plain.norm() < 0.16


@pytest.mark.parametrize("name", ["decoder", "classifier", "masked"])
def test_eight_bits_are_small(name, rounded):
    model, folder, _ = rounded(name)
    bytes_of = sum(t.const_value.nbytes for t in initializers(folder))
    others = sum(p.numel() for n, p in model.named_parameters() if is_other(n, p))
    matrices = sum(p.numel() for p in model.parameters()) - others
    assert bytes_of < 1.4 * matrices + 4 * others + 2000


def initializers(folder):
    return onnx_ir.load(folder / graphs.ONNX_FILE).graph.initializers.values()


def is_other(name, parameter):
    """Bytes that are not rounded: vectors, tables of positions and types, heads over classes."""
    kept = ("position", "token_type", "classifier")
    return parameter.dim() < 2 or any(word in name for word in kept)


def test_a_tied_head_is_stored_once(decoder, exported):
    _, folder, _ = exported("decoder")
    weights = 4 * sum(p.numel() for p in decoder.parameters())  # tied ones are counted once
    assert (folder / graphs.ONNX_FILE).stat().st_size < 1.5 * weights


def test_padding_changes_nothing(rounded):
    _, folder, _ = rounded("decoder")
    ids, _ = padded(1, 12, 320)
    wide = torch.nn.functional.pad(ids, (0, 8))
    mask = (torch.arange(20) < 12).long().unsqueeze(0)
    found, alone = run(folder, wide, mask)[:, :12], run(folder, ids, torch.ones_like(ids))
    torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4)


def test_the_model_is_left_as_it_was(exported):
    model, folder, _ = exported("decoder")
    assert model.config.use_cache
    assert json.loads((folder / "config.json").read_text())["use_cache"]


def test_large_weights_go_beside_the_graph(exported, tmp_path, monkeypatch):
    model, whole, _ = exported("classifier")
    monkeypatch.setattr(graphs, "ONE_FILE_BYTES", 1000)
    graphs.export_onnx(model, Saved(), tmp_path)
    beside = tmp_path / f"{graphs.ONNX_FILE}.data"
    assert beside.stat().st_size > (tmp_path / graphs.ONNX_FILE).stat().st_size / 2
    ids, mask = padded(2, 9, 320)
    torch.testing.assert_close(run(tmp_path, ids, mask), run(whole, ids, mask))


@pytest.mark.parametrize("name", ["onnx", "onnx-int8"])
def test_an_artifact_runs_without_this_package_and_without_torch(
    name, decoder, tokenizer, tmp_path
):
    save_student(decoder, tokenizer, tmp_path / "student")
    given = ArtifactInputs(tmp_path / "student", tmp_path / "student")
    folder = tmp_path / name
    export_artifact(name, given, folder, "a card")
    assert check_whole(folder)["runtime"] == "onnxruntime"
    code = re.search(r"```python\n(.*?)```", ARTIFACTS[name].usage(given), re.DOTALL)[1]
    code = code.replace("PATH", str(folder))
    code += "import sys; assert not {'attar', 'students', 'distill'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\('logits', \(2, \d+, 3000\)\)", done.stdout)


class Forks(torch.nn.Module):
    """A model whose control flow depends on its input."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def forward(self, input_ids, attention_mask):
        out = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return {"logits": out.logits * 2 if input_ids.sum().item() % 2 == 0 else out.logits}


def test_a_model_that_cannot_be_exported_raises_one_sentence(decoder, tmp_path):
    with pytest.raises(ModelError, match=r"Forks cannot be exported to ONNX: [^\n]+$"):
        graphs.export_onnx(Forks(decoder), Saved(), tmp_path)


def test_an_unknown_output_is_named(decoder, tmp_path):
    with pytest.raises(ModelError, match="pooler_output"):
        graphs.export_onnx(decoder, Saved(), tmp_path, outputs=("pooler_output",))


def test_a_graph_that_computes_something_else_is_refused(exported, make_model, tmp_path):
    _, folder, _ = exported("decoder")
    other = make_model(2, width=96, vocabulary=3000, spread=1.0)
    with pytest.raises(ModelError, match="cannot be exported faithfully"):
        graphs.check_equal(other, folder / graphs.ONNX_FILE, ("logits",))


@pytest.mark.parametrize("name", ["onnx", "onnx-int8"])
def test_without_its_packages_the_extra_is_named(name, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, p=None: None if n == "onnxruntime" else find(n, p)
    )
    with pytest.raises(RecipeError, match=r'onnxruntime.*pip install "attar\[onnx\]"'):
        check_installed(name)


def test_blocks_round_to_the_nearest_of_255_steps():
    weight = np.random.default_rng(0).normal(size=(5, 100)).astype(np.float32)
    weight[2] = 0
    rounded, scale = round_blocks(weight, 64)
    assert rounded.shape == (5, 2, 64)
    assert (rounded[:, 1, 36:] == 0).all()
    back = (rounded * scale[..., None]).reshape(5, 128)[:, :100]
    step = np.repeat(scale, 64, axis=1)[:, :100]
    assert (np.abs(back - weight) <= step / 2 * 1.0001).all()
    assert np.abs(rounded[[0, 1, 3, 4]]).max(-1).min() == 127
