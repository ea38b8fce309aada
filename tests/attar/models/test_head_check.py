"""A head that is applied by itself gives the model's own logits, or the model is refused."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from attar.errors import ModelError
from attar.models import structure
from attar.models.head_check import check_head, check_head_form
from attar.models.structure import head_of, run_body
from attar.models.task_heads import CAUSAL
from tests.helpers.families import FAMILIES, tiny_config, tiny_family_model

IDS = torch.randint(5, 300, (2, 12), generator=torch.Generator().manual_seed(0))
UNUSUAL = (
    "bert", "roberta", "electra", "rembert", "modernbert-decoder",  # layers before the map
    "cohere, a scale", "granite, scaled", "hyperclovax, scaled", "minicpm3, scaled",
    "mpt, a scale that transformers ignores", "mpt, a scale in words", "recurrent_gemma",
    "gemma2", "gemma2, no caps", "nanochat, no cap", "gptj", "llama4_text",
)  # fmt: skip


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_heads_give_the_models_own_logits(name):
    config = tiny_config(name)
    assert check_head_form(config, CAUSAL), "its form shows it without weights"
    model = tiny_family_model(config)
    check_head(model)
    with torch.inference_mode():
        states_BTH = run_body(model, {"input_ids": IDS, "attention_mask": None})
        found = head_of(model, 320).logits(states_BTH)
        torch.testing.assert_close(found, model(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_layers_before_a_map():
    model = tiny_family_model(tiny_config("bert"))
    states_BTH = run_body(model, {"input_ids": IDS, "attention_mask": None})
    head_of(model, 320).logits(states_BTH).square().sum().backward()
    assert model.cls.predictions.transform.dense.weight.grad.abs().sum() > 0
    assert model.bert.embeddings.word_embeddings.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["granite, scaled", "hyperclovax, scaled", "recurrent_gemma"])
def test_a_family_whose_scale_is_not_known_is_refused_with_the_difference(name, monkeypatch):
    monkeypatch.setattr(structure, "LOGIT_SCALES", {})
    monkeypatch.setattr(structure, "SOFT_CAPS", {})
    config, changes = tiny_config(name), FAMILIES[name][1]
    if not changes:
        config.logits_soft_cap = 0.5
    says = r"more than one linear map .* differ by [\d.]+ of the largest"
    with pytest.raises(ModelError, match=says):
        check_head_form(config, CAUSAL, "here")
    with pytest.raises(ModelError, match=f"head of here .*{says}"):
        check_head(tiny_family_model(config), "here")


class Doubled(LlamaForCausalLM):
    """A model that multiplies its logits, which its config does not say."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output


def test_code_that_changes_logits_is_refused():
    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "vocab_size": 64}
    model = Doubled(LlamaConfig(**sizes, num_attention_heads=2)).eval()
    with pytest.raises(ModelError, match=r"Doubled.* differ by 0\.5 of the largest"):
        check_head(model)


@pytest.mark.parametrize("name", ["bert, not a decoder", "electra, not a decoder"])
def test_an_encoder_that_sees_what_it_should_predict_is_refused(name):
    config = tiny_config(name)
    with pytest.raises(ModelError, match="`is_decoder: true`"):
        check_head_form(config, CAUSAL)
    with pytest.raises(ModelError, match="looks ahead"):
        check_head(tiny_family_model(config))


def test_a_form_is_seen_without_memory_for_the_model():
    """A config of 70 billion weights takes no longer than a small one."""
    large = CONFIG_MAPPING["llama"](
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8, vocab_size=128256,
    )  # fmt: skip
    assert check_head_form(large, CAUSAL)


def test_a_head_without_a_map_is_refused():
    model = tiny_family_model(tiny_config("llama"))
    model.lm_head = nn.Identity()
    with pytest.raises(ModelError, match="no linear output map"):
        check_head(model)
