"""What the ids of a tokenizer stand for as bytes of text, and which bytes each token covers.

Legend: V vocabulary, N tokens of a text.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np

from attar.errors import ModelError

Kind = Literal["byte-level", "sentencepiece", "wordpiece"]
MARKER = "▁"  # stands for a space in vocabularies of SentencePiece
_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACES = b" \t\r\n\x0b\x0c"


class TokenBytes:
    """What the ids of a tokenizer stand for as bytes of text, and the ids of given bytes.

    kind: `byte-level` (GPT-2's mapping of bytes), `sentencepiece` (a marker for spaces, with or
    without fallback to bytes) or `wordpiece`. bytes_of: by id, b"" for special tokens and unused
    ids. special: the ids of special tokens. unknown: that of characters without one, or None.
    lower_cased: whether the case of text is lost. strings: by id, as the vocabulary has them.
    Raises `ModelError` for other kinds of tokenizers.
    """

    kind: Kind
    bytes_of: list[bytes]
    special: frozenset[int]

    def __init__(self, tokenizer: Any, name: str) -> None:
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        rules = json.loads(backend.to_str()) if backend is not None else {}
        kind = _kind_of(rules)
        if kind is None:
            raise ModelError(
                f"The tokenizer of {name} is neither byte-level BPE, SentencePiece nor WordPiece "
                "in the form of `tokenizers` (a file tokenizer.json), so the bytes that its ids "
                "stand for are not known; choose another model, or one tokenizer for both models."
            )
        self.kind, self.name = kind, name
        self._backend, self._model = backend, backend.model
        self._byte_fallback = bool(rules["model"].get("byte_fallback"))
        normalizer = backend.normalizer
        self.lower_cased = normalizer is not None and normalizer.normalize_str("A") == "a"
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        added = dict(tokenizer.added_tokens_decoder.items())
        self._added = {t.content.encode(): i for i, t in added.items() if not t.special}
        special = {i for i, token in added.items() if token.special} | set(
            tokenizer.all_special_ids
        )
        self.strings: list[str | None] = [None] * (1 + max(vocabulary.values()))
        self.bytes_of = [b""] * len(self.strings)
        for string, i in vocabulary.items():
            self.strings[i] = string
            if i in added and i not in special:
                self.bytes_of[i] = string.encode()
            elif i not in special:
                self.bytes_of[i] = self._bytes_of_string(string)
        self.special = frozenset(special)
        self.unknown = vocabulary.get(rules["model"].get("unk_token"), rules["model"].get("unk_id"))
        self._vocabulary = vocabulary

    def _bytes_of_string(self, string: str) -> bytes:
        if self.kind == "byte-level":
            known = _bytes_by_character()
            return bytes(known[c] for c in string) if all(c in known for c in string) else b""
        if self.kind == "sentencepiece":
            fallback = _FALLBACK.fullmatch(string) if self._byte_fallback else None
            if fallback:
                return bytes([int(fallback[1], 16)])
            return string.replace(MARKER, " ").encode()
        if string.startswith("##"):
            return string[2:].encode()
        return (" " * string[:1].isalnum() + string).encode()

    def id_of(self, string: str) -> int | None:
        """The id of a string of the vocabulary."""
        return self._vocabulary.get(string)

    def pieces(self, piece: bytes, after_word: bool = False) -> tuple[list[int], list[int]]:
        """(ids, the byte of `piece` at which each ends) of bytes inside a text.

        Without what the pre-tokenizer would see around them. after_word: whether a letter or digit
        stands before them (only WordPiece reads it). Ids stop before bytes that have none.
        """
        if piece in self._added:
            return [self._added[piece]], [len(piece)]
        if self.kind == "wordpiece":
            return self._words(piece, after_word)
        text = self._mapped(piece)
        if text is None:
            return self._bytes_apart(piece)
        ids = [int(token.id) for token in self._model.tokenize(text)] if text else []
        return self._with_ends(ids, piece)

    def _mapped(self, piece: bytes) -> str | None:
        """The text in which the model's vocabulary writes the bytes; None if there is none."""
        if self.kind == "byte-level":
            return characters_of(piece)
        try:
            return piece.decode().replace(" ", MARKER)
        except UnicodeDecodeError:
            return None

    def _bytes_apart(self, piece: bytes) -> tuple[list[int], list[int]]:
        """Ids where the bytes begin or end within a character: one for each of its bytes."""
        ids: list[int] = []
        ends: list[int] = []
        start = 0
        for part in re.findall(rb"[\x00-\x7f]+|[\xc0-\xff][\x80-\xbf]*|[\x80-\xbf]+", piece):
            try:
                part.decode()
                more, stops = self.pieces(part)
            except UnicodeDecodeError:
                more = [self._vocabulary.get(f"<0x{byte:02X}>", -1) for byte in part]
                more = more[: more.index(-1)] if -1 in more else more
                stops = list(range(1, len(more) + 1))
            ids, ends = ids + more, ends + [start + stop for stop in stops]
            start += len(part)
            if not stops or stops[-1] != len(part):
                break
        return ids, ends

    def _with_ends(self, ids: list[int], piece: bytes) -> tuple[list[int], list[int]]:
        """Ids up to the first that does not stand for the bytes of its place."""
        ends: list[int] = []
        at = 0
        for i in ids:
            found = self.bytes_of[i]
            if not found or piece[at : at + len(found)] != found:
                break
            at += len(found)
            ends.append(at)
        return ids[: len(ends)], ends

    def _words(self, piece: bytes, after_word: bool) -> tuple[list[int], list[int]]:
        text = piece.decode(errors="ignore")
        if text.encode() != piece:
            return [], []
        lengths = np.concatenate([[0], np.cumsum([len(c.encode()) for c in text])])
        ids: list[int] = []
        ends: list[int] = []
        if after_word and text[:1].isalnum():
            word = re.match(r"\w+", text)
            first = word[0] if word else text[:1]
            ids, stops = self._continuation(first)
            ends = [int(lengths[stop]) for stop in stops]
            if not stops or stops[-1] != len(first):
                return ids, ends
            rest, base = text[len(first) :], len(first)
        else:
            rest, base = text, 0
        encoded = self._backend.encode(rest, add_special_tokens=False)
        for i, (_, stop) in zip(encoded.ids, encoded.offsets, strict=True):
            if i in self.special:
                break
            ids, ends = [*ids, i], [*ends, int(lengths[base + stop])]
        return ids, ends

    def _continuation(self, word: str) -> tuple[list[int], list[int]]:
        """(ids of `##` pieces, the longest first, the character at which each ends)."""
        normalizer = self._backend.normalizer
        plain = normalizer.normalize_str(word) if normalizer is not None else word
        ids: list[int] = []
        ends: list[int] = []
        if len(plain) != len(word):
            return ids, ends
        start = 0
        while start < len(plain):
            stops = range(len(plain), start, -1)
            stop = next((s for s in stops if "##" + plain[start:s] in self._vocabulary), None)
            if stop is None:
                break
            ids.append(self._vocabulary["##" + plain[start:stop]])
            ends.append(stop)
            start = stop
        return ids, ends


