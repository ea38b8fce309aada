"""Convert a `transformers` tokenizer for llama.cpp, and check that both give the same ids.

Legend: V ids of the tokenizer.

A GGUF file only names the pre-tokenizer: the rule by which llama.cpp splits text. The name is
guessed from `tokenizer.json` and written into a small file with the whole vocabulary. llama.cpp
must then give the ids of `transformers` on texts that tell the rules apart; else the next name is
tried.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attar.errors import ModelError
from attar.models.tokenizers import vocabulary_size
from attar.storage_errors import naming

if TYPE_CHECKING:
    from gguf import GGUFWriter

log = logging.getLogger(__name__)
# llama.cpp's pre-tokenizers for byte-level BPE; each splits text or treats merges differently.
PRE_TOKENIZERS = (
    "gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2", "gpt-4o", "tekken", "deepseek-llm",
    "deepseek-coder", "deepseek-v3", "falcon", "mpt", "olmo", "stablelm2", "superbpe", "poro-chat",
    "viking", "chatglm-bpe", "exaone", "qwen35", "default",
)  # fmt: skip
PROBE_TEXTS = (
    "Hello world",
    " leading, trailing  and   inner    spaces \n",
    "tabs\t\tand\r\nline ends\n\n\n  indented\n\tmore",
    "It's I'll we've they'd you're I'm, DON'T SHE'LL O'Neill's",
    "1 12 123 1234 12345 1234567 3.14159 1,000,000 v2.0 x86_64 0x1F ½ ²³ ٣٤ Ⅷ",
    "naïve café Straße Ångström Привет, мир! Ελλάδα שלום العربية हिन्दी ภาษาไทย",
    "中文字符，测试。日本語のテキスト 한국어 ㎏",
    "👩‍👩‍👧 🦜🇩🇪 e\u0301 zero\u200bwidth \u00a0nbsp \u3000wide",
    "def f(x):\n    return {'a': [1, 2], \"b\": x**2}  # comment!!! ... --- ___ ###",
    "camelCase SCREAMING_SNAKE http://example.org/a?b=c&d=%20 <tag attr='v'/> $5 €6 100%",
    "a" * 60 + " " * 40 + "!" * 30,
)


@dataclass(frozen=True)
class GGUFVocabulary:
    """A vocabulary as GGUF stores it, and the pre-tokenizers that may fit it."""

    model: str  # llama.cpp's tokenizer type: gpt2 (byte-level BPE) or llama (SentencePiece BPE)
    pre_tokenizers: tuple[str, ...]  # names to try, the likeliest first
    tokens: list[str]  # V
    types: list[int]  # V
    merges: list[str]
    scores: list[float]  # V; empty for gpt2
    space_first: bool  # whether a space is added before a text
    add_bos: bool
    add_eos: bool


def read_vocabulary(tokenizer: Any) -> GGUFVocabulary:
    """Read vocabulary, merges and token types; raise `ModelError` for unsupported tokenizers."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"A {type(tokenizer).__name__} without a tokenizer.json cannot be written as GGUF; "
            "save it as a fast tokenizer first."
        )
    parts = json.loads(backend.to_str())
    if parts["model"]["type"] != "BPE":
        raise ModelError(
            f"A tokenizer of type {parts['model']['type']} cannot be written as GGUF; supported "
            "are byte-level BPE and BPE made from SentencePiece."
        )
    merges = [m if isinstance(m, str) else " ".join(m) for m in parts["model"]["merges"]]
    byte_level = '"ByteLevel"' in json.dumps(parts["pre_tokenizer"])
    byte_pieces = parts["model"].get("byte_fallback", False)
    if not byte_level and not (byte_pieces and "▁" in json.dumps(parts, ensure_ascii=False)):
        raise ModelError(
            "This BPE tokenizer is neither byte-level nor made from SentencePiece with byte "
            "fallback, so llama.cpp cannot compute its ids and it cannot be written as GGUF."
        )
    tokens, types = _tokens(tokenizer, parts)
    add_bos, add_eos = _added_around(tokenizer)
    alone = tokenizer("a", add_special_tokens=False)["input_ids"]
    return GGUFVocabulary(
        model="gpt2" if byte_level else "llama",
        pre_tokenizers=_likely_pre_tokenizers(parts["pre_tokenizer"])
        if byte_level
        else ("default",),
        tokens=tokens,
        types=types,
        merges=merges if byte_level else [],
        scores=[] if byte_level else _scores(tokens, merges),
        space_first=not byte_level and tokens[alone[0]].startswith("▁"),
        add_bos=add_bos,
        add_eos=add_eos,
    )


