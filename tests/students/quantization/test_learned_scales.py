"""Trainable scales: their initial values, what is trained, and that weights stay in the format."""

import copy

import pytest
import torch

from students.quantization.formats import NUMBER_FORMATS
from students.quantization.gptq import round_model, roundable_linears
from students.quantization.learned_scales import make_scales_trainable, store_learned_scales
from students.quantization.packed_weights import quantized_model


@pytest.fixture
def text():
    return torch.randint(0, 97, (12, 24), generator=torch.Generator().manual_seed(0))


def kl(teacher, student, input_ids_BT):
    with torch.no_grad():
        log_p = teacher(input_ids_BT).logits.log_softmax(-1)
    log_q = student(input_ids_BT).logits.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


@pytest.mark.parametrize("kind", ["nf4", "int8", "q4_0", "q4_1"])
def test_untrained_scales_give_and_store_the_rounded_student(make_model, text, kind):
    student = make_model(3, width=64, layers=2)
    found = round_model(student, NUMBER_FORMATS[kind], text)
    with torch.no_grad():
        before_BTV = student(text).logits
        make_scales_trainable(student, found)
        assert torch.allclose(student(text).logits, before_BTV, atol=1e-5)
    settled = store_learned_scales(student)
    assert settled.keys() == found.keys() == roundable_linears(student).keys()
    limit = 0.02 if kind == "nf4" else 0.0  # scales are quantised to 8 bits again
    for name, one in settled.items():
        away = (one.weight() - found[name].weight()).abs().max()
        assert float(away) <= limit * float(found[name].weight().abs().max())


def test_only_scales_and_unquantised_vectors_are_trained(make_model, text):
    student = make_model(3, width=64, layers=1, attention_bias=True)
    found = round_model(student, NUMBER_FORMATS["nf4"], None)
    learning = make_scales_trainable(student, found)
    names = {name for name, p in student.named_parameters() if p.requires_grad}
    assert len(names) == len(learning) == 7 + 3 + 4
    assert {name.rsplit(".", 1)[1] for name in names} == {"factor_K", "weight", "bias"}
    assert all("norm" in name for name in names if name.endswith("weight"))
    scales = sum(one.scales.scale_K.numel() for one in found.values())
    assert sum(p.numel() for n, p in student.named_parameters() if "factor" in n) == scales


def test_training_scales_brings_a_rounded_student_back_to_its_teacher(make_model, text, tmp_path):
    teacher = make_model(3, width=64, layers=2)
    student = copy.deepcopy(teacher)
    found = round_model(student, NUMBER_FORMATS["nf4"], None)
    start = float(kl(teacher, student, text).detach())
    optimizer = torch.optim.Adam(make_scales_trainable(student, found), lr=3e-3)
    for _ in range(25):
        optimizer.zero_grad()
        kl(teacher, student, text).backward()
        optimizer.step()
    settled = store_learned_scales(student)
    assert float(kl(teacher, student, text).detach()) < 0.6 * start
    for name, one in settled.items():
        assert torch.equal(student.get_submodule(name).weight, one.weight())
        assert torch.equal(one.codes_OI, found[name].codes_OI)
    student.save_pretrained(tmp_path / "student")  # norms learned too, so they are read from there
    quantized_model(tmp_path / "student", settled).save_pretrained(tmp_path / "nf4")
    from transformers import AutoModelForCausalLM

    read = AutoModelForCausalLM.from_pretrained(tmp_path / "nf4").eval()
    assert float(kl(teacher, read, text).detach()) < 0.75 * start
