"""Whether the files of a model's weights are whole, as their headers and sizes say.

A file that was cut, emptied or overwritten with zeros is found without reading its weights. Which
values they have only a checksum can tell.
"""

from __future__ import annotations

import json
import os
import zipfile
from functools import cache
from pathlib import Path

from attar.errors import ModelError
from attar.models.locations import local_folder, source_arguments

SAFE, BIN, ADAPTER = "model.safetensors", "pytorch_model.bin", "adapter_model.safetensors"
LONGEST_HEADER = 100_000_000  # bytes; the format's own bound


def check_weights(source: str) -> None:
    """Raise `ModelError`, with the file's name, for weights that are missing or not whole.

    Of a hub id, only files that are on this machine are looked at.
    """
    name, extra = source_arguments(source)
    if extra:
        _check(Path(name) / extra["gguf_file"])
        return
    folder = local_folder(name)
    if folder is None:
        return
    files = _files(folder)
    if not files and (ggufs := sorted(folder.glob("*.gguf"))):
        raise ModelError(f"{source} holds a GGUF file; name the file itself: {ggufs[0]}.")
    if not files and Path(name).is_dir():
        raise ModelError(f"{source} has no weights: there is no {SAFE} and no {BIN}.")
    for file in files:
        if file.is_file():
            _check(file)
        elif Path(name).is_dir():
            raise ModelError(f"{source} lacks {file.name}, which its index names; copy it again.")


def _files(folder: Path) -> list[Path]:
    """The files that hold a model's weights: one, or those that an index names."""
    for name in (SAFE, BIN):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            try:
                shards = json.loads(index.read_text(encoding="utf8"))["weight_map"].values()
                return [folder / shard for shard in sorted(set(shards))]
            except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
                raise ModelError(f"{index} names no files of weights ({error}).") from None
    return [folder / ADAPTER] if (folder / ADAPTER).is_file() else []


def _check(file: Path) -> None:
    stat = file.stat()
    fault = _fault(file, stat.st_size, stat.st_mtime_ns)
    if fault is not None:
        raise ModelError(f"{file} is damaged: {fault}; copy or download it again.")


@cache
def _fault(file: Path, size: int, written_ns: int) -> str | None:
    """What is wrong with a file, or None. The time is a part of the cache's key."""
    if file.suffix == ".safetensors":
        return _fault_of_safetensors(file, size)
    return _fault_of_gguf(file) if file.suffix == ".gguf" else _fault_of_pickle(file, size)


def _fault_of_safetensors(file: Path, size: int) -> str | None:
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or not 2 <= length <= min(LONGEST_HEADER, size - 8):
            return f"its {size:,} bytes do not begin with a header"
        try:
            header = json.loads(opened.read(length))
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key[:2] != "__"]
            whole = 8 + length + max(ends, default=0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return "its header cannot be read"
    return None if size == whole else f"it has {size:,} bytes, and {whole:,} by its header"


def _fault_of_pickle(file: Path, size: int) -> str | None:
    with file.open("rb") as opened:
        start = opened.read(4)
    if start[:2] == b"PK":
        return None if zipfile.is_zipfile(file) else "its archive has no end"
    return None if start[:1] == b"\x80" else f"its {size:,} bytes are no weights of torch"


def _fault_of_gguf(file: Path) -> str | None:
    try:
        from gguf import GGUFReader
    except ImportError:  # loading says what to install
        return None
    try:
        GGUFReader(os.fspath(file))
    except Exception as error:  # whatever its bytes lead the reader to
        return " ".join(f"{type(error).__name__}, {error}".split())[:200]
    return None
