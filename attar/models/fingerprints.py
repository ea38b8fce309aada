"""Fingerprints of the files of models and tokenizers."""

from __future__ import annotations

import hashlib
import os

from attar.files import fingerprint, sha256_of
from attar.models.adapter_folders import ADAPTER_CONFIG, adapter_base, tokenizer_source
from attar.models.locations import has_all_shards, local_folder, source_arguments


def tokenizer_files_fingerprint(source: str) -> str | None:
    """Fingerprint of a tokenizer's files, chat template included, without loading it.

    None for a GGUF file, or where the files are not on this machine.
    """
    name, extra = source_arguments(tokenizer_source(source) or source)
    folder = local_folder(name)
    if folder is None or extra:
        return None  # a GGUF file holds both: its weights' fingerprint covers the tokenizer
    words = ("token", "vocab", "merges", "chat_template", "spiece")
    files = [f for f in sorted(folder.iterdir()) if f.is_file() and any(w in f.name for w in words)]
    return fingerprint([[f.name, sha256_of(f)] for f in files])


def weights_fingerprint(source: str) -> str | None:
    """Identifies a model's weights from its files without reading all of them.

    Hashes each weight file's name, size, first block (the safetensors header) and 64 blocks
    spread over it, plus config.json. None where not all files are on this machine. An adapter's is
    that of its own files and of its base.
    """
    base = adapter_base(source)
    if base is None:
        return _own_fingerprint(source)
    folder = local_folder(source, ADAPTER_CONFIG)
    parts = [_own_fingerprint(source), weights_fingerprint(base)]
    if folder is None or None in parts:
        return None
    return fingerprint([*parts, sha256_of(folder / ADAPTER_CONFIG)])


def _own_fingerprint(source: str) -> str | None:
    name, extra = source_arguments(source)
    folder = local_folder(name)
    if folder is None:
        return None
    suffixes = (".safetensors", ".bin", ".gguf")
    files = [folder / extra["gguf_file"]] if extra else sorted(folder.iterdir())
    weights = [file for file in files if file.suffix in suffixes]
    if not weights or not has_all_shards(folder):
        return None
    digest = hashlib.sha256()
    config_file = folder / "config.json"
    if not extra and config_file.is_file():
        digest.update(config_file.read_bytes())
    for file in weights:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as handle:
            digest.update(handle.read(1 << 16))
            for block in range(64):
                handle.seek(size * block // 64, os.SEEK_SET)
                digest.update(handle.read(4096))
    return digest.hexdigest()[:16]
