"""Answers of each kind of server as they are documented, and everything about them that is wrong.

The texts are written out by hand, so that the doubles of tests/helpers are not their only witness.
"""

import copy
import json

import numpy as np
import pytest

from teachers.remote.openai import OpenAI
from teachers.remote.scored_prompt import BadAnswer
from teachers.remote.sglang import SGLang
from teachers.remote.vllm import VLLM

IDS = [5, 11, 7]
VLLM_ANSWER = {
    "choices": [
        {
            "index": 0,
            "text": "!",
            "prompt_logprobs": [
                None,
                {
                    "11": {"logprob": -3.0, "rank": 9, "decoded_token": ","},
                    "2": {"logprob": -0.5, "rank": 1, "decoded_token": " a"},
                    "3": {"logprob": -1.5, "rank": 2, "decoded_token": " b"},
                },
                {
                    "7": {"logprob": -0.25, "rank": 1, "decoded_token": "x"},
                    "4": {"logprob": -2.0, "rank": 2, "decoded_token": "y"},
                },
            ],
        }
    ]
}
SGLANG_ANSWER = [
    {
        "text": "",
        "meta_info": {
            "prompt_tokens": 3,
            "input_token_logprobs": [[None, 5, None], [-3.0, 11, ","], [-0.25, 7, "x"]],
            "input_top_logprobs": [
                None,
                [[-0.5, 2, " a"], [-1.5, 3, " b"]],
                [[-0.25, 7, "x"], [-2.0, 4, "y"]],
            ],
        },
    }
]
OPENAI_ANSWER = {
    "choices": [
        {
            "text": "...",
            "logprobs": {
                "tokens": ["token_id:5", "token_id:11", "token_id:7", "token_id:1"],
                "token_logprobs": [None, -3.0, -0.25, -0.1],
                "top_logprobs": [
                    None,
                    {"token_id:2": -0.5, "token_id:3": -1.5, "token_id:11": -3.0},
                    {"token_id:7": -0.25, "token_id:4": -2.0},
                    {"token_id:1": -0.1, "token_id:2": -3.0},
                ],
            },
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
}
ANSWERS = [(VLLM(), VLLM_ANSWER), (SGLang(), SGLANG_ANSWER), (OpenAI(), OPENAI_ANSWER)]


@pytest.mark.parametrize(("kind", "answer"), ANSWERS)
def test_an_answer_is_read(kind, answer):
    found = kind.read(json.loads(json.dumps(answer)), IDS, 2)
    assert found.ids_PK.tolist() == [[2, 3], [7, 4]]
    assert found.logprobs_PK.tolist() == [[-0.5, -1.5], [-0.25, -2.0]]
    assert found.own_P.tolist() == [-3.0, -0.25]
    assert found.logprobs_PK.dtype == np.float32


def test_requests_are_as_each_server_documents_them():
    assert VLLM().request(IDS, 4, "m", 1.0) == {
        "model": "m", "prompt": [IDS], "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 4,
    }  # fmt: skip
    assert SGLang().request(IDS, 4, "m", 0.5) == {
        "input_ids": [IDS], "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 4,
        "sampling_params": {"max_new_tokens": 0, "temperature": 0.5},
    }  # fmt: skip
    assert OpenAI().request(IDS, 4, "m", 1.0) == {
        "model": "m", "prompt": [IDS], "max_tokens": 1, "temperature": 1.0, "echo": True,
        "logprobs": 4, "return_tokens_as_token_ids": True,
    }  # fmt: skip


def put(answer, path, value):
    """A copy of an answer with another value at a path; ... removes it."""
    changed = copy.deepcopy(answer)
    here = changed
    for step in path[:-1]:
        here = here[step]
    if value is ...:
        del here[path[-1]]
    else:
        here[path[-1]] = value
    return changed


ROW, ABOUT = ("choices", 0, "prompt_logprobs"), (0, "meta_info")
LOGPROBS = ("choices", 0, "logprobs")
ONE = {"logprob": -0.5}
WRONG = [
    (0, ("choices",), [], "no `choices.0.prompt_logprobs`"),
    (0, ROW, None, "no `prompt_logprobs` of the text"),
    (0, ROW, [None, {"11": ONE}], "2 positions .* the text has 3"),
    (0, (*ROW, 1, "11"), ..., "lacks the text's own id 11"),
    (0, (*ROW, 2, "4"), ..., "position 2 has 1 entries, 2 were"),
    (0, (*ROW, 2, "9"), ONE, "position 2 lacks a likelier id|sum to"),
    (0, (*ROW, 1, "2", "logprob"), float("nan"), "NaN or above 0"),
    (0, (*ROW, 1, "2", "logprob"), 0.5, "NaN or above 0"),
    (0, (*ROW, 1, "11", "logprob"), float("nan"), "NaN or above 0"),
    (0, (*ROW, 1, "11", "logprob"), -0.6, "sum to|likelier"),
    (0, (*ROW, 1, "3", "logprob"), -0.1, "sum to 1.51"),
    (0, (*ROW, 1, "x"), ONE, "not entries by id"),
    (0, (*ROW, 1), [1], "not entries by id"),
    (0, (*ROW, 2, "4", "logprob"), ..., "not entries by id"),
    (1, (0,), {}, "no `meta_info`"),
    (1, (*ABOUT, "input_top_logprobs"), ..., "no `input_top_logprobs`"),
    (1, (*ABOUT, "input_top_logprobs"), [None, []], "2 positions"),
    (1, (*ABOUT, "input_token_logprobs", 1, 1), 12, "of other ids than were sent"),
    (1, (*ABOUT, "input_token_logprobs", 1, 0), None, r"not \[logprob, id, text\]"),
    (1, (*ABOUT, "input_token_logprobs", 1, 0), -0.1, "lacks a likelier id"),
    (1, (*ABOUT, "input_top_logprobs", 1, 1), [-0.5, 2, ""], "has 1 entries"),
    (1, (*ABOUT, "input_top_logprobs", 1, 1), [-0.5], r"not \[logprob, id, text\]"),
    (1, (*ABOUT, "input_top_logprobs", 1, 1, 1), -4, "an id below 0"),
    (2, LOGPROBS, None, "ignores `echo`"),
    (2, (*LOGPROBS, "tokens"), ["token_id:1"], "ignores `echo`"),
    (2, (*LOGPROBS, "tokens", 1), "token_id:12", "other ids than were sent"),
    (2, (*LOGPROBS, "tokens"), ["token_id:5", "token_id:11", "token_id:1"], "2 positions"),
    (2, (*LOGPROBS, "token_logprobs", 1), "low", "are not numbers"),
    (2, (*LOGPROBS, "top_logprobs", 1), None, "not numbers by token"),
    (2, (*LOGPROBS, "top_logprobs", 1, "word"), -4.0, "names the token 'word'"),
    (2, (*LOGPROBS, "top_logprobs", 2, "token_id:4"), ..., "has 1 entries"),
]


@pytest.mark.parametrize(("number", "path", "value", "words"), WRONG)
def test_what_was_not_asked_for_is_refused(number, path, value, words):
    kind, answer = ANSWERS[number]
    with pytest.raises(BadAnswer, match=words):
        kind.read(put(answer, path, value), IDS, 2)


def test_impossible_ids_are_minus_infinity_as_servers_write_it():
    answer = put(VLLM_ANSWER, (*ROW, 1, "11", "logprob"), -9999.0)
    assert VLLM().read(answer, IDS, 2).own_P[0] == -np.inf


def test_what_rounding_puts_above_0_is_0():
    answer = put(VLLM_ANSWER, (*ROW, 2), {"7": {"logprob": 5e-4}, "4": {"logprob": -9999.0}})
    found = VLLM().read(answer, IDS, 2)
    assert found.own_P[1] == 0
    assert found.logprobs_PK[1].tolist() == [0, -np.inf]


def test_tokens_by_strings_give_the_own_ids_alone():
    answer = put(OPENAI_ANSWER, (*LOGPROBS, "tokens"), ["a", ",", "x", "!"])
    found = OpenAI().read(answer, IDS, 2)
    assert found.ids_PK.shape == (2, 0)
    assert found.own_P.tolist() == [-3.0, -0.25]
    assert OpenAI().strings(answer, IDS) == [(11, ","), (7, "x")]


def test_what_llama_cpp_answers_to_echo_is_named():
    answer = {
        "choices": [{"text": " It", "index": 0, "logprobs": {"content": [{"id": 1, "token": "a"}]}}]
    }
    with pytest.raises(BadAnswer, match=r"llama\.cpp.*in this process instead"):
        OpenAI().read(answer, IDS, 2)


def paths_of(value, path=()):
    """Every place in an answer."""
    if path:
        yield path
    steps = value if isinstance(value, dict) else range(len(value) if type(value) is list else 0)
    for step in steps:
        one = value[step]
        yield from paths_of(one, (*path, step))


@pytest.mark.parametrize(("kind", "answer"), ANSWERS)
@pytest.mark.parametrize(
    "value", [..., None, [], {}, [None], "x", "", -1, 10**30, 1e300, float("nan"), True]
)
def test_no_value_at_any_place_is_a_bug(kind, answer, value):
    for path in paths_of(answer):
        try:
            found = kind.read(put(answer, path, value), IDS, 2)
        except BadAnswer:
            continue
        assert not np.isnan(found.logprobs_PK).any()
        assert not np.isnan(found.own_P).any()
        assert found.ids_PK.min(initial=0) >= 0


@pytest.mark.parametrize("kind", [VLLM(), SGLang(), OpenAI()])
@pytest.mark.parametrize("answer", [None, [], {}, "", 3, [[]], {"choices": [3]}, {"meta_info": 3}])
def test_no_answer_at_all_is_a_bug(kind, answer):
    with pytest.raises(BadAnswer):
        kind.read(answer, IDS, 2)