def spans_of(
    token_bytes: TokenBytes,
    text: str,
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
) -> tuple[np.ndarray, np.ndarray]:
    """(starts, ends) of tokens as bytes of the text's UTF-8, int64 (N,) each.

    offsets: of characters, as a fast tokenizer gives them. A token starts where the one before
    ends: white space that no token covers belongs to the token after it. Tokens that share a
    character get the bytes of it that they stand for.
    """
    raw = text.encode()
    bytes_at = _bytes_at_characters(text)
    ends = np.zeros(len(ids), np.int64)
    at = 0
    for n, (i, (start, stop)) in enumerate(zip(ids, offsets, strict=True)):
        length = _covered(token_bytes, raw, at, i)
        if length is not None:
            at += length
        elif stop > start:
            at = max(at, int(bytes_at[stop]))
        ends[n] = at
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])[: len(ends)]
    return starts, ends


def _covered(token_bytes: TokenBytes, raw: bytes, at: int, i: int) -> int | None:
    """How many bytes of the text a token covers, or None where only offsets can say."""
    if token_bytes.kind == "wordpiece" or i in token_bytes.special:
        return None
    found = token_bytes.bytes_of[i]
    if raw.startswith(found, at):
        return len(found)
    if token_bytes.kind == "sentencepiece" and found[:1] == b" " and raw.startswith(found[1:], at):
        return len(found) - 1  # the space that the normaliser puts before a text
    return None


