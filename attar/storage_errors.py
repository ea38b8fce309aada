"""Errors of disks and rights: one sentence with file and reason, whichever library met them."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)
UNUSABLE = (
    *(errno.EIO, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST),
    *(errno.EMFILE, errno.ENFILE, errno.ENXIO, errno.ENODEV, errno.ESTALE),
)
# What libraries in other languages say instead of an errno: Rust (safetensors, tokenizers) has it
# in its text; torch's archive and numpy's `tofile` only notice that less was written than given.
_RUST_ERRNO = re.compile(r"\(os error (\d+)\)")
_CUT_SHORT = re.compile(
    r"unexpected pos \d+ vs \d+|PytorchStreamWriter failed|basic_ios::clear: iostream error"
    r"|\d+ requested and \d+ written"
)


def storage_error(error: BaseException) -> OSError | None:
    """The `OSError` of a disk or of a right that an error comes from; None for all others."""
    if isinstance(error, OSError) and error.errno in (*DISK_FULL, *NO_RIGHT, *UNUSABLE):
        return error
    text = str(error)
    if found := _RUST_ERRNO.search(text):
        number = int(found[1])
        if number in (*DISK_FULL, *NO_RIGHT, *UNUSABLE):
            return OSError(number, os.strerror(number))
    if _CUT_SHORT.search(text):
        below = error.__cause__ or error.__context__
        reason = storage_error(below) if below is not None else None
        return reason or OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return storage_error(error.__cause__) if error.__cause__ is not None else None


def storage_sentence(error: OSError) -> str:
    """What happened to which file, and what to do, in one sentence."""
    reason = os.strerror(error.errno or 0)
    file = str(error.filename) if error.filename is not None else None
    again = "run the same command again, which goes on from what is finished"
    if error.errno in DISK_FULL:
        where = f"{file} cannot be written" if file else "a file cannot be written"
        return f"The disk is full: {where} ({reason}); free some space and {again}."
    where = file or "A file"
    if error.errno in NO_RIGHT:
        return f"{where} cannot be read or written ({reason}); change its rights and {again}."
    return f"{where} cannot be read or written ({reason}); mend that and {again}."


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of a disk or a right leave the block as an `OSError` that names a file.

    path: what is named where the error names none, which is the rule for a write.
    """
    try:
        yield
    except Exception as error:
        found = storage_error(error)
        if found is None or (found is error and found.filename is not None):
            raise
        name = str(path) if found.filename is None else found.filename
        raise OSError(found.errno, found.strerror, name) from error
