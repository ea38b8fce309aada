"""A folder on this machine or behind any fsspec URL, written so that a kill leaves no half file."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import fsspec
import pyarrow as pa

from attar.errors import CacheError
from attar.files import sha256_of, write_bytes


class Folder:
    """Whole files in, whole files out; nothing else is asked of a file system."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._fs, self._root = fsspec.url_to_fs(os.path.expanduser(url))
        except (ValueError, ImportError) as error:
            raise CacheError(f"The cache folder `{url}` cannot be opened: {error}.") from None
        self.is_local = "file" in self._fs.protocol
        self._spool: tempfile.TemporaryDirectory[str] | None = None

    def path(self, name: str) -> str:
        """The full path of a file, for messages and for readers outside this package."""
        return f"{self._root}/{name}"

    def exists(self, name: str) -> bool:
        """Whether a whole file of this name is there."""
        return bool(self._fs.exists(self.path(name)))

    def names(self, folder: str) -> list[str]:
        """Names of the finished files in a sub-folder, sorted."""
        self._fs.invalidate_cache()  # other processes write here too
        try:
            found = self._fs.ls(self.path(folder), detail=False)
        except FileNotFoundError:
            return []
        names = (path.rsplit("/", 1)[-1] for path in found)
        return sorted(name for name in names if not name.endswith(".partial"))

    def write(self, name: str, data: bytes) -> None:
        """Write a file at once. Raises `CacheError` when the disk is full; nothing else is lost."""
        try:
            if self.is_local:  # aside, flush, rename; object stores put whole objects anyway
                write_bytes(Path(self.path(name)), data)
            else:
                self._fs.pipe_file(self.path(name), data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            Path(self.path(name) + ".partial").unlink(missing_ok=True)
            raise CacheError(
                f"The disk is full (writing {self.path(name)}); every finished shard stays valid: "
                "free some space and run the same command again."
            ) from None

    def read(self, name: str) -> bytes:
        """All bytes of a file."""
        return self._fs.cat_file(self.path(name))  # type: ignore[no-any-return]

    def open_parts(self, name: str) -> pa.NativeFile:
        """A file of which Arrow reads only the parts it needs."""
        if self.is_local:
            return pa.memory_map(self.path(name))
        return pa.PythonFile(self._fs.open(self.path(name), "rb", block_size=1 << 16), mode="r")

    def open_arrow(self, name: str) -> pa.NativeFile:
        """A whole file for Arrow to read, memory-mapped: a remote one from its copy here."""
        return pa.memory_map(str(self._here(name)))

    def sha256(self, name: str) -> str:
        """SHA-256 of a file, in hex."""
        return sha256_of(self._here(name))

    def _here(self, name: str) -> Path:
        """The file on this machine: a remote one is fetched once and kept while we live."""
        if self.is_local:
            return Path(self.path(name))
        if self._spool is None:
            self._spool = tempfile.TemporaryDirectory(prefix="attar-cache-")
        path = Path(self._spool.name) / name.replace("/", "-")
        if not path.exists():
            aside = path.with_suffix(".partial")
            self._fs.get_file(self.path(name), str(aside))
            aside.replace(path)
        return path

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return int(self._fs.size(self.path(name)))

    def remove(self, name: str) -> None:
        """Remove a file that is there."""
        self._fs.rm_file(self.path(name))
