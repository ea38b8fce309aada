"""Which tokens of two sides cover which bytes."""

import numpy as np
import pytest

from attar.errors import DataError
from attar.models.token_bytes import TokenBytes
from distill.data.config import DataConfig
from distill.data.examples import Examples
from distill.data.paired_texts import Passages, parts_of, passages_of, window_of
from distill.data.prepare import prepare
from distill.data.teacher_texts import prepare_teacher_texts
from distill.evaluation.same_text import SLACK_BYTES, HeldOut, write_same_text
from tests.helpers.preparing import write_jsonl
from tests.helpers.two_tokenizers import (
    other_tokenizer,
    read_by,
    teacher_texts,
    tokenizer_without_tab,
)

LONG = "light falls on water, nobody says what the teacher learns " * 4
CHAT = [
    {"role": "user", "content": "what falls?"},
    {"role": "assistant", "content": "light falls on water"},
    {"role": "user", "content": "who says \U0001f600?"},
    {"role": "assistant", "content": "nobody \U0001f600 says"},
]


def pair(rows, teacher, student, **keys):
    sides = TokenBytes(teacher, "one"), TokenBytes(student, "two")
    both = (read_by(tokenizer, rows, **keys) for tokenizer in (teacher, student))
    return [
        passage
        for i, (its, own) in enumerate(zip(*both, strict=True))
        for passage in passages_of(i, its, own, *sides, student)
    ]


def bytes_covered(side, tokenizer):
    known = TokenBytes(tokenizer, "it").bytes_of
    return b"".join(known[i] for i in side.ids)


def test_windows_of_a_document_are_one_passage(tokenizer):
    (passage,) = pair([{"text": LONG}], tokenizer, other_tokenizer())
    assert passage.bytes == LONG.encode()
    for side, its in ((passage.teacher, tokenizer), (passage.student, other_tokenizer())):
        assert bytes_covered(side, its) == LONG.encode()
        assert side.ends[-1] == len(LONG) == side.starts[-1]  # the end of the text
        assert side.examples[0] == -1
        assert (side.examples[1:] >= 0).all()
        counts = np.bincount(side.examples[1:])
        assert [p for n in counts for p in range(n)] == side.places[1:].tolist()


def test_a_character_without_an_id_costs_its_own_token_alone(tokenizer):
    student, text = tokenizer_without_tab(), "light falls\ton water"
    (passage,) = pair([{"text": text}], tokenizer, student)
    assert passage.bytes == text.encode()
    own, known = passage.student, TokenBytes(student, "it")
    pieces = [text[a:b] for a, b in zip(own.starts, own.ends, strict=True)]
    assert pieces[own.ids.tolist().index(known.unknown)] == "\t"
    for piece, i in zip(pieces, own.ids.tolist(), strict=True):
        assert i in known.special or piece.encode() == known.bytes_of[i]


def test_each_answer_of_a_chat_is_a_passage_whatever_its_template(tokenizer):
    found = pair([{"messages": CHAT}], tokenizer, other_tokenizer(), max_length=96)
    answers = [one["content"].encode() for one in CHAT if one["role"] == "assistant"]
    assert [passage.bytes for passage in found] == answers
    for passage in found:
        assert passage.teacher.ends_answer
        assert passage.student.ends_answer
        assert passage.teacher.ids[-1] == tokenizer.eos_token_id
        assert passage.student.ids[-1] == other_tokenizer().eos_token_id


def test_a_text_that_one_side_cuts_is_paired_as_far_as_both_go(tokenizer):
    rows = [{"prompt": "what falls? ", "completion": "light falls on water and " * 5}]
    other = other_tokenizer(chat=False)
    tokenizer.chat_template = None
    (passage,) = pair(rows, tokenizer, other, max_length=48)
    shorter = min((passage.teacher, passage.student), key=lambda side: side.ends[-1])
    assert 0 < len(passage.bytes) == shorter.ends[-1]
    assert rows[0]["completion"].encode().startswith(passage.bytes.strip())


@pytest.mark.parametrize("max_length", range(12, 40, 3))
def test_a_token_that_goes_on_beyond_the_cut_is_not_predicted(max_length, tokenizer):
    rows = [{"prompt": "what falls? ", "completion": "light falls on water and " * 9}]
    other = other_tokenizer(chat=False)
    tokenizer.chat_template = None
    for one, two in ((tokenizer, other), (other, tokenizer)):
        known = TokenBytes(two, "two").bytes_of
        for passage in pair(rows, one, two, max_length=max_length):
            side = passage.student
            wanted = side.examples >= 0
            assert not passage.teacher.ends_answer
            assert not side.ends_answer
            spans = zip(side.ids[wanted], side.starts[wanted], side.ends[wanted], strict=True)
            for i, start, end in list(spans)[1:]:
                assert passage.bytes[start:end] == known[i]


def test_an_answer_to_a_short_prompt_does_not_go_on_from_the_other_answer(tokenizer):
    rows = [{"prompt": "w", "chosen": " light on water", "rejected": " nobody says"}]
    other = other_tokenizer(chat=False)
    tokenizer.chat_template = None
    found = pair(rows, tokenizer, other, max_length=48)
    for passage in found:
        assert len(set(passage.student.examples.tolist()) - {-1}) == 1
    assert len(found) == 2


def test_answers_that_templates_change_give_no_passage(tokenizer):
    other = other_tokenizer()
    other.chat_template = other.chat_template.replace("m.content", "m.content | upper")
    assert pair([{"messages": CHAT}], tokenizer, other, max_length=96) == []


