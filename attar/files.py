"""Files that survive a kill: written aside, flushed, renamed; locks; fingerprints of values."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from attar.errors import RunError, UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


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


@cache
def _sha256_then(path: Path, size: int, written_ns: int, changed_ns: int) -> str:
    return sha256_of(path)


def stamp_of_files(files: Iterable[Path]) -> list[list[str]]:
    """Names and contents, so that an edited file is noticed and a copied or touched one is not.

    A file is read again in the same process only where its size or a time of it has changed.
    """
    found = []
    for file in files:
        stat = file.stat()
        digest = _sha256_then(file, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        found.append([str(file), digest])
    return found


def sync_folder(path: Path) -> None:
    """Flush a folder's entries, so that a rename inside it survives a power cut."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part of it."""
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
    """Parse a JSON file of ours; a `RunError` names a file that does not parse."""
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except json.JSONDecodeError as error:
        raise RunError(f"{path} is not valid JSON ({error}); delete it and run again.") from None


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; it takes the place of `path` only when the block ends without an error."""
    aside = path.with_name(path.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    put_in_place(aside, path)


def put_in_place(aside: Path, path: Path) -> None:
    """Flush a filled folder and let it take the place of `path`, whose content goes."""
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


class Lock(Protocol):
    """A file that says who writes here; its path is its `str`."""

    def create(self, data: bytes) -> bool:
        """Make it with this content, whole; False where it is there already."""

    def read(self) -> bytes | None:
        """Its content; None where it is not there."""

    def remove(self) -> None:
        """Remove it, if it is there."""


class LockFile:
    """A lock on this machine's file system."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def create(self, data: bytes) -> bool:
        """Written aside and linked: never seen half written."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle, claim = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name + ".")
        try:
            with open(handle, "wb") as file:
                file.write(data)
            os.chmod(claim, 0o644)  # others may read who it is
            os.link(claim, self._path)
        except FileExistsError:
            return False
        finally:
            os.unlink(claim)
        return True

    def read(self) -> bytes | None:
        """Its content."""
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def remove(self) -> None:
        """Remove it."""
        self._path.unlink(missing_ok=True)


@contextmanager
def owned(lock: Lock, what: str, error: type[UserError]) -> Iterator[None]:
    """Hold a lock; another process that holds it is named in the error.

    The lock of a process of this host that is no more (kill -9) is taken over.
    """
    mine = {"host": socket.gethostname(), "pid": os.getpid()}
    data = json.dumps(mine).encode()
    try:
        _claim(lock, data, what, error)
    except OSError as reason:
        raise error(f"{lock} cannot be written ({reason.strerror}).") from None
    try:
        yield
    finally:
        with suppress(error, OSError):  # one that stays is taken over later
            if lock.read() == data:
                lock.remove()


def _claim(lock: Lock, data: bytes, what: str, error: type[UserError]) -> None:
    for _ in range(3):
        if lock.create(data):
            return
        found = lock.read()
        owner = _owner(found)
        if owner is not None and not _is_gone(*owner):
            raise error(
                f"{what} is in use by process {owner[1]} on {owner[0]}; wait for it, "
                f"or delete {lock} if that process is no more."
            )
        with _one_at_a_time(str(lock)):  # or two who found it dead would remove each other's
            if lock.read() == found:
                lock.remove()
    raise error(f"{what} is being claimed by several processes at once; try again.")


def _owner(data: bytes | None) -> tuple[str, int] | None:
    """(host, process) that a lock names; None for one that names nobody."""
    try:
        found = json.loads(data or b"")
        host, pid = str(found["host"]), int(found["pid"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return (host, pid) if 0 < pid < 1 << 31 else None


def _is_gone(host: str, pid: int) -> bool:
    """Whether a process of this host has ended; of others we cannot know."""
    if host != socket.gethostname():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    try:  # killed, but nobody has asked for its exit status: common in containers
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state in "ZX"


@contextmanager
def _one_at_a_time(name: str) -> Iterator[None]:
    """Processes of this host (and user) do the block one after another."""
    if fcntl is None:
        yield
        return
    path = Path(tempfile.gettempdir()) / f"attar-{os.getuid()}-{fingerprint(name)}.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # freed when this process ends, however it ends
        yield
    finally:
        os.close(handle)
