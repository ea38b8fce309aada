"""What cannot be kept of an artifact's name, or run here, is one sentence before any work."""

import re

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)

from attar.errors import ModelError
from attar.models import bitsandbytes_check
from attar.models.bitsandbytes_check import check_4bit_widths
from attar.models.loading import bitsandbytes_config, skeleton
from students.artifacts.artifact import ARTIFACTS, check_layers_taken
from students.artifacts.gguf.tokenizer import check_tokenizer

GPT2 = GPT2Config(
    vocab_size=320, n_embd=64, n_layer=4, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=0
)
EXPERTS = MixtralConfig(
    vocab_size=320, hidden_size=64, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, intermediate_size=128, num_local_experts=4, max_position_embeddings=128,
)  # fmt: skip
ODD = LlamaConfig(
    vocab_size=320, hidden_size=64, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, intermediate_size=100, max_position_embeddings=128,
)  # fmt: skip
PLAN = ("plan", "recipe.yaml", "--run-dir", "out")


def test_layers_that_a_library_does_not_know_are_named():
    gpt2, experts = (skeleton(c, "AutoModelForCausalLM") for c in (GPT2, EXPERTS))
    for name in ("nf4", "int8", "bf16", "onnx-int8"):
        check_layers_taken(name, gpt2)
    for name in ("torchao-int8", "merged-requantized-nf4", "merged-requantized-int8"):
        with pytest.raises(ModelError, match=rf"`export\.artifacts: {name}` .*Conv1D.* 100%"):
            check_layers_taken(name, gpt2)
    for name, found in ARTIFACTS.items():
        if found.takes is None:
            check_layers_taken(name, experts)
        else:
            with pytest.raises(ModelError, match=r"mlp\.experts\..* \d\d% of the weights"):
                check_layers_taken(name, experts)


def test_widths_that_this_processor_reads_wrongly_are_named(make_model, monkeypatch):
    monkeypatch.setattr(bitsandbytes_check, "dequantizes_partial_blocks", lambda: False)
    monkeypatch.setattr(bitsandbytes_check, "default_device", lambda: torch.device("cpu"))
    check_4bit_widths(make_model(0, width=64), "`nf4`", "int8")
    says = r"`nf4`: .*q_proj\.weight` has rows of 32; use int8, or a GPU"
    with pytest.raises(ModelError, match=says):
        check_4bit_widths(make_model(0, width=32), "`nf4`", "int8")
    monkeypatch.setattr(bitsandbytes_check, "default_device", lambda: torch.device("cuda"))
    check_4bit_widths(make_model(0, width=32), "`nf4`", "int8")


def experts(folder, bytes_bpe):
    MixtralForCausalLM(EXPERTS).save_pretrained(folder)


def transposed(folder, bytes_bpe):
    GPT2LMHeadModel(GPT2).save_pretrained(folder)


def unigram(folder, bytes_bpe):
    pieces = [(f"{letter}", -1.0) for letter in "▁abcdefghijklmnopqrstuvwxyz<>."]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(
        folder
    )


def odd_widths(folder, bytes_bpe):
    LlamaForCausalLM(ODD).save_pretrained(folder)


def unigram_and_odd_widths(folder, bytes_bpe):
    LlamaForCausalLM(ODD).save_pretrained(folder)
    unigram(folder, bytes_bpe)


def four_bits(folder, bytes_bpe):
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=bitsandbytes_config("nf4", ["lm_head"])
    )
    model.save_pretrained(folder)


REFUSED = {
    "experts as nf4": (experts, {}, r"`export\.artifacts: nf4` would be so in name only"),
    "experts below qlora": (
        experts,
        {"specialize": "{method: qlora}", "export.artifacts": "[adapter]"},
        r"`specialize\.base: nf4` would be so in name only",
    ),
    "transposed layers in torchao": (
        transposed,
        {"export.artifacts": "[torchao-int8]"},
        r"torchao leaves `transformer\.h\.0\.mlp",
    ),
    "a Unigram tokenizer": (
        unigram,
        {"export.artifacts": "[gguf-q8_0]"},
        r"`export\.artifacts: gguf-q8_0`: A tokenizer of type Unigram cannot be written as GGUF",
    ),
    "a Unigram tokenizer before the widths, which another GGUF mends": (
        unigram_and_odd_widths,
        {"export.artifacts": "[gguf-q8_0]"},
        r"`export\.artifacts: gguf-q8_0`: A tokenizer of type Unigram cannot be written as GGUF",
    ),
    "an int8 base under packing": (
        None,
        {"specialize": "{method: qlora, base: int8}"},
        r"does not keep packed examples apart.*set `data\.packing: false`",
    ),
    "an online int8 teacher under packing": (
        None,
        {"teacher.quantization": "int8", "train.source": "online"},
        r"`teacher\.quantization: int8` does not keep packed examples apart",
    ),
    "a 4-bit checkpoint as a student": (
        four_bits,
        {"student": "{from: teacher}"},
        r"`teacher\.model` \(teacher\) is saved quantised \(bitsandbytes\).*name that",
    ),
}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"export.artifacts": "[nf4]"}, r"rows of 100; use int8, a gguf artifact, `student\."),
        (
            {"specialize": "{method: qlora}", "export.artifacts": "[bf16]"},
            r"`specialize\.base: nf4`: .*; use `method: lora`, `student\.",
        ),
    ],
)
def test_a_width_that_4_bits_are_read_wrongly_of_names_one_that_is_read(
    workshop, bytes_bpe, tmp_path, monkeypatch, settings, says
):
    monkeypatch.setattr(bitsandbytes_check, "dequantizes_partial_blocks", lambda: False)
    monkeypatch.setattr(bitsandbytes_check, "default_device", lambda: torch.device("cpu"))
    odd_widths(tmp_path / "teacher", bytes_bpe)
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    output = workshop(*PLAN, *options, ok=False).output
    assert re.search(rf"{says}feed_forward: {{keep: 64}}`, or a GPU", output), output


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_fail_after_training_is_told_by_plan(workshop, bytes_bpe, tmp_path, case):
    change, settings, says = REFUSED[case]
    if change is not None:
        change(tmp_path / "teacher", bytes_bpe)
    settings = {"export.artifacts": "[nf4]", **settings}
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    found = workshop(*PLAN, *options, ok=False)
    assert found.exit_code == 1, found.output
    assert len(found.output.strip().splitlines()) == 1
    assert re.search(says, found.output), found.output


def test_a_template_without_the_bos_that_the_tokenizer_adds_is_refused_for_gguf(tokenizer):
    pytest.importorskip("xllamacpp")
    from tokenizers.processors import TemplateProcessing

    check_tokenizer(tokenizer)
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    with pytest.raises(ModelError, match=r"begin the template with `\{\{ bos_token \}\}`"):
        check_tokenizer(tokenizer)
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    check_tokenizer(tokenizer)
