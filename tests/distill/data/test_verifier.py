"""The one rule by which written answers are right or not."""

import pytest
from pydantic import ValidationError

from distill.data.verifier import Verifier, extract, is_right, number_of, same_answer

EXTRACTED = [
    ("number", "It is 3, then 1,200.50 in all.", "1,200.50"),
    ("number", "5 - 8 = -3", "-3"),
    ("number", "none", None),
    ("line", "\n Paris \nis", " Paris "),
    (r"re:answer is (\w+)", "the answer is A, no, the answer is B", "B"),
    (r"re:[A-D]", "(C)", "C"),
]


@pytest.mark.parametrize(("rule", "text", "found"), EXTRACTED)
def test_answers_are_found_in_what_is_written(rule, text, found):
    assert extract(rule, text) == found


SAME = [
    ("$1,200", "1200.0", True), ("4.", "4", True), ("Paris.", " paris", True),
    ("4", "5", False), ("four", "4", False), (None, "4", False),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other", "same"), SAME)
def test_answers_are_equal_as_numbers_or_as_words(one, other, same):
    assert same_answer(one, other) is same


def test_what_is_no_number_is_text():
    assert number_of("18 eggs") is None
    assert number_of("-3.5") == -3.5


@pytest.mark.parametrize(
    ("keys", "target", "text", "right"),
    [
        ({}, "18", "9 + 9 = 18.", True),
        ({}, "9 + 9 = <<9+9=18>>18\n#### 18", "So it is $18", True),
        ({}, "9 + 9 = <<9+9=18>>18\n#### 18", "9 + 9 is 17", False),
        ({}, "18", "18\n\n19", False),  # the last number counts
        ({"stop": "\n\n"}, "18", "18\n\n19", True),
        ({"extract": "number"}, "There are 18 eggs", "18", True),
        ({"extract": r"re:\\boxed\{(.*)\}"}, r"so \boxed{x+1}", r"it is \boxed{x+1}", True),
        ({"extract": r"re:\\boxed\{(.*)\}"}, r"so \boxed{x+1}", "it is x+1", False),
        ({}, "Paris", "paris.\nIt lies on the Seine", True),
    ],
)
def test_right_is_what_the_rule_finds(keys, target, text, right):
    assert is_right(Verifier(**keys), target, text) is right


@pytest.mark.parametrize("rule", ["letter", "re:(", "re:(a)(b)"])
def test_a_rule_that_is_none_is_refused(rule):
    with pytest.raises(ValidationError, match=r"write|cannot be read"):
        Verifier(extract=rule)
