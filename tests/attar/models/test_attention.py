"""Queries, keys and values of a block, for every model family."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from attar.errors import ModelError
from attar.models.attention import (
    attention_heads,
    attention_projections,
    capture_attention,
    capture_attention_inputs,
    linear_map,
)
from attar.models.structure import blocks_of, run_body

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
HEAD = {**GROUPED, "head_dim": 16}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**GROUPED)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**GROUPED)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**HEAD)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**HEAD)),
    "bert": lambda: BertForMaskedLM(BertConfig(**SHAPE)),
}
FUSED = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=3, n_head=4)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**GROUPED, pad_token_id=0)),
}
BATCH = {"input_ids": torch.arange(14).reshape(2, 7)}


@pytest.fixture(params=MODELS)
def model(request):
    """A model of the family, with random biases where it has any."""
    torch.manual_seed(0)
    made = MODELS[request.param]().eval()
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return made


def with_lora(model):
    """Adapters on queries and values that change something."""
    names = [n.rsplit(".", 1)[-1] for n, _ in model.named_modules()]
    targets = [n for n in ("q_proj", "v_proj", "query", "value") if n in names]
    made = get_peft_model(model, LoraConfig(r=4, target_modules=targets, lora_dropout=0.3)).eval()
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return made


def test_projections_are_found_by_family(model):
    heads, kv = attention_heads(model)
    head_dim = 16 if model.config.model_type in ("qwen3", "gemma") else 8
    assert (heads, kv) == (4, 4 if model.config.model_type == "bert" else 2)
    for block in (1, 2, 3):
        query, key, value = attention_projections(model, block)
        widths = [one.out_features for one in (query, key, value)]
        assert widths == [4 * head_dim, kv * head_dim, kv * head_dim]
        assert query in list(blocks_of(model)[block - 1].modules())


@pytest.mark.parametrize("adapted", [False, True])
def test_what_is_captured_is_what_the_maps_give(model, adapted):
    model = with_lora(model) if adapted else model
    with (
        torch.no_grad(),
        capture_attention(model, [1, 3]) as captured,
        capture_attention_inputs(model, [1, 3]) as inputs,
    ):
        run_body(model, BATCH)
    assert set(inputs) == set(captured.blocks) == {1, 3}
    for block in (1, 3):
        maps = attention_projections(model, block)
        for module, found in zip(maps, captured.blocks[block], strict=True):
            assert found.shape == (2, 7, module.out_features)
            torch.testing.assert_close(found, module(inputs[block]))
            weight, bias = linear_map(module, torch.float32)
            again = nn.functional.linear(inputs[block], weight, bias)
            torch.testing.assert_close(found, again, atol=1e-5, rtol=1e-4)
            plain = getattr(module, "base_layer", module)
            assert (bias is None) == (plain.bias is None)


def test_a_bias_that_dwarfs_the_weights_rounds_nothing_away():
    module = nn.Linear(16, 8).bfloat16()
    nn.init.constant_(module.bias, 300.0)
    holder = nn.Module()
    holder.proj = module
    model = get_peft_model(holder, LoraConfig(r=2, target_modules=["proj"]))
    adapted = model.base_model.model.proj
    weight, bias = linear_map(adapted, torch.bfloat16)
    assert torch.equal(weight, module.weight)
    assert torch.equal(bias, adapted.base_layer.bias)


def gradients(model, *, train=False):
    """Gradients of all weights, for a sum over captured and final states."""
    model.train(train).zero_grad()
    with capture_attention(model, [1, 3]) as captured:
        final = run_body(model, BATCH)
    total = final.square().mean()
    for states in captured.blocks.values():
        total = total + sum((one * one.detach().cos()).mean() for one in states)
    total.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_gradients_flow_through_what_is_captured(model):
    found = gradients(model)
    for block in (1, 3):
        for module in attention_projections(model, block):
            assert any(p is module.weight for n, p in model.named_parameters() if found[n].any())


def test_adapters_learn_from_what_is_captured(model):
    found = gradients(with_lora(model))
    assert found
    assert all("lora" in name and gradient.any() for name, gradient in found.items())


@pytest.mark.parametrize("adapted", [False, True])
def test_gradient_checkpointing_changes_no_gradient(model, adapted):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # or every pass is another
    if adapted:
        model = with_lora(model)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    whole = gradients(model, train=True)
    model.activation_checkpointing_enable({"use_reentrant": False})
    again = gradients(model, train=True)
    assert whole.keys() == again.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(gradient, again[name])


def test_what_a_backward_pass_repeats_is_not_captured():
    model = MODELS["llama"]().train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    with (
        capture_attention(model, [2]) as captured,
        capture_attention_inputs(model, [2]) as inputs,
    ):
        final = run_body(model, BATCH)
        before = [inputs[2], *captured.blocks[2]]
        final.sum().backward()
    after = [inputs[2], *captured.blocks[2]]
    assert all(one is other for one, other in zip(before, after, strict=True))


def test_reentrant_checkpointing_is_refused_where_it_would_lose_gradients():
    model = MODELS["llama"]().train()
    model.activation_checkpointing_enable({"use_reentrant": True})
    with (
        capture_attention(model, [2]),
        pytest.raises(ModelError, match=r"use_reentrant.*False"),
    ):
        run_body(model, BATCH)


def test_no_hook_is_left_behind(model):
    with pytest.raises(ZeroDivisionError), capture_attention(model, [1, 2]):
        raise ZeroDivisionError
    with capture_attention_inputs(model, [1, 2]):
        pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", FUSED)
def test_fused_maps_are_refused(name):
    model = FUSED[name]()
    with pytest.raises(ModelError, match=r"^Block 1 of \w+ has no attention.*`q_proj`"):
        attention_projections(model, 1)


def test_maps_that_hold_more_than_queries_are_refused():
    model = MODELS["llama"]()
    attention = blocks_of(model)[0].self_attn
    attention.q_proj = nn.Linear(32, 64)  # with a gate beside them, as Qwen3-Next has it
    with pytest.raises(ModelError, match="64 channels of queries in 4 heads but 16 of keys in 2"):
        attention_projections(model, 1)


def test_a_second_attention_is_refused():
    shape = {**SHAPE, "is_decoder": True, "add_cross_attention": True}
    with pytest.raises(ModelError, match="several attentions"):
        attention_projections(BertForMaskedLM(BertConfig(**shape)), 1)


@pytest.mark.parametrize("block", [0, -1, 4])
def test_blocks_that_do_not_exist_are_named_with_those_that_do(block):
    with pytest.raises(ModelError, match=f"Block {block} does not exist.* blocks 1 to 3"):
        attention_projections(MODELS["llama"](), block)


def test_maps_of_different_states_cannot_be_kept_by_their_input():
    class Apart(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.out_features = inner, inner.out_features

        def forward(self, x):
            return self.inner(x)

    model = MODELS["llama"]().eval()
    attention = blocks_of(model)[0].self_attn
    attention.k_proj = Apart(attention.k_proj)
    attention.k_proj.register_forward_pre_hook(lambda _m, args: (args[0] + 1,))
    with (
        torch.no_grad(),
        capture_attention_inputs(model, [1]),
        pytest.raises(ModelError, match="have different inputs"),
    ):
        run_body(model, BATCH)


def test_models_without_a_number_of_heads_are_refused():
    text = SimpleNamespace(num_attention_heads=4, num_key_value_heads=[2, 2, 1])  # as OpenELM
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))
    with pytest.raises(ModelError, match="how many attention heads"):
        attention_heads(model)
