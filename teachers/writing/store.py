"""The store of finished requests: one line an answer, appended as soon as the answer is there.

    requests/00000.jsonl    of the first process; others write files of their own

A line is a digest of what follows, a space, and JSON. A kill at any byte loses no answer whose line
was written: a torn line is passed by when the store is read, and its request asked again. An answer
that stands there twice counts once, the first in the order of files and lines.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from teachers.codecs.codec import SignalColumns
from teachers.writing.request import Failed, Written

log = logging.getLogger(__name__)
DIGEST_BYTES = 8


@dataclass(frozen=True)
class Line:
    """Where a finished request stands: its file, and the line's first byte and length."""

    file: Path
    start: int
    length: int


class RequestStore:
    """Reads the finished requests of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def index(self) -> dict[str, Line]:
        """Where each finished request stands, by its key."""
        return {key: line for key, line, _ in self._lines()}

    def read(self) -> Iterator[tuple[str, Written | Failed]]:
        """Every finished request once, without its signals: its key, and its answer or refusal."""
        for key, _, found in self._lines():
            yield key, _outcome_of(found)

    def signals(self, line: Line, codec: str) -> SignalColumns | None:
        """The signals of an answer; None where it has none, or those of another codec.

        codec: what `StoreWriter` was given.
        """
        with line.file.open("rb") as file:
            file.seek(line.start)
            found = _parsed(file.read(line.length))
        if found is None or found.get("codec") != codec:
            return None
        return {name: _array(value) for name, value in found["signals"].items()}

    def has_signals(self, codec: str) -> set[str]:
        """Keys of the answers that have signals of this codec."""
        return {key for key, _, found in self._lines() if found.get("codec") == codec}

    def _lines(self) -> Iterator[tuple[str, Line, dict[str, Any]]]:
        """The first whole line of every request."""
        damaged = 0
        seen: set[str] = set()
        for file in sorted(self.folder.glob("*.jsonl")):
            with file.open("rb") as lines:
                start = 0
                for raw in lines:
                    found = _parsed(raw)
                    if found is not None and found["key"] not in seen:
                        seen.add(found["key"])
                        yield found["key"], Line(file, start, len(raw)), found
                    damaged += found is None and bool(raw.strip())
                    start += len(raw)
        if damaged:
            log.info("%s: %d torn lines are passed by; their requests are asked again",
                     self.folder, damaged)  # fmt: skip


class StoreWriter:
    """Appends finished requests to the file of one process.

    codec: a name of the codec by which signals are encoded, and of its parameters.
    """

    def __init__(self, folder: Path, rank: int = 0, codec: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._codec = codec
        file = folder / f"{rank:05d}.jsonl"
        torn = file.exists() and not _ends_a_line(file)
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        if torn:
            os.write(self._file, b"\n")

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.sync()
        os.close(self._file)

    def add(self, key: str, outcome: Written | Failed) -> None:
        """Append a request. Once this returns, a kill of the process does not lose it."""
        values: dict[str, Any] = {"key": key}
        if isinstance(outcome, Failed):
            values["refused"] = outcome.reason
        else:
            values |= {"ids": _packed(outcome.ids.astype(np.int32)), "ended": outcome.ended}
            values["seconds"] = round(outcome.seconds, 4)
            if outcome.logprobs is not None:
                values["logprobs"] = _packed(outcome.logprobs.astype(np.float32))
            if outcome.signals is not None:
                values["codec"] = self._codec
                values["signals"] = {name: _packed(a) for name, a in outcome.signals.items()}
        text = json.dumps(values, ensure_ascii=False).encode()
        line = memoryview(_digest(text) + b" " + text + b"\n")
        while line:
            line = line[os.write(self._file, line) :]

    def sync(self) -> None:
        """Flush to the disk, so that a power cut does not lose what was added either."""
        os.fsync(self._file)


def _outcome_of(found: dict[str, Any]) -> Written | Failed:
    if "refused" in found:
        return Failed(found["refused"], again=False)
    logprobs = _array(found["logprobs"]) if "logprobs" in found else None
    ids = _array(found["ids"]).astype(np.int64)
    return Written(ids, bool(found["ended"]), logprobs, seconds=float(found["seconds"]))


def _ends_a_line(file: Path) -> bool:
    with file.open("rb") as lines:
        size = lines.seek(0, os.SEEK_END)
        if size == 0:
            return True
        lines.seek(size - 1)
        return lines.read(1) == b"\n"


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=DIGEST_BYTES).hexdigest().encode()


def _parsed(raw: bytes) -> dict[str, Any] | None:
    """What a line holds; None where it is not as it was written."""
    digest, _, text = raw.partition(b" ")
    if not text.endswith(b"\n") or digest != _digest(text[:-1]):
        return None
    found: dict[str, Any] = json.loads(text)
    return found


def _packed(array: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": data}


def _array(packed: dict[str, Any]) -> np.ndarray:
    flat = np.frombuffer(base64.b64decode(packed["data"]), np.dtype(packed["dtype"]))
    return flat.reshape(packed["shape"]).copy()
