"""Rounding to number formats, compared with the formats' own quantisers and by outputs."""

import copy

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from attar.errors import ModelError, RecipeError
from attar.progress import listening
from students.quantization.formats import NUMBER_FORMATS
from students.quantization.gptq import (
    round_compensated,
    round_model,
    round_nearest,
    roundable_linears,
)
from students.quantization.packed_weights import gguf_bytes
from tests.helpers.progress import Heard

GGUF = [name for name in NUMBER_FORMATS if name.startswith("q")]


def drawn(seed, outputs=24, inputs=64, scale=0.1):
    """A weight, and the second moments of correlated inputs."""
    torch.manual_seed(seed)
    weight_OI = scale * torch.randn(outputs, inputs)
    x_NI = torch.randn(300, inputs // 4) @ torch.randn(inputs // 4, inputs)
    x_NI = x_NI + 0.3 * torch.randn(300, inputs)
    return weight_OI, x_NI.T @ x_NI / len(x_NI)


def cost(rounded, weight_OI, moments_II):
    """Mean squared change of the outputs, summed over them."""
    error_OI = (rounded.weight() - weight_OI).double()
    return float((error_OI @ moments_II.double() * error_OI).sum())


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_nearest_is_what_bitsandbytes_rounds_to(kind):
    torch.manual_seed(3)
    weight_OI = torch.randn(8, 128)
    packed, state = bnb.quantize_4bit(weight_OI, quant_type=kind, compress_statistics=True)
    theirs_OI = bnb.dequantize_4bit(packed, state)
    assert torch.equal(round_nearest(weight_OI, NUMBER_FORMATS[kind]).weight(), theirs_OI)


@pytest.mark.parametrize("shape", [(8, 128), (6, 32), (6, 18)])
def test_codes_are_those_of_bitsandbytes_even_where_blocks_go_across_rows(shape):
    torch.manual_seed(3)
    weight_OI = torch.randn(*shape)
    packed, state = bnb.quantize_4bit(weight_OI, quant_type="nf4", compress_statistics=True)
    found = round_nearest(weight_OI, NUMBER_FORMATS["nf4"])
    codes = found.codes_OI.flatten()
    assert torch.equal((codes[::2] << 4) | codes[1::2], packed.flatten())
    assert torch.equal(found.scales.parts["absmax"], state.absmax)


def test_nearest_in_8_bits_is_what_bitsandbytes_rounds_to():
    torch.manual_seed(4)
    weight_OI = torch.randn(8, 40).half()
    codes_OI, scale_O, _ = bnb.int8_vectorwise_quant(weight_OI)
    theirs_OI = codes_OI * (scale_O / 127)[:, None]
    mine_OI = round_nearest(weight_OI, NUMBER_FORMATS["int8"]).weight()
    step_O1 = scale_O[:, None] / 127
    assert float(((mine_OI - theirs_OI) / step_O1).abs().max()) < 1.01  # theirs rounds in float16
    assert float((mine_OI != theirs_OI).float().mean()) < 0.05


@pytest.mark.parametrize("kind", GGUF)
def test_nearest_is_byte_for_byte_what_gguf_writes(kind):
    torch.manual_seed(5)
    weight_OI = torch.randn(16, 96)
    theirs = quantize(weight_OI.numpy(), GGMLQuantizationType[kind.upper()])
    assert np.array_equal(gguf_bytes(round_nearest(weight_OI, NUMBER_FORMATS[kind])), theirs)


@pytest.mark.parametrize("kind", GGUF)
def test_gguf_reads_back_exactly_what_was_chosen(kind):
    weight_OI, moments_II = drawn(6)
    found = round_compensated(weight_OI, moments_II, NUMBER_FORMATS[kind])
    read = dequantize(gguf_bytes(found), GGMLQuantizationType[kind.upper()])
    assert np.array_equal(read, found.weight().numpy())


@pytest.mark.parametrize("kind", list(NUMBER_FORMATS))
@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_compensated_changes_outputs_less_than_nearest(kind, seed):
    weight_OI, moments_II = drawn(seed)
    nearest = cost(round_nearest(weight_OI, NUMBER_FORMATS[kind]), weight_OI, moments_II)
    compensated = cost(
        round_compensated(weight_OI, moments_II, NUMBER_FORMATS[kind]), weight_OI, moments_II
    )
    assert compensated < 0.8 * nearest


def test_many_small_changes_survive_together_where_each_is_below_half_a_step():
    weight_OI, moments_II = drawn(7)
    base_OI = round_nearest(weight_OI, NUMBER_FORMATS["nf4"]).weight()
    small_OI = 0.03 * base_OI.abs().mean() * torch.ones_like(base_OI)
    moments_II = moments_II + 4 * torch.ones_like(moments_II)  # inputs share a mean: changes add up
    target_OI = base_OI + small_OI
    lost = cost(round_nearest(target_OI, NUMBER_FORMATS["nf4"]), target_OI, moments_II)
    kept = cost(
        round_compensated(target_OI, moments_II, NUMBER_FORMATS["nf4"]), target_OI, moments_II
    )
    assert kept < 0.25 * lost


@pytest.mark.parametrize("kind", list(NUMBER_FORMATS))
def test_zero_weights_and_zero_inputs_are_rounded_exactly(kind):
    weight_OI, moments_II = drawn(8)
    weight_OI[3] = 0
    moments_II[5], moments_II[:, 5] = 0, 0
    found = round_compensated(weight_OI, moments_II, NUMBER_FORMATS[kind])
    assert torch.isfinite(found.weight()).all()
    step = float(weight_OI.abs().max()) / 15
    assert float(found.weight()[3].abs().max()) < step
    unseen = round_compensated(weight_OI, torch.zeros_like(moments_II), NUMBER_FORMATS[kind])
    limit = 1.1 * (round_nearest(weight_OI, NUMBER_FORMATS[kind]).weight() - weight_OI).norm()
    assert (unseen.weight() - weight_OI).norm() <= limit


def test_inputs_that_are_not_finite_are_refused():
    weight_OI, moments_II = drawn(9)
    with pytest.raises(ModelError, match="not finite"):
        round_compensated(weight_OI, moments_II * torch.nan, NUMBER_FORMATS["nf4"])


def test_an_unknown_number_format_is_named():
    with pytest.raises(RecipeError, match="no number format `q4_2`"):
        NUMBER_FORMATS["q4_2"]


# Whole models ------------------------------------------------------------------------------------


@pytest.fixture
def student(make_model):
    return make_model(1, width=64, layers=3)


@pytest.fixture
def text():
    return torch.randint(0, 97, (18, 24), generator=torch.Generator().manual_seed(0))


def kl(model, other, input_ids_BT):
    with torch.no_grad():
        log_p, log_q = (m(input_ids_BT).logits.log_softmax(-1) for m in (model, other))
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


def test_a_model_rounded_with_calibration_is_closer_to_itself_on_other_text(student, text):
    away = {}
    for name, ids in (("nearest", None), ("compensated", text[:10])):
        rounded_model = copy.deepcopy(student)
        round_model(rounded_model, NUMBER_FORMATS["nf4"], ids)
        away[name] = kl(student, rounded_model, text[10:])
    assert away["compensated"] < 0.75 * away["nearest"]


@pytest.mark.parametrize("rows", [None, 2, 6])
def test_every_linear_layer_but_the_head_is_rounded_and_the_rest_unchanged(student, text, rows):
    before = {name: value.clone() for name, value in student.state_dict().items()}
    ids = None if rows is None else text[:rows]
    heard = Heard()
    with listening(heard):
        found = round_model(student, NUMBER_FORMATS["q4_0"], ids)
    assert found.keys() == roundable_linears(student).keys()
    assert "lm_head" not in found
    wanted = len(found) if rows is None else 3  # matrices, or blocks
    assert heard.steps() == [(done, wanted) for done in range(1, wanted + 1)]
    for name, value in student.state_dict().items():
        module = name.removesuffix(".weight")
        if module in found:
            assert torch.equal(value, found[module].weight())
            assert not torch.equal(value, before[name])
        else:
            assert torch.equal(value, before[name])


def test_how_text_is_split_into_rows_of_a_batch_changes_nothing(student, text):
    one, other = copy.deepcopy(student), copy.deepcopy(student)
    round_model(one, NUMBER_FORMATS["q8_0"], text[:7])
    round_model(other, NUMBER_FORMATS["q8_0"], text[:7].flip(0))
    assert kl(one, other, text) < 1e-4


def test_a_family_with_windows_of_attention_that_differ_by_layer_is_rounded(text):
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=97, hidden_size=64, intermediate_size=64, num_hidden_layers=2, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    model = Gemma3ForCausalLM(config).eval()
    before = copy.deepcopy(model)
    found = round_model(model, NUMBER_FORMATS["q8_0"], text[:4])
    assert len(found) == 14
    assert kl(before, model, text[:4]) < 1e-3
