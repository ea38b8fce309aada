"""Rows of text or conversations from wherever they are, through `datasets`."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from attar.errors import DataError, nearest

BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}


def _suffix(path: Path) -> str:
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in (".gz", ".zst", ".bz2", ".xz")]
    return suffixes[-1] if suffixes else ""


def local_files(source: str) -> list[Path]:
    """The local files or the folder a source names; empty for a hub id. Missing: `DataError`."""
    path = Path(source).expanduser()
    if path.exists():
        return [path]
    found = sorted(glob.glob(str(path)))
    if found:
        return [Path(name) for name in found]
    if _suffix(path) in BUILDERS or source.startswith((".", "/", "~")) or "*" in source:
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"There is no file or folder {source}.{nearest(path.name, beside)}")
    return []


def load_rows(source: str, split: str, name: str | None) -> Any:
    """A `datasets.Dataset` of one source: a local file, a glob, a saved folder or a hub id.

    A .txt file is one document. Raises `DataError` where nothing can be read.
    """
    import datasets

    datasets.utils.logging.disable_progress_bar()
    files = local_files(source)
    try:
        if not files:
            return datasets.load_dataset(source, name, split=split)
        if files[0].is_dir():
            if (files[0] / "state.json").exists() or (files[0] / "dataset_dict.json").exists():
                loaded = datasets.load_from_disk(str(files[0]))
                if isinstance(loaded, datasets.DatasetDict):
                    return loaded[split]
                _check_no_split(source, split)
                return loaded
            return datasets.load_dataset(str(files[0]), name, split=split)
        _check_no_split(source, split)
        return _load_files(source, files)
    except DataError:
        raise
    except Exception as error:  # datasets raises many kinds, from many libraries
        reason = " ".join(f"{error.__cause__ or error}".split())[:300]
        raise DataError(f"`{source}` cannot be read as a data set: {reason}") from error


def _check_no_split(source: str, split: str) -> None:
    if split != "train":
        raise DataError(f"`{source}` has no splits, so there is no `{split}` in it; name a file.")


def _load_files(source: str, files: list[Path]) -> Any:
    import datasets

    kinds = {BUILDERS.get(_suffix(path)) for path in files}
    kind = kinds.pop()
    if kind is None or kinds:
        raise DataError(
            f"`{source}` must be files of one kind: json, jsonl, parquet or txt (.gz allowed)."
        )
    if all(path.stat().st_size == 0 for path in files):
        raise DataError(f"`{source}` is empty.")
    extra = {"sample_by": "document"} if kind == "text" else {}
    paths = [str(path) for path in files]
    return datasets.load_dataset(kind, data_files={"train": paths}, split="train", **extra)


def column_kind(columns: list[str], source: str, text_column: str | None) -> tuple[str, list[str]]:
    """('text', 'messages' or 'pair'; columns that hold it), from the usual names."""
    if text_column is not None:
        if text_column not in columns:
            raise DataError(
                f"`{source}` has no column `{text_column}` (`data.text_column`); it has "
                f"{', '.join(columns)}.{nearest(text_column, columns)}"
            )
        return "text", [text_column]
    for name in ("messages", "conversations", "conversation"):
        if name in columns:
            return "messages", [name]
    for prompt in ("prompt", "instruction", "question"):
        for answer in ("completion", "response", "answer", "output"):
            if prompt in columns and answer in columns:
                more = [name for name in ("input", "context") if name in columns]
                return "pair", [prompt, *more, answer]
    for name in ("text", "content"):
        if name in columns:
            return "text", [name]
    raise DataError(
        f"`{source}` has columns {', '.join(columns)}: none of them is `text`, `messages`, or "
        "`prompt` with `completion`; name the text with `data.text_column`."
    )


def messages_of(row: dict[str, Any], kind: str, columns: list[str]) -> list[dict[str, str]]:
    """A row as chat messages with `role` and `content`."""
    if kind == "pair":
        asked = "\n\n".join(row[column] for column in columns[:-1] if row[column])
        answer = {"role": "assistant", "content": row[columns[-1]]}
        return [{"role": "user", "content": asked}, answer]
    names = {"human": "user", "gpt": "assistant", "system": "system"}
    messages = []
    for message in row[columns[0]] or []:
        if "from" in message:  # ShareGPT
            role = names.get(message["from"], message["from"])
            messages.append({"role": role, "content": message["value"]})
        else:
            if message.get("role") is None or message.get("content") is None:
                raise DataError(f"A message has no `role` or no `content`: {str(message)[:120]}")
            messages.append({"role": message["role"], "content": message["content"]})
    return messages
