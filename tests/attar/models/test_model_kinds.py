"""A model folder may hold anything: it is loaded rightly, or told in one sentence before work."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BertConfig,
    CLIPConfig,
    Gemma3Config,
    Mistral3Config,
    Qwen2_5_VLConfig,
    Qwen3_5Config,
    T5Config,
)

from attar.errors import ModelError
from attar.models.fingerprints import tokenizer_files_fingerprint, weights_fingerprint
from attar.models.loading import load_causal_lm, load_config, resolve_precision
from attar.models.model_kinds import check_kind, check_quantized
from attar.models.task_heads import CAUSAL, check_single_label
from attar.models.tokenizers import load_tokenizer

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
REFUSED = {
    "T5ForConditionalGeneration": (T5Config(vocab_size=97), "sequence-to-sequence"),
    "BartForConditionalGeneration": (BartConfig(vocab_size=97), "sequence-to-sequence"),
    "Qwen2_5_VLForConditionalGeneration": (Qwen2_5_VLConfig(text_config=SIZES), "wrapper"),
    "Mistral3ForConditionalGeneration": (Mistral3Config(), "wrapper"),
    "Gemma3ForConditionalGeneration": (Gemma3Config(text_config=SIZES), "wrapper"),
    "CLIPModel": (CLIPConfig(), "wrapper"),
    "BertForTokenClassification": (BertConfig(), "no head that predicts the next token"),
    "BertForQuestionAnswering": (BertConfig(), "no head that predicts the next token"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_task_can_use_is_told_by_its_class(name):
    config, words = REFUSED[name]
    config.architectures = [name]
    with pytest.raises(ModelError, match=words) as caught:
        check_kind(config, "some/model", CAUSAL)
    assert name in str(caught.value)
    assert "some/model" in str(caught.value)


def test_a_wrapper_whose_text_part_is_a_model_of_its_own_is_used():
    check_kind(Qwen3_5Config(), "some/model", CAUSAL)


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_a_classifier_of_another_kind_is_told(kind):
    config = BertConfig(architectures=["BertForSequenceClassification"], problem_type=kind)
    with pytest.raises(ModelError, match=kind):
        check_single_label(config, "some/model")
    config.problem_type = "single_label_classification"
    check_single_label(config, "some/model")


def test_a_folder_without_tokenizer_says_so(make_model, tmp_path):
    make_model(0).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"{tmp_path} has no tokenizer"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(str(tmp_path))


# Quantised checkpoints ---------------------------------------------------------------------------


def test_a_quantised_checkpoint_is_not_quantised_again():
    config = BertConfig()
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    with pytest.raises(ModelError, match=r"quantised already \(bitsandbytes\)"):
        check_quantized(config, "some/model", "nf4", "auto")


def test_a_quantisation_that_cannot_be_read_here_is_told():
    config = BertConfig()
    config.quantization_config = {"quant_method": "nosuch", "bits": 4}
    with pytest.raises(ModelError, match=r"quantised \(nosuch\), and cannot be read here"):
        check_quantized(config, "some/model", "none", "auto")


# Adapters ----------------------------------------------------------------------------------------


@pytest.fixture
def adapter(make_model, tokenizer, tmp_path):
    """Folder of a LoRA adapter without a tokenizer, its base beside it; and its logits."""
    base = tmp_path / "base"
    make_model(0).save_pretrained(base)
    tokenizer.save_pretrained(base)
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        return tmp_path / "adapter", model(input_ids=torch.arange(8)[None]).logits


def test_an_adapter_is_its_base_with_the_adapter_merged_in(adapter):
    folder, logits = adapter
    model = load_causal_lm(str(folder), dtype=torch.float32)
    with torch.no_grad():
        found = model(input_ids=torch.arange(8)[None]).logits
        base = load_causal_lm(str(folder.parent / "base"), dtype=torch.float32)
        unlike = base(input_ids=torch.arange(8)[None]).logits
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
    assert (unlike - logits).abs().max() > 0.1
    assert load_config(str(folder)).model_type == "llama"
    assert len(load_tokenizer(str(folder)).get_vocab()) > 256
    assert tokenizer_files_fingerprint(str(folder)) is not None


def test_an_adapter_is_known_by_its_own_weights_and_its_base_s(adapter, make_model):
    folder, _ = adapter
    before = weights_fingerprint(str(folder))
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: weight * 2 for name, weight in weights.items()}, file)
    changed = weights_fingerprint(str(folder))
    make_model(1).save_pretrained(folder.parent / "base")
    assert len({before, changed, weights_fingerprint(str(folder)), None}) == 4


def test_an_adapter_that_cannot_be_merged_is_told(adapter, make_model, tmp_path):
    folder = str(adapter[0])
    with pytest.raises(ModelError, match="quantised base"):
        load_causal_lm(folder, dtype=torch.float32, quantization="int8")
    prompts = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    get_peft_model(make_model(0), prompts).save_pretrained(tmp_path / "prompts")
    values = json.loads((tmp_path / "prompts" / "adapter_config.json").read_text())
    for base, words in (("base", "PROMPT_TUNING"), (None, "base_model_name_or_path")):
        values["base_model_name_or_path"] = base
        (tmp_path / "prompts" / "adapter_config.json").write_text(json.dumps(values))
        with pytest.raises(ModelError, match=words):
            load_causal_lm(str(tmp_path / "prompts"), dtype=torch.float32)
    shutil.rmtree(tmp_path / "base")
    make_model(0, width=64).save_pretrained(tmp_path / "base")
    with pytest.raises(ModelError, match="does not fit its base"):
        load_causal_lm(folder, dtype=torch.float32)


# Precision ---------------------------------------------------------------------------------------


def test_a_family_that_mixes_precisions_gets_float32_by_auto():
    deberta = BertConfig()
    deberta.model_type = "deberta"
    assert resolve_precision("auto", deberta) == torch.float32
    assert resolve_precision("bfloat16", deberta) == torch.bfloat16
