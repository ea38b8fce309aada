import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from attar.errors import ModelError
from students.pruning.depth import (
    block_cosines,
    cut_depth,
    keep_by_influence,
    keep_evenly,
    keep_greedily,
    layer_map,
    next_token_loss,
    rows_as_texts,
)

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": LlamaConfig(**SMALL),
    "llama-tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "mistral": MistralConfig(**SMALL, sliding_window=4),
    "qwen2": Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=4, max_window_layers=2),
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
    "gemma2": Gemma2Config(**SMALL, head_dim=8, sliding_window=4),
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=4, n_head=4, n_positions=64),
}
IDS = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(0))


def random_model(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module", params=list(FAMILIES))
def teacher(request):
    return random_model(FAMILIES[request.param])


@pytest.mark.parametrize("keep", [[0, 3], [1, 2, 3], [0, 1, 2, 3]])
def test_a_cut_is_the_teacher_with_only_those_blocks(teacher, keep, tmp_path):
    student = cut_depth(teacher, keep)
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.inference_mode():
        expected = student(input_ids=IDS).logits
        torch.testing.assert_close(again(input_ids=IDS).logits, expected)
        for name, tensor in student.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor), name
        if len(keep) == 4:
            torch.testing.assert_close(expected, teacher(input_ids=IDS).logits)
    kinds = getattr(teacher.config, "layer_types", None)
    if kinds is not None:
        assert list(again.config.layer_types) == [kinds[block] for block in keep]
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": 63}
    with_cache = again.generate(IDS, use_cache=True, **settings)
    without = again.generate(IDS, use_cache=False, **settings)
    assert torch.equal(with_cache, without)


def test_a_cut_runs_the_kept_blocks_in_their_order(teacher):
    """The student's logits are those of the teacher when the other blocks add nothing."""
    model = random_model(teacher.config)
    for block in (1, 2):
        for name, parameter in model.named_parameters():
            last = ("o_proj", "down_proj", "attn.c_proj", "mlp.c_proj", "post_attention_layernorm",
                    "post_feedforward_layernorm")  # fmt: skip
            if f".{block}." in name and any(part in name for part in last):
                gemma = model.config.model_type == "gemma2" and "norm" in name
                if gemma or "norm" not in name:
                    parameter.data.fill_(-1.0 if gemma else 0.0)
    with torch.inference_mode():
        expected = model(input_ids=IDS).logits
        torch.testing.assert_close(cut_depth(model, [0, 3])(input_ids=IDS).logits, expected)


@pytest.mark.parametrize("keep", [[], [4], [-1, 0]])
def test_blocks_that_do_not_exist_are_refused(teacher, keep):
    with pytest.raises(ModelError, match="blocks 0 to 3"):
        cut_depth(teacher, keep)


def idle_llama(*idle):
    """A random Llama in which some blocks add nothing to the residual stream."""
    model = random_model(LlamaConfig(**{**SMALL, "num_hidden_layers": 6}))
    with torch.no_grad():
        for block in model.model.layers:
            for parameter in block.parameters():
                parameter.mul_(3.0)
        for block in idle:
            model.model.layers[block].self_attn.o_proj.weight.zero_()
            model.model.layers[block].mlp.down_proj.weight.zero_()
    return model


def test_blocks_that_add_nothing_are_removed_first():
    model = idle_llama(1, 4)
    own_words = model.generate(IDS[:, :4], max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert keep_by_influence(model, rows_as_texts(own_words), 4) == [0, 2, 3, 5]
    assert keep_greedily(model, next_token_loss(own_words), 4) == [0, 2, 3, 5]


def test_an_idle_block_has_cosine_one():
    cosines = block_cosines(idle_llama(2), rows_as_texts(IDS))
    assert cosines[2] == pytest.approx(1.0, abs=1e-5)
    assert max(c for i, c in enumerate(cosines) if i != 2) < 0.99


def test_greedy_reports_the_loss_of_the_model_that_is_left():
    model = idle_llama(3)
    seen = []
    kept = keep_greedily(
        model, next_token_loss(IDS), 4, lambda block, loss: seen.append((block, loss))
    )
    student = cut_depth(model, kept)
    with torch.inference_mode():
        loss = student(input_ids=IDS, labels=IDS).loss
    assert seen[-1][1] == pytest.approx(float(loss), rel=1e-5)
    assert len(seen) == 2


def test_greedy_leaves_the_teacher_as_it_was():
    model = idle_llama(0)
    with torch.inference_mode():
        before = model(input_ids=IDS).logits
        keep_greedily(model, next_token_loss(IDS), 3)
        assert torch.equal(model(input_ids=IDS).logits, before)


def test_even_spacing_keeps_both_ends():
    assert keep_evenly(30, 3) == [0, 14, 29]
    assert keep_evenly(12, 6) == [0, 2, 4, 7, 9, 11]
    assert keep_evenly(5, 5) == [0, 1, 2, 3, 4]


def test_a_teacher_layer_maps_behind_all_kept_blocks_before_it():
    kept = [0, 1, 4, 5]
    assert [layer_map(kept, layer) for layer in range(7)] == [0, 1, 2, 2, 2, 3, 4]
