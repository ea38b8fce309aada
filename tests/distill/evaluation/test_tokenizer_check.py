"""A runtime that reads text as other ids than the teacher's tokenizer is refused."""

import pytest

from attar.errors import ModelError
from distill.evaluation.tokenizer_check import CONVERSATION, check_probes, make_probes
from distill.runtimes.hugging_face import Transformers
from distill.runtimes.runtime import ModelSource

NO_EXAMPLES: list = []


@pytest.fixture
def runtime(make_model, tokenizer, tmp_path):
    make_model(0, vocabulary=320).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return Transformers(ModelSource(str(tmp_path)))


def test_the_same_tokenizer_passes_text_and_template(runtime, tokenizer):
    probes = make_probes(tokenizer, NO_EXAMPLES)
    assert probes["chats"][0]["messages"] == CONVERSATION
    assert check_probes(runtime, probes, "bf16") > 100


def test_one_other_id_is_an_error_with_its_place(runtime, tokenizer):
    probes = make_probes(tokenizer, NO_EXAMPLES)
    probes["texts"][0]["ids"][2] += 1
    with pytest.raises(ModelError, match=r"`bf16` reads .*Hello.* at place 2"):
        check_probes(runtime, probes, "bf16")


def test_a_missing_end_is_an_error(runtime, tokenizer):
    probes = make_probes(tokenizer, NO_EXAMPLES)
    probes["texts"][0]["ids"].append(5)
    with pytest.raises(ModelError, match="other ids"):
        check_probes(runtime, probes, "bf16")


def test_another_template_is_an_error(runtime, tokenizer):
    tokenizer.chat_template = tokenizer.chat_template.replace("\n", "\n\n")
    with pytest.raises(ModelError, match="a conversation by its chat template"):
        check_probes(runtime, make_probes(tokenizer, NO_EXAMPLES), "bf16")


def test_a_template_without_system_turns_is_asked_without_one(tokenizer):
    refusal = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    tokenizer.chat_template = refusal + tokenizer.chat_template
    assert make_probes(tokenizer, NO_EXAMPLES)["chats"][0]["messages"] == CONVERSATION[1:]


def test_a_tokenizer_without_template_has_no_conversation(bare_tokenizer):
    assert make_probes(bare_tokenizer, NO_EXAMPLES)["chats"] == []