def _tokens(tokenizer: Any, parts: dict[str, Any]) -> tuple[list[str], list[int]]:
    from gguf import TokenType

    number = vocabulary_size(tokenizer)
    tokens, types = [f"[PAD{i}]" for i in range(number)], [int(TokenType.UNUSED)] * number
    for token, i in tokenizer.get_vocab().items():
        tokens[i], types[i] = token, int(TokenType.NORMAL)
        if re.fullmatch(r"<0x[0-9A-F]{2}>", token) and parts["model"].get("byte_fallback"):
            types[i] = int(TokenType.BYTE)
    unknown = parts["model"].get("unk_token")
    for i, token in tokenizer.added_tokens_decoder.items():
        tokens[i] = token.content
        types[i] = int(TokenType.CONTROL if token.special else TokenType.USER_DEFINED)
    if unknown in tokens and parts["model"].get("byte_fallback"):
        types[tokens.index(unknown)] = int(TokenType.UNKNOWN)
    return tokens, types


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Return scores as in SentencePiece; only their order counts: earlier merges score higher."""
    first: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        first.setdefault(pair.replace(" ", ""), rank)
    never = float(len(merges) + 1)
    return [-float(first.get(token, never)) for token in tokens]


def _added_around(tokenizer: Any) -> tuple[bool, bool]:
    """Return whether the tokenizer adds its bos before a text, and its eos after it."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for add_bos, add_eos in ((False, False), (True, False), (False, True), (True, True)):
        if whole == [bos] * add_bos + plain + [eos] * add_eos:
            return add_bos, add_eos
    raise ModelError(
        f"The tokenizer turns {plain} into {whole}; a GGUF file can only add the bos token "
        f"({bos}) before and the eos token ({eos}) after a text."
    )


