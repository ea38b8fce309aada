"""`dropout` applies to the whole model in training and is not written to its config."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
)

from students.dropout import set_dropout

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "pad_token_id": 0,
}  # fmt: skip
DISTIL = {"vocab_size": 64, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}
MODELS = {
    "llama": (AutoModelForCausalLM, LlamaConfig(**SMALL, attention_dropout=0.3)),
    "gpt2": (AutoModelForCausalLM, GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)),
    "bert": (AutoModelForSequenceClassification, BertConfig(**SMALL)),
    "distilbert": (AutoModelForSequenceClassification, DistilBertConfig(**DISTIL)),
}
IDS = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(0))


def test_a_rate_of_0_in_the_config_is_changed_too():
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, attention_dropout=0)).train()
    set_dropout(model, 0.5)
    first, second = (model(input_ids=IDS).logits for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", MODELS)
def test_a_rate_applies_to_the_whole_model_but_not_to_its_config(name):
    torch.manual_seed(0)
    kind, config = MODELS[name]
    model = kind.from_config(config).train()
    before = model.config.to_dict()

    def twice():
        return [model(input_ids=IDS).logits for _ in range(2)]

    assert not torch.equal(*twice())
    set_dropout(model, 0.0)
    assert torch.equal(*twice())
    set_dropout(model, 0.5)
    assert not torch.equal(*twice())
    assert model.config.to_dict() == before
