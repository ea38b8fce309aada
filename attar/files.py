"""Files that survive a kill (written beside, flushed, renamed), and fingerprints of values."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attar.errors import RunError


def fingerprint(value: Any) -> str:
    """16 hex digits that change whenever the JSON form of `value` changes."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync_folder(path: Path) -> None:
    """Flush a folder's entries, so that a rename inside it survives a power cut."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees either the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".partial")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_text` for JSON, indented and in a stable order of keys."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises `RunError` naming a file that does not parse."""
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is not valid JSON ({error}); delete it and run again.") from None


def read_json_object(path: Path, *keys: str) -> dict[str, Any]:
    """`read_json` of a file that holds an object with these keys, at least.

    Raises `RunError` naming a file that holds something else.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        what = type(found).__name__
        raise RunError(f"{path} holds a {what}, not an object; delete it and run again.")
    if lacking := [key for key in keys if key not in found]:
        raise RunError(f"{path} lacks `{lacking[0]}`; delete it and run again.")
    return found


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to fill; it replaces `path` only if the block ends without an error."""
    aside = path.with_name(path.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    replace_folder(aside, path)


def replace_folder(aside: Path, path: Path) -> None:
    """Flush a filled folder and replace `path`, whose old content is deleted, by it."""
    for file in aside.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    old = path.with_name(path.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.replace(old)
    aside.replace(path)
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def bytes_under(path: Path) -> int:
    """Bytes of all files below a folder (or of one file)."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
