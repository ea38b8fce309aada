"""Which tokens of two sides cover which bytes."""

import numpy as np
import pytest

from attar.models.token_bytes import TokenBytes
from distill.data.examples import Examples
from distill.data.paired_texts import Passages, passages_of
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
