"""The rounds of the students in the report: first against last, and curves."""

import pytest

from distill.report.rounds import TITLE, rounds_entry, rounds_section


def rounds(number, **more):
    return [
        {"round": n, "step": 2 * n, "answers": 4, "tokens": 10.0 + n, "ended": 0.5, "repeated": 0.1,
         "logprob": -2.0, "seconds": 1.0, **{k: v + n for k, v in more.items()}}
        for n in range(number)
    ]  # fmt: skip


def test_an_entry_has_the_first_rounds_and_the_last():
    found = rounds_entry(rounds(20, reverse_kl=1.0), seconds=40.0)
    assert (found["rounds"], found["answers"], found["writing"]) == (20, 80, 0.5)
    assert found["first"]["tokens"] == pytest.approx(10.5)
    assert found["last"]["reverse_kl"] == pytest.approx(19.5)
    assert found["curve"][3] == {"step": 6, "reverse_kl": 4.0}
    assert rounds_entry([], 40.0) is None


def test_the_section_shows_what_some_training_has():
    trainings = {
        "distill": {"rounds": rounds_entry(rounds(20, reverse_kl=1.0), 40.0)},
        "finetune": {"rounds": None},
    }
    section = rounds_section({"training": trainings})
    assert section.title == TITLE
    for text in ("20 (80 answers)", "1.500 → 19.500", "50%", "own KL", "<svg"):
        assert text in section.markup
    for text in ("reward", "finetune", "kept mass"):
        assert text not in section.markup
    assert rounds_section({"training": {"finetune": {"rounds": None}}}) is None
    assert rounds_section({}) is None


def test_a_number_that_only_some_rounds_have_is_their_mean():
    some = rounds(10)
    some[0]["top1"] = 0.25
    found = rounds_entry(some, 0.0)
    assert found["writing"] is None
    assert (found["first"].get("top1"), found["last"].get("top1")) == (0.25, None)
    markup = rounds_section({"training": {"a": {"rounds": found}}}).markup
    assert "25%" in markup


def test_rounds_without_answers_count_nothing():
    empty = {"round": 1, "step": 2, "answers": 0, "tokens": 0.0, "ended": 0.0, "repeated": 0.0}
    some = [*rounds(1), empty] * 10
    found = rounds_entry(some, 0.0)
    assert found["first"]["tokens"] == 10.0
    assert found["last"]["ended"] == 0.5
