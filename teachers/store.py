"""The signal cache on disk: a manifest, and shards that are ordinary Arrow files.

    manifest.json        what the signals are: format, teacher, tokenizer, codec, layers, checksum
    shards/00000.arrow   one row an example: its key, its counted tokens, one list a column
    shards/00000.json    rows, tokens, bytes and SHA-256 of that shard, written after it
    assets.safetensors   what the codecs learned before the first shard; assets.json, its entry

A shard counts once its entry exists, so a kill at any byte loses the shard in flight only. Rows
are keyed by content: nothing depends on order, batch size or the number of processes.
docs/cache.md describes the format for other programs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from safetensors.torch import load, save

from attar.errors import CacheError
from attar.files import fingerprint, owned
from teachers.codecs import Assets, Columns
from teachers.folder import Folder
from teachers.shard import Arrays, Row, read_batch, rows_of, to_arrow

FORMAT_VERSION = 2
REBUILD = "run `distill cache build RECIPE --repair` to rebuild it"
ENTRY_NAME = re.compile(r"\d{5,9}\.json")
LARGEST_JSON = 1 << 20  # bytes: manifests and entries are far smaller


class ShardReader:
    """A checked shard, memory-mapped."""

    def __init__(self, folder: Folder, name: str) -> None:
        self._source: pa.NativeFile = folder.open_arrow(name)
        self._name = folder.path(name)

    def batch(self, number: int) -> Arrays:
        """The columns of one of its record batches."""
        return read_batch(self._source, number, self._name)


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
        version = found.get("format")
        if version != FORMAT_VERSION:
            newer = isinstance(version, int) and version > FORMAT_VERSION
            mend = "upgrade attar" if newer else "delete it and build it again"
            raise CacheError(
                f"The cache {self.url} has format {version}, this version reads {FORMAT_VERSION}; "
                f"{mend}."
            )
        return found

    def _json(self, name: str) -> dict[str, Any]:
        try:
            if self.folder.size(name) > LARGEST_JSON:
                raise ValueError
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
        return {number: self._json(f"shards/{name}") for number, name in self._entry_names()}

    def _entry_names(self) -> list[tuple[int, str]]:
        names = self.folder.names("shards")
        return [(int(name[:-5]), name) for name in names if ENTRY_NAME.fullmatch(name)]

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
        tokens: list[int],
        rows: list[Columns],
        manifest: dict[str, Any],
        padding_mass: float | None = None,
    ) -> dict[str, Any]:
        """Write examples, their counted tokens and columns as shard `number`; returns its entry.

        The entry carries the fingerprint of the manifest it was made for, and the probability
        that the teacher gave to ids its tokenizer does not have.
        """
        data = to_arrow(keys, tokens, rows)
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

    def rows(self, number: int) -> list[Row]:
        """What a shard holds, unchecked as long as it can be read."""
        name = f"shards/{number:05d}.arrow"
        try:
            source = self.folder.open_parts(name)
        except FileNotFoundError:
            raise CacheError(f"{self.folder.path(name)} is missing; {REBUILD}.") from None
        return rows_of(source, self.folder.path(name))

    def open_shard(self, number: int, entry: dict[str, Any]) -> ShardReader:
        """A shard whose bytes are as written, for reading its batches; else a `CacheError`.

        A remote shard is brought here once and kept until this process ends.
        """
        self.check_file(f"shards/{number:05d}.arrow", entry)
        return ShardReader(self.folder, f"shards/{number:05d}.arrow")

    # Files with an entry -----------------------------------------------------------------------

    def fault_of(self, name: str, entry: dict[str, Any]) -> str | None:
        """What is wrong with a file, in words; None when its bytes are as written."""
        path = self.folder.path(name)
        if not self.folder.exists(name):
            return f"{path} is missing"
        if self.folder.size(name) != entry["bytes"]:
            return f"{path} is truncated ({self.folder.size(name)} of {entry['bytes']} bytes)"
        if self.folder.sha256(name) != entry["sha256"]:
            return f"{path} is corrupted (its SHA-256 does not fit)"
        return None

    def check_file(self, name: str, entry: dict[str, Any]) -> None:
        """Raise `CacheError` naming a file whose bytes are not as written."""
        fault = self.fault_of(name, entry)
        if fault:
            raise CacheError(f"{fault}; {REBUILD}.")

    def assets(self) -> dict[str, Assets] | None:
        """What the codecs learned, by `distribution` and `layer_L`; None before a build has it."""
        if not self.folder.exists("assets.json"):
            return None
        self.check_file("assets.safetensors", self._json("assets.json"))
        found: dict[str, Assets] = {}
        for name, tensor in load(self.folder.read("assets.safetensors")).items():
            part, _, own = name.partition(".")
            found.setdefault(part, {})[own] = tensor
        return found

    def write_assets(self, assets: dict[str, Assets], manifest: dict[str, Any]) -> None:
        """Keep what the codecs learned, before any shard that needs it."""
        flat = {
            f"{part}.{name}": tensor.contiguous()
            for part, own in assets.items()
            for name, tensor in own.items()
        }
        data = save(flat)
        self.folder.write("assets.safetensors", data)
        entry = {
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "made_for": fingerprint(manifest),
        }
        self._write_json("assets.json", entry)

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
        for name, content in self._files():
            try:
                entry = self._json(name)
                fault = self.fault_of(content, entry)
                if manifest_fault and entry["made_for"] != fingerprint(wanted):
                    fault = f"{self.folder.path(name)} was made for something else"
            except CacheError as error:
                fault = str(error).split(";")[0]
            if fault:
                faults.append(fault)
                self.folder.remove(name)
        if not self.folder.exists("assets.json") and "assets" in " ".join(faults):
            for _, name in self._entry_names():  # shards mean nothing without what was learned
                self.folder.remove(f"shards/{name}")
        return faults

    def faults(self) -> list[str]:
        """Every file that is not as written, in words. The manifest is checked as well."""
        found = []
        try:
            self.manifest()
        except CacheError as error:
            found.append(str(error).split(";")[0])
        for name, content in self._files():
            try:
                fault = self.fault_of(content, self._json(name))
            except CacheError as error:
                fault = str(error).split(";")[0]
            if fault:
                found.append(fault)
        return found

    def _files(self) -> list[tuple[str, str]]:
        """(entry, the file it is of): the assets first, then the shards."""
        assets = self.folder.exists("assets.json")
        pairs = [("assets.json", "assets.safetensors")] if assets else []
        names = [f"shards/{name}" for _, name in self._entry_names()]
        return pairs + [(name, name[:-5] + ".arrow") for name in names]

    # One writer ------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the cache for one build; a second builder is refused by name of host and process."""
        if not self.folder.is_local:
            yield  # an object store has no lock; its puts are whole and keyed by shard
            return
        with owned(Path(self.folder.path("writer.lock")), f"The cache {self.url}", CacheError):
            yield