def test_the_teacher_reads_what_the_student_learns_and_no_more(tokenizer, tmp_path):
    rows = [{"text": f"document {i} says that {LONG[: 20 * (1 + i % 9)]}"} for i in range(30)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    parts, texts = teacher_texts(tokenizer, other_tokenizer(), file, tmp_path)
    passages = Passages(texts.passages)
    held = {e.key for e in Examples(tmp_path / "data" / "held_out.arrow")}
    teachers, known = set(), {e.key: e for e in texts.examples}
    for examples in parts.values():
        for example in examples:
            found = list(passages.of(example.key))
            places = np.concatenate([p.student.places[p.student.examples == n] for p, n in found])
            assert sorted(places) == list(range(len(example.counted)))
            for passage, number in found:
                mine = passage.student.examples == number
                assert passage.student.ids[mine].tolist() == example.counted_labels.tolist()
                for i in set(passage.teacher.examples.tolist()) - {-1}:
                    key = passage.teacher_keys[i]
                    its = passage.teacher.examples == i
                    labels = known[key].counted_labels[passage.teacher.places[its]]
                    assert labels.tolist() == passage.teacher.ids[its].tolist()
                    teachers.add(key)
    assert teachers == known.keys()
    assert not any(list(passages.of(key)) for key in held)
    assert texts.unpaired == 0
    assert texts.roles == {tokenizer.eos_token_id: other_tokenizer().eos_token_id}
    before = texts.passages.stat().st_mtime_ns
    _, again = teacher_texts(tokenizer, other_tokenizer(), file, tmp_path)
    assert again.passages.stat().st_mtime_ns == before


@pytest.mark.parametrize("judged", ["chosen", "rejected"])
def test_both_answers_of_a_pair_are_paired(judged, tokenizer):
    rows = [{"prompt": "what falls?", "chosen": "light on water", "rejected": "nobody says"}]
    found = pair(rows, tokenizer, other_tokenizer(), max_length=48)
    assert rows[0][judged].encode() in [passage.bytes for passage in found]


@pytest.mark.parametrize("most", [1, 3, 100])
def test_an_example_is_read_from_a_part_of_a_long_text_as_from_all_of_it(most, tokenizer):
    (whole,) = pair([{"text": LONG}], tokenizer, other_tokenizer())
    number = 0
    for part in parts_of(whole, most):
        for i, key in enumerate(part.student_keys):
            one, all_of_it = window_of(part, i), window_of(whole, number)
            assert key == whole.student_keys[number]
            assert one.bytes == all_of_it.bytes
            for mine, its in ((one.teacher, all_of_it.teacher), (one.student, all_of_it.student)):
                assert mine.ids.tolist() == its.ids.tolist()
                assert mine.ends.tolist() == its.ends.tolist()
            mine, its = one.student.examples == i, all_of_it.student.examples == number
            assert one.student.places[mine].tolist() == all_of_it.student.places[its].tolist()
            sides = (one.teacher, part.teacher_keys), (all_of_it.teacher, whole.teacher_keys)
            read = [
                [(keys[n], p) for n, p in zip(side.examples, side.places, strict=True) if n >= 0]
                for side, keys in sides
            ]
            assert read[0] == read[1]
            number += 1
    assert number == len(whole.student_keys)


def test_a_text_that_stands_twice_is_counted_once(tokenizer, tmp_path):
    rows = [{"text": "light " * 200}, *({"text": f"{i} {LONG}"} for i in range(9))]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    _, texts = teacher_texts(tokenizer, other_tokenizer(), file, tmp_path)
    assert texts.unpaired == 0


def test_texts_that_no_side_shares_are_refused(tokenizer, tmp_path):
    other = other_tokenizer()
    other.chat_template = other.chat_template.replace("m.content", "m.content | upper")
    file = write_jsonl(tmp_path / "rows.jsonl", [{"messages": CHAT[:i]} for i in (2, 4)] * 3)
    with pytest.raises(DataError, match="none of the texts that the student learns"):
        teacher_texts(tokenizer, other, file, tmp_path, max_length=96)


def test_a_teacher_that_cannot_read_conversations_is_named(tokenizer, tmp_path):
    tokenizer.chat_template = None
    file = write_jsonl(tmp_path / "rows.jsonl", [{"messages": CHAT[:i]} for i in (2, 4)] * 3)
    with pytest.raises(DataError, match=r"The teacher has a tokenizer of its own\. The data are"):
        teacher_texts(tokenizer, other_tokenizer(), file, tmp_path, max_length=96)


@pytest.mark.parametrize("share", [0.2, 0.3, 0.4, 0.6])
def test_the_last_windows_of_one_text_are_compared_from_the_same_byte(share, tokenizer, tmp_path):
    dice = np.random.default_rng(0)
    text = " ".join(dice.choice(LONG.split(), 600))
    other, file = other_tokenizer(), tmp_path / "text.txt"
    file.write_text(text)
    config = DataConfig(train=str(file), held_out=share, max_length=64)
    data = prepare(config, other, "other", 0, tmp_path / "data")
    held = data / "held_out.arrow"
    parts = {"held_out": Examples(held)}
    texts = prepare_teacher_texts(config, other, tokenizer, 0, parts, data, tmp_path / "texts")
    its, own = ({n: both[i] for n, both in texts.begins.items()} for i in range(2))
    versions = [
        HeldOut(held, other, "the student", own),
        HeldOut(texts.folder / "teacher.arrow", tokenizer, "the teacher", its),
    ]
    files = write_same_text(versions, 10_000, tmp_path)
    found = []
    for read, by in zip(files, (other, tokenizer), strict=True):
        known = TokenBytes(by, "it").bytes_of
        found.append(b"".join(known[i] for one in Examples(read) for i in one.counted_labels))
    shorter, longer = sorted(found, key=len)
    assert shorter in longer
    assert len(longer) - len(shorter) <= 2 * SLACK_BYTES
    assert len(shorter) > share * len(text) - 100
