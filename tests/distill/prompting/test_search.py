"""The search: which candidates there are, who wins, what it may not read, and that it repeats."""

import random
from dataclasses import replace

import numpy as np
import pytest

from distill.prompting.asking import Asker
from distill.prompting.calibration import calibrated
from distill.prompting.candidate import Candidate, candidates_of, ways_of
from distill.prompting.config import PromptConfig
from distill.prompting.demonstrations import Demonstrations
from distill.prompting.halving import halve, rung_sizes
from distill.prompting.prompt import Wording
from distill.prompting.question_set import QuestionPart
from distill.prompting.search import choose_prompt, dev_of, prepare_asker
from distill.prompting.shared_prefix import open_scorer
from distill.prompting.wordings import wordings_of
from tests.helpers.prompting import class_question, question_set

CONFIG = PromptConfig(shots=[0, 2], sets=2, candidates=8, dev=18)


# Calibration -------------------------------------------------------------------------------------


def test_calibrating_divides_by_the_probabilities_without_content():
    sums_NC, free_1C = (
        np.array([[-3.0, -1.5, -9.0], [-2.0, -2.5, -2.2]]),
        np.array([[-4.0, -1.0, -5.0]]),
    )
    for row, logprobs in zip(sums_NC, calibrated(sums_NC, free_1C), strict=True):
        p, free = np.exp(row) / np.exp(row).sum(), np.exp(free_1C[0]) / np.exp(free_1C[0]).sum()
        q = np.diag(1 / free) @ p  # W p of the paper, then made to sum to 1
        np.testing.assert_allclose(np.exp(logprobs), q / q.sum(), rtol=1e-12)


def test_a_text_without_content_is_calibrated_to_equal_classes():
    sums = np.array([[-3.0, -1.5, -9.0]])
    np.testing.assert_allclose(np.exp(calibrated(sums, sums)), 1 / 3)


# Halving -----------------------------------------------------------------------------------------


def measure_of(right):
    """A measure by whether each candidate has each question right, (candidates, questions)."""

    def measure(number, size):
        own = right[number, :size]
        return own, np.where(own, 0.1, 2.0), np.full(size, 10.0 + number)

    return measure


@pytest.mark.parametrize("planted", [0, 7, 19])
def test_halving_keeps_a_clear_best(planted):
    dice = np.random.default_rng(planted)
    right = dice.random((20, 180)) < 0.5
    right[planted] = dice.random(180) < 0.95
    rungs = halve(20, 180, measure_of(right))
    assert [rung.questions for rung in rungs] == [20, 60, 180]
    assert rungs[-1].standings[0].number == planted
    assert sum(len(rung.standings) for rung in rungs) < 40


def test_a_tie_goes_to_the_prompt_with_fewer_tokens():
    rungs = halve(3, 30, measure_of(np.ones((3, 30), bool)))
    assert rungs[-1].standings[0].number == 0


