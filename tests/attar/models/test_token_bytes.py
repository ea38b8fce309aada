"""Bytes of tokenizers' ids, spans of tokens, and texts that ids do not give back."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from attar.errors import ModelError
from attar.models.token_bytes import TokenBytes, check_reversible, spans_of


def read(tokenizer, text):
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return found["input_ids"], found["offset_mapping"]


@pytest.fixture
def words():
    strings = ["[UNK]", "[PAD]", "play", "##ing", "##s", "the", ",", "##e", "##d"]
    made = Tokenizer(models.WordPiece({s: i for i, s in enumerate(strings)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]")


def test_bytes_of_ids_give_back_the_text(tokenizer):
    known = TokenBytes(tokenizer, "a model")
    text = "the student says 😀 é\n what"
    ids, offsets = read(tokenizer, text)
    assert known.kind == "byte-level"
    assert b"".join(known.bytes_of[i] for i in ids) == text.encode()
    starts, ends = spans_of(known, text, ids, offsets)
    raw = text.encode()
    assert [raw[a:b] for a, b in zip(starts, ends, strict=True)] == [known.bytes_of[i] for i in ids]
    check_reversible(known, text, ids, offsets)


def test_special_tokens_have_no_bytes_and_cover_their_text(tokenizer):
    known = TokenBytes(tokenizer, "a model")
    text = "the<|im_end|>the"
    ids, offsets = read(tokenizer, text)
    end = tokenizer.eos_token_id
    assert end in known.special
    assert known.bytes_of[end] == b""
    starts, ends = spans_of(known, text, ids, offsets)
    place = ids.index(end)
    assert text[starts[place] : ends[place]] == "<|im_end|>"
    check_reversible(known, text, ids, offsets)


def test_pieces_of_bytes_say_where_each_ends(tokenizer):
    known = TokenBytes(tokenizer, "a model")
    ids, ends = known.pieces(b" teacher\xf0\x9f")
    assert ends[-1] == len(b" teacher\xf0\x9f")
    assert b"".join(known.bytes_of[i] for i in ids) == b" teacher\xf0\x9f"
    assert known.pieces(b"")[0] == []


def test_words_continue_after_a_letter(words):
    known = TokenBytes(words, "a model")
    names = words.convert_ids_to_tokens
    assert known.kind == "wordpiece"
    assert known.lower_cased
    assert names(known.pieces(b" Playing")[0]) == ["play", "##ing"]
    assert names(known.pieces(b"ing, the", after_word=True)[0]) == ["##ing", ",", "the"]
    assert known.pieces(b"ed", after_word=True)[1] == [1, 2]


def test_white_space_belongs_to_the_word_after_it(words):
    known = TokenBytes(words, "a model")
    text = "The  playing,\nthe"
    ids, offsets = read(words, text)
    starts, ends = spans_of(known, text, ids, offsets)
    assert np.array_equal(ends, [3, 9, 12, 13, 17])
    assert np.array_equal(starts, [0, 3, 9, 12, 13])
    check_reversible(known, text, ids, offsets)


def test_a_text_that_ids_do_not_give_back_is_refused_with_its_place(words):
    known = TokenBytes(words, "the folder x")
    text = "the 😀 the"
    with pytest.raises(ModelError, match=r"the folder x do not give back .* character 3 "):
        check_reversible(known, text, *read(words, text))


def test_a_tokenizer_of_another_kind_is_refused_by_name():
    made = Tokenizer(models.WordLevel({"a": 0, "<u>": 1}, unk_token="<u>"))
    other = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<u>")
    with pytest.raises(ModelError, match="The tokenizer of the folder y is neither"):
        TokenBytes(other, "the folder y")
