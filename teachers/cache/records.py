"""The JSON files of a cache, with a checksum, and checked as untrusted input when read.

A record is an object whose `checksum` is the fingerprint of its other fields. A file that does not
parse, is far too large or deep, or lacks a field of the right kind raises `DamagedFile`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from attar.errors import CacheError
from attar.files import fingerprint

MAX_RECORD_BYTES = 16 << 20  # an entry of 400,000 examples; manifests are far smaller
CacheRecord = dict[str, Any]


class DamagedFile(CacheError):
    """A file of a cache is not as it was written; `--repair` rebuilds it."""

    def __init__(self, fault: str) -> None:
        super().__init__(
            f"{fault}; run `distill cache build RECIPE --repair` to rebuild it, or delete the "
            "cache."
        )
        self.fault = fault


def encode_record(record: CacheRecord) -> bytes:
    """The bytes of a record and its checksum, one key a line."""
    record = {**record, "checksum": fingerprint(record)}
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def decode_record(data: bytes, path: str) -> CacheRecord:
    """Parse and check a record; its checksum is removed."""
    try:
        found = json.loads(data, parse_constant=_reject_constant)
        checksum = found.pop("checksum")
        whole = fingerprint(found) == checksum
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise DamagedFile(f"{path} is damaged (its checksum does not fit)")
    return found  # type: ignore[no-any-return]


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


# Checks of single fields -------------------------------------------------------------------------


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 50


def _section(value: Any) -> bool:
    return isinstance(value, dict)


def _short_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200


def _sha256(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1.01  # sums of float32 may pass one


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(_count(each) for each in value)


FieldChecks = dict[str, Callable[[Any], bool]]
MANIFEST_FIELDS: FieldChecks = {
    "teacher": _section,
    "tokenizer": _section,
    "data": _section,
    "codec": _section,
    "hidden": _section,
    "shard_tokens": _count,
}
ASSETS_FIELDS: FieldChecks = {"bytes": _count, "sha256": _sha256, "made_for": _short_text}
SHARD_FIELDS: FieldChecks = {
    **ASSETS_FIELDS,
    "rows": _count,
    "tokens": _count,
    "padding_mass": _share,
    "assets": lambda value: value is None or _sha256(value),
    "keys": lambda value: isinstance(value, list) and all(_short_text(key) for key in value),
    "row_tokens": _counts,
    "batch_rows": _counts,
}


def check_manifest(record: CacheRecord, path: str) -> CacheRecord:
    """Return the manifest if its fields are valid."""
    check_fields(record, MANIFEST_FIELDS, path)
    earlier = record.get("grown_from", [])
    if not isinstance(earlier, list) or not all(_short_text(one) for one in earlier):
        raise DamagedFile(f"{path} is damaged (`grown_from` has a wrong value)")
    if not isinstance(record.get("labels", False), bool):
        raise DamagedFile(f"{path} is damaged (`labels` has a wrong value)")
    return record


def check_fields(record: CacheRecord, fields: FieldChecks, path: str) -> CacheRecord:
    """Return the record if it has all fields and each is of the right kind."""
    for name, is_valid in fields.items():
        if name not in record or not is_valid(record[name]):
            raise DamagedFile(f"{path} is damaged (`{name}` is missing or has a wrong value)")
    return record


def check_shard_entry(record: CacheRecord, path: str) -> CacheRecord:
    """Return the entry of a shard if its fields are valid and its numbers agree."""
    check_fields(record, SHARD_FIELDS, path)
    rows = record["rows"]
    agree = (
        rows == len(set(record["keys"])) == len(record["keys"]) == len(record["row_tokens"])
        and sum(record["batch_rows"]) == rows
        and sum(record["row_tokens"]) == record["tokens"]
    )
    if not agree:
        raise DamagedFile(f"{path} is damaged (its keys, rows and tokens do not agree)")
    return record


def identities_of(manifest: CacheRecord) -> set[str]:
    """Identities of a manifest and of those that it grew from: its shards are made for any."""
    return {manifest_identity(manifest), *manifest.get("grown_from", [])}


def manifest_identity(manifest: CacheRecord) -> str:
    """Fingerprint of a manifest; an absent field means the same as null."""
    return fingerprint(
        {
            key: {k: v for k, v in value.items() if v is not None} if _section(value) else value
            for key, value in manifest.items()
            if key not in ("format", "grown_from")
        }
    )
