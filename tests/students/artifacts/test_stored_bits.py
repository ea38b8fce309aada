"""An artifact is what its name says: its layers are quantised, and its head is not."""

import dataclasses

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from attar.errors import ModelError
from attar.models.loading import load_config
from attar.models.quantizable import body_matrices, empty_model, head_modules
from students.artifacts.artifact import ARTIFACTS, ArtifactInputs, check_family, export_artifact
from students.artifacts.onnx.graph import is_decoder
from students.artifacts.stored_bits import stored_bits
from students.save import save_student

pytestmark = pytest.mark.usefixtures("saved_models")

SIZES = {"vocab_size": 320, "num_labels": 2, "pad_token_id": 3}
BERT = BertConfig(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, **SIZES
)
CLASSIFIERS = {
    "bert": lambda: BertForSequenceClassification(BERT),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(dim=64, n_layers=2, n_heads=4, hidden_dim=128, **SIZES)
    ),
    "llama": lambda: LlamaForSequenceClassification(
        LlamaConfig(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
            **SIZES,
        )
    ),
}  # fmt: skip


def given_for(model, tokenizer, folder):
    torch.manual_seed(0)
    save_student(model, tokenizer, folder / "student")
    ids = torch.arange(4, 68).view(2, -1)
    return ArtifactInputs(folder / "student", folder / "student", calibration=lambda: ids)


@pytest.mark.parametrize("form", ["nf4", "int8", "torchao-int8"])
@pytest.mark.parametrize("family", CLASSIFIERS)
def test_a_head_over_two_classes_stays_in_full_precision_and_runs(
    family, form, tokenizer, tmp_path
):
    model = CLASSIFIERS[family]().eval()
    export_artifact(form, given_for(model, tokenizer, tmp_path), tmp_path / form, "a card")
    heads = {f"{name}.weight" for name in head_modules(model)}
    assert heads
    with safe_open(tmp_path / form / "model.safetensors", "pt") as file:
        kinds = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert {kinds[name] for name in heads} == {torch.bfloat16}
    if form != "torchao-int8":  # which stores several tensors for one
        quantised = {kinds[name] for name in body_matrices(model)}
        assert quantised == {torch.uint8 if form == "nf4" else torch.int8}
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / form).eval()
    ids = torch.arange(4, 16).view(1, -1)
    with torch.inference_mode():
        found, expected = loaded(input_ids=ids).logits.float(), model(input_ids=ids).logits
    assert (found - expected).abs().max() < 0.2


def test_stored_bits_are_those_that_the_names_promise(make_model, tokenizer, tmp_path):
    given = given_for(make_model(0, width=64, vocabulary=320), tokenizer, tmp_path)
    empty = empty_model(load_config(str(given.student)), "AutoModelForCausalLM")
    found = {}
    for name in ("bf16", "int8", "nf4", "merged-requantized-nf4", "gguf-q8_0", "gguf-q4_0"):
        export_artifact(name, given, tmp_path / name, "a card")
        found[name] = stored_bits(tmp_path / name, empty)
    assert found["bf16"] == 16
    assert 8 < found["int8"] < 9
    assert 4 < found["nf4"] < 4.3
    assert found["nf4"] == pytest.approx(found["merged-requantized-nf4"], abs=0.05)
    assert (found["gguf-q8_0"], found["gguf-q4_0"]) == (8.5, 4.5)
    assert stored_bits(given.student, empty) == 32


def test_an_artifact_in_name_only_is_not_kept(make_model, tokenizer, tmp_path, monkeypatch):
    given = given_for(make_model(0, width=64, vocabulary=320), tokenizer, tmp_path)
    plain = dataclasses.replace(ARTIFACTS["nf4"], make=ARTIFACTS["bf16"].make)
    monkeypatch.setitem(ARTIFACTS._things, "nf4", plain)
    with pytest.raises(ModelError, match=r"`nf4` hold 16\.0 bits.*not 4\.2: .* in name only"):
        export_artifact("nf4", given, tmp_path / "nf4", "a card")
    assert not (tmp_path / "nf4").exists()


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=320, n_embd=64, n_layer=2, n_head=4, n_positions=128)
    )


def test_layers_that_hold_their_weights_transposed_are_quantised_or_refused(tokenizer, tmp_path):
    given = given_for(gpt2(), tokenizer, tmp_path)
    export_artifact("nf4", given, tmp_path / "nf4", "a card")
    with pytest.raises(ModelError, match="in name only"):
        export_artifact("torchao-int8", given, tmp_path / "torchao-int8", "a card")


def test_a_graph_of_such_layers_is_rounded_in_the_form_for_decoders(
    tokenizer, tmp_path, graph_export
):
    import onnx
    import onnxruntime

    model = gpt2().eval()
    export_artifact("onnx-int8", given_for(model, tokenizer, tmp_path), tmp_path / "i8", "a card")
    operators = {node.op_type for node in onnx.load(tmp_path / "i8" / "model.onnx").graph.node}
    assert "MatMulNBits" in operators
    assert not {"Gemm", "MatMulInteger"} & operators
    ids = torch.arange(4, 16).view(1, -1)
    session = onnxruntime.InferenceSession(tmp_path / "i8" / "model.onnx")
    inputs = {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()}
    found = torch.from_numpy(session.run(None, inputs)[0])
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
    assert 0 < (found - expected).norm() / expected.norm() < 0.05


def test_causal_bodies_are_decoders_with_any_head():
    assert is_decoder(CLASSIFIERS["llama"]())
    assert is_decoder(gpt2())
    assert not is_decoder(CLASSIFIERS["bert"]())


def test_widths_that_gguf_blocks_do_not_divide_are_refused_before_work(make_model):
    config = make_model(0, width=48).config
    check_family("gguf-f16", config)
    for name in ("gguf-q8_0", "gguf-q4_0"):
        with pytest.raises(ModelError, match=r"multiple of 32 .* hidden_size is 48"):
            check_family(name, config)


def test_a_rotated_student_is_written_as_gguf(make_model, tokenizer, tmp_path):
    from students.artifacts.gguf.writer import write_gguf
    from students.config import StudentConfig
    from students.save import cut_student, save_cut

    config = StudentConfig.model_validate({"hidden": {"keep": 0.5, "by": "pca"}})
    teacher = make_model(0, width=128, vocabulary=320)
    student, pruning, rotation = cut_student(
        teacher, [0, 1], config, torch.arange(4, 260).view(4, -1)
    )
    save_cut(student, pruning, rotation, tokenizer, tmp_path / "student")
    assert (tmp_path / "student" / "rotation.safetensors").exists()
    write_gguf(tmp_path / "student", tmp_path / "model.gguf", "q8_0")
