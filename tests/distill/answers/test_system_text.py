"""A system text before prompts that only the writer reads: where each template puts one."""

import numpy as np
import pytest

from attar.errors import DataError, RecipeError
from distill.answers.system_text import place_of, with_system
from tests.conftest import CHATML

SYSTEM = "Say it briefly."
USER = {"role": "user", "content": "light?"}
DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nA teacher says.<|im_end|>\n"
    "{% endif %}" + CHATML
)
WITHIN = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{% elif message['role'] == 'user' %}<|im_start|>[INST] {% if messages[0]['role'] == 'system' "
    "and loop.index0 < 2 %}<<SYS>>{{ messages[0]['content'] }}<</SYS>>\n\n{% endif %}"
    "{{ message['content'] }} [/INST]{% else %}{{ message['content'] }}<|im_end|>{% endif %}"
    "{% endfor %}"
)
NONE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('no system turn') }}{% endif %}{{ message['content'] }}{% endfor %}"
)
SILENT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
)


def prompt_of(tokenizer, *turns):
    text = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
    return np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)


@pytest.mark.parametrize("template", [CHATML, DEFAULT, WITHIN], ids=["chatml", "default", "within"])
def test_it_stands_where_the_template_puts_a_system_turn(template, tokenizer):
    tokenizer.chat_template = template
    place = place_of(tokenizer, SYSTEM)
    more = [USER, {"role": "assistant", "content": "falls"}, USER]
    for turns in ([USER], more):
        found = with_system(tokenizer, place, prompt_of(tokenizer, *turns))
        wanted = prompt_of(tokenizer, {"role": "system", "content": SYSTEM}, *turns)
        assert found.tolist() == wanted.tolist()


@pytest.mark.parametrize("template", [CHATML, DEFAULT, WITHIN], ids=["chatml", "default", "within"])
def test_a_prompt_with_a_system_text_of_its_own_keeps_it(template, tokenizer):
    tokenizer.chat_template = template
    own = prompt_of(tokenizer, {"role": "system", "content": "Another."}, USER)
    assert with_system(tokenizer, place_of(tokenizer, SYSTEM), own) is None


@pytest.mark.parametrize("template", [NONE, SILENT], ids=["refuses", "is silent"])
def test_a_template_without_system_turns_is_refused(template, tokenizer):
    tokenizer.chat_template = template
    with pytest.raises(RecipeError, match="shows no system turn; put the text into the prompts"):
        place_of(tokenizer, SYSTEM)


def test_without_a_template_it_stands_before_the_prompt(bare_tokenizer):
    prompt = np.asarray(bare_tokenizer("light?")["input_ids"], np.int32)
    found = with_system(bare_tokenizer, place_of(bare_tokenizer, SYSTEM), prompt)
    assert bare_tokenizer.decode(found) == f"{SYSTEM}\n\nlight?"


def test_ids_that_are_not_those_of_their_text_are_refused(bare_tokenizer):
    letters = [bare_tokenizer(letter)["input_ids"][0] for letter in "teacher"]
    with pytest.raises(DataError, match="makes other ids of 'teacher' than the prompt has"):
        with_system(bare_tokenizer, place_of(bare_tokenizer, SYSTEM), np.asarray(letters))
