"""Prompts of held-out examples: where they end, and what a model writes after them."""

import numpy as np
import pytest

from distill.data.examples import Example
from distill.data.tokenize import IGNORE
from distill.evaluation.samples import (
    LONG_PROMPT,
    NEW_TOKENS,
    TEXT_PROMPT_TOKENS,
    held_out_prompts,
    prompt_of,
    split_text,
    write_samples,
)
from distill.runtimes.hugging_face import Transformers
from distill.runtimes.runtime import ModelSource
from tests.helpers.chatting import CHAT, tokenize_chat


class Held(list):
    """Examples in memory, each of the document of its number."""

    def __init__(self, examples, documents=None):
        super().__init__(examples)
        self.documents = np.asarray(documents or range(len(self)))


def example(ids, labels):
    return Example("", np.asarray(ids), np.asarray(labels))


def text(number, start=0):
    ids = list(range(start, start + number))
    return example(ids, [*ids[1:], IGNORE])


@pytest.fixture
def conversation(tokenizer):
    return example(*tokenize_chat(tokenizer, CHAT, 200))


def test_the_prompt_of_a_conversation_ends_where_the_assistant_begins(tokenizer, conversation):
    prompt = prompt_of(conversation)
    assert prompt.is_answer
    assert tokenizer.decode(prompt.ids) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(prompt.following) == "It is four.<|im_end|>"


def test_the_prompt_of_a_text_is_its_beginning():
    prompt = prompt_of(text(200))
    assert not prompt.is_answer
    assert prompt.ids == list(range(TEXT_PROMPT_TOKENS))
    assert len(prompt.following) == NEW_TOKENS
    assert prompt_of(text(2)).ids == [0]


def test_prompts_are_of_different_documents_and_the_longest_come_last():
    long = example(range(500), [*[IGNORE] * (LONG_PROMPT + 9), *range(500 - LONG_PROMPT - 9)])
    examples = Held([text(9, 1), text(9, 2), long, text(9, 3)], [0, 0, 1, 2])
    assert [prompt.ids[0] for prompt in held_out_prompts(examples)] == [1, 3, 0]
    assert len(held_out_prompts(examples, 2)) == 2


@pytest.fixture
def runtime(make_model, tokenizer, tmp_path):
    make_model(0, vocabulary=320).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return Transformers(ModelSource(str(tmp_path)))


def test_a_model_writes_after_the_prompt_and_stops_at_the_end_of_its_turn(runtime, conversation):
    prompt = prompt_of(conversation)
    ids = runtime.generate(prompt.ids, NEW_TOKENS)
    (free,) = write_samples(runtime, Held([conversation]), ())
    assert free["written"] == split_text(runtime, prompt.ids, ids)[1]
    assert free["prompt"].endswith("<|im_start|>assistant\n")
    assert not free["ended"]
    end = ids[5]
    (stopped,) = write_samples(runtime, Held([conversation]), (end,))
    assert stopped["ended"]
    before = ids[: ids.index(end)]
    assert stopped["written"] == split_text(runtime, prompt.ids, before)[1]
    (ended,) = write_samples(runtime, Held([conversation]), tuple(runtime.end_ids))
    assert ended["held_out"] == "It is four."


def test_a_model_writes_no_further_than_its_positions(runtime):
    (found,) = write_samples(runtime, Held([example([5] * 120, [IGNORE] * 119 + [5])]), ())
    assert found["written"]


def test_nothing_is_written_where_a_runtime_cannot_generate(runtime, conversation):
    runtime.can_generate = False
    assert write_samples(runtime, Held([conversation]), ()) is None


def test_a_character_between_prompt_and_answer_stays_whole(runtime, tokenizer):
    ids = tokenizer("see 四!")["input_ids"]
    for cut in range(1, len(ids)):
        before, after = split_text(runtime, ids[:cut], ids[cut:])
        assert before + after == "see 四!"
        assert "\ufffd" not in before + after
