"""GGUF files: llama.cpp computes the same as `transformers`, or the model is refused."""

import importlib.util

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from attar.errors import ModelError, RecipeError
from students.artifacts.artifact import (
    ARTIFACTS,
    ArtifactInputs,
    check_family,
    check_installed,
    export_artifact,
)
from students.artifacts.gguf.architectures import GGUF_ARCHITECTURES, check_config
from students.artifacts.gguf.writer import GGUF_KINDS, write_gguf
from students.quantization.formats import NUMBER_FORMATS
from students.quantization.gptq import round_model
from tests.helpers.families import tiny_family_model

gguf = pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

from attar.llama_cpp import GGUFModel  # noqa: E402  (needs xllamacpp)

SIZES = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "initializer_range": 0.08,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
ROPES = {"full_attention": {**LINEAR, "rope_theta": 1e6},
         "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}  # fmt: skip
WINDOW = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}
CAPS = {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 1.0}
# What is written, and the same without the trait that the case is about (None: plain).
CASES = {
    "llama": (LlamaConfig(**SIZES), None),
    "tied": (LlamaConfig(**SIZES, tie_word_embeddings=True), None),
    "wide heads": (LlamaConfig(**SIZES, head_dim=32), None),
    "biases": (LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True), None),
    "llama3 positions": (LlamaConfig(**SIZES, rope_parameters=LLAMA3), {"rope_parameters": None}),
    "linear positions": (LlamaConfig(**SIZES, rope_parameters=LINEAR), {"rope_parameters": None}),
    "mistral": (MistralConfig(**SIZES), None),
    "qwen2": (Qwen2Config(**SIZES), None),
    "qwen3": (Qwen3Config(**SIZES, head_dim=32), None),
    "gemma2": (Gemma2Config(**SIZES, **WINDOW), {"sliding_window": 256}),
    "gemma2 caps": (Gemma2Config(**SIZES, **WINDOW, **CAPS), {"attn_logit_softcapping": None}),
    "gemma2 without caps": (Gemma2Config(**SIZES, **WINDOW, attn_logit_softcapping=None,
                                         final_logit_softcapping=None),
                            {"final_logit_softcapping": 1.0}),
    "gemma2 without a last cap": (Gemma2Config(**SIZES, **WINDOW, final_logit_softcapping=None),
                                  {"final_logit_softcapping": 1.0}),
    "gemma3": (Gemma3TextConfig(**{**SIZES, "num_hidden_layers": 7}, **WINDOW),
               {"sliding_window": 256}),
    "gemma3 of two": (Gemma3TextConfig(**SIZES, **WINDOW, sliding_window_pattern=2),
                      {"layer_types": ["sliding_attention"] * 3}),
    "gemma3 linear": (Gemma3TextConfig(**SIZES, **WINDOW, rope_parameters=ROPES,
                                       sliding_window_pattern=2), {"rope_parameters": None}),
}  # fmt: skip
IDS = np.random.default_rng(0).integers(4, 320, 100).tolist()


def folder_of(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits_of(model, ids=IDS):
    return model(input_ids=torch.tensor([ids])).logits[0]


def logits_in(file, ids=IDS):
    loaded = GGUFModel(file)
    loaded.start(len(ids))
    return torch.from_numpy(loaded.extend(ids, np.ones(len(ids), bool)))


def divergence(teacher_TV, student_TV):
    log_probs = student_TV.log_softmax(-1), teacher_TV.log_softmax(-1)
    return kl_div(*log_probs, log_target=True, reduction="batchmean").item()


def types_in(file):
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}


# Families ----------------------------------------------------------------------------------------


def test_every_family_is_compared():
    assert {config.model_type for config, _ in CASES.values()} == set(GGUF_ARCHITECTURES)


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_computes_what_transformers_does(case, tokenizer, tmp_path):
    model = tiny_family_model(CASES[case][0])
    write_gguf(folder_of(model, tokenizer, tmp_path), tmp_path / "model.gguf", "f16")
    ours, theirs = logits_of(model), logits_in(tmp_path / "model.gguf")
    assert (ours - theirs).abs().max() < 0.02 * ours.std()
    labels = torch.tensor(IDS[1:])
    assert cross_entropy(theirs[:-1], labels).item() == pytest.approx(
        cross_entropy(ours[:-1], labels).item(), abs=1e-3
    )


@pytest.mark.parametrize("case", [name for name, (_, without) in CASES.items() if without])
def test_the_comparison_would_see_a_trait_that_is_lost(case):
    config, without = CASES[case]
    model = tiny_family_model(config)
    other = AutoModelForCausalLM.from_config(type(config)(**{**config.to_dict(), **without}))
    other.load_state_dict(model.state_dict())
    ours = logits_of(model)
    assert (ours - logits_of(other.eval())).abs().max() > 0.1 * ours.std()


