"""Where generation ends: the learned end of a turn, and no id that means something else."""

import json
import shutil

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from attar.models.generation import end_as_taught, end_ids, end_of_turn, generation_settings
from attar.models.tokenizers import load_tokenizer
from tests.helpers.families import tiny_config, tiny_family_model

END_OF_TEXT, END_OF_TURN = 0, 2  # ids of <|endoftext|> and <|im_end|>


def test_the_end_of_a_turn_is_read_from_the_template(tokenizer, bare_tokenizer):
    assert end_of_turn(tokenizer) == END_OF_TURN
    assert end_of_turn(bare_tokenizer) is None
    tokenizer.eos_token = "<|endoftext|>"  # as base models have it, with a template for chat
    assert end_ids(tokenizer) == [END_OF_TURN, END_OF_TEXT]


def test_a_template_that_refuses_these_turns_ends_as_the_tokenizer_does(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('another order') }}"
    assert end_of_turn(tokenizer) is None
    assert end_ids(tokenizer) == [END_OF_TURN]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mpt", "opt"])
def test_a_student_of_another_model_ends_where_its_teacher_does(name, tokenizer, tmp_path):
    """Its own end, an ordinary token here, is gone from config and settings, and stays away."""
    student = tiny_family_model(tiny_config(name))
    student.config.eos_token_id = student.generation_config.eos_token_id = 77
    teacher = GenerationConfig(eos_token_id=[END_OF_TEXT, 3])
    end_as_taught(student, tokenizer, [tiny_config("llama"), teacher])
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    wanted = [END_OF_TURN, END_OF_TEXT, 3]
    assert again.generation_config.eos_token_id == again.config.eos_token_id == wanted


def test_settings_of_a_folder_without_any(tmp_path):
    assert generation_settings(str(tmp_path)) is None


def test_no_ordinary_token_becomes_the_padding(bytes_bpe, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "from")
    settings = json.loads((tmp_path / "from/tokenizer_config.json").read_text())
    settings = {k: v for k, v in settings.items() if k not in ("eos_token", "pad_token")}
    (tmp_path / "from/tokenizer_config.json").write_text(json.dumps(settings))
    found = load_tokenizer(str(tmp_path / "from"))
    found.save_pretrained(tmp_path / "shipped")
    shipped = AutoTokenizer.from_pretrained(tmp_path / "shipped")
    assert shipped.pad_token is None
    shutil.rmtree(tmp_path / "shipped")
