"""Fast checksums of files, so that what was written is what is read later.

A checksum is XXH3 of 128 bits (https://xxhash.com): it runs at the speed of memory and finds every
damage that chance makes. It is no defence against someone who wants two files to look alike.

A file whose size, times and inode are as they were when it was read is not read again: within one
process any file, and big ones (weights) within any process of the same user, by a small file in
`$XDG_CACHE_HOME/attar`.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import xxhash

from attar.errors import UserError
from attar.files import write_text

BLOCK_BYTES = 1 << 22
TICK_NS = 100_000_000  # a file this young may change again within one tick of its clock
COARSE_TICK_NS = 2_000_000_000  # of the coarsest clocks of file systems
REMEMBERED_BYTES = 1 << 24  # files from this size on are remembered for other processes
MOST_REMEMBERED = 2048
MISSING = "is missing"  # of a recorded file

Recorded = dict[str, list[int | str]]  # by path below some folder: [bytes, checksum]
Stamp = list[int]  # size, written and changed in ns, inode, device

_known: dict[str, tuple[Stamp, str]] = {}


def checksum(path: Path) -> str:
    """XXH3-128 of all bytes of a file, as 32 hex digits. Raises `OSError`."""
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        block = bytearray(BLOCK_BYTES)
        view = memoryview(block)
        while number := file.readinto(view):
            digest.update(view[:number])
    return str(digest.hexdigest())


def known_checksum(path: Path) -> str:
    """`checksum`, without reading a file that has not changed since it was read last."""
    name, before = os.path.abspath(path), _stamp(path)
    if (found := _known.get(name)) is not None and found[0] == before:
        return found[1]
    big = before[0] >= REMEMBERED_BYTES
    if big and (found := _remembered().get(name)) is not None and found[0] == before:
        _known[name] = found
        return found[1]
    made = checksum(path)
    age = time.time_ns() - max(before[1:3])
    if _stamp(path) == before and age > TICK_NS:
        _known[name] = (before, made)
        if big and age > COARSE_TICK_NS:
            _remember(name, before, made)
    return made


def _stamp(path: Path) -> Stamp:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


# Files of a folder ---------------------------------------------------------------------------


def files_below(paths: Iterable[Path]) -> list[Path]:
    """The files among some paths and below the folders among them, those that exist, sorted."""
    found: set[Path] = set()
    for path in paths:
        if path.is_dir():
            found |= {file for file in path.rglob("*") if file.is_file()}
        elif path.is_file():
            found.add(path)
    return sorted(found)


def stamp_of_files(files: Iterable[Path]) -> list[list[str]]:
    """Names and checksums of files: an edited file changes the stamp, a touched one does not."""
    return [[str(file), known_checksum(file)] for file in files]


def record_files(paths: Iterable[Path], root: Path) -> Recorded:
    """Size and checksum of files, and of all files in folders, by their path below `root`."""
    return {
        file.relative_to(root).as_posix(): [file.stat().st_size, known_checksum(file)]
        for file in files_below(paths)
    }


def faults_of(
    recorded: Mapping[str, list[int | str]], root: Path, *, every_byte: bool = False
) -> dict[str, str]:
    """What is wrong with recorded files, by path: `is missing`, `was changed`, or their size.

    every_byte: read them even where nothing says that they changed.
    """
    found = {}
    for name, (size, wanted) in recorded.items():
        try:
            found_size = (root / name).stat().st_size
            if found_size != size:
                found[name] = f"has {found_size:,} bytes instead of {size:,}"
            elif (checksum if every_byte else known_checksum)(root / name) != wanted:
                found[name] = "was changed"
        except (FileNotFoundError, NotADirectoryError):
            found[name] = MISSING
        except OSError as error:
            found[name] = f"cannot be read ({error.strerror})"
    return found


# Between processes -----------------------------------------------------------------------------


def _memory_file() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache) / "attar" / "checksums.json"


def _remembered() -> dict[str, tuple[Stamp, str]]:
    """What other processes found; nothing where the file is missing or damaged."""
    try:
        values = json.loads(_memory_file().read_text(encoding="utf8"))
        return {str(name): (list(stamp), str(found)) for name, (stamp, found) in values.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _remember(name: str, stamp: Stamp, found: str) -> None:
    values = _remembered()
    values.pop(name, None)
    values[name] = (stamp, found)  # the newest last
    kept = dict(list(values.items())[-MOST_REMEMBERED:])
    with contextlib.suppress(OSError, UserError):  # it only saves time
        write_text(_memory_file(), json.dumps(kept))
