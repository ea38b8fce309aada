"""onnxruntime as a runtime: the logits of torch, read as evaluation reads them."""

import importlib.util
import shutil

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from attar.errors import ModelError
from distill.data.batching import collate
from distill.data.tokenize import IGNORE
from distill.runtimes.runtime import ModelSource, open_runtime, runtime_of
from students.artifacts.onnx.graph import export_onnx

pytestmark = pytest.mark.usefixtures("graph_export")


@pytest.fixture(scope="module")
def model(make_model):
    return make_model(3, vocabulary=330)  # more ids than the tokenizer has


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    export_onnx(model, _Nothing(), folder)
    return folder


class _Nothing:
    def save_pretrained(self, folder):
        """The test's own tokenizer is put there by `folder`."""


@pytest.fixture
def folder(exported, tokenizer, tmp_path):
    shutil.copytree(exported, tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_it_gives_the_logits_of_torch(folder, model, tokenizer, make_examples):
    known = len(tokenizer)
    runtime = open_runtime(ModelSource(str(folder)))
    assert (runtime.vocabulary, runtime.context, runtime.can_generate) == (known, 128, False)
    assert runtime.parameters == sum(p.numel() for p in model.parameters())
    batch = collate([[example] for example in make_examples(5, vocabulary=known)])
    with torch.inference_mode():
        expected = model(input_ids=batch.input_ids_BT).logits[..., :known]
    expected = expected[batch.labels_BT != IGNORE]
    logits = runtime.read(batch)
    assert len(logits) == len(expected) == batch.num_counted
    pieces = [logits.piece(slice(start, start + 7)) for start in range(0, len(logits), 7)]
    torch.testing.assert_close(torch.cat(pieces), expected, atol=1e-4, rtol=1e-4)


def test_it_reads_texts_and_conversations(folder, tokenizer, model):
    runtime = open_runtime(ModelSource(str(folder), vocabulary=280))
    ids = runtime.encode("the teacher says")
    assert ids == tokenizer("the teacher says")["input_ids"]
    assert runtime.decode(ids) == "the teacher says"
    chat = [{"role": "user", "content": "what"}]
    asked = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert runtime.decode(runtime.encode_chat(chat)) == asked
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids])).logits[0, :, :280]
    torch.testing.assert_close(runtime.logits(ids), expected, atol=1e-4, rtol=1e-4)
    runtime.prefill(ids)
    with pytest.raises(ModelError, match="cannot generate"):
        runtime.generate(ids, 4)


def test_a_folder_with_a_graph_made_elsewhere_is_known(folder):
    assert runtime_of(str(folder)) == "onnxruntime"


def test_ids_that_the_graph_lacks_are_refused(folder):
    with pytest.raises(ModelError, match="compared on 400 ids"):
        open_runtime(ModelSource(str(folder), vocabulary=400)).logits([1, 2])


def test_two_graphs_in_a_folder_are_refused(folder):
    shutil.copy(folder / "model.onnx", folder / "second.onnx")
    with pytest.raises(ModelError, match=r"has 2 files \*\.onnx"):
        open_runtime(ModelSource(str(folder)))


def test_other_inputs_are_named(tokenizer, tmp_path):
    values = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
        for name in ("input_ids", "position_ids", "logits")
    ]
    node = helper.make_node("Add", ["input_ids", "position_ids"], ["logits"])
    graph = helper.make_graph([node], "sum", values[:2], values[2:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(made, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="needs the inputs position_ids"):
        open_runtime(ModelSource(str(tmp_path)))


def test_without_onnxruntime_the_extra_is_named(folder, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, p=None: None if n == "onnxruntime" else find(n, p)
    )
    with pytest.raises(ModelError, match=r'pip install "attar\[onnx\]"'):
        open_runtime(ModelSource(str(folder)))