def test_groups_go_on_together_and_some_always():
    right = np.zeros((12, 90), bool)
    right[4] = True
    rungs = halve(12, 90, measure_of(right), [i // 2 for i in range(12)], (0,))
    last = {one.number for one in rungs[-1].standings}
    assert {4, 5, 0, 1} <= last
    assert len(last) < 12


def test_few_questions_or_candidates_make_fewer_rungs():
    assert rung_sizes(9, 20) == [8, 9]
    assert rung_sizes(180, 2) == [180]


# Candidates --------------------------------------------------------------------------------------


def test_the_first_candidate_has_no_demonstrations():
    wordings = wordings_of("classes", ("a", "b"), None, (), is_filled=False)
    for most in (1, 2, 8, 100):
        config = CONFIG.model_copy(update={"candidates": most})
        found = candidates_of(config, "classes", wordings, ["balanced", "nearest"], 0)
        assert found[0] == Candidate(wordings[0])
        assert len({one.read for one in found}) <= most
        assert len(set(found)) == len(found)


def test_the_zero_shot_prompt_is_compared_even_where_shots_leave_it_out():
    config = CONFIG.model_copy(update={"shots": [2]})
    assert candidates_of(config, "classes", [Wording()], ["balanced"], 0)[0].shots == 0


def test_many_classes_are_not_listed_and_own_instructions_replace_the_shipped():
    names = [f"class {i}" for i in range(40)]
    shipped = wordings_of("classes", names, None, (), is_filled=False)
    assert not any("class 3" in one.instruction for one in shipped)
    own = wordings_of("classes", ("a", "b"), ["Say it."], ["Written."], is_filled=True)
    assert [one.instruction for one in own] == ["Say it.", "Written."]
    assert {one.wrapping for one in own} == {"{text}"}


def test_nearest_is_tried_where_there_are_vectors():
    assert ways_of(CONFIG, "classes", True) == ["balanced", "nearest"]
    assert ways_of(CONFIG, "generation", False) == ["random"]


# Demonstrations ----------------------------------------------------------------------------------


def demonstrations(pool):
    letters = "aehlnst w"

    def vectors(texts):
        return np.array([[text.count(letter) for letter in letters] for text in texts], float)

    return Demonstrations(
        pool, 3, vectors, lambda some: np.array([len(one.prompt) for one in some])
    )


def test_balanced_demonstrations_take_turns_and_larger_sets_hold_smaller_ones():
    pool = [class_question(f"text {i}", int(i > 3)) for i in range(20)]
    shown = demonstrations(pool)
    for draw in range(3):
        four, eight = (shown.fixed("balanced", number, draw) for number in (4, 8))
        assert sorted(one.right for one in four) == [0, 0, 1, 1]
        assert eight[:4] == four
    assert shown.fixed("random", 6, 0) != shown.fixed("random", 6, 1)


def test_demonstrations_do_not_depend_on_the_order_of_the_pool():
    pool = [class_question(f"the text {i} of water", i % 2) for i in range(20)]
    mixed = random.Random(1).sample(pool, len(pool))
    asked = [class_question("a text of light", 0)]
    for way in ("random", "balanced", "hardest"):
        assert demonstrations(pool).fixed(way, 5, 1) == demonstrations(mixed).fixed(way, 5, 1)
    assert demonstrations(pool).nearest(asked, 3) == demonstrations(mixed).nearest(asked, 3)


def test_the_nearest_stands_last_and_a_question_is_never_shown_before_itself():
    pool = [class_question(text, 0) for text in ("eee", "eeh", "www", "sss", "hhh")]
    (shown,) = demonstrations(pool).nearest([class_question("eee", 0)], 2)
    assert shown[-1].prompt == "eeh"
    assert "eee" not in {one.prompt for one in shown}


# The whole search --------------------------------------------------------------------------------


def search(runtime, questions, config=CONFIG, seed=5):
    wordings = wordings_of("classes", questions.words, None, (), is_filled=False)
    scorer = open_scorer(runtime, 4)
    asker = prepare_asker(
        runtime, scorer, questions, config, wordings[:2], seed, calibrates=True
    )  # fmt: skip
    dev = dev_of(questions, config, seed)
    return choose_prompt(asker, dev, config, wordings[:2], seed, search=True), asker


def test_a_search_repeats_and_the_order_of_questions_does_not_matter(runtime):
    questions = question_set()
    found, _ = search(runtime, questions)
    dice = random.Random(4)

    def mixed(part):
        order = dice.sample(range(len(part)), len(part))
        return part.some(order)

    other = replace(questions, train=mixed(questions.train), dev=mixed(questions.dev))
    for again in (search(runtime, questions)[0], search(runtime, other)[0]):
        assert again.winner == found.winner
        assert again.rungs == found.rungs
        assert again.tokens == found.tokens


def test_answers_do_not_depend_on_what_else_is_asked(runtime):
    questions = question_set()
    _, asker = search(runtime, questions)
    for candidate in (Candidate(Wording("", "{text}\nLabel:"), 3, "balanced", 0, True),
                      Candidate(Wording("", "{text}\nLabel:"), 2, "nearest", 0, True)):  # fmt: skip
        asked = questions.unseen.questions
        together = asker.ask(candidate, asked)
        asker.forget(candidate)
        order = [7, 2, 11, 0]
        alone = asker.ask(candidate, [asked[i] for i in order])
        np.testing.assert_array_equal(alone.correct, together.correct[order])
        np.testing.assert_allclose(alone.nll, together.nll[order], atol=1e-5)


def test_demonstrations_are_of_the_training_part_alone(runtime, monkeypatch):
    questions = question_set()
    train = {one.prompt for one in questions.train.questions}
    seen = set()
    prompts = Asker.prompts

    def watched(self, candidate, asked):
        found = prompts(self, candidate, asked)
        seen.update(one.prompt for prompt in found for one in prompt.shown)
        return found

    monkeypatch.setattr(Asker, "prompts", watched)
    config = CONFIG.model_copy(update={"demonstrations": ["random", "nearest", "hardest"]})
    found, asker = search(runtime, questions, config)
    asker.ask(found.candidates[-1], questions.unseen.questions)
    assert seen
    assert seen <= train


def test_a_part_keeps_its_numbers():
    part = QuestionPart(question_set().dev.questions, np.arange(18) * 3, np.arange(18) + 1)
    some = part.some([4, 2])
    assert some.example.tolist() == [12, 6]
    assert some.document.tolist() == [5, 3]
