"""The files of a signal cache: a manifest, and shards that are ordinary Arrow files.

    manifest.json        describes the signals: format, teacher, tokenizer, codec, layers, checksum
    shards/00000.arrow   one row an example: its key, its counted tokens, one list a column
    shards/00000.json    its entry, written after it: keys, tokens, bytes and SHA-256 of that shard
    assets.safetensors   what the codecs learned before the first shard; assets.json is its entry
    growing.json         while the cache grows: the manifest that it will have (growing.py)
    as_served.json       of a teacher on a server: what its probe found (remote/same_teacher.py)

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
    MAX_RECORD_BYTES,
    DamagedFile,
    check_fields,
    check_manifest,
    check_shard_entry,
    decode_record,
    encode_record,
    identities_of,
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
ABSENT = {"labels": False}  # what a field means that a manifest does not have
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
        return self._manifest("manifest.json")

    def growing(self) -> dict[str, Any] | None:
        """The manifest that the cache will have once it has grown; None where it is not growing."""
        return self._manifest("growing.json")

    def _manifest(self, name: str) -> dict[str, Any] | None:
        if not self.folder.exists(name):
            return None
        found = self._record(name)
        version = found.get("format")
        if version != FORMAT_VERSION:
            newer = isinstance(version, int) and version > FORMAT_VERSION
            remedy = "upgrade attar" if newer else "delete it and build it again"
            raise CacheError(
                f"The cache {self.url} has format {version}, this version reads {FORMAT_VERSION}; "
                f"{remedy}."
            )
        return check_manifest(found, self.folder.path(name))

    def _record(self, name: str) -> dict[str, Any]:
        path, size = self.folder.path(name), self.folder.size(name)
        if size is None:
            raise DamagedFile(f"{path} is missing")
        if size > MAX_RECORD_BYTES:
            raise DamagedFile(f"{path} is damaged (it is too large: {size} bytes)")
        return decode_record(self.folder.read(name), path)

    def read_record(self, name: str) -> dict[str, Any] | None:
        """A record that `write_record` wrote; None where there is none."""
        return self._record(name) if self.folder.exists(name) else None

    def write_record(self, name: str, record: dict[str, Any]) -> None:
        """Write a manifest, an entry or the like, with its checksum."""
        self.folder.write(name, encode_record(record))

    def begin(self, manifest: dict[str, Any]) -> None:
        """Start a cache, or continue one. Raises `CacheError` where its manifest differs."""
        if self.manifest() is None:
            self.write_record("manifest.json", {"format": FORMAT_VERSION, **manifest})
        else:
            self.check_fits(manifest)

    def begin_growing(self, manifest: dict[str, Any]) -> None:
        """Say which manifest the cache will have; until `end_growing` readers see the one it has.

        Shards that are made for it may follow, under numbers that are free.
        """
        self.write_record("growing.json", manifest)

    def end_growing(self) -> None:
        """Make the manifest of `begin_growing` the cache's own, and so its shards, at once."""
        grown = self.growing()
        if grown is not None:
            self.write_record("manifest.json", grown)
            self.folder.remove("growing.json")

    def check_fits(self, wanted: dict[str, Any]) -> None:
        """Raise `CacheError` naming the first field of the manifest that differs from `wanted`."""
        found = self.manifest()
        if found is None:
            raise CacheError(f"There is no cache at {self.url}; run `distill cache build` first.")
        for key, value in {**ABSENT, **wanted}.items():
            was, now = found.get(key, ABSENT.get(key)), value
            if was == value:
                continue
            if isinstance(value, dict) and isinstance(was, dict):
                names = [name for name in {**value, **was} if was.get(name) != value.get(name)]
                if not names:  # an absent key means the same as null
                    continue
                field = names[0]
                key, was, now = f"{key}.{field}", was.get(field), value.get(field)
            remedy = "write `cache.labels: true`, or " if (key, was) == ("labels", True) else ""
            raise CacheError(
                f"The cache {self.url} was made with {key} = {was}, the recipe asks for {now}; "
                f"{remedy}choose another folder with `cache.dir`, or delete that cache."
            )

    # Shards ----------------------------------------------------------------------------------

    def entries(self, *, growing: bool = False) -> dict[int, dict[str, Any]]:
        """Entries of finished shards by number; growing: also those of a growth that goes on.

        Raises `CacheError` for a shard that was made for another manifest or other assets.
        """
        return self.contents(growing=growing)[1]

    def contents(
        self, *, growing: bool = False
    ) -> tuple[dict[str, Any] | None, dict[int, dict[str, Any]]]:
        """The manifest and `entries`, of one moment even where another process ends a growth."""
        while True:
            manifest = self.manifest()
            try:
                found = self._entries_under(manifest, growing)
            except DamagedFile:
                if self.manifest() == manifest:
                    raise
                continue
            if self.manifest() == manifest:
                return manifest, found

    def _entries_under(
        self, manifest: dict[str, Any] | None, growing: bool
    ) -> dict[int, dict[str, Any]]:
        names, assets = self.entry_names(), self.assets_entry()
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            found = list(pool.map(self.entry, names))
        grown = self.growing()  # read after the entries: those it explains were made after it
        if assets is not None:
            self.check_made_for("assets.json", assets, manifest, grown)
        kept = {}
        for name, entry in zip(names, found, strict=True):
            self.check_made_for(name, entry, manifest, grown)
            if assets is not None and entry["assets"] != assets["sha256"]:
                raise DamagedFile(f"{self.folder.path(name)} was made with other assets")
            if growing or manifest is None or entry["made_for"] in identities_of(manifest):
                kept[_shard_number(name)] = entry
        return kept

    def free_number(self) -> int:
        """A number above those of all shards."""
        return 1 + max(map(_shard_number, self.entry_names()), default=-1)

    def entry(self, name: str) -> dict[str, Any]:
        """A shard's entry. Raises `DamagedFile` where it is not as it was written."""
        return check_shard_entry(self._record(name), self.folder.path(name))

    def assets_entry(self) -> dict[str, Any] | None:
        """The entry of the assets; None before a build."""
        if not self.folder.exists("assets.json"):
            return None
        return check_fields(
            self._record("assets.json"), ASSETS_FIELDS, self.folder.path("assets.json")
        )

    def entry_names(self) -> list[str]:
        """Names of the entries of all shards that are there."""
        names = [n for n in self.folder.names("shards") if ENTRY_NAME.fullmatch(n)]
        return [f"shards/{n}" for n in names if n == f"{_shard_number(n):05d}.json"]

    def check_made_for(
        self, name: str, entry: dict[str, Any], *manifests: dict[str, Any] | None
    ) -> None:
        """Raise `DamagedFile` for an entry of neither of the manifests that are there."""
        known = [identities_of(one) for one in manifests if one is not None]
        if known and entry["made_for"] not in set.union(*known):
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
        assets = self.assets_entry()
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
        return example_rows(self.entry(f"shards/{number:05d}.json"))

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
        entry = self.assets_entry()
        if entry is None:
            return None
        self.check_made_for("assets.json", entry, self.manifest(), self.growing())
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
        for name in self.entry_names():
            if self.entry(name)["assets"] != entry["sha256"]:
                self.folder.remove(name)
        self.write_record("assets.json", entry)

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
