"""Where the files of a model are on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attar.errors import ModelError


def source_arguments(source: str) -> tuple[str, dict[str, Any]]:
    """(what `from_pretrained` takes, extra arguments): a GGUF file is a folder and a name."""
    path = Path(source).expanduser()
    if source.endswith(".gguf"):
        if not path.is_file():
            raise ModelError(f"There is no GGUF file {source}.")
        return str(path.parent), {"gguf_file": path.name}
    if not path.exists() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise ModelError(f"There is no model folder {source}.")
    return (str(path) if path.exists() else source), {}


def load_error(error: Exception, what: str, source: str) -> ModelError:
    """The error for a model or tokenizer that could not be loaded, with the library's reason."""
    reason = " ".join(str(error).split())[:300]
    return ModelError(f"The {what} `{source}` could not be loaded: {reason}")


def has_all_shards(folder: Path) -> bool:
    """Whether every shard that a checkpoint's index names is there."""
    safe = list(folder.glob("*.safetensors.index.json"))
    for index in safe or folder.glob("*.index.json"):
        names = set(json.loads(index.read_text(encoding="utf8"))["weight_map"].values())
        if not all((folder / name).exists() for name in names):
            return False
    return True


def local_folder(name: str) -> Path | None:
    """The folder that holds a model's files on this machine: its own, or the hub's cache."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    return Path(config).parent if isinstance(config, str) else None
