"""Where the files of a model are: hub ids, folders and GGUF files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attar.errors import ModelError, nearest

MODEL_FORMS = (
    "name a folder with a config.json, a hub id such as `Qwen/Qwen3-0.6B`, or a .gguf file"
)


def source_arguments(source: str) -> tuple[str, dict[str, Any]]:
    """The arguments of `from_pretrained` for a source: name or folder, and keyword arguments."""
    path = Path(source).expanduser()
    if source.endswith(".gguf"):
        if not path.is_file():
            raise ModelError(f"There is no GGUF file {source}.")
        return str(path.parent), {"gguf_file": path.name}
    if not source:
        raise ModelError(f"A model's name is empty; {MODEL_FORMS}.")
    if path.is_file():
        raise ModelError(f"{source} is a file, not a model; {MODEL_FORMS}.")
    if source.startswith(("http://", "https://")):
        raise ModelError(f"{source} is an address, not a model; {MODEL_FORMS}.")
    if not path.exists() and not is_hub_id(source):
        raise ModelError(f"There is no model folder {source}.{nearest_path(source)}")
    return (str(path) if path.exists() else source), {}


def is_hub_id(source: str) -> bool:
    """Whether the hub could have a model of this name; else it can only be a folder."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return True


def load_error(error: Exception, what: str, source: str) -> ModelError:
    """The `ModelError` for a failed load; what: `model` or `tokenizer`."""
    reason = " ".join(str(error).split())[:300]
    if not source.endswith(".gguf") and is_nowhere(source):
        return ModelError(
            f"There is no folder `{source}` here, and no model of that name could be fetched from "
            f"the hub{because_of(error)}.{nearest_path(source)}"
        )
    folder = Path(source).expanduser()
    if what == "model" and folder.is_dir() and not (folder / "config.json").is_file():
        return ModelError(
            f"The folder {source} holds no model: it has no config.json; {MODEL_FORMS}."
        )
    return ModelError(f"The {what} `{source}` could not be loaded: {reason}")


def is_nowhere(source: str) -> bool:
    """Whether a model is neither a folder nor in the hub's cache."""
    return not Path(source).expanduser().exists() and local_folder(source) is None


HUB_REASONS = {
    "connect": "it cannot be reached",
    "reach": "it cannot be reached",
    "offline": "it cannot be reached",
    "gated": "access has to be asked for there, and `hf auth login` done here",
    "401": "it does not exist, or is private: `hf auth login`",
    "404": "it does not exist",
    "exist": "it does not exist",
    "not a valid model identifier": "it does not exist, or is private: `hf auth login`",
}


def because_of(error: Exception) -> str:
    """Why the hub did not give something, as a clause in brackets; the library's own words where
    they are not known.
    """
    reason = " ".join(str(error).split())
    known = (said for word, said in HUB_REASONS.items() if word in reason.casefold())
    return f" ({next(known, reason.removesuffix('.')[:300])})"


def nearest_path(source: str) -> str:
    """A hint at a file or folder of almost this name, or an empty string."""
    path = Path(source).expanduser()
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    return nearest(path.name, beside)


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
    if not is_hub_id(name):
        return None
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, file)
    return Path(config).parent if isinstance(config, str) else None
