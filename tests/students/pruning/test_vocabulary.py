"""A smaller vocabulary: its corpus is split alike, and other text can still be encoded."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from attar.errors import ModelError
from students.pruning.vocabulary import (
    count_ids,
    cut_vocabulary,
    ids_to_keep,
    write_smaller_tokenizer,
)

TRAINED_ON = [
    "the cat sat on the mat and the dog sat on the log",
    "a student learns what a teacher says, naïvely: 12 + 7 = 19",
    "shrinking vocabularies keeps tokens that a corpus uses",
    "the quick brown fox jumps over the lazy dog; teachers teach students",
] * 4
CORPUS = ["the cat learns what the dog says", "a teacher sat on the mat"]
STRANGE = "Zebra ∑ 漢字 naïve 42!\n\tcorpora of vocabularies"


def byte_level():
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<pad>", "<eos>"]
    made.train_from_iterator(
        TRAINED_ON,
        trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, special_tokens=specials),
    )
    made.add_special_tokens(["<|user|>"])  # behind the vocabulary
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


def word_piece():
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(
        TRAINED_ON, trainers.WordPieceTrainer(vocab_size=160, special_tokens=specials)
    )
    ids = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


@pytest.fixture(params=[byte_level, word_piece])
def tokenizer(request):
    return request.param()


@pytest.fixture
def kept(tokenizer):
    return ids_to_keep(tokenizer, count_ids(tokenizer, CORPUS))


def test_the_corpus_is_cut_into_the_same_tokens(tokenizer, kept, tmp_path):
    smaller = write_smaller_tokenizer(tokenizer, kept, tmp_path)
    assert len(smaller) == len(kept) < len(tokenizer)
    for text in CORPUS:
        new = smaller(text)["input_ids"]
        assert [kept[number] for number in new] == tokenizer(text)["input_ids"]
        assert smaller.decode(new) == tokenizer.decode(tokenizer(text)["input_ids"])


def test_other_text_can_still_be_encoded(tmp_path):
    tokenizer = byte_level()
    kept = ids_to_keep(tokenizer, count_ids(tokenizer, CORPUS))
    smaller = write_smaller_tokenizer(tokenizer, kept, tmp_path)
    assert smaller.decode(smaller(STRANGE)["input_ids"]) == STRANGE
    assert len(smaller(STRANGE)["input_ids"]) >= len(tokenizer(STRANGE)["input_ids"])


def test_no_known_word_becomes_unknown(tmp_path):
    tokenizer = word_piece()
    kept = ids_to_keep(tokenizer, count_ids(tokenizer, CORPUS))
    smaller = write_smaller_tokenizer(tokenizer, kept, tmp_path)
    for text in TRAINED_ON:
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
        assert smaller.unk_token_id not in smaller(text)["input_ids"]


def test_special_tokens_keep_their_meaning(tokenizer, kept, tmp_path):
    smaller = write_smaller_tokenizer(tokenizer, kept, tmp_path)
    assert smaller.special_tokens_map == tokenizer.special_tokens_map
    for token in tokenizer.get_added_vocab():
        assert smaller.convert_tokens_to_ids(token) == kept.index(
            tokenizer.convert_tokens_to_ids(token)
        )
    pair = smaller("the cat", "the dog")["input_ids"]
    assert [kept[number] for number in pair] == tokenizer("the cat", "the dog")["input_ids"]


def test_the_most_frequent_are_kept(tokenizer):
    counts = count_ids(tokenizer, TRAINED_ON)
    few = ids_to_keep(tokenizer, counts, most=5)
    assert set(sorted(counts, key=lambda i: (-counts[i], i))[:5]) <= set(few)
    assert len(few) < len(ids_to_keep(tokenizer, counts))


def test_a_model_cut_with_it_gives_the_same_logits_on_the_corpus(make_model, tmp_path):
    tokenizer = byte_level()
    kept = ids_to_keep(tokenizer, count_ids(tokenizer, CORPUS))
    teacher = make_model(0, vocabulary=len(tokenizer), eos_token_id=1, pad_token_id=0)
    cut_vocabulary(teacher, tokenizer, kept, tmp_path / "smaller")
    smaller = AutoTokenizer.from_pretrained(tmp_path / "smaller")
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "smaller")
    assert student.config.eos_token_id == smaller.eos_token_id
    with torch.inference_mode():
        old = teacher(torch.tensor([tokenizer(CORPUS[0])["input_ids"]])).logits[..., kept]
        new = student(torch.tensor([smaller(CORPUS[0])["input_ids"]])).logits
    torch.testing.assert_close(new, old)


def test_a_unigram_vocabulary_is_refused():
    made = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    with pytest.raises(ModelError, match="Unigram; only BPE and WordPiece"):
        ids_to_keep(PreTrainedTokenizerFast(tokenizer_object=made), {1: 3})
