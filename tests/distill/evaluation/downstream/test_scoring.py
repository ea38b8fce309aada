"""Tasks: likelihoods against their definition, and what counts as answered right."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, trainers

from attar.errors import DataError, RunError
from distill.evaluation.downstream.questions import (
    is_right_answer,
    questions_of,
)
from distill.evaluation.downstream.scoring import (
    generate_text,
    likelihoods,
    refusal,
    score_task,
    split_choice,
)
from tests.conftest import CHATML
from tests.helpers.asking import Runtime, task_of

FACTS = {
    "Q: two and two\nA:": "Add them. The answer is 4.",
    "Q: what falls on water\nA:": "Light falls. The answer is 17.",
    "Q: who learns\nA:": "The student does. The answer is 1,200.",
}


@pytest.fixture(scope="module")
def pupil(make_model, bytes_bpe):
    """A runtime whose model knows the facts by heart, as text and through the chat template."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_bpe, eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    texts = [f"{question} {answer}<|im_end|>" for question, answer in FACTS.items()]
    texts += [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": q}, {"role": "assistant", "content": a}], tokenize=False
        )
        for q, a in FACTS.items()
    ]
    ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in texts]
    model = make_model(1, width=64, vocabulary=320, spread=1.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        loss = sum(model(row, labels=row).loss for row in ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Runtime(model.eval(), tokenizer)


# Likelihood --------------------------------------------------------------------------------------


def test_likelihoods_are_sums_of_log_probabilities(pupil):
    """In float64, one text at a time, by the definition."""
    rows = [(pupil.encode("the student learns what " * n), n + 2) for n in range(1, 11)]
    sums, greedy = likelihoods(pupil, rows)
    for (ids, start), total, best in zip(rows, sums, greedy, strict=True):
        logprobs = pupil.logits(ids).double().log_softmax(-1)
        wanted = sum(float(logprobs[t - 1, ids[t]]) for t in range(start, len(ids)))
        assert total == pytest.approx(wanted, abs=1e-4)
        assert best == all(int(logprobs[t - 1].argmax()) == ids[t] for t in range(start, len(ids)))


@pytest.mark.parametrize("prompt", ["who says", "who says ", "who\n", "who says th", "über 四"])
@pytest.mark.parametrize("choice", ["the student", "what", " water", "."])
def test_prompt_and_choice_share_all_tokens(pupil, prompt, choice):
    """Nothing is lost where they meet: what counts spells at least the choice."""
    ids, start = split_choice(pupil, prompt, choice)
    text = pupil.decode(ids)
    assert text.endswith(choice)
    assert text.startswith(prompt)
    assert choice in pupil.decode(ids[start:])
    assert prompt.rstrip().startswith(pupil.decode(ids[:start]).rstrip("\ufffd"))


def test_a_token_across_the_border_counts_with_the_choice():
    """Some tokenizers have tokens of several words; lm-eval's cut alone would lose this choice."""
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=60, show_progress=False)
    tokenizer.train_from_iterator(["who says what light"] * 9, trainer)
    runtime = SimpleNamespace(encode=lambda text: tokenizer.encode(text).ids)
    ids, start = split_choice(runtime, "xx who says", "what light")
    assert len(ids) <= len(runtime.encode("xx who says")), "one token holds the choice and more"
    tokens = [tokenizer.id_to_token(i) for i in ids[start:]]
    assert "what light" in "".join(tokens)


@pytest.mark.parametrize("chat", [False, True])
def test_what_the_model_knows_is_chosen(pupil, write_rows, chat):
    answers = list(FACTS.values())
    rows = [{"query": q, "choices": answers, "gold": i} for i, q in enumerate(FACTS)]
    rows[1]["gold"] = 0  # a question whose key is wrong
    result = score_task(task_of(kind="multiple_choice", data=write_rows(rows), chat=chat), pupil)
    assert result.correct.tolist() == [True, False, True]
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.examples == 3


def test_long_choices_are_not_worse_when_normalised(pupil, write_rows):
    """A known answer against a single letter: per letter it wins, by the sum it loses."""
    known = FACTS["Q: who learns\nA:"]
    rows = [{"query": "Q: who learns\nA:", "choices": ["x", f"{known} {known}"], "gold": 1}]
    task = task_of(kind="multiple_choice", data=write_rows(rows))
    (asked,) = questions_of(task)[1]
    pairs = [split_choice(pupil, asked.prompt, choice) for choice in asked.choices]
    sums, letters = likelihoods(pupil, pairs)[0], np.array([len(c) for c in asked.choices])
    result = score_task(task, pupil)
    assert result.accuracy == (sums.argmax() == 1)
    assert result.accuracy_norm == ((sums / letters).argmax() == 1)
    assert result.accuracy < result.accuracy_norm


def test_cloze_is_what_the_model_would_say(pupil, write_rows):
    rows = [{"context": q, "continuation": a} for q, a in FACTS.items()]
    rows.append({"context": "Q: who learns\nA:", "continuation": "Nobody."})
    result = score_task(task_of(kind="cloze", data=write_rows(rows)), pupil)
    assert result.correct.tolist() == [True, True, True, False]
    assert result.accuracy_norm is None


def test_cloze_against_alternatives(pupil, write_rows):
    question, answer = next(iter(FACTS.items()))
    rows = [{"context": question, "continuation": answer, "alternatives": ["Nobody.", "Light."]}]
    task = task_of(kind="cloze", data=write_rows(rows))
    assert score_task(task, pupil).accuracy == 1.0
    rows[0]["continuation"], rows[0]["alternatives"] = "Nobody.", [answer]
    result = score_task(task_of(kind="cloze", data=write_rows(rows, "other.jsonl")), pupil)
    assert result.accuracy == 0.0


def test_a_prompt_too_long_for_the_model_loses_its_beginning(pupil, write_rows):
    question, answer = next(iter(FACTS.items()))
    wordy = "water " * 300 + question
    rows = [{"query": wordy, "choices": [answer, "Nobody."], "gold": 0}]
    result = score_task(task_of(kind="multiple_choice", data=write_rows(rows)), pupil)
    ids, start = split_choice(pupil, wordy, answer)
    cut = ids[-pupil.context :]
    assert likelihoods(pupil, [(ids, start)])[0] == pytest.approx(
        likelihoods(pupil, [(cut, start - len(ids) + len(cut))])[0]
    )
    assert result.examples == 1
    rows[0]["choices"][0] = "water " * 300
    with pytest.raises(DataError, match="does not fit"):
        score_task(task_of(kind="multiple_choice", data=write_rows(rows, "long.jsonl")), pupil)


# Generation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [False, True])
def test_what_is_generated_is_compared(pupil, write_rows, chat):
    rows = [{"prompt": q, "final": n} for q, n in zip(FACTS, ("4", "18", "1200"), strict=True)]
    result = score_task(
        task_of(kind="exact_match", data=write_rows(rows), chat=chat, new_tokens=40), pupil
    )
    assert result.correct.tolist() == [True, False, True]


def test_generation_ends_at_the_end_or_at_a_text(pupil):
    ids = pupil.encode("Q: two and two\nA:")
    assert generate_text(pupil, ids, 60, None, pupil.end_ids) == " Add them. The answer is 4."
    assert generate_text(pupil, ids, 60, " answer", pupil.end_ids) == " Add them. The"
    assert len(pupil.encode(generate_text(pupil, ids, 3, None, pupil.end_ids))) == 3


class GoesOn:
    """A runtime that answers and goes on with a question of its own, as base models do."""

    context, can_generate, end_ids = None, True, ()

    def __init__(self, pupil):
        self.encode, self.decode = pupil.encode, pupil.decode
        self.says = pupil.encode("\n\nIt is 4.\n\nQ: five and five\nA: 10" + " 10" * 40)

    def generate(self, ids, new, stop_ids=()):
        written = len(ids) - self.asked
        return self.says[written : written + new]


@pytest.mark.parametrize(("shots", "stop", "right"), [(0, None, True), (1, None, True),
                                                      (0, "never said", False)])  # fmt: skip
def test_an_answer_ends_where_the_next_question_would_begin(pupil, write_rows, shots, stop, right):
    rows = [{"prompt": "Q: two and two\nA:", "final": "4"}] * 2
    runtime = GoesOn(pupil)
    task = task_of(kind="exact_match", data=write_rows(rows), shots=shots, stop=stop, limit=1)
    prompt = "Q: two and two\nA: 4\n\n" * shots + "Q: two and two\nA:"
    runtime.asked = len(pupil.encode(prompt))
    assert score_task(task, runtime).correct.tolist() == [right]


@pytest.mark.parametrize(
    ("keys", "target", "text", "right"),
    [
        ({}, "7", "3 + 4 = 7.", True),
        ({}, "7", "7\n\nQ: 4+5=\nA: 9", True),  # the next question does not count
        ({}, "7", "\n\n7", True),
        ({"chat": True}, "7", "7\n\n9", False),
        ({"stop": ";"}, "7", "7; 9", True),
        ({}, "Light", "light.\nWater", True),
        ({"extract": r"re:is (\w+)"}, "It is light", "that is Light", True),
        ({}, "7", "", False),
    ],
)
def test_an_answer_is_judged_as_the_task_judges_it(keys, target, text, right):
    task = task_of(kind="exact_match", data="x", **keys)
    assert is_right_answer(task, target, text) is right


def test_what_only_scores_cannot_generate(pupil, write_rows):
    silent = Runtime(pupil.model, pupil.tokenizer)
    silent.can_generate = False
    data = write_rows([{"context": "a", "continuation": "b"}])
    assert refusal(task_of(kind="cloze", data=data), silent) is None
    generating = task_of(kind="exact_match", data=data, answer="continuation")
    with pytest.raises(RunError, match="only scores"):
        score_task(generating, silent)
