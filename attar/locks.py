"""Locks: one writer of a folder at a time, on this machine and across machines.

A lock names its holder, who refreshes it every `BEAT_SECONDS`. A holder on this machine has ended
when its process has. One elsewhere (another machine, another container) has ended when its lock
was not refreshed for `LEASE_SECONDS` by the clock of who waits: the clocks of two machines, and
times of files, are never compared. Who wakes up late and finds its lock taken writes nothing more.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from attar.commits import CHECKS
from attar.errors import UserError
from attar.files import fingerprint

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

BEAT_SECONDS = 10.0
LEASE_SECONDS = 90.0  # several beats: a network may stall
SETTLE_SECONDS = 1.0  # in which another who took over the same lock at the same time would show


class Lock(Protocol):
    """A file that names the process that writes here; its `str` is its path."""

    def create(self, data: bytes) -> bool:
        """Create it with this content, atomically; returns False if it exists already."""

    def read(self) -> bytes | None:
        """Its content; None where it does not exist."""

    def refresh(self, data: bytes) -> None:
        """Show that its holder lives; `data`: a content that names the same holder."""

    def sign(self) -> object:
        """What changes whenever the holder shows that it lives; None where there is no lock."""

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

    def refresh(self, data: bytes) -> None:
        """Touch it: to rewrite it could put it back where another has taken it."""
        os.utime(self._path)

    def sign(self) -> object:
        """Its content and its time, from an open file: a network's cached times may be old."""
        try:
            with self._path.open("rb") as file:
                return file.read(), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None

    def remove(self) -> None:
        """Remove it, if it exists."""
        self._path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Owner:
    """Who holds a lock. machine: the running system and the space of its process ids, so that
    containers differ. started: when the process started, so that an id used again differs. Both
    are None where the system does not tell. token: another one for every time a lock is taken.
    """

    host: str
    pid: int
    machine: str | None = None
    started: str | None = None
    token: str = ""

    @property
    def is_here(self) -> bool:
        """Whether its process would be among those that this process can see."""
        mine = _machine()
        known = self.machine is not None and mine is not None
        return self.machine == mine if known else self.host == socket.gethostname()

    @property
    def has_ended(self) -> bool:
        """Whether its process, which is here, has ended."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        state, started = _process(self.pid)  # a zombie was killed, but never waited for
        used_again = started and self.started and started != self.started
        return state in ("Z", "X") or bool(used_again)


def _machine() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _process(pid: int) -> tuple[str | None, str | None]:
    """State of a process and when it started, in ticks since the boot; None where unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None, None
    return fields[0], fields[19]


def _owner(data: bytes | None) -> Owner | None:
    """The holder that a lock names; None if its content is not valid."""
    try:
        found = json.loads(data or b"")
        texts = {k: str(found[k]) for k in ("machine", "started", "token") if found.get(k)}
        owner = Owner(str(found["host"]), int(found["pid"]), **texts)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return owner if 0 < owner.pid < 1 << 31 else None


@contextmanager
def hold_lock(lock: Lock, what: str, error: type[UserError]) -> Iterator[None]:
    """Hold a lock during the block. Raises `error` naming another process that holds it.

    what: the locked thing, for messages. A lock whose holder has ended is taken over; where it
    cannot be seen, after `LEASE_SECONDS` without a sign of it. Raises `error` at the next file
    that would be finished, or at the end, where another has taken this lock meanwhile.
    """
    started = _process(os.getpid())[1]
    mine = Owner(socket.gethostname(), os.getpid(), _machine(), started, uuid.uuid4().hex)
    try:
        _claim(lock, mine, what, error)
    except OSError as reason:
        raise error(f"{lock} cannot be written ({reason.strerror}).") from None
    held = _HeldLock(lock, mine, what, error)
    CHECKS.append(held.check)
    try:
        with held.refreshed():
            yield
        held.check(at_once=True)
    finally:
        CHECKS.remove(held.check)
        with suppress(error, OSError):  # a lock left behind is taken over later
            if _owner(lock.read()) == mine:
                lock.remove()


class _HeldLock:
    """A lock that this process holds, as far as it knows."""

    def __init__(self, lock: Lock, mine: Owner, what: str, error: type[UserError]) -> None:
        self._lock, self._mine, self._what, self._error = lock, mine, what, error
        self._taker: Owner | None = None
        self._beats, self._last = 0, _now()
        self._one_beat = threading.Lock()

    @contextmanager
    def refreshed(self) -> Iterator[None]:
        """Refresh the lock while the block runs."""
        over = threading.Event()

        def beats() -> None:
            while not over.wait(BEAT_SECONDS):
                self._beat()

        thread = threading.Thread(target=beats, name="lock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def check(self, at_once: bool = False) -> None:
        """Raise the error of a lock that was taken. It is looked at where it is due or at once."""
        if at_once or _now() - self._last > 2 * BEAT_SECONDS:  # we have slept
            self._beat()
        if self._taker is not None:
            raise self._error(
                f"{self._what} was taken over by process {self._taker.pid} on {self._taker.host} "
                "while this process gave no sign of life; nothing more is written here."
            )

    def _beat(self) -> None:
        with self._one_beat, suppress(self._error, OSError):  # a disk that is away may come back
            self._beats += 1
            data = _encode(self._mine, self._beats)
            found = self._lock.read()
            if found is None and self._lock.create(data):  # deleted by hand, and taken by nobody
                found = data
            holder = _owner(found if found is not None else self._lock.read())
            if holder == self._mine:
                self._lock.refresh(data)
            elif holder is not None:
                self._taker = holder
            self._last = _now()


def _claim(lock: Lock, mine: Owner, what: str, error: type[UserError]) -> None:
    waited = False
    for _ in range(3):
        if lock.create(_encode(mine)):
            if not waited:
                return
            time.sleep(SETTLE_SECONDS)
            if _owner(lock.read()) == mine:
                return
        found = lock.read()
        owner = _owner(found)
        if owner is not None:
            lives = not owner.has_ended if owner.is_here else _shows_life(lock, owner, what)
            if lives:
                raise error(
                    f"{what} is in use by process {owner.pid} on {owner.host}, which {lock} "
                    "names; wait for it, or stop it."
                )
            waited = not owner.is_here
        with _one_at_a_time(str(lock)):  # else two that found it dead could remove each other's
            if lock.read() == found:
                lock.remove()
    raise error(f"{what} is being claimed by several processes at once; try again.")


def _shows_life(lock: Lock, owner: Owner, what: str) -> bool:
    """Whether a lock is refreshed while we wait; False too where it is given back."""
    log.warning(
        "%s is locked by process %d on %s, which cannot be seen from here: waiting up to %.0f s "
        "for a sign of it",
        what, owner.pid, owner.host, LEASE_SECONDS,
    )  # fmt: skip
    before, end = lock.sign(), _now() + LEASE_SECONDS
    while _now() < end:
        time.sleep(min(1.0, BEAT_SECONDS))
        now = lock.sign()
        if now != before:
            return now is not None
    log.warning("%s is taken over: there was no sign of that process", what)
    return False


def _encode(owner: Owner, beat: int = 0) -> bytes:
    return json.dumps({**asdict(owner), "beat": beat}).encode()


def _now() -> float:
    """Seconds of a clock that goes on while the machine sleeps, and that nobody sets."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


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
