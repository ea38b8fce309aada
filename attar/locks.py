"""Locks: one writer of a folder at a time, on this machine and across machines."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from attar.errors import UserError
from attar.files import fingerprint

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class Lock(Protocol):
    """A file that names the process that writes here; its `str` is its path."""

    def create(self, data: bytes) -> bool:
        """Create it with this content, atomically; returns False if it exists already."""

    def read(self) -> bytes | None:
        """Its content; None where it does not exist."""

    def remove(self) -> None:
        """Remove it, if it exists."""


class LockFile:
    """A lock on this machine's file system."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def create(self, data: bytes) -> bool:
        """Write another file and link it: no reader sees a partial one."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle, claim = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name + ".")
        try:
            with open(handle, "wb") as file:
                file.write(data)
            os.chmod(claim, 0o644)  # other users may read who holds it
            os.link(claim, self._path)
        except FileExistsError:
            return False
        finally:
            os.unlink(claim)
        return True

    def read(self) -> bytes | None:
        """Its content; None where it does not exist."""
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def remove(self) -> None:
        """Remove it, if it exists."""
        self._path.unlink(missing_ok=True)


@contextmanager
def hold_lock(lock: Lock, what: str, error: type[UserError]) -> Iterator[None]:
    """Hold a lock during the block. Raises `error` naming another process that holds it.

    what: the locked thing, for messages. A lock left by a dead process of this host (kill -9) is
    taken over.
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
        with suppress(error, OSError):  # a lock left behind is taken over later
            if lock.read() == data:
                lock.remove()


def _claim(lock: Lock, data: bytes, what: str, error: type[UserError]) -> None:
    for _ in range(3):
        if lock.create(data):
            return
        found = lock.read()
        owner = _owner(found)
        if owner is not None and not _has_ended(*owner):
            raise error(
                f"{what} is in use by process {owner[1]} on {owner[0]}; wait for it, "
                f"or delete {lock} if that process has ended."
            )
        with _one_at_a_time(str(lock)):  # else two that found it dead could remove each other's
            if lock.read() == found:
                lock.remove()
    raise error(f"{what} is being claimed by several processes at once; try again.")


def _owner(data: bytes | None) -> tuple[str, int] | None:
    """(host, process id) that a lock names; None if its content is not valid."""
    try:
        found = json.loads(data or b"")
        host, pid = str(found["host"]), int(found["pid"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return (host, pid) if 0 < pid < 1 << 31 else None


def _has_ended(host: str, pid: int) -> bool:
    """Whether a process of this host has ended; for other hosts False, since we cannot know."""
    if host != socket.gethostname():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    try:  # a zombie: killed, but never waited for; common in containers
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state in "ZX"


@contextmanager
def _one_at_a_time(name: str) -> Iterator[None]:
    """Let the processes of this user on this host run the block one after another."""
    if fcntl is None:
        yield
        return
    path = Path(tempfile.gettempdir()) / f"attar-{os.getuid()}-{fingerprint(name)}.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # released whenever this process ends
        yield
    finally:
        os.close(handle)
