"""Cut a model's vocabulary to the ids that a corpus uses, and rebuild the tokenizer for them.

The corpus is split into the same tokens as before. For BPE, the pieces that a kept token was merged
from are kept too, so every merge that leads to it still exists, in the same order. For WordPiece,
the longest matching piece stays the same. All single bytes and characters are kept, so no text
becomes unknown.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from attar.errors import ModelError
from attar.files import staged_folder
from attar.models.structure import num_layers
from attar.models.tokenizers import load_tokenizer
from students.pruning.prune import KeptParts, cut_model

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def count_ids(tokenizer: Any, texts: Iterable[str]) -> Counter[int]:
    """Count how often texts use each id."""
    counts: Counter[int] = Counter()
    for text in texts:
        counts.update(tokenizer(text, verbose=False)["input_ids"])
    return counts


def ids_to_keep(tokenizer: Any, counts: dict[int, int], *, most: int | None = None) -> list[int]:
    """Return the ids to keep, in ascending order: an id's place in the list is its new number.

    They are the used ids and those that the tokenizer needs for them. most: keep at most this many
    of the used ids, the most frequent first; needed ids do not count. Raises `ModelError` for a
    tokenizer that is neither BPE nor WordPiece.
    """
    described = _describe(tokenizer)
    vocabulary = described["model"]["vocab"]
    by_id = {number: token for token, number in vocabulary.items()}
    ordered = sorted(counts, key=lambda number: (-counts[number], number))[:most]
    kept = {number for number in ordered if counts[number] > 0}
    kept |= {int(token["id"]) for token in described.get("added_tokens", [])}
    kept |= {int(number) for number in tokenizer.all_special_ids}
    special = described["model"].get("unk_token")
    kept |= {vocabulary[special]} if special in vocabulary else set()
    prefix = described["model"].get("continuing_subword_prefix") or ""
    for token, number in vocabulary.items():
        if len(token.removeprefix(prefix)) <= 1 or _BYTE.fullmatch(token):
            kept.add(number)
    if described["model"]["type"] == "BPE":
        ranks = {tuple(pair): rank for rank, pair in enumerate(_merges(described))}
        for number in list(kept):
            if number in by_id:
                parts = _merged_from(by_id[number], ranks)
                kept |= {vocabulary[part] for part in parts if part in vocabulary}
    return sorted(kept)


def check_prunable(tokenizer: Any) -> None:
    """Raise `ModelError` for a tokenizer that is neither BPE nor WordPiece."""
    _describe(tokenizer)


def _describe(tokenizer: Any) -> dict[str, Any]:
    """The tokenizer as its library writes it; `ModelError` for a kind that cannot be pruned."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"{type(tokenizer).__name__} is not a tokenizer of the `tokenizers` library; its "
            "vocabulary cannot be cut."
        )
    described: dict[str, Any] = json.loads(backend.to_str())
    model = described["model"]
    ends = model.get("end_of_word_suffix") or (
        model["type"] == "BPE" and model.get("continuing_subword_prefix")
    )
    if model["type"] not in ("BPE", "WordPiece") or ends:
        marked = " with end-of-word marks" if ends else ""
        raise ModelError(
            f"The tokenizer is {model['type']}{marked}; only BPE and WordPiece vocabularies can "
            "be cut."
        )
    return described


def _merges(described: dict[str, Any]) -> list[list[str]]:
    merges = described["model"]["merges"]
    return [pair.split(" ") if isinstance(pair, str) else list(pair) for pair in merges]


def _merged_from(token: str, ranks: dict[tuple[str, ...], int]) -> set[str]:
    """Return every piece that occurs while the characters of a token are merged into it."""
    pieces, seen = list(token), set(token)
    while len(pieces) > 1:
        pairs = list(pairwise(pieces))
        place = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], len(ranks)))
        if pairs[place] not in ranks:
            break
        pieces[place : place + 2] = ["".join(pairs[place])]
        seen.add(pieces[place])
    return seen


def write_smaller_tokenizer(tokenizer: Any, ids: list[int], folder: Path) -> Any:
    """Save the tokenizer with only these ids, numbered by their place in the list, and reload it.

    Raises `ModelError` if the reloaded vocabulary differs from the written one.
    """
    described = _renumbered(_describe(tokenizer), {old: new for new, old in enumerate(ids)})
    tokenizer.save_pretrained(folder)
    for name in ("vocab.json", "vocab.txt", "merges.txt", "added_tokens.json"):
        (folder / name).unlink(missing_ok=True)
    text = json.dumps(described, ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text, encoding="utf8")
    _renumber_config(folder / "tokenizer_config.json", {old: new for new, old in enumerate(ids)})
    smaller = load_tokenizer(str(folder))
    number = {old: new for new, old in enumerate(ids)}
    new = {t: number[old] for t, old in tokenizer.get_vocab().items() if old in number}
    if smaller.get_vocab() != new:
        raise ModelError(
            f"{type(tokenizer).__name__} does not reload with the ids that were written; its "
            "vocabulary cannot be cut."
        )
    return smaller


def cut_vocabulary(model: Any, tokenizer: Any, ids: list[int], folder: str | Path) -> Any:
    """Save a model and its tokenizer with only these ids, as a folder to name as a teacher.

    Returns the model. Raises `ModelError` for a family or tokenizer that cannot be cut.
    """
    blocks = list(range(num_layers(model)))
    smaller = cut_model(model, KeptParts(blocks, ids=ids))
    with staged_folder(Path(folder)) as aside:
        write_smaller_tokenizer(tokenizer, ids, aside)
        smaller.save_pretrained(aside)  # type: ignore[operator]
    return smaller


def _renumbered(described: dict[str, Any], new: dict[int, int]) -> dict[str, Any]:
    """Return the tokenizer description with only the ids in `new`, under their new numbers."""
    model = described["model"]
    if model["type"] == "BPE":
        kept = {token for token, number in model["vocab"].items() if number in new}
        model["merges"] = [pair for pair in _merges(described) if {*pair, "".join(pair)} <= kept]
    model["vocab"] = {
        token: new[number] for token, number in model["vocab"].items() if number in new
    }
    for token in described.get("added_tokens", []):
        token["id"] = new[token["id"]]
    if described.get("padding"):
        described["padding"]["pad_id"] = new[described["padding"]["pad_id"]]
    _renumber_processor(described.get("post_processor"), new)
    return described


def _renumber_processor(processor: dict[str, Any] | None, new: dict[int, int]) -> None:
    """Renumber the special tokens that a post-processor puts around a text, in place."""
    for one in (processor or {}).get("processors", []):
        _renumber_processor(one, new)
    for token in ((processor or {}).get("special_tokens") or {}).values():
        token["ids"] = [new[number] for number in token["ids"]]
    for name in ("sep", "cls"):
        if processor is not None and name in processor:
            token, number = processor[name]
            processor[name] = [token, new[number]]


def _renumber_config(file: Path, new: dict[int, int]) -> None:
    """Renumber the ids in tokenizer_config.json, if it lists any."""
    config = json.loads(file.read_text(encoding="utf8"))
    if "added_tokens_decoder" not in config:
        return
    decoder = config["added_tokens_decoder"]
    config["added_tokens_decoder"] = {str(new[int(old)]): one for old, one in decoder.items()}
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf8")
