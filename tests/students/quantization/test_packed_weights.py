"""Packed weights: `from_pretrained` reads exactly the weights that were rounded."""

import copy

import pytest
import torch

from attar.errors import ModelError
from attar.models.loading import load_causal_lm
from students.quantization.formats import NUMBER_FORMATS
from students.quantization.gptq import round_model, roundable_linears
from students.quantization.packed_weights import (
    dequantized_model,
    dequantized_weight,
    quantized_linears,
    quantized_model,
)
from students.tuning.adapters import load_base
from students.tuning.method import METHODS

pytestmark = pytest.mark.usefixtures("saved_models")


@pytest.fixture
def source(make_model, tmp_path):
    """A folder with a float32 student whose rows are whole blocks of bitsandbytes."""
    student = make_model(2, width=64, layers=2)
    student.save_pretrained(tmp_path / "student")
    return tmp_path / "student"


@pytest.fixture
def text():
    return torch.randint(0, 97, (6, 24), generator=torch.Generator().manual_seed(0))


def plain(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_a_saved_checkpoint_dequantises_to_the_weights_that_were_chosen(
    source, text, kind, tmp_path
):
    student = load_causal_lm(str(source), dtype=torch.float32)
    found = round_model(student, NUMBER_FORMATS[kind], text)
    quantized_model(source, found).save_pretrained(tmp_path / kind)
    read = quantized_linears(plain(tmp_path / kind))
    assert read.keys() == found.keys()
    for name, module in read.items():
        wanted_OI = found[name].weight()
        if kind != "int8":
            wanted_OI = wanted_OI.bfloat16()  # what bitsandbytes dequantises to beside bfloat16
        assert torch.allclose(dequantized_weight(module), wanted_OI, rtol=1e-6, atol=0), name


def test_other_weights_are_the_students_in_bfloat16(source, text, tmp_path):
    student = load_causal_lm(str(source), dtype=torch.float32)
    quantized_model(source, round_model(student, NUMBER_FORMATS["nf4"], text)).save_pretrained(
        tmp_path / "q"
    )
    read = plain(tmp_path / "q")
    mine = load_causal_lm(str(source), dtype=torch.bfloat16)
    assert torch.equal(read.lm_head.weight, mine.lm_head.weight)
    for name, value in mine.named_parameters():
        if "norm" in name:
            assert torch.equal(read.get_parameter(name), value), name


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_a_saved_checkpoint_answers_as_the_rounded_student_does(source, text, kind, tmp_path):
    student = load_causal_lm(str(source), dtype=torch.float32)
    found = round_model(student, NUMBER_FORMATS[kind], text)
    quantized_model(source, found).save_pretrained(tmp_path / kind)
    with torch.no_grad():
        mine_BTV = student(text).logits
        read_BTV = plain(tmp_path / kind)(text).logits.float()
    spread = float(mine_BTV.std())
    assert float((mine_BTV - read_BTV).abs().mean()) < 0.05 * spread


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_a_dequantised_student_computes_what_its_quantised_base_does(source, text, kind):
    base = load_causal_lm(str(source), dtype=torch.bfloat16, quantization=kind)
    student = load_causal_lm(str(source), dtype=torch.float32)
    found = dequantized_model(source, kind)
    before = {name: dequantized_weight(m).float() for name, m in quantized_linears(base).items()}
    assert before.keys() == roundable_linears(found).keys()
    for name, module in roundable_linears(found).items():
        assert torch.equal(module.weight, before[name])
        assert not torch.equal(module.weight, student.get_submodule(name).weight)
    assert torch.equal(found.lm_head.weight, student.lm_head.weight)
    with torch.no_grad():
        base_BTV, found_BTV = base(text).logits.float(), found(text).logits
        student_BTV = student(text).logits
    assert (found_BTV - base_BTV).abs().mean() < (student_BTV - base_BTV).abs().mean()


def test_a_student_that_is_not_quantised_is_itself(source):
    one, other = dequantized_model(source, "none"), load_causal_lm(str(source), dtype=torch.float32)
    for name, value in other.state_dict().items():
        assert torch.equal(one.state_dict()[name], value)


def test_a_dequantised_student_is_saved_as_a_plain_checkpoint(source, tmp_path):
    dequantized_model(source, "nf4").save_pretrained(tmp_path / "plain")
    assert getattr(plain(tmp_path / "plain").config, "quantization_config", None) is None


def test_layers_that_were_not_rounded_are_named(source, text):
    student = load_causal_lm(str(source), dtype=torch.float32)
    found = round_model(student, NUMBER_FORMATS["nf4"], None)
    missing = {name: one for name, one in found.items() if "down_proj" not in name}
    with pytest.raises(ModelError, match="down_proj"):
        quantized_model(source, missing)
    extra = {**found, "lm_head": copy.copy(found["model.layers.0.mlp.up_proj"])}
    with pytest.raises(ModelError, match="`lm_head`"):
        quantized_model(source, extra)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_an_evaluation_before_changes_no_gradient_of_an_adapter(kind, source):
    """Processors with bf16 instructions have a layout of 4-bit weights whose product has none."""
    ids_BT = torch.arange(24).view(2, 12)
    found = []
    for evaluated in (True, False):
        model = METHODS["qlora"](rank=2, base=kind).attach(load_base(source, kind), 0).eval()
        if evaluated:
            with torch.no_grad():
                model(input_ids=ids_BT)
        model(input_ids=ids_BT).logits.float().square().mean().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], msg=name)
        assert gradient.any() or "lora_A" in name  # whose B starts at 0
