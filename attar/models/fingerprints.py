"""Fingerprints of the files of models and tokenizers. All bytes count: see attar/checksums.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from attar.checksums import known_checksum
from attar.files import fingerprint
from attar.models.adapter_folders import adapter_base, tokenizer_source
from attar.models.locations import has_all_shards, local_folder, source_arguments

# In the order in which transformers looks for them: where there are several, the first is loaded.
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
TOKENIZER_WORDS = ("token", "vocab", "merges", "chat_template", "spiece", "normalizer", "sentence_")
TOKENIZER_SUFFIXES = (".model", ".spm", ".tiktoken", ".codes", ".jinja", ".dict")
TEMPLATES_FOLDER = "additional_chat_templates"


def tokenizer_files_fingerprint(source: str) -> str | None:
    """Fingerprint of a tokenizer's files, all chat templates included, without loading it.

    None for a GGUF file, or where the files are not on this machine.
    """
    name, extra = source_arguments(tokenizer_source(source) or source)
    folder = local_folder(name)
    if folder is None or extra:
        return None  # a GGUF file holds both: its weights' fingerprint covers the tokenizer
    files = [
        file
        for file in _files_in(folder)
        if file.suffix in TOKENIZER_SUFFIXES or any(word in file.name for word in TOKENIZER_WORDS)
    ]
    return _fingerprint_of([*files, *_files_in(folder / TEMPLATES_FOLDER)], folder)


def weights_fingerprint(source: str) -> str | None:
    """Identifies what a model computes: its weights, its configuration, code that comes with it.

    An adapter's is that of its own files and of its base. None where not all files are on this
    machine.
    """
    base = adapter_base(source)
    if base is None:
        return _own_fingerprint(source)
    parts = [_own_fingerprint(source), weights_fingerprint(base)]
    return None if None in parts else fingerprint(parts)


def _own_fingerprint(source: str) -> str | None:
    name, extra = source_arguments(source)
    folder = local_folder(name)
    if folder is None:
        return None
    if extra:
        return _fingerprint_of([folder / extra["gguf_file"]], folder)
    weights = _weight_files(folder)
    if not weights or not has_all_shards(folder):
        return None
    return _fingerprint_of([*weights, *_describing_files(folder)], folder)


def _weight_files(folder: Path) -> list[Path]:
    """The files with weights, of the first kind that there is; of GGUF files all."""
    modules = [one for one in _entries(folder) if one.is_dir() and one.name[:1].isdigit()]
    for suffix in (*WEIGHT_SUFFIXES, ".gguf"):
        found = [file for file in _files_in(folder) if file.suffix == suffix]
        if found:  # with those of a sentence encoder's further modules, e.g. 2_Dense
            return found + [f for one in modules for f in _files_in(one) if f.suffix == suffix]
    return []


def _describing_files(folder: Path) -> Iterator[Path]:
    """What says how the weights are used, and code that comes with the model."""
    for file in _files_in(folder):
        named = file.name in ("config.json", "adapter_config.json", "modules.json")
        if named or file.suffix == ".py" or file.name.endswith(".index.json"):
            yield file
    for one in _entries(folder):
        if one.is_dir() and one.name[:1].isdigit() and (one / "config.json").is_file():
            yield one / "config.json"  # 1_Pooling of a sentence encoder


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _files_in(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_file()]


def _fingerprint_of(files: Iterable[Path], folder: Path) -> str:
    return fingerprint([[f.relative_to(folder).as_posix(), known_checksum(f)] for f in files])
