"""Tokenizers in GGUF files: llama.cpp gives the ids of `transformers`, or they are refused."""

import json

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import trainers as training
from transformers import PreTrainedTokenizerFast

from attar.errors import ModelError
from students.artifacts.gguf.tokenizer import (
    PROBE_TEXTS,
    check_tokenizer,
    find_pre_tokenizer,
    probe_texts,
    read_vocabulary,
)
from students.artifacts.gguf.writer import write_gguf

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

from attar.llama_cpp import GGUFModel

LLAMA_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TEXTS = (
    "Grüße, Zoë! 10000 Jahre später…  doppelt\t\tTab\n\n Ende",
    "I'd've said: don't!!!\r\nx = {3: [1,22,333,4444]}  # 100%",
    "<|im_start|>user\nfoo<|im_end|> bar<|endoftext|>",
    "日本語とEnglishの混在。 🙂🙃 \u00a0a\u200bb",
)


def byte_level(pre_tokenizer):
    steps = [*pre_tokenizer, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = training.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = [*PROBE_TEXTS, *TEXTS] * 3
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


def split_by(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


RULES = {
    "smollm": [pre_tokenizers.Digits(individual_digits=True), split_by(GPT2_WORDS)],
    "llama 3": [split_by(LLAMA_WORDS)],
    "qwen 2": [split_by(LLAMA_WORDS.replace("{1,3}", ""))],
}  # fmt: skip


def sentencepiece_like(*, prefix):
    """BPE as `transformers` converts it from SentencePiece: byte fallback, and every merge."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = split_by("▁*[^▁]+|▁+")
    trainer = training.BpeTrainer(vocab_size=600, special_tokens=pieces, show_progress=False)
    words = ["the teacher says what the student learns and water falls on light"] * 9
    trained.train_from_iterator(words, trainer)
    parts = json.loads(trained.to_str())
    ids = parts["model"]["vocab"]
    parts["model"]["merges"] = [
        [token[:cut], token[cut:]]
        for token in sorted(ids, key=ids.get)
        for cut in range(1, len(token))
        if token not in pieces and token[:cut] in ids and token[cut:] in ids
    ]
    parts["added_tokens"] = [t for t in parts["added_tokens"] if t["content"] in special]
    parts["pre_tokenizer"] = None
    made = Tokenizer.from_str(json.dumps(parts))
    space = normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if prefix else space
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def loaded_with(tokenizer, model, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_gguf(folder, folder / "model.gguf", "q8_0")
    return GGUFModel(folder / "model.gguf")


def same_ids(tokenizer, model, tmp_path, texts=TEXTS):
    loaded = loaded_with(tokenizer, model, tmp_path)
    for text in (*texts, *probe_texts(tokenizer)):
        assert loaded.encode(text) == tokenizer(text)["input_ids"], text
    plain = "the teacher says, 12 times: naïve"
    assert loaded.decode(tokenizer(plain, add_special_tokens=False)["input_ids"]).strip() == plain


def test_ids_are_the_same(tokenizer, make_model, tmp_path):
    same_ids(tokenizer, make_model(vocabulary=len(tokenizer)), tmp_path)


@pytest.mark.parametrize("rule", RULES)
def test_ids_are_the_same_by_other_rules(rule, make_model, tmp_path):
    tokenizer = byte_level(RULES[rule])
    same_ids(tokenizer, make_model(vocabulary=len(tokenizer)), tmp_path)


@pytest.mark.parametrize("prefix", [True, False], ids=["space first", "no space first"])
def test_ids_are_the_same_in_sentencepiece_style(prefix, make_model, tmp_path):
    tokenizer = sentencepiece_like(prefix=prefix)
    model = make_model(vocabulary=len(tokenizer))
    same_ids(tokenizer, model, tmp_path, ["the teacher <eos>says ", "日本 x"])


def test_a_tokenizer_that_llama_cpp_cannot_follow_is_refused(bytes_bpe):
    copy = Tokenizer.from_str(bytes_bpe.to_str())
    copy.normalizer = normalizers.Lowercase()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=copy, eos_token="<|im_end|>")
    words = read_vocabulary(tokenizer)
    with pytest.raises(ModelError, match="splits 'Hello world' differently from the tokenizer"):
        find_pre_tokenizer(words, tokenizer)


def test_a_tokenizer_of_another_kind_is_refused(bytes_bpe):
    pieces = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    with pytest.raises(ModelError, match="type WordPiece cannot be written as GGUF"):
        read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=pieces))
    copy = Tokenizer.from_str(bytes_bpe.to_str())
    copy.post_processor = processors.TemplateProcessing(
        single="<|pad|> $A", special_tokens=[("<|pad|>", 3)]
    )
    with pytest.raises(ModelError, match="only add the bos token"):
        read_vocabulary(PreTrainedTokenizerFast(tokenizer_object=copy, eos_token="<|im_end|>"))


def test_rows_of_the_embedding_beyond_the_tokenizer_are_unused(tokenizer, make_model, tmp_path):
    loaded = loaded_with(tokenizer, make_model(vocabulary=352), tmp_path)
    assert (loaded.num_ids, loaded.vocabulary) == (352, len(tokenizer))


def test_a_tokenizer_with_more_ids_than_rows_is_refused(tokenizer, make_model, tmp_path):
    with pytest.raises(ModelError, match=r"256 rows in its embedding for \d+ ids"):
        loaded_with(tokenizer, make_model(vocabulary=256), tmp_path)


@pytest.mark.parametrize("kind", ["a space before every text", "a Unigram model"])
def test_what_cannot_be_written_is_known_from_the_tokenizer_alone(bytes_bpe, kind):
    backend = Tokenizer.from_str(bytes_bpe.to_str())
    if kind == "a Unigram model":
        backend.model = models.Unigram([("<unk>", -1.0), ("a", -1.0)], unk_id=0)
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(ModelError, match="cannot be written as GGUF"):
        check_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
