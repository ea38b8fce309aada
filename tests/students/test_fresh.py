"""A student with random weights: sizes that do not fit each other are told before any work."""

import pytest

from attar.errors import RecipeError
from students.fresh import check_fresh, fresh_config

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48,
}  # fmt: skip
FAMILIES = {
    "llama": SIZES,
    "qwen3": SIZES,
    "mixtral": {**SIZES, "num_local_experts": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
}


def config_of(kind, make_model, **changes):
    return fresh_config({"model_type": kind, **FAMILIES[kind], **changes}, make_model().config)


@pytest.mark.parametrize("kind", FAMILIES)
def test_sizes_that_fit_are_accepted(make_model, kind):
    check_fresh(config_of(kind, make_model))


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("qwen3", {"num_key_value_heads": 3}, "4 heads .* cannot share 3 key-value"),
        ("mixtral", {"num_key_value_heads": 3}, "4 heads .* cannot share 3 key-value"),
        ("gpt2", {"n_head": 5}, "divisible by num_heads"),
        ("bloom", {"n_head": 5}, "divisible by num_heads"),
    ],
)
def test_heads_that_do_not_divide_are_refused_before_work(make_model, kind, changes, says):
    config = config_of(kind, make_model, **changes)
    with pytest.raises(RecipeError, match=says):
        check_fresh(config)
