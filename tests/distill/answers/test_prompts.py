"""Prompts of training examples: what stands before the last reply, each once, with its answers."""

import pytest

from distill.answers.keep import Candidate
from distill.answers.prompts import prompts_of
from distill.answers.written_part import write_part
from distill.data.documents import Document, Piece
from distill.data.examples import Examples
from distill.data.held_out_prompts import (
    last_prompt,
    prompt_digest,
    prompt_text,
    read_held_out_prompts,
    write_held_out_prompts,
)
from distill.data.part_writer import PartWriter
from distill.data.placed import part_file
from distill.data.tokenize import shifted

MAX_LENGTH = 40


@pytest.fixture
def examples_of(tokenizer, tmp_path):
    """`examples_of(turns, ...)`: examples of turns, every second of which is a reply."""

    def make(*rows, part="train"):
        file = part_file(tmp_path, part)
        writer = PartWriter(file, None)
        for number, turns in enumerate(rows):
            ids, answered = [], []
            for i, turn in enumerate(turns):
                own = tokenizer(turn)["input_ids"] + ([tokenizer.eos_token_id] if i % 2 else [])
                ids, answered = [*ids, *own], [*answered, *[bool(i % 2)] * len(own)]
            ids, labels, _ = shifted(ids, answered, MAX_LENGTH)
            writer.add(number, Document(f"row {number}", [Piece(ids, labels, None, 0.0, 1.0)]))
        writer.close()
        return Examples(file)

    return make


def prompts(examples, tokenizer, held_out=frozenset()):
    return prompts_of(examples, tokenizer, held_out, MAX_LENGTH)


def test_a_prompt_is_all_that_stands_before_the_last_reply(examples_of, tokenizer):
    (found,) = prompts(examples_of(["light?", "falls", "water?", "rests"]), tokenizer)
    text = tokenizer.decode(found.ids)
    assert text.endswith("water?")
    assert "falls" in text
    assert found.targets == ["rests"]


def test_a_prompt_that_stands_twice_is_one_with_both_answers(examples_of, tokenizer):
    rows = (["light?", "falls"], ["water?", "rests"], ["light?", "shines"])
    first, second = prompts(examples_of(*rows), tokenizer)
    assert (first.targets, second.targets) == (["falls", "shines"], ["rests"])
    assert (first.document, first.text, second.document) == (0, "row 0", 1)


def test_an_answer_that_may_have_been_cut_is_no_target(examples_of, tokenizer):
    (found,) = prompts(examples_of(["light?", "falls " * 30]), tokenizer)
    assert found.targets == []


def test_held_out_prompts_are_known_by_their_words_alone(examples_of, tokenizer, tmp_path):
    examples_of(["What  is light?", "falls"], part="held_out")
    write_held_out_prompts(tmp_path, tokenizer)
    held_out = read_held_out_prompts(tmp_path)
    rows = (["what is Light", "falls"], ["what is water?", "rests"])
    assert [one.held_out for one in prompts(examples_of(*rows), tokenizer, held_out)] == [
        True,
        False,
    ]
    assert "light" not in (tmp_path / "held_out_prompts.json").read_text()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("2 + 2 = ?", "2 + 2 =", True), ("2+2", "2-2", False), ("Who, then?", "who then", True),
     ("10", "1 0", False)],
)  # fmt: skip
def test_marks_behind_words_do_not_matter_and_operators_do(one, other, same):
    assert (prompt_digest(one) == prompt_digest(other)) is same


def test_special_tokens_of_a_template_are_no_words(tokenizer):
    ids = tokenizer("<|im_start|>light<|im_end|>")["input_ids"]
    assert prompt_text(tokenizer, ids) == "light"


def test_the_written_part_keeps_the_documents_of_the_prompts(examples_of, tokenizer, tmp_path):
    found = prompts(examples_of(["light?", "falls"], ["water?", "rests"]), tokenizer)
    kept = [Candidate(1, 0, (7, 8), True, "x"), Candidate(1, 2, (9,), True, "y")]
    numbers = write_part(tmp_path / "written.arrow", found, kept, MAX_LENGTH)
    written = Examples(tmp_path / "written.arrow")
    assert numbers == {"examples": 2, "tokens": 3}
    assert written.documents.tolist() == [1, 1]
    assert written.row_texts == ["row 1", "row 1"]
    assert [one.counted_labels.tolist() for one in written] == [[7, 8], [9]]
    assert all((last_prompt(one) == found[1].ids).all() for one in written)
