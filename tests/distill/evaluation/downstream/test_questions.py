"""Questions of tasks: files are read as they are, and what does not fit is found before work."""

import importlib.util

import pytest

from attar.errors import DataError, RecipeError
from distill.evaluation.downstream.questions import check_tasks, questions_of, task_stamp
from distill.evaluation.downstream.scoring import prompt_text
from tests.helpers.asking import task_of

SENTIMENT = {"prompt": "{text}\nSentiment:", "choices": ["negative", "positive"]}
FILES = {
    "mcq/arc_easy": ("multiple_choice", {}, "Sunlight is the source of energy for nearly all eco"),
    "mcq/boolq_1000": ("multiple_choice", {}, None),
    "mcq/copa": ("multiple_choice", {}, "water flowed from the spout."),
    "mcq/openbookqa": ("multiple_choice", {}, "quit eating lunch out"),
    "mcq/truthfulqa_mc1": ("multiple_choice", {}, "The watermelon seeds pass through"),
    "mcq/lambada": ("cloze", {}, "signs"),
    "mcq/svamp": ("exact_match", {}, "1"),
    "gsm8k/test": ("exact_match", {}, "18"),
    "sst2/test": ("multiple_choice", SENTIMENT, "negative"),
    "banking77/test": ("exact_match", {"answer": "category"}, "card_arrival"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_read_as_they_are(shared_data, name):
    kind, keys, target = FILES[name]
    task = task_of(kind=kind, data=str(shared_data(f"{name}.jsonl.gz")), **keys)
    shown, asked = questions_of(task)
    assert shown == []
    assert len(asked) >= 100
    assert target is None or asked[0].target.startswith(target)


ROWS = [{"query": f"q{i}", "choices": ["a", "b", "c"], "gold": i % 3} for i in range(10)]


@pytest.mark.parametrize("gold", [1, 1.0, "1", "B", "b", "right", True])
def test_the_right_choice_is_named_in_many_ways(write_rows, gold):
    row = {"question": "?", "choices": ["wrong", "right"], "answer": gold}
    (asked,) = questions_of(task_of(kind="multiple_choice", data=write_rows([row])))[1]
    assert asked.target == "right"


def test_the_layouts_of_arc_and_hellaswag_are_known(write_rows):
    arc = {"question": "?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "1"}
    swag = {"ctx": "?", "endings": ["x", "y"], "label": "0"}
    for row in (arc, swag):
        (asked,) = questions_of(task_of(kind="multiple_choice", data=write_rows([row])))[1]
        assert asked.target == "x"


def test_what_is_shown_is_not_asked(write_rows):
    task = task_of(kind="multiple_choice", data=write_rows(ROWS), shots=2)
    shown, asked = questions_of(task)
    assert [q.prompt for q in shown] == ["q0", "q1"]
    assert [q.prompt for q in asked] == [f"q{i}" for i in range(2, 10)]
    assert prompt_text(shown, asked[0]) == "q0 a\n\nq1 b\n\nq2"


def test_what_is_shown_may_come_from_another_file(write_rows):
    other = write_rows([{"query": "x", "choices": ["a", "b"], "gold": 0}], "other.jsonl")
    task = task_of(kind="multiple_choice", data=write_rows(ROWS), shots=1, shots_data=other)
    shown, asked = questions_of(task)
    assert [q.prompt for q in shown] == ["x"]
    assert len(asked) == 10


def test_a_limit_takes_questions_from_the_whole_file(write_rows):
    """Files are often sorted by class."""
    asked = questions_of(task_of(kind="multiple_choice", data=write_rows(ROWS), limit=4))[1]
    assert [q.prompt for q in asked] == ["q0", "q3", "q6", "q9"]


def test_examples_show_the_worked_answer_and_the_end_is_compared(write_rows):
    row = {"question": "?", "answer": "2 + 2 = 4\n#### 4"}
    shown, asked = questions_of(task_of(kind="exact_match", data=write_rows([row] * 2), shots=1))
    assert shown[0].shown == row["answer"]
    assert asked[0].target == "4"


# Refused -----------------------------------------------------------------------------------------


BAD_ROWS = {
    "no question": ([{"a": 1}], {}, "holds the question.*Name it with `prompt`"),
    "empty question": ([{"query": " ", "choices": ["a", "b"], "gold": 0}], {}, "row 0 .* is empty"),
    "no choices": ([{"query": "q", "gold": 0}], {}, "holds the choices.*Name it with `choices`"),
    "one choice": ([{"query": "q", "choices": ["a"], "gold": 0}], {}, "two or more"),
    "which one": ([{"query": "q", "choices": ["a", "b"], "gold": 2}], {}, "none of its 2 choices"),
    "misspelt": (ROWS, {"answer": "golds"}, r"no column `golds`.*`gold`"),
    "template": (ROWS, {"prompt": "{queri}"}, r"no column `queri`.*`query`"),
    "few rows": (ROWS, {"shots": 10}, "needs more rows"),
}


@pytest.mark.parametrize(("rows", "keys", "says"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_files_that_do_not_fit_are_found_before_work(write_rows, rows, keys, says):
    with pytest.raises(DataError, match=says):
        check_tasks([task_of(kind="multiple_choice", data=write_rows(rows), **keys)], True)


BAD_KEYS = {
    "kind": ({"kind": "mutliple_choice", "data": "x"}, "multiple_choice"),
    "key": ({"kind": "cloze", "data": "x", "alternative": "x"}, "Did you mean `alternatives`"),
    "rule": ({"kind": "exact_match", "data": "x", "extract": "re:("}, "cannot be read"),
    "shots": ({"kind": "cloze", "data": "x", "shots_data": "y"}, "no effect"),
    "template": ({"kind": "cloze", "data": "x", "prompt": "{"}, "not a template"),
    "one choice": ({"kind": "multiple_choice", "data": "x", "choices": ["a"]}, "two choices"),
}


@pytest.mark.parametrize(("keys", "says"), BAD_KEYS.values(), ids=BAD_KEYS.keys())
def test_keys_that_make_no_sense_are_refused(keys, says):
    with pytest.raises(RecipeError, match=says):
        task_of(**keys)


def test_what_cannot_be_asked_is_refused(write_rows):
    cloze = task_of(kind="cloze", data=write_rows([{"context": "a", "continuation": "b"}]))
    with pytest.raises(RecipeError, match="two tasks"):
        check_tasks([cloze, cloze], True)
    with pytest.raises(RecipeError, match="chat template"):
        check_tasks([cloze.model_copy(update={"chat": True})], False)
    with pytest.raises(DataError, match=r"no file or folder .*row\.jsonl"):
        check_tasks([task_of(kind="cloze", data=cloze.data.replace("rows", "row"))], True)


def test_an_edited_file_is_noticed(write_rows):
    task = task_of(kind="cloze", data=write_rows([{"context": "a", "continuation": "b"}]))
    before = task_stamp([task])
    write_rows([{"context": "a", "continuation": "other"}])
    assert task_stamp([task]) != before


# lm-eval -----------------------------------------------------------------------------------------


HARNESS = importlib.util.find_spec("lm_eval") is not None


@pytest.mark.skipif(HARNESS, reason="lm-eval is installed")
def test_without_lm_eval_its_extra_is_named():
    with pytest.raises(RecipeError, match=r"attar\[eval\]"):
        check_tasks([task_of(kind="lm_eval", tasks=["arc_easy"])], True)