def _likely_pre_tokenizers(pre_tokenizer: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of pre-tokenizers, the likeliest first."""
    text = json.dumps(pre_tokenizer)
    kinds = [step["type"] for step in pre_tokenizer.get("pretokenizers", [pre_tokenizer])]
    if kinds == ["ByteLevel"]:
        likely: tuple[str, ...] = ("gpt-2",)
    elif kinds == ["Digits", "ByteLevel"]:
        likely = ("smollm",)
    elif "Lu}" in text:
        likely = ("gpt-4o", "tekken")
    elif "{1,3}" in text:
        likely = ("llama-bpe", "smaug-bpe")
    else:
        likely = ("qwen2",)
    return (*likely, *(name for name in PRE_TOKENIZERS if name not in likely))


def check_tokenizer(tokenizer: Any) -> None:
    """Raise `ModelError` for a tokenizer whose ids llama.cpp cannot give, before any work."""
    vocabulary = read_vocabulary(tokenizer)
    find_pre_tokenizer(vocabulary, tokenizer)
    if vocabulary.add_bos:
        _check_bos_in_template(tokenizer)


def _check_bos_in_template(tokenizer: Any) -> None:
    """llama.cpp puts the bos token before every prompt; `transformers` before no conversation."""
    from jinja2.exceptions import TemplateError

    if tokenizer.chat_template is None:
        return
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
        )
    except TemplateError:
        return
    if not text.startswith(tokenizer.bos_token):
        raise ModelError(
            f"The tokenizer puts {tokenizer.bos_token} before every text and the chat template "
            "does not write it: llama.cpp would put it before conversations too, which the "
            "student then never saw; begin the template with `{{ bos_token }}`, or leave out "
            "gguf artifacts."
        )


# Finding the pre-tokenizer -----------------------------------------------------------------------


def probe_texts(tokenizer: Any) -> list[str]:
    """Return texts on which ids must agree, with special tokens between words and spaces.

    llama.cpp does not compose characters (NFC). For tokenizers that do, the texts are already
    composed, as nearly all text is.
    """
    special = list(dict.fromkeys(tokenizer.all_special_tokens))[:4]
    around = [f"{token}word{token} next {token}\nline" for token in special]
    normalizer = json.loads(tokenizer.backend_tokenizer.to_str())["normalizer"]
    composes = '"NFC"' in json.dumps(normalizer)
    texts = [*PROBE_TEXTS, *around]
    return [unicodedata.normalize("NFC", text) if composes else text for text in texts]


def check_ids(encode: Callable[[str], list[int]], tokenizer: Any) -> None:
    """Raise `ModelError` where llama.cpp's ids differ from the tokenizer's, naming the text."""
    for text in probe_texts(tokenizer):
        ours, theirs = tokenizer(text)["input_ids"], encode(text)
        if ours != theirs:
            same = (a == b for a, b in zip(ours, theirs, strict=False))
            at = len(list(takewhile(bool, same)))
            raise ModelError(
                f"llama.cpp splits {text[:60]!r} differently from the tokenizer (ids "
                f"{theirs[at:][:6]}, not {ours[at:][:6]}), so this model cannot be written as GGUF."
            )


def find_pre_tokenizer(vocabulary: GGUFVocabulary, tokenizer: Any) -> str:
    """Return the pre-tokenizer with which llama.cpp gives the tokenizer's ids.

    Raises `ModelError`, with a text that the likeliest one splits differently, if none fits.
    """
    from attar.llama_cpp import GGUFModel, check_usable

    try:
        check_usable()
    except ModelError as error:
        log.warning("The ids of the GGUF file could not be checked: %s", error)
        return vocabulary.pre_tokenizers[0]
    refusal = None
    with tempfile.TemporaryDirectory() as folder, naming(Path(folder)):
        for pre_tokenizer in vocabulary.pre_tokenizers:
            file = Path(folder) / f"{pre_tokenizer}.gguf"
            _write_probe_file(vocabulary, pre_tokenizer, tokenizer, file)
            model = GGUFModel(file)
            try:
                check_ids(model.encode, tokenizer)
            except ModelError as error:
                refusal = refusal or error
            else:
                log.debug("llama.cpp's pre-tokenizer `%s` gives the tokenizer's ids", pre_tokenizer)
                return pre_tokenizer
            finally:
                model.close()
                file.unlink()
    assert refusal is not None
    raise refusal


def _write_probe_file(
    vocabulary: GGUFVocabulary, pre_tokenizer: str, tokenizer: Any, file: Path
) -> None:
    """Write the vocabulary into a model of one block, 32 wide, which llama.cpp can load."""
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(file, "llama")
    writer.add_vocab_size(len(vocabulary.tokens))
    writer.add_context_length(32)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-6)
    write_vocabulary(writer, vocabulary, pre_tokenizer, tokenizer, len(vocabulary.tokens))
    codes = np.zeros((len(vocabulary.tokens), 34), np.uint8)
    writer.add_tensor("token_embd.weight", codes, raw_dtype=GGMLQuantizationType.Q8_0)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.zeros(32, np.float32))
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{part}.weight", np.zeros((32, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_vocabulary(
    writer: GGUFWriter,
    vocabulary: GGUFVocabulary,
    pre_tokenizer: str,
    tokenizer: Any,
    num_rows: int,
    further_eos_ids: tuple[int, ...] = (),
) -> None:
    """Write the vocabulary, padded with unused tokens to the embedding's rows, and the template.

    further_eos_ids: ids besides the eos token that end generation; GGUF can store one of them.
    """  # fmt: skip
    from gguf import TokenType

    padding = range(len(vocabulary.tokens), num_rows)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list([*vocabulary.tokens, *(f"[PAD{i}]" for i in padding)])
    writer.add_token_types([*vocabulary.types, *(int(TokenType.UNUSED) for _ in padding)])
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores:
        writer.add_token_scores([*vocabulary.scores, *(-1e9 for _ in padding)])
        writer.add_add_space_prefix(vocabulary.space_first)
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
        (writer.add_eot_token_id, next(iter(further_eos_ids), None)),
    ):
        if token is not None:
            add(token)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    if tokenizer.chat_template is not None:
        template = tokenizer.chat_template
        writer.add_chat_template(
            template if isinstance(template, str) else template.get("default", "")
        )
