"""Where the files of a model are: hub ids, folders and GGUF files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attar.errors import ModelError


def source_arguments(source: str) -> tuple[str, dict[str, Any]]:
    """The arguments of `from_pretrained` for a source: name or folder, and keyword arguments."""
    path = Path(source).expanduser()
    if source.endswith(".gguf"):
        if not path.is_file():
            raise ModelError(f"There is no GGUF file {source}.")
        return str(path.parent), {"gguf_file": path.name}
    if not path.exists() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise ModelError(f"There is no model folder {source}.")
    return (str(path) if path.exists() else source), {}


def load_error(error: Exception, what: str, source: str) -> ModelError:
    """The `ModelError` for a failed load; what: `model` or `tokenizer`."""
    reason = " ".join(str(error).split())[:300]
    return ModelError(f"The {what} `{source}` could not be loaded: {reason}")


def has_all_shards(folder: Path) -> bool:
    """Whether every shard that a checkpoint's index names exists."""
    safe = list(folder.glob("*.safetensors.index.json"))
    for index in safe or folder.glob("*.index.json"):
        names = set(json.loads(index.read_text(encoding="utf8"))["weight_map"].values())
        if not all((folder / name).exists() for name in names):
            return False
    return True


def local_folder(name: str, file: str = "config.json") -> Path | None:
    """The local folder of a model's files: the folder itself, or the hub's cache; else None.

    file: one that the model has, by which it is found in the hub's cache.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, file)
    return Path(config).parent if isinstance(config, str) else None
