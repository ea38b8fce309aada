"""A folder on this machine or behind any fsspec URL, written so that a kill leaves no half file.

Whatever goes wrong with a disk or a network is a `CacheError` that names the file; a file that is
not there is a `FileNotFoundError`, or None where that is an answer.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec

from attar.errors import CacheError
from attar.files import write_bytes
from attar.locks import Lock, LockFile

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
BLOCK = 4 << 20  # bytes asked of a remote file at once


class Folder:
    """Whole files in, whole files out; nothing else is asked of a file system."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:  # listings are never remembered: other processes write here too
            self._fs, self._root = fsspec.url_to_fs(
                os.path.expanduser(url), use_listings_cache=False
            )
        except (ValueError, ImportError) as error:
            raise CacheError(f"The cache folder `{url}` cannot be opened: {error}.") from None
        self.is_local = "file" in self._fs.protocol
        self._spool: Path | None = None

    def path(self, name: str) -> str:
        """The full path or URL of a file, for messages and for readers outside this package."""
        path = self._at(name)
        return path if self.is_local else str(self._fs.unstrip_protocol(path))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    # What is there -----------------------------------------------------------------------------

    def exists(self, name: str) -> bool:
        """Whether a whole file of this name is there."""
        return self.size(name) is not None

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        with _named(self.path(name), "cannot be read"):
            try:
                return int(self._fs.info(self._at(name))["size"])
            except FileNotFoundError:
                return None

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of the finished files in a sub-folder, by name, sorted."""
        with _named(self.path(folder), "cannot be listed"):
            try:
                found = self._fs.ls(self._at(folder), detail=True)
            except FileNotFoundError:
                return {}
        pairs = {f["name"].rsplit("/", 1)[-1]: f["size"] for f in found if f["type"] == "file"}
        return {name: pairs[name] for name in sorted(pairs) if not name.endswith(".partial")}

    def names(self, folder: str) -> list[str]:
        """Names of the finished files in a sub-folder, sorted."""
        return list(self.sizes(folder))

    # Reading -----------------------------------------------------------------------------------

    def read(self, name: str) -> bytes:
        """All bytes of a file."""
        with _named(self.path(name), "cannot be read", missing=FileNotFoundError):
            return self._fs.cat_file(self._at(name))  # type: ignore[no-any-return]

    def sha256(self, name: str) -> str:
        """SHA-256 of a file as it is there now, in hex; nothing is kept of it here."""
        digest = hashlib.sha256()
        with (
            _named(self.path(name), "cannot be read", missing=FileNotFoundError),
            self._fs.open(self._at(name), "rb", block_size=BLOCK) as file,
        ):
            while block := file.read(BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def here(self, name: str) -> Path:
        """A file on this machine: a remote one is fetched once and kept while we live."""
        if self.is_local:
            return Path(self._at(name))
        if self._spool is None:
            self._spool = Path(tempfile.mkdtemp(prefix="attar-cache-"))
            weakref.finalize(self, shutil.rmtree, self._spool, ignore_errors=True)
        path = self._copy(name)
        if not path.exists():
            aside = path.with_suffix(".partial")
            doing = f"cannot be fetched into {self._spool}"
            with _named(self.path(name), doing, missing=FileNotFoundError):
                self._fs.get_file(self._at(name), str(aside))
            aside.replace(path)
        return path

    def _copy(self, name: str) -> Path:
        assert self._spool is not None
        return self._spool / name.replace("/", "-")

    def forget(self, name: str) -> None:
        """Drop our copy of a remote file, so that it is fetched again."""
        if self._spool is not None:
            self._copy(name).unlink(missing_ok=True)

    # Writing -----------------------------------------------------------------------------------

    def write(self, name: str, data: bytes) -> None:
        """Write a file at once. Raises `CacheError` when the disk is full; nothing else is lost."""
        self.forget(name)
        try:
            with _named(self.path(name), "cannot be written"):
                if self.is_local:  # aside, flush, rename; object stores put whole objects anyway
                    write_bytes(Path(self._at(name)), data)
                else:
                    self._fs.pipe_file(self._at(name), data)
        except CacheError:
            if self.is_local:
                with suppress(OSError):
                    Path(self._at(name) + ".partial").unlink(missing_ok=True)
            raise

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        self.forget(name)
        with _named(self.path(name), "cannot be removed"), suppress(FileNotFoundError):
            self._fs.rm_file(self._at(name))

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file that must not be there; False where it is.

        Exclusive where the store can (S3's If-None-Match); elsewhere two at the same moment are
        told apart by whose content stayed.
        """
        if self.exists(name):
            return False
        with _named(self.path(name), "cannot be written"):
            try:
                self._fs.pipe_file(self._at(name), data, mode="create")
            except FileExistsError:
                return False
            except Exception as error:
                if self.exists(name):
                    return False
                knows = not isinstance(error, (TypeError, ValueError, NotImplementedError))
                if knows and getattr(error, "errno", None) != errno.ENOSYS:
                    raise
                self._fs.pipe_file(self._at(name), data)
        return self.read(name) == data

    def lock(self, name: str) -> Lock:
        """A lock in this folder."""
        return LockFile(Path(self._at(name))) if self.is_local else _LockObject(self, name)


class _LockObject:
    """A lock in an object store."""

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._name = folder, name

    def __str__(self) -> str:
        return self._folder.path(self._name)

    def create(self, data: bytes) -> bool:
        """An exclusive put, where the store has one."""
        return self._folder.create(self._name, data)

    def read(self) -> bytes | None:
        """Its content."""
        try:
            return self._folder.read(self._name)
        except FileNotFoundError:
            return None

    def remove(self) -> None:
        """Remove it."""
        self._folder.remove(self._name)


@contextmanager
def _named(path: str, doing: str, missing: type[Exception] | None = None) -> Iterator[None]:
    """Turn what a file system raises into a `CacheError`; object stores have types of their own.

    A missing file stays a `FileNotFoundError` where `missing` says that the caller knows of it.
    """
    try:
        yield
    except CacheError:
        raise
    except Exception as error:
        if missing is not None and isinstance(error, missing):
            raise
        if isinstance(error, OSError) and error.errno in FULL:
            raise CacheError(
                f"The disk is full ({path} {doing}); every finished shard stays valid: "
                "free some space and run the same command again."
            ) from None
        about = " ".join(str(error).split())[:300]
        raise CacheError(
            f"{path} {doing} ({type(error).__name__}: {about}); finished shards stay valid: mend "
            "that and run the same command again."
        ) from error
