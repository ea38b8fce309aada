"""A folder on this machine or at any fsspec URL, written so that a kill leaves no partial file.

Any error of a disk or network becomes a `CacheError` that names the file. A missing file is a
`FileNotFoundError`, or None where the caller asks whether it exists.
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

from attar.commits import check_may_write
from attar.errors import CacheError, UserError
from attar.files import write_bytes
from attar.locks import Lock, LockFile
from attar.storage_errors import DISK_FULL

READ_BLOCK_BYTES = 4 << 20  # bytes read from a remote file at a time


class Folder:
    """Reads and writes whole files, which is all a cache needs of a file system."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:  # no cached listings: other processes write here too
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

    # Listing -----------------------------------------------------------------------------------

    def exists(self, name: str) -> bool:
        """Whether a finished file of this name exists."""
        return self.size(name) is not None

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where it does not exist."""
        with _errors_named(self.path(name), "cannot be read"):
            try:
                return int(self._fs.info(self._at(name))["size"])
            except FileNotFoundError:
                return None

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of the finished files in a sub-folder, by name, sorted."""
        with _errors_named(self.path(folder), "cannot be listed"):
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
        with _errors_named(self.path(name), "cannot be read", missing=FileNotFoundError):
            return self._fs.cat_file(self._at(name))  # type: ignore[no-any-return]

    def sha256(self, name: str) -> str:
        """Hex SHA-256 of a file as it is now, read in blocks without a local copy."""
        digest = hashlib.sha256()
        with (
            _errors_named(self.path(name), "cannot be read", missing=FileNotFoundError),
            self._fs.open(self._at(name), "rb", block_size=READ_BLOCK_BYTES) as file,
        ):
            while block := file.read(READ_BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def local_copy(self, name: str) -> Path:
        """A local path: a remote file is fetched once and kept until the process ends."""
        if self.is_local:
            return Path(self._at(name))
        if self._spool is None:
            self._spool = Path(tempfile.mkdtemp(prefix="attar-cache-"))
            weakref.finalize(self, shutil.rmtree, self._spool, ignore_errors=True)
        path = self._copy_path(name)
        if not path.exists():
            aside = path.with_suffix(".partial")
            doing = f"cannot be fetched into {self._spool}"
            with _errors_named(self.path(name), doing, missing=FileNotFoundError):
                self._fs.get_file(self._at(name), str(aside))
            aside.replace(path)
        return path

    def _copy_path(self, name: str) -> Path:
        assert self._spool is not None
        return self._spool / name.replace("/", "-")

    def forget_copy(self, name: str) -> None:
        """Delete the local copy of a remote file, so that it is fetched again."""
        if self._spool is not None:
            self._copy_path(name).unlink(missing_ok=True)

    # Writing -----------------------------------------------------------------------------------

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file. Raises `CacheError` when the disk is full; others stay intact."""
        self.forget_copy(name)
        with _errors_named(self.path(name), "cannot be written"):
            if self.is_local:  # object stores write whole objects by themselves
                write_bytes(Path(self._at(name)), data)
            else:
                check_may_write()
                self._fs.pipe_file(self._at(name), data)

    def replace(self, name: str, data: bytes) -> None:
        """Write a small remote file, without asking for the locks that it may be one of."""
        with _errors_named(self.path(name), "cannot be written"):
            self._fs.pipe_file(self._at(name), data)

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""
        self.forget_copy(name)
        with _errors_named(self.path(name), "cannot be removed"), suppress(FileNotFoundError):
            self._fs.rm_file(self._at(name))

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file that must not exist yet; returns False if it does.

        Exclusive where the store supports it (S3's If-None-Match). Elsewhere, of two processes that
        write at the same moment, the one whose content remains has created the file.
        """
        if self.exists(name):
            return False
        with _errors_named(self.path(name), "cannot be written"):
            try:
                self._fs.pipe_file(self._at(name), data, mode="create")
            except FileExistsError:
                return False
            except Exception as error:
                if self.exists(name):
                    return False
                supported = not isinstance(error, (TypeError, ValueError, NotImplementedError))
                if supported and getattr(error, "errno", None) != errno.ENOSYS:
                    raise
                self._fs.pipe_file(self._at(name), data)
        return self.read(name) == data

    def lock(self, name: str) -> Lock:
        """A lock file in this folder."""
        return LockFile(Path(self._at(name))) if self.is_local else _LockObject(self, name)


class _LockObject:
    """A lock that is an object in an object store."""

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._name = folder, name

    def __str__(self) -> str:
        return self._folder.path(self._name)

    def create(self, data: bytes) -> bool:
        """Create it exclusively, where the store supports that."""
        return self._folder.create(self._name, data)

    def read(self) -> bytes | None:
        """Its content; None where it does not exist."""
        try:
            return self._folder.read(self._name)
        except FileNotFoundError:
            return None

    def refresh(self, data: bytes) -> None:
        """Replace its content."""
        self._folder.replace(self._name, data)

    def sign(self) -> object:
        """Its content: it changes with every refresh."""
        return self.read()

    def remove(self) -> None:
        """Remove it, if it exists."""
        self._folder.remove(self._name)


@contextmanager
def _errors_named(path: str, doing: str, missing: type[Exception] | None = None) -> Iterator[None]:
    """Turn any error of a file system into a `CacheError` that names the file.

    Object stores raise exception types of their own, so all are caught. missing: an exception type
    that passes through, because the caller handles it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if missing is not None and isinstance(error, missing):
            raise
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise CacheError(
                f"The disk is full ({path} {doing}); every finished shard stays valid: "
                "free some space and run the same command again."
            ) from None
        about = " ".join(str(error).split())[:300]
        raise CacheError(
            f"{path} {doing} ({type(error).__name__}: {about}); finished shards stay valid: fix "
            "that and run the same command again."
        ) from error
