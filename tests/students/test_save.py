"""Saving students: a cut records what was kept, and a checkpoint must reload."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification

from attar.errors import ModelError, RecipeError
from students.config import StudentConfig
from students.fresh import fresh_model
from students.save import check_reload, cut_student, save_cut, save_student

IDS = torch.randint(4, 300, (2, 10), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def student(make_model, tokenizer, tmp_path):
    """A folder with a student whose sizes are multiples of 4-bit blocks."""
    folder = tmp_path / "student"
    save_student(make_model(1, width=64, vocabulary=320), tokenizer, folder)
    return folder


def test_a_cut_records_what_was_kept(make_model, tokenizer, tmp_path):
    teacher = make_model(layers=3, vocabulary=320)
    config = StudentConfig.model_validate({"layers": {"keep": [0, 2]}})
    save_cut(*cut_student(teacher, [0, 2], config, None), tokenizer, tmp_path / "cut")
    pruning = json.loads((tmp_path / "cut" / "pruning.json").read_text())
    assert pruning.pop("teacher_sizes")["blocks"] == 3
    assert pruning == {
        "teacher_layers": 3,
        "kept": [0, 2],
        "by": "explicit",
        "layers": [0, 2, 3],
        "groups": None,
        "neurons": None,
        "channels": None,
        "refit": False,
    }
    assert len(AutoModelForCausalLM.from_pretrained(tmp_path / "cut").model.layers) == 2


def test_a_checkpoint_that_does_not_reload_is_an_error(make_model, student):
    with pytest.raises(ModelError, match="does not reload"):
        check_reload(make_model(2, width=64, vocabulary=320), student)


def test_last_bits_that_depend_on_memory_do_not_make_another_model(make_model, tokenizer, tmp_path):
    model = make_model(1, width=64, vocabulary=320)
    save_student(model, tokenizer, tmp_path / "it")
    moved = model.register_forward_hook(
        lambda _m, _i, output: setattr(output, "logits", output.logits * (1 + 3e-7))
    )
    check_reload(model, tmp_path / "it")
    moved.remove()


def test_one_bit_of_one_weight_makes_another_model(make_model, tokenizer, tmp_path):
    model = make_model(1, width=64, vocabulary=320)
    save_student(model, tokenizer, tmp_path / "it")
    with torch.no_grad():
        one = model.model.norm.weight[:1]
        one.copy_(torch.nextafter(one, torch.full_like(one, 9.0)))
    with pytest.raises(ModelError, match=r"same model \(model.norm.weight differs\)"):
        check_reload(model, tmp_path / "it")


def test_what_a_config_does_not_say_again_makes_another_model(make_model, tokenizer, tmp_path):
    model = make_model(1, width=64, vocabulary=320)
    save_student(model, tokenizer, tmp_path / "it")
    model.model.layers[0].self_attn.scaling *= 2
    with pytest.raises(ModelError, match="with the same weights its output is off by"):
        check_reload(model, tmp_path / "it")


@pytest.mark.parametrize("keep", [[0, 2], [1, 2]])
def test_a_healthy_classifier_is_cut_and_reloads(tokenizer, tmp_path, keep):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=320, hidden_size=256, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=512, num_labels=2,
    )  # fmt: skip
    teacher = BertForSequenceClassification(config).eval()
    cut = StudentConfig.model_validate({"layers": {"keep": keep}})
    save_cut(*cut_student(teacher, keep, cut, None), tokenizer, tmp_path / "cut")


def test_a_model_with_random_weights_takes_missing_keys_from_the_teachers_config(make_model):
    teacher = make_model(vocabulary=320)
    model = fresh_model({"num_hidden_layers": 1, "hidden_size": 16}, teacher.config, seed=0)
    assert model.config.vocab_size == 320
    assert model.config.num_hidden_layers == 1
    again = fresh_model({"num_hidden_layers": 1, "hidden_size": 16}, teacher.config, seed=0)
    assert torch.equal(model.lm_head.weight, again.lm_head.weight)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"num_hiden_layers": 1}, "num_hidden_layers"),
        ({"model_type": "lama"}, "does not make"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "does not make"),
    ],
)
def test_a_config_that_makes_no_model_is_refused(make_model, config, says):
    with pytest.raises(RecipeError, match=says):
        fresh_model(config, make_model().config, seed=0)
