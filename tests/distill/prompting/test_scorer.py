"""Scores and answers behind a shared prefix are those of whole prompts."""

import numpy as np
import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from distill.prompting.answer_tree import answer_tree, common_prefix
from distill.prompting.prompt import Prompt, Wording
from distill.prompting.scorer import PlainScorer
from distill.prompting.shared_prefix import SharedPrefixScorer, open_scorer
from distill.runtimes.hugging_face import Transformers
from distill.runtimes.runtime import ModelSource
from tests.helpers.prompting import class_question

ANSWERS = ("water", "water falls", "light on water", "l")
TEXTS = ["the student", "what the teacher says", "x", "learns what the teacher says and learns"]
SHOWN = tuple(class_question(text, i % 2) for i, text in enumerate(TEXTS[:3]))


def rows_of(runtime, chat=False):
    prompt = Prompt(Wording("say what it is", "Text: {text}\nClass:"), SHOWN, chat)
    return [prompt.rows(runtime, text, ANSWERS) for text in TEXTS]


def compare(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5, rtol=1e-5)
        np.testing.assert_array_equal(one.greedy, other.greedy)
        np.testing.assert_array_equal(one.lengths, other.lengths)


@pytest.mark.parametrize("chat", [False, True])
def test_scores_behind_a_shared_prefix_are_those_of_whole_prompts(runtime, chat):
    rows, plain = rows_of(runtime, chat), PlainScorer(runtime)
    shared = open_scorer(runtime, 3)
    assert isinstance(shared, SharedPrefixScorer)
    compare(shared.score(rows), plain.score(rows))
    assert shared.tokens_read < plain.tokens_read / 3


def test_questions_with_nothing_in_common_are_read_without_a_prefix(runtime):
    rows = [[([5, 6, 7, 8], 2), ([5, 6, 9], 2)], [([3, 2], 1)]]
    compare(SharedPrefixScorer(runtime, 8).score(rows), PlainScorer(runtime).score(rows))


def test_a_prompt_longer_than_the_context_loses_its_beginning_as_elsewhere(runtime):
    runtime.context = 40
    rows = rows_of(runtime)
    shared = SharedPrefixScorer(runtime, 8)
    assert max(len(ids) for question in rows for ids, _ in question) > 40
    compare(shared.score(rows), PlainScorer(runtime).score(rows))


@pytest.mark.parametrize("stop", [None, "e"])
def test_answers_behind_a_shared_prefix_are_those_of_one_at_a_time(runtime, stop):
    prompt = Prompt(Wording("say what it is", "Text: {text}\nClass:"), SHOWN)
    ids = [prompt.ids(runtime, text) for text in TEXTS]
    found = SharedPrefixScorer(runtime, 3).generate(ids, 12, stop)
    assert found == PlainScorer(runtime).generate(ids, 12, stop)
    assert len(set(found)) > 1


FAMILIES = {
    "learned positions": lambda size: GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=512)
    ),
    "positions from the mask": lambda size: BloomForCausalLM(
        BloomConfig(vocab_size=size, hidden_size=32, n_layer=2, n_head=4)
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_get_the_scores_of_whole_prompts(family, tokenizer, tmp_path):
    torch.manual_seed(0)
    FAMILIES[family](len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    runtime = Transformers(ModelSource(str(tmp_path), dtype="float32"))
    rows = rows_of(runtime)
    compare(open_scorer(runtime, 3).score(rows), PlainScorer(runtime).score(rows))


def test_windows_of_attention_are_read_plainly(runtime):
    runtime.model.config.sliding_window = 8
    assert isinstance(open_scorer(runtime, 3), PlainScorer)


# The tree ----------------------------------------------------------------------------------------


def test_a_tree_holds_each_shared_id_once_and_no_last_id():
    tree = answer_tree([([1, 2, 3, 4, 5], 3), ([1, 2, 3, 4, 6], 3), ([1, 2, 3, 7], 3)], 1)
    assert tree.ids.tolist() == [2, 3, 4]
    assert tree.depths.tolist() == [0, 1, 2]
    assert tree.sees.tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert tree.scored == [[(1, 4), (2, 5)], [(1, 4), (2, 6)], [(1, 7)]]


def test_the_common_prefix_is_limited():
    assert common_prefix([[1, 2, 3], [1, 2, 4], [1, 2]], 9) == 2
    assert common_prefix([[1, 2, 3], [1, 2, 3]], 1) == 1
    assert common_prefix([[2], [1, 2]], 4) == 0
