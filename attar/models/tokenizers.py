"""Tokenizers: loading, fingerprints, and in which ids two tokenizers differ."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from attar.errors import ModelError
from attar.files import fingerprint
from attar.models.adapter_folders import tokenizer_source
from attar.models.locations import load_error, source_arguments


def load_tokenizer(source: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model; one without a pad token pads with its end-of-sequence token.

    One without either stays without: a pad token that it never had would be saved with the student
    as a special token, and left out of what the student writes.
    """
    from transformers import AutoTokenizer

    where = tokenizer_source(source)
    if where is None:
        raise _without_tokenizer(source)
    name, extra = source_arguments(where)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, trust_remote_code=trust_remote_code, **extra
        )
    except Exception as error:  # whatever its files lead the library to
        raise load_error(error, "tokenizer", source) from error
    if len(tokenizer.get_vocab()) <= len(tokenizer.added_tokens_decoder):
        raise _without_tokenizer(source)
    if not trust_remote_code:
        tokenizer.init_kwargs.pop("auto_map", None)  # as of a config: `load_config`
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _without_tokenizer(source: str) -> ModelError:
    return ModelError(
        f"The model folder {source} has no tokenizer; put the files of the one that it was trained "
        "with into it (`AutoTokenizer.from_pretrained(...).save_pretrained(...)`)."
    )


def brings_code(tokenizer: Any) -> bool:
    """Whether a tokenizer's class came with its model, and is saved with the tokenizer."""
    return type(tokenizer).__module__.startswith("transformers_modules")


def padding_id(tokenizer: Any) -> int:
    """An id to pad with. Padding is masked by position, never by id, so any id works."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Fingerprint of all that decides which ids a text becomes: the id -> string map, the added
    tokens, merges, normaliser and the like, and the chat templates.
    """
    added = {str(i): str(token) for i, token in tokenizer.added_tokens_decoder.items()}
    rules = _rules(tokenizer)
    return fingerprint([tokenizer.get_vocab(), added, rules, tokenizer.chat_template])


def _rules(tokenizer: Any) -> list[Any]:
    """How a tokenizer cuts text, beside its vocabulary; JSON values."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        found = json.loads(backend.to_str())
        for passing in ("truncation", "padding"):  # set by the last call
            found.pop(passing, None)
        return [found]
    pieces = getattr(tokenizer, "sp_model", None)
    named = ("bpe_ranks", "add_bos_token", "add_eos_token", "do_lower_case", "add_prefix_space")
    return [
        hashlib.sha256(pieces.serialized_model_proto()).hexdigest() if pieces is not None else None,
        *(repr(getattr(tokenizer, name, None)) for name in named),
    ]


def tokenizer_identity(tokenizer: Any) -> dict[str, Any]:
    """Fingerprints that a cache and its user must share, by part, so that errors name the part."""
    return {
        "vocabulary": vocabulary_fingerprint(tokenizer),
        "chat_template": fingerprint(tokenizer.chat_template),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "size": vocabulary_size(tokenizer),
    }


def vocabulary_fingerprint(tokenizer: Any) -> str:
    """Fingerprint of the id -> string map, which two models must share to be compared."""
    return fingerprint(tokenizer.get_vocab())


def vocabulary_size(tokenizer: Any) -> int:
    """Number of ids: the highest one plus 1. A model may have more columns, as padding."""
    return 1 + int(max(tokenizer.get_vocab().values()))


def differing_ids(one: Any, other: Any) -> list[tuple[int, str | None, str | None]]:
    """(id, the first tokenizer's string, the other's) of every id whose strings differ."""
    strings, others = ({i: t for t, i in each.get_vocab().items()} for each in (one, other))
    ids = sorted(strings.keys() | others.keys())
    return [(i, strings.get(i), others.get(i)) for i in ids if strings.get(i) != others.get(i)]