def check_reversible(
    token_bytes: TokenBytes,
    text: str,
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
) -> None:
    """Raise `ModelError` where the ids do not give back the text.

    WordPiece: up to what its normaliser changes and white space, where no id is unknown.
    """
    raw = text.encode()
    bytes_at = _bytes_at_characters(text)
    at = 0
    wordpiece = token_bytes.kind == "wordpiece"
    unknown = token_bytes.id_of("[UNK]") if wordpiece else None
    for i, (start, stop) in zip(ids, offsets, strict=True):
        length = _covered(token_bytes, raw, at, i)
        if length is not None:
            at += length
            continue
        begin, end = int(bytes_at[start]), int(bytes_at[stop])
        if i in token_bytes.special and token_bytes.strings[i] == text[start:stop].strip() != "":
            same = at == begin
        elif wordpiece:
            same = i != unknown and not raw[at:begin].strip()
        else:
            same = i in token_bytes.special and stop == start
        if not same:
            raise _not_reversible(token_bytes, text, at, bytes_at)
        at = max(at, end)
    if raw[at:].strip(_SPACES if wordpiece else b""):
        raise _not_reversible(token_bytes, text, at, bytes_at)


def _not_reversible(
    token_bytes: TokenBytes, text: str, at: int, bytes_at: np.ndarray
) -> ModelError:
    character = max(0, bisect_right(bytes_at, at) - 1)
    around = text[max(0, character - 12) : character + 12]
    return ModelError(
        f"The ids of the tokenizer of {token_bytes.name} do not give back the text at character "
        f"{character} ({around!r}); probabilities cannot be carried between tokenizers "
        "there; choose a model whose tokenizer keeps every character."
    )


def _bytes_at_characters(text: str) -> np.ndarray:
    """The byte of the text's UTF-8 at which each character starts, and the end."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    lengths = 1 + (points >= 0x80) + (points >= 0x800).astype(int) + (points >= 0x10000)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def _kind_of(rules: dict[str, Any]) -> Kind | None:
    """The kind of a tokenizer, from the rules in its tokenizer.json."""
    model = rules.get("model") or {}
    if model.get("type") == "WordPiece":
        return "wordpiece" if model.get("continuing_subword_prefix") == "##" else None
    if model.get("type") not in ("BPE", "Unigram"):
        return None
    parts = json.dumps([rules.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")])
    if model["type"] == "BPE" and '"ByteLevel"' in parts:
        return "byte-level"
    marked = json.dumps(MARKER)[1:-1] in parts
    return "sentencepiece" if marked or '"Metaspace"' in parts else None


@cache
def _bytes_by_character() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones for themselves, others from U+0100 on."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    known = {chr(byte): byte for byte in kept}
    others = [byte for byte in range(256) if byte not in set(kept)]
    return known | {chr(256 + n): byte for n, byte in enumerate(others)}


def characters_of(piece: bytes) -> str:
    """Bytes as the vocabularies of byte-level BPE write them."""
    return "".join(_CHARACTERS[byte] for byte in piece)


_CHARACTERS = [c for c, _ in sorted(_bytes_by_character().items(), key=lambda one: one[1])]
