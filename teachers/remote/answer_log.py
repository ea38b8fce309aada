"""Answers of a server that no finished shard holds yet, on disk as they come.

A build that is killed asks for none of them again. A record is its length and checksum, then arrays
in numpy's own format; one that a kill cut short is dropped.

Legend: P predictions of a text, K entries.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from threading import Lock
from zipfile import BadZipFile

import numpy as np

from attar.files import write_bytes
from teachers.remote.scored_prompt import ScoredPrompt

HEADER = struct.Struct("<II")  # bytes of a record, and their CRC-32
MOST_BYTES = 1 << 30  # of a record: more is no length that was written


class AnswerLog:
    """Answers by the key of their example. Threads may share it."""

    def __init__(self, path: Path, asked: str) -> None:
        """asked: what the answers are to, as text; those of another log are not taken."""
        self._path, self._asked, self._lock = path, asked, Lock()
        self._known: dict[str, ScoredPrompt] = {}
        if path.is_file():
            self._known = dict(_records(path, asked))
            self.keep(self._known.keys())  # else records would follow one that was cut short

    def get(self, key: str) -> ScoredPrompt | None:
        """The answer for an example; None where there is none."""
        return self._known.get(key)

    def add(self, key: str, answer: ScoredPrompt) -> None:
        """Keep an answer; it is in the file when this returns."""
        record = _record(self._asked, key, answer)
        with self._lock:
            self._known[key] = answer
            with self._path.open("ab") as file:
                file.write(record)

    def keep(self, keys: Collection[str]) -> None:
        """Drop all answers but those of these examples; finished shards hold the others."""
        with self._lock:
            self._known = {k: answer for k, answer in self._known.items() if k in keys}
            records = (_record(self._asked, k, answer) for k, answer in self._known.items())
            write_bytes(self._path, b"".join(records))


def _record(asked: str, key: str, answer: ScoredPrompt) -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        asked=np.array(asked),
        key=np.array(key),
        ids=answer.ids_PK.astype(np.int32),
        logprobs=answer.logprobs_PK,
        own=answer.own_P,
    )
    data = buffer.getvalue()
    return HEADER.pack(len(data), zlib.crc32(data)) + data


def _records(path: Path, asked: str) -> Iterator[tuple[str, ScoredPrompt]]:
    """The whole records of a file, up to the first that is not."""
    with path.open("rb") as file:
        while len(header := file.read(HEADER.size)) == HEADER.size:
            length, checksum = HEADER.unpack(header)
            data = file.read(length) if length <= MOST_BYTES else b""
            if len(data) != length or zlib.crc32(data) != checksum:
                return
            try:
                with np.load(io.BytesIO(data), allow_pickle=False) as found:
                    if str(found["asked"]) != asked:
                        continue
                    ids_PK = found["ids"].astype(np.int64)
                    yield str(found["key"]), ScoredPrompt(ids_PK, found["logprobs"], found["own"])
            except (ValueError, KeyError, BadZipFile):
                return
