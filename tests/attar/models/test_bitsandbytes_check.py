"""4-bit weights that this machine would dequantise wrongly are refused; others are correct."""

import pytest
import torch

from attar.errors import ModelError
from attar.models.bitsandbytes_check import check_4bit_rows, dequantizes_partial_blocks
from attar.models.loading import load_causal_lm


@pytest.fixture
def saved(make_model, tmp_path):
    def save(width):
        make_model(0, width=width).save_pretrained(tmp_path)
        return str(tmp_path)

    return save


def test_whole_blocks_are_read_right(saved):
    folder = saved(64)
    model = load_causal_lm(folder, dtype=torch.float32, quantization="nf4")
    plain = load_causal_lm(folder, dtype=torch.float32)
    layer, own = (m.model.layers[0].mlp.up_proj for m in (model, plain))
    x = torch.randn(3, 64)
    assert (layer(x) - own(x)).norm() < 0.2 * own(x).norm()


def test_torn_blocks_are_refused_where_they_are_read_wrongly(saved, monkeypatch):
    folder = saved(32)
    monkeypatch.setattr("attar.models.bitsandbytes_check.dequantizes_partial_blocks", lambda: False)
    with pytest.raises(ModelError, match=r"q_proj.* has rows of 32; use int8"):
        load_causal_lm(folder, dtype=torch.float32, quantization="nf4")
    monkeypatch.setattr("attar.models.bitsandbytes_check.dequantizes_partial_blocks", lambda: True)
    check_4bit_rows(load_causal_lm(folder, dtype=torch.float32, quantization="nf4"), folder)


def test_the_self_test_agrees_with_what_a_layer_computes(saved):
    """A map with partial blocks: its dequantised weights against the original ones."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.randn(8, 32)
    read = dequantize_4bit(*quantize_4bit(weight, quant_type="nf4"))
    close = bool((read - weight).abs().max() < 0.25 * weight.abs().max())
    assert close == dequantizes_partial_blocks()
