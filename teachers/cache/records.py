"""The JSON files of a cache: small, with a checksum, and nothing in them believed unseen.

A record is an object whose `checksum` is the fingerprint of the rest. Whatever does not parse, is
absurdly large or deep, or lacks a field of the right kind is `Damaged`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from attar.errors import CacheError
from attar.files import fingerprint

LARGEST = 16 << 20  # bytes: an entry of 400,000 examples; manifests are far smaller
Record = dict[str, Any]


class Damaged(CacheError):
    """A file of a cache is not as it was written; a repair makes it again."""

    def __init__(self, fault: str) -> None:
        super().__init__(
            f"{fault}; run `distill cache build RECIPE --repair` to make it again, or delete the "
            "cache."
        )
        self.fault = fault


def encode(record: Record) -> bytes:
    """The bytes of a record: one key a line."""
    record = {**record, "checksum": fingerprint(record)}
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def decode(data: bytes, path: str) -> Record:
    """A record without its checksum."""
    try:
        found = json.loads(data, parse_constant=_no_number)
        checksum = found.pop("checksum")
        whole = fingerprint(found) == checksum
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise Damaged(f"{path} is damaged (its checksum does not fit)")
    return found  # type: ignore[no-any-return]


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


# What a field must be ----------------------------------------------------------------------------


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 50


def _section(value: Any) -> bool:
    return isinstance(value, dict)


def _word(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200


def _sha256(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1.01  # sums of float32 may pass one


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(_count(each) for each in value)


Fields = dict[str, Callable[[Any], bool]]
MANIFEST: Fields = {
    "teacher": _section,
    "tokenizer": _section,
    "data": _section,
    "codec": _section,
    "hidden": _section,
    "shard_tokens": _count,
}
ASSETS: Fields = {"bytes": _count, "sha256": _sha256, "made_for": _word}
SHARD: Fields = {
    **ASSETS,
    "rows": _count,
    "tokens": _count,
    "padding_mass": _share,
    "assets": lambda value: value is None or _sha256(value),
    "keys": lambda value: isinstance(value, list) and all(_word(key) for key in value),
    "row_tokens": _counts,
    "batch_rows": _counts,
}


def check(record: Record, fields: Fields, path: str) -> Record:
    """The record, whose fields are there and of their kind."""
    for name, right in fields.items():
        if name not in record or not right(record[name]):
            raise Damaged(f"{path} is damaged (`{name}` is missing, or is not what it must be)")
    return record


def check_shard(record: Record, path: str) -> Record:
    """The entry of a shard, whose numbers agree."""
    check(record, SHARD, path)
    rows = record["rows"]
    agree = (
        rows == len(set(record["keys"])) == len(record["keys"]) == len(record["row_tokens"])
        and sum(record["batch_rows"]) == rows
        and sum(record["row_tokens"]) == record["tokens"]
    )
    if not agree:
        raise Damaged(f"{path} is damaged (its keys, rows and tokens do not agree)")
    return record


def identity(manifest: Record) -> str:
    """Fingerprint of what a cache was made for; an absent field and a null one say the same."""
    return fingerprint(
        {
            key: {k: v for k, v in value.items() if v is not None} if _section(value) else value
            for key, value in manifest.items()
            if key != "format"
        }
    )
