"""A config.json that no model can have is told by its key, before a model is made of it."""

import json

import pytest
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from attar.errors import ModelError
from attar.models.config_check import check_config, check_values
from attar.models.loading import load_config, skeleton
from attar.models.task_heads import CAUSAL

WRONG = {
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads"),
    "no key-value heads": ({"num_key_value_heads": 0}, "num_key_value_heads"),
    "key-value heads that do not divide": ({"num_key_value_heads": 3}, "num_key_value_heads"),
    "ten million blocks": ({"num_hidden_layers": 10**7}, "num_hidden_layers"),
    "a negative number of blocks": ({"num_hidden_layers": -1}, "num_hidden_layers"),
    "a word for a number": ({"hidden_size": "wide"}, "hidden_size"),
    "a number as a word": ({"num_hidden_layers": "2"}, "num_hidden_layers"),
    "a truth for a number": ({"num_hidden_layers": True}, "num_hidden_layers"),
    "a list for a number": ({"vocab_size": [1]}, "vocab_size"),
    "an empty vocabulary": ({"vocab_size": 0}, "vocab_size"),
    "a huge vocabulary": ({"vocab_size": 10**12}, "vocab_size"),
    "more parameters than machines hold": (
        {"hidden_size": 2**20, "intermediate_size": 2**24}, "parameters",
    ),
    "a family that is not known": ({"model_type": "nosuch"}, "nosuch"),
    "no family": ({"model_type": None}, "config"),
    "no mapping": ({"rope_parameters": 3}, "config|rope"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG)
def test_a_config_that_cannot_be_is_told_in_one_line(make_model, tmp_path, change, words):
    make_model(0).config.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(ModelError, match=words) as caught:
        skeleton(load_config(str(tmp_path)), CAUSAL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "[" * 5000, '{"a": ' + "9" * 5001 + "}", "\x00"])
def test_a_file_that_is_no_config_is_told_in_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError) as caught:
        load_config(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_heads_that_do_not_divide_the_width_are_told(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "n_embd": 30, "n_head": 4, "vocab_size": 9})
    )
    with pytest.raises(ModelError, match="divisible"):
        skeleton(load_config(str(tmp_path)), CAUSAL)


def test_every_family_passes_with_its_defaults(full_product):
    """Sizes of families that name them otherwise, or block by block, are left to the family."""
    for family in sorted(CONFIG_MAPPING):
        try:
            config = AutoConfig.for_model(family)
            config.get_text_config()
        except Exception:  # some families have no defaults, or several texts
            continue
        check_config(config, family)
        check_values(config.to_dict(), family)
