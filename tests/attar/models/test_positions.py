"""The longest text a model can read, by its configuration and by running it."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from attar.models.structure import AFTER_PADDING, usable_positions

SIZES = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 42,
}  # fmt: skip
MORE = {
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "longformer": {"attention_window": 8},
    "esm": {"mask_token_id": 3},
}


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("family", ["bert", "gpt2", "albert", *sorted(AFTER_PADDING)])
def test_the_last_usable_position_is_read_and_the_next_is_not(family, padding):
    if family == "mpnet" and padding == 0:
        pytest.skip("counts from behind 1 whatever its configuration says")
    more = {**SIZES, "pad_token_id": padding, **MORE.get(family, {})}
    config = AutoConfig.for_model(family, **more)
    model = AutoModel.from_config(config).eval()
    most = usable_positions(config)
    assert most == (42 if family not in AFTER_PADDING else 41 - padding)
    with torch.no_grad():
        assert model(torch.full((1, most), 5))[0].shape[1] == most
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, most + 1), 5))


def test_a_model_without_a_table_has_no_limit_of_its_own():
    assert usable_positions(AutoConfig.for_model("mamba")) is None
