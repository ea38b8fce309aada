"""The signal cache on disk: a manifest, and shards that are ordinary Arrow files.

    manifest.json        what the signals are: format, teacher, tokenizer, codec, layers, checksum
    shards/00000.arrow   one row an example: its key, its counted tokens, one list a column
    shards/00000.json    rows, tokens, bytes and SHA-256 of that shard, written after it

A shard counts once its entry exists, so a kill at any byte loses the shard in flight only. Rows
are keyed by content: nothing depends on order, batch size or the number of processes.
docs/cache.md describes the format for other programs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from attar.errors import CacheError
from attar.files import fingerprint, owned
from teachers.codecs import Columns
from teachers.folder import Folder

FORMAT_VERSION = 1


class SignalStore:
    """Reads and writes the files of one cache; knows bytes, not meanings."""

    def __init__(self, url: str) -> None:
        self.folder = Folder(url)
        self.url = url

    # The manifest ----------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any] | None:
        """The manifest, or None where there is no cache yet. A damaged one is a `CacheError`."""
        if not self.folder.exists("manifest.json"):
            return None
        found = self._json("manifest.json")
        if found.get("format", 0) > FORMAT_VERSION:
            raise CacheError(
                f"The cache {self.url} has format {found['format']}, this version reads up to "
                f"{FORMAT_VERSION}; upgrade attar."
            )
        return found

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads(self.folder.read(name))
            checksum = found.pop("checksum")
        except (ValueError, KeyError, AttributeError, TypeError):
            checksum = found = None
        if found is None or fingerprint(found) != checksum:
            raise CacheError(
                f"{self.folder.path(name)} is damaged (its checksum does not fit); "
                "run `distill cache build RECIPE --repair`, or delete the cache."
            )
        return found  # type: ignore[no-any-return]

    def _write_json(self, name: str, value: dict[str, Any]) -> None:
        value = {**value, "checksum": fingerprint(value)}
        self.folder.write(name, (json.dumps(value, indent=2) + "\n").encode())

    def begin(self, manifest: dict[str, Any]) -> None:
        """Start a cache, or go on with one: refused where a field of its manifest differs."""
        found = self.manifest()
        if found is None:
            self._write_json("manifest.json", {"format": FORMAT_VERSION, **manifest})
        else:
            self.check_fits(manifest)

    def check_fits(self, wanted: dict[str, Any]) -> None:
        """Raise `CacheError` naming the first field in which this cache is not what is wanted."""
        found = self.manifest()
        if found is None:
            raise CacheError(f"There is no cache at {self.url}; run `distill cache build` first.")
        for key, value in wanted.items():
            was, now = found.get(key), value
            if was == value:
                continue
            if isinstance(value, dict) and isinstance(was, dict):
                names = [name for name in {**value, **was} if was.get(name) != value.get(name)]
                if not names:  # an absent key and a null one say the same
                    continue
                field = names[0]
                key, was, now = f"{key}.{field}", was.get(field), value.get(field)
            raise CacheError(
                f"The cache {self.url} was made with {key} = {was}, the recipe asks for {now}; "
                "choose another folder with `cache.dir`, or delete that cache."
            )

    # Shards ----------------------------------------------------------------------------------

    def entries(self) -> dict[int, dict[str, Any]]:
        """Finished shards by number."""
        names = [name for name in self.folder.names("shards") if name.endswith(".json")]
        return {int(name[:-5]): self._json(f"shards/{name}") for name in names}

    def totals(self) -> dict[str, float]:
        """Examples, counted tokens and bytes of all finished shards."""
        entries = self.entries().values()
        return {
            "examples": sum(entry["rows"] for entry in entries),
            "tokens": sum(entry["tokens"] for entry in entries),
            "bytes": sum(entry["bytes"] for entry in entries),
            "padding_mass": max((entry["padding_mass"] for entry in entries), default=0.0),
        }

    def write_shard(
        self,
        number: int,
        keys: list[str],
        rows: list[Columns],
        manifest: dict[str, Any],
        padding_mass: float | None = None,
    ) -> dict[str, Any]:
        """Write examples and their columns as shard `number`; returns its entry.

        The entry carries the fingerprint of the manifest it was made for, and the probability
        that the teacher gave to ids its tokenizer does not have.
        """
        tokens = [len(next(iter(row.values()))) for row in rows]
        table = {"key": pa.array(keys), "tokens": pa.array(tokens, pa.int32())}
        for name in rows[0]:
            flat = np.concatenate([row[name].reshape(-1) for row in rows])
            offsets = np.cumsum([0] + [row[name].size for row in rows])
            table[name] = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), flat)
        batch = pa.record_batch(table)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        data = sink.getvalue().to_pybytes()
        self.folder.write(f"shards/{number:05d}.arrow", data)
        entry = {
            "rows": len(keys),
            "tokens": sum(tokens),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "made_for": fingerprint(manifest),
            "padding_mass": padding_mass or 0.0,
        }
        self._write_json(f"shards/{number:05d}.json", entry)
        return entry

    def fault_of(self, number: int, entry: dict[str, Any]) -> str | None:
        """What is wrong with a shard's file, in words; None when its bytes are as written."""
        name = f"shards/{number:05d}.arrow"
        if not self.folder.exists(name):
            return f"{self.folder.path(name)} is missing"
        if self.folder.size(name) != entry["bytes"]:
            return f"{self.folder.path(name)} is truncated ({self.folder.size(name)} of " + (
                f"{entry['bytes']} bytes)"
            )
        if hashlib.sha256(self.folder.read(name)).hexdigest() != entry["sha256"]:
            return f"{self.folder.path(name)} is corrupted (its SHA-256 does not fit)"
        return None

    def check_shard(self, number: int, entry: dict[str, Any]) -> None:
        """Raise `CacheError` naming a shard whose bytes are not as written."""
        fault = self.fault_of(number, entry)
        if fault:
            raise CacheError(f"{fault}; run `distill cache build RECIPE --repair` to rebuild it.")

    def read_shard(self, number: int, entry: dict[str, Any]) -> pa.RecordBatch:
        """A shard's rows, memory-mapped where local, unchecked as long as they can be read."""
        try:
            source = self.folder.open_arrow(f"shards/{number:05d}.arrow")
            batch = pa.ipc.open_file(source).get_batch(0)
            batch.column("key").to_pylist()
        except (pa.ArrowException, OSError, ValueError):
            self.check_shard(number, entry)
            raise
        return batch

    def repair(self, wanted: dict[str, Any]) -> list[str]:
        """Forget every damaged shard, so that a build makes it again; says what was wrong.

        A damaged manifest is written anew as `wanted`, and shards made for another are forgotten.
        """
        faults = []
        manifest_fault = None
        try:
            self.manifest()
        except CacheError as error:
            manifest_fault = str(error).split(";")[0]
            if "damaged" not in manifest_fault:
                raise
            faults.append(manifest_fault)
            self._write_json("manifest.json", {"format": FORMAT_VERSION, **wanted})
        for name in self.folder.names("shards"):
            if not name.endswith(".json"):
                continue
            try:
                entry = self._json(f"shards/{name}")
                fault = self.fault_of(int(name[:-5]), entry)
                if manifest_fault and entry["made_for"] != fingerprint(wanted):
                    fault = f"{self.folder.path(f'shards/{name}')} was made for something else"
            except CacheError as error:
                fault = str(error).split(";")[0]
            if fault:
                faults.append(fault)
                self.folder.remove(f"shards/{name}")
        return faults

    # One writer ------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the cache for one build; a second builder is refused by name of host and process."""
        if not self.folder.is_local:
            yield  # an object store has no lock; its puts are whole and keyed by shard
            return
        with owned(Path(self.folder.path("writer.lock")), f"The cache {self.url}", CacheError):
            yield