def test_a_window_over_all_layers_caps_the_context(tokenizer, tmp_path):
    model = tiny_family_model(MistralConfig(**SIZES, sliding_window=64))
    write_gguf(folder_of(model, tokenizer, tmp_path), tmp_path / "model.gguf", "f16")
    assert GGUFModel(tmp_path / "model.gguf").context == 64


# Kinds -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(bytes_bpe, tmp_path_factory):
    """A Llama in a folder, and the model itself."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_bpe, eos_token="<|im_end|>")
    model = tiny_family_model(LlamaConfig(**SIZES))
    return folder_of(model, tokenizer, tmp_path_factory.mktemp("plain")), model


def test_fewer_bits_are_fewer_bytes_and_further_away(plain, tmp_path):
    folder, model = plain
    ours, found = logits_of(model), {}
    for kind in GGUF_KINDS:
        file = tmp_path / f"{kind}.gguf"
        write_gguf(folder, file, kind)
        found[kind] = (file.stat().st_size, divergence(ours, logits_in(file)))
    sizes = [found[kind][0] for kind in ("f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")]
    assert sizes == sorted(sizes, reverse=True)
    assert found["f16"][1] < 1e-5
    assert found["q8_0"][1] < 2e-4
    assert max(found["q5_0"][1], found["q5_1"][1]) < 5e-3
    assert max(found["q4_0"][1], found["q4_1"][1]) < 2e-2
    assert found["q4_0"][1] > found["q5_0"][1] > found["q8_0"][1]


def test_embedding_and_head_keep_eight_bits(plain, tmp_path):
    write_gguf(plain[0], tmp_path / "model.gguf", "q4_0")
    types = types_in(tmp_path / "model.gguf")
    assert types["token_embd.weight"] == types["output.weight"] == "Q8_0"
    assert types["output_norm.weight"] == types["blk.0.attn_norm.weight"] == "F32"
    assert types["blk.0.attn_q.weight"] == types["blk.2.ffn_down.weight"] == "Q4_0"


def test_rows_that_are_not_whole_blocks_are_stored_wider_with_a_warning(
    tokenizer, tmp_path, caplog
):
    model = tiny_family_model(LlamaConfig(**{**SIZES, "hidden_size": 48}, head_dim=16))
    write_gguf(folder_of(model, tokenizer, tmp_path), tmp_path / "model.gguf", "q4_0")
    types = types_in(tmp_path / "model.gguf")
    assert types["blk.0.attn_q.weight"] == types["token_embd.weight"] == "F16"
    assert types["blk.0.ffn_down.weight"] == types["blk.0.attn_output.weight"] == "Q4_0"
    assert "blk.0.attn_q.weight is stored as F16, not Q4_0: rows of 48" in caplog.text
    assert divergence(logits_of(model), logits_in(tmp_path / "model.gguf")) < 2e-2


def test_weights_beyond_float16_are_stored_wider(tokenizer, tmp_path):
    model = tiny_family_model(LlamaConfig(**SIZES))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
        model.model.layers[0].post_attention_layernorm.weight[0] = 1e-6
    write_gguf(folder_of(model, tokenizer, tmp_path), tmp_path / "model.gguf", "f16")
    assert types_in(tmp_path / "model.gguf")["blk.0.ffn_up.weight"] == "F32"
    assert divergence(logits_of(model), logits_in(tmp_path / "model.gguf")) < 1e-5


def test_rounded_bytes_are_written_unchanged(plain, tokenizer, tmp_path):
    folder, model = plain
    kind, encoded = gguf.GGMLQuantizationType.Q4_0, {}
    rounded = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name, weight in rounded.named_parameters():
            if "_proj" in name:
                encoded[name] = gguf.quants.quantize((weight * 0.97).numpy(), kind)
                weight.copy_(torch.from_numpy(gguf.quants.dequantize(encoded[name], kind)))
    write_gguf(folder, tmp_path / "model.gguf", "q4_0", encoded=encoded)
    theirs = logits_in(tmp_path / "model.gguf")
    assert divergence(logits_of(rounded), theirs) < 0.2 * divergence(logits_of(model), theirs)


def test_calibration_text_compensates_what_rounding_loses(plain, tmp_path):
    folder, _ = plain
    text = torch.randint(4, 320, (4, 32), generator=torch.Generator().manual_seed(0))
    given = ArtifactInputs(student=folder, merged=folder, calibration=lambda: text)
    export_artifact("gguf-q4_0", given, tmp_path / "q4_0", "a card")
    model = AutoModelForCausalLM.from_pretrained(folder)
    wanted = round_model(model, NUMBER_FORMATS["q4_0"], text)["model.layers.1.mlp.up_proj"].weight()
    for tensor in gguf.GGUFReader(tmp_path / "q4_0" / "model.gguf").tensors:
        if tensor.name == "blk.1.ffn_up.weight":
            found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert np.array_equal(found, wanted.numpy())


# Refusals ----------------------------------------------------------------------------------------

CUT = ["sliding_attention", "full_attention", "full_attention"]
ODD = {
    "family": (GPT2Config(), "type `gpt2` cannot be written as GGUF; supported are gemma2"),
    "activation": (LlamaConfig(**SIZES, hidden_act="gelu"), "hidden_act: gelu"),
    "positions": (LlamaConfig(**SIZES, rope_parameters={**LINEAR, "rope_type": "dynamic"}),
                  "rope_type: dynamic"),
    "window": (Qwen2Config(**SIZES, use_sliding_window=True, max_window_layers=1),
               "use_sliding_window: True"),
    "rhythm": (Gemma2Config(**SIZES, **WINDOW, layer_types=CUT),
               "layer_types: sliding, full, full"),
    "scale": (Gemma3TextConfig(**SIZES, **{**WINDOW, "query_pre_attn_scalar": 7}),
              "query_pre_attn_scalar: 7"),
    "caps": (Gemma3TextConfig(**SIZES, **WINDOW, final_logit_softcapping=9.0), "softcapping: 9.0"),
    "biases": (Qwen3Config(**SIZES, attention_bias=True), "attention_bias: True"),
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_what_llama_cpp_cannot_compute_is_refused_by_its_config(odd):
    config, message = ODD[odd]
    with pytest.raises(ModelError, match=message):
        check_family("gguf-q4_0", config)


def test_weights_that_are_not_finite_are_refused(tokenizer, tmp_path):
    model = tiny_family_model(LlamaConfig(**SIZES))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    folder = folder_of(model, tokenizer, tmp_path)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight has weights that are"):
        write_gguf(folder, tmp_path / "model.gguf", "q8_0")


def test_k_quants_need_rows_that_their_blocks_fill():
    config = LlamaConfig(**{**SIZES, "hidden_size": 576, "num_attention_heads": 9})
    with pytest.raises(ModelError, match=r"hidden_size is 576.*`gguf-q4_0`, `gguf-q5_0`"):
        check_family("gguf-q4_k_m", config)


def test_k_quants_need_the_users_llama_cpp(monkeypatch, tmp_path):
    wide = LlamaConfig(**{**SIZES, "hidden_size": 256, "intermediate_size": 512})
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "llama_cpp" else find(name)
    )
    with pytest.raises(ModelError, match="put `llama-quantize` on PATH"):
        check_family("gguf-q6_k", wide)
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    with pytest.raises(ModelError, match=r"LLAMA_CPP names .* no llama-quantize"):
        check_family("gguf-q6_k", wide)
    tool = tmp_path / "build" / "bin" / "llama-quantize"
    tool.parent.mkdir(parents=True)
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    check_family("gguf-q6_k", wide)


@pytest.mark.parametrize("name", [name for name in ARTIFACTS if name.startswith("gguf")])
def test_a_missing_package_is_named_with_its_extra(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(RecipeError, match=r'gguf, xllamacpp.*pip install "attar\[gguf\]"'):
        check_installed(name)


# Artifacts ---------------------------------------------------------------------------------------


def test_an_artifact_is_one_file_with_its_tokenizer_beside_it(plain, tmp_path):
    folder, _ = plain
    given = ArtifactInputs(student=folder, merged=folder)
    export_artifact("gguf-q8_0", given, tmp_path / "artifact", "a card")
    files = {file.name for file in (tmp_path / "artifact").iterdir()}
    assert {"model.gguf", "tokenizer.json", "manifest.json", "README.md"} <= files
    assert not any(name.endswith((".safetensors", ".partial")) for name in files)
    check_config(AutoConfig.from_pretrained(folder))
    assert GGUFModel(tmp_path / "artifact" / "model.gguf").encode("the teacher")


def test_licence_and_other_ends_go_with_the_file(plain, tokenizer, tmp_path):
    folder = folder_of(plain[1], tokenizer, tmp_path)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A student\n")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    write_gguf(folder, folder / "model.gguf", "q4_1")
    fields = gguf.GGUFReader(folder / "model.gguf").fields
    assert fields["general.license"].contents() == "mit"
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 2
    assert fields["tokenizer.ggml.eot_token_id"].contents() == 0
    assert fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q4_1


def test_the_learned_end_of_a_turn_is_in_the_file(plain, tokenizer, tmp_path):
    """Where the tokenizer's own end is that of a text, as base models have it."""
    tokenizer.eos_token = "<|endoftext|>"
    folder = folder_of(plain[1], tokenizer, tmp_path)
    write_gguf(folder, folder / "model.gguf", "f16")
    fields = gguf.GGUFReader(folder / "model.gguf").fields
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 0
    assert fields["tokenizer.ggml.eot_token_id"].contents() == 2


def test_a_head_that_the_family_has_no_place_for_is_refused_before_work():
    with pytest.raises(ModelError, match="`tie_word_embeddings: False`"):
        check_config(Gemma2Config(**SIZES, **WINDOW, tie_word_embeddings=False))
