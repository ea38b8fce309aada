"""Files that survive a kill (written beside, flushed, renamed), and fingerprints of values."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attar.commits import check_may_write
from attar.errors import RunError
from attar.storage_errors import naming


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


def clear(path: Path) -> None:
    """Remove what has this name: a file, a folder with all in it, or a link but not its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; the file replaces `path` only if the block ends without an error.

    A reader sees either the old content or the new, never a part. Raises an `OSError` that names
    the file where the disk is full or a right is missing, whichever library wrote.
    """
    aside = path.with_name(path.name + ".partial")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        clear(aside)  # a link there must not lead the write to another file
        try:
            yield aside
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            check_may_write()
            aside.replace(path)
        except BaseException:
            with suppress(OSError):
                clear(aside)
            raise
        sync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file as `staged_file` does."""
    with staged_file(path) as aside, aside.open("xb") as file:
        file.write(data)


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
    """Yield a folder to fill; it replaces `path` only if the block ends without an error.

    Raises an `OSError` that names a file where the disk is full or a right is missing.
    """
    aside = path.with_name(path.name + ".partial")
    with naming(path):
        clear(aside)
        try:
            aside.mkdir(parents=True)
            yield aside
            replace_folder(aside, path)
        except BaseException:
            with suppress(OSError):
                clear(aside)
            raise


def sync_files(folder: Path) -> None:
    """Flush every file below a folder."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def _open_to_readers(folder: Path) -> None:
    """Give each file the rights of reading and writing that the folder was made with."""
    rights = folder.stat().st_mode & 0o666
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(file.stat().st_mode | rights)


def replace_folder(aside: Path, path: Path) -> None:
    """Flush a filled folder and replace `path`, whose old content is deleted, by it.

    Files may be read by whom the folder may: some libraries write theirs for the owner alone.
    """
    _open_to_readers(aside)
    sync_files(aside)
    check_may_write()
    old = path.with_name(path.name + ".old")
    clear(old)
    try:
        if path.exists():
            path.replace(old)
        aside.replace(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.replace(path)
        raise
    sync_folder(path.parent)
    with suppress(OSError):
        clear(old)


def bytes_under(path: Path) -> int:
    """Bytes of all files below a folder (or of one file)."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def stored_weight_bytes(folder: Path, adapter: str | None = None) -> int:
    """Bytes of a model's weight files, its adapter included."""
    more = stored_weight_bytes(Path(adapter)) if adapter is not None else 0
    if folder.is_file():
        return bytes_under(folder) + more
    suffixes = (".safetensors", ".bin", ".gguf", ".onnx", ".data")
    files = [file for file in folder.rglob("*") if file.suffix in suffixes]
    return sum(bytes_under(file) for file in files) + more
