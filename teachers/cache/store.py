"""The files of a signal cache: a manifest, and shards that are ordinary Arrow files.

    manifest.json        describes the signals: format, teacher, tokenizer, codec, layers, checksum
    shards/00000.arrow   one row an example: its key, its counted tokens, one list a column
    shards/00000.json    its entry, written after it: keys, tokens, bytes and SHA-256 of that shard
    assets.safetensors   what the codecs learned before the first shard; assets.json is its entry

A shard counts once its entry exists, so a kill at any byte loses only the shard in flight. Rows
are keyed by content: nothing depends on order, batch size or the number of processes. An entry
names the manifest and the assets it was made for, so files of two caches are never mixed up.
docs/reference/cache.md describes the format for other programs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from attar.errors import CacheError
from attar.files import sha256_of
from attar.locks import hold_lock
from teachers.cache.folder import Folder
from teachers.cache.records import (
    ASSETS_FIELDS,
    MANIFEST_FIELDS,
    MAX_RECORD_BYTES,
    DamagedFile,
    check_fields,
    check_shard_entry,
    decode_record,
    encode_record,
    manifest_identity,
)
from teachers.cache.shard import (
    ExampleRow,
    KnownLayout,
    ShardReader,
    example_rows,
    rows_per_batch,
    to_arrow,
)
from teachers.codecs.codec import Assets, SignalColumns

FORMAT_VERSION = 2
ENTRY_NAME = re.compile(r"[0-9]{5,9}\.json")
PARALLEL_READS = 8  # entries read at once: a remote store is slow for each, but fast in parallel


class SignalStore:
    """Reads, writes and checks the files of one cache, without decoding signals."""

    def __init__(self, url: str) -> None:
        self.folder = Folder(url)
        self.url = url
        self._layout: KnownLayout = {}

    # The manifest ----------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any] | None:
        """The manifest; None where there is no cache. Raises `CacheError` for a damaged one."""
        if not self.folder.exists("manifest.json"):
            return None
        found = self._record("manifest.json")
        version = found.get("format")
        if version != FORMAT_VERSION:
            newer = isinstance(version, int) and version > FORMAT_VERSION
            remedy = "upgrade attar" if newer else "delete it and build it again"
            raise CacheError(
                f"The cache {self.url} has format {version}, this version reads {FORMAT_VERSION}; "
                f"{remedy}."
            )
        return check_fields(found, MANIFEST_FIELDS, self.folder.path("manifest.json"))

    def _record(self, name: str) -> dict[str, Any]:
        path, size = self.folder.path(name), self.folder.size(name)
        if size is None:
            raise DamagedFile(f"{path} is missing")
        if size > MAX_RECORD_BYTES:
            raise DamagedFile(f"{path} is damaged (it is too large: {size} bytes)")
        return decode_record(self.folder.read(name), path)

    def _write_record(self, name: str, record: dict[str, Any]) -> None:
        self.folder.write(name, encode_record(record))

    def begin(self, manifest: dict[str, Any]) -> None:
        """Start a cache, or continue one. Raises `CacheError` where its manifest differs."""
        if self.manifest() is None:
            self._write_record("manifest.json", {"format": FORMAT_VERSION, **manifest})
        else:
            self.check_fits(manifest)

    def check_fits(self, wanted: dict[str, Any]) -> None:
        """Raise `CacheError` naming the first field of the manifest that differs from `wanted`."""
        found = self.manifest()
        if found is None:
            raise CacheError(f"There is no cache at {self.url}; run `distill cache build` first.")
        for key, value in wanted.items():
            was, now = found.get(key), value
            if was == value:
                continue
            if isinstance(value, dict) and isinstance(was, dict):
                names = [name for name in {**value, **was} if was.get(name) != value.get(name)]
                if not names:  # an absent key means the same as null
                    continue
                field = names[0]
                key, was, now = f"{key}.{field}", was.get(field), value.get(field)
            raise CacheError(
                f"The cache {self.url} was made with {key} = {was}, the recipe asks for {now}; "
                "choose another folder with `cache.dir`, or delete that cache."
            )

    # Shards ----------------------------------------------------------------------------------

    def entries(self) -> dict[int, dict[str, Any]]:
        """Entries of finished shards by number.

        Raises `CacheError` for a shard that was made for another manifest or other assets.
        """
        manifest, assets = self.manifest(), self._assets_entry()
        if assets is not None:
            self._check_made_for("assets.json", assets, manifest)
        names = self._entry_names()
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            found = list(pool.map(self._entry, names))
        for name, entry in zip(names, found, strict=True):
            self._check_made_for(name, entry, manifest)
            if assets is not None and entry["assets"] != assets["sha256"]:
                raise DamagedFile(f"{self.folder.path(name)} was made with other assets")
        return dict(zip(map(_shard_number, names), found, strict=True))

    def _entry(self, name: str) -> dict[str, Any]:
        return check_shard_entry(self._record(name), self.folder.path(name))

    def _assets_entry(self) -> dict[str, Any] | None:
        if not self.folder.exists("assets.json"):
            return None
        return check_fields(
            self._record("assets.json"), ASSETS_FIELDS, self.folder.path("assets.json")
        )

    def _entry_names(self) -> list[str]:
        names = [n for n in self.folder.names("shards") if ENTRY_NAME.fullmatch(n)]
        return [f"shards/{n}" for n in names if n == f"{_shard_number(n):05d}.json"]

    def _check_made_for(
        self, name: str, entry: dict[str, Any], manifest: dict[str, Any] | None
    ) -> None:
        if manifest is not None and entry["made_for"] != manifest_identity(manifest):
            raise DamagedFile(f"{self.folder.path(name)} was made for another manifest")

    def totals(self) -> dict[str, float]:
        """Examples, counted tokens, bytes and the largest padding mass of all finished shards."""
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
        rows: list[SignalColumns],
        manifest: dict[str, Any],
        padding_mass: float | None = None,
    ) -> dict[str, Any]:
        """Write examples, their counted tokens and columns as shard `number`; returns its entry.

        padding_mass: probability that the teacher gave to ids that its tokenizer does not have.
        """
        data = to_arrow(keys, tokens, rows)
        assets = self._assets_entry()
        entry = {
            "rows": len(keys),
            "tokens": sum(tokens),
            **_size_and_digest(data),
            "made_for": manifest_identity(manifest),
            "assets": assets["sha256"] if assets else None,
            "padding_mass": padding_mass or 0.0,
            "keys": keys,
            "row_tokens": tokens,
            "batch_rows": rows_per_batch(tokens),
        }
        name, encoded = f"shards/{number:05d}.json", encode_record(entry)
        if len(encoded) > MAX_RECORD_BYTES:
            raise CacheError(
                f"{self.folder.path(name)} would have {len(encoded)} bytes, for {len(keys)} "
                "examples; set `cache.shard_tokens` lower."
            )
        self.folder.write(_shard_file(number), data)
        self.folder.write(name, encoded)
        return entry

    def rows(self, number: int) -> list[ExampleRow]:
        """The examples of a shard, from its entry."""
        return example_rows(self._entry(f"shards/{number:05d}.json"))

    def open_shard(self, number: int, entry: dict[str, Any]) -> ShardReader:
        """Open a shard. Raises `CacheError` where its bytes are not as written.

        A remote shard is fetched once and kept until this process ends.
        """
        path = self._verified(_shard_file(number), entry)
        return ShardReader(
            path, self.folder.path(_shard_file(number)), example_rows(entry), self._layout
        )

    # Files with an entry -----------------------------------------------------------------------

    def fault_of(self, name: str, entry: dict[str, Any]) -> str | None:
        """The fault of a file as a sentence; None when its bytes are as written."""
        size = self.folder.size(name)
        fault = self._wrong_size(name, size, entry)
        if fault is None and self.folder.sha256(name) != entry["sha256"]:
            return f"{self.folder.path(name)} is corrupted (its SHA-256 does not fit)"
        return fault

    def _wrong_size(self, name: str, size: int | None, entry: dict[str, Any]) -> str | None:
        path, wanted = self.folder.path(name), entry["bytes"]
        if size is None:
            return f"{path} is missing"
        if size != wanted:
            how = "truncated" if size < wanted else "too long"
            return f"{path} is {how} ({size} of {wanted} bytes)"
        return None

    def check_file(self, name: str, entry: dict[str, Any]) -> None:
        """Raise `CacheError` for a file whose bytes are not as written."""
        fault = self.fault_of(name, entry)
        if fault:
            raise DamagedFile(fault)

    def check_files_exist(self, entries: dict[int, dict[str, Any]]) -> None:
        """Raise `CacheError` for a file of finished shards that is missing or of the wrong size.

        It lists the folder once; no shard is read.
        """
        sizes = self.folder.sizes("shards")
        for number, entry in entries.items():
            name = _shard_file(number)
            fault = self._wrong_size(name, sizes.get(name.removeprefix("shards/")), entry)
            if fault:
                raise DamagedFile(fault)
        needing = any(entry["assets"] is not None for entry in entries.values())
        if needing and not self.folder.exists("assets.json"):
            raise DamagedFile(f"{self.folder.path('assets.json')} is missing")

    def _verified(self, name: str, entry: dict[str, Any]) -> Path:
        """The path on this machine of a file whose bytes are as written; else a `CacheError`."""
        try:
            path = self.folder.local_copy(name)
        except FileNotFoundError:
            raise DamagedFile(f"{self.folder.path(name)} is missing") from None
        size = path.stat().st_size if path.exists() else None
        fault = self._wrong_size(name, size, entry)
        if fault is None and sha256_of(path) != entry["sha256"]:
            fault = f"{self.folder.path(name)} is corrupted (its SHA-256 does not fit)"
        if fault:
            self.folder.forget_copy(name)
            raise DamagedFile(fault)
        return path

    def assets(self) -> dict[str, Assets] | None:
        """Assets by part: `distribution`, `layer_L`, `attention_B`; None before a build."""
        entry = self._assets_entry()
        if entry is None:
            return None
        self._check_made_for("assets.json", entry, self.manifest())
        path = self._verified("assets.safetensors", entry)
        found: dict[str, Assets] = {}
        try:
            tensors = load(path.read_bytes())
        except (SafetensorError, ValueError, KeyError, OverflowError) as error:
            name = self.folder.path("assets.safetensors")
            raise DamagedFile(f"{name} cannot be read ({error})") from None
        for name, tensor in tensors.items():
            part, _, own = name.partition(".")
            found.setdefault(part, {})[own] = tensor
        return found

    def write_assets(self, assets: dict[str, Assets], manifest: dict[str, Any]) -> None:
        """Write what the codecs learned, before any shard that needs it.

        The entries of shards that were made with other assets are removed.
        """
        flat = {
            f"{part}.{name}": tensor.contiguous()
            for part, own in assets.items()
            for name, tensor in own.items()
        }
        data = save(flat)
        self.folder.write("assets.safetensors", data)
        entry = {**_size_and_digest(data), "made_for": manifest_identity(manifest)}
        for name in self._entry_names():
            if self._entry(name)["assets"] != entry["sha256"]:
                self.folder.remove(name)
        self._write_record("assets.json", entry)

    # Faults and repair ---------------------------------------------------------------------------

    def faults(self) -> list[str]:
        """A sentence for every file that is not as written, the manifest included."""
        return [fault for _, fault in self._faults(None)]

    def repair(self, wanted: dict[str, Any]) -> list[str]:
        """Remove damaged files, so that a build makes them again; returns their faults.

        A damaged manifest is replaced by `wanted`, and shards made for another one are removed.
        """
        found = []
        for name, fault in self._faults(wanted):
            found.append(fault)
            if name == "manifest.json":
                self._write_record(name, {"format": FORMAT_VERSION, **wanted})
            else:
                self.folder.remove(name)
        return found

    def _faults(self, wanted: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
        """(manifest or entry to remove, its fault) of every damaged file.

        wanted: the manifest that replaces a damaged one. Errors of the network are raised, since
        they do not mean that a file is damaged.
        """
        names = self._entry_names()
        manifest, assets = None, None
        try:
            manifest = self.manifest()
            if manifest is None and names:
                raise DamagedFile(f"{self.folder.path('manifest.json')} is missing")
        except DamagedFile as error:
            yield "manifest.json", error.fault
            manifest = wanted
        needing, learned = False, self.folder.exists("assets.json")
        try:
            found = self._assets_entry()
            if found is not None:
                self._check_made_for("assets.json", found, manifest)
                self.check_file("assets.safetensors", found)
            assets = found
        except DamagedFile as error:
            yield "assets.json", error.fault
        for name in names:
            try:
                entry = self._entry(name)
                needing |= entry["assets"] is not None
                self._check_made_for(name, entry, manifest)
                if assets is not None and entry["assets"] != assets["sha256"]:
                    raise DamagedFile(f"{self.folder.path(name)} was made with other assets")
                self.check_file(name.removesuffix("json") + "arrow", entry)
            except DamagedFile as error:
                yield name, error.fault
        if needing and not learned:
            yield "assets.json", f"{self.folder.path('assets.json')} is missing"

    # One writer ------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the cache for one build; a second build fails and names the host and process."""
        with hold_lock(self.folder.lock("writer.lock"), f"The cache {self.url}", CacheError):
            yield


def _shard_number(name: str) -> int:
    return int(name.rsplit("/", 1)[-1].removesuffix(".json"))


def _shard_file(number: int) -> str:
    return f"shards/{number:05d}.arrow"


def _size_and_digest(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
