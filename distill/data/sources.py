"""Rows of files, folders and hub data sets; `row_formats.py` says what their columns mean."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attar.checksums import stamp_of_files
from attar.errors import DataError, nearest
from attar.files import fingerprint

BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}


def _suffix(path: Path) -> str:
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in (".gz", ".zst", ".bz2", ".xz")]
    return suffixes[-1] if suffixes else ""


def local_files(source: str) -> list[Path]:
    """The local files or the folder of a source; empty for a hub id.

    Raises `DataError` for a file or folder that does not exist.
    """
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

    A .txt file is one document. Raises `DataError` for a source that cannot be read.
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
            options = _cache_by_content(path for path in files[0].rglob("*") if path.is_file())
            return datasets.load_dataset(str(files[0]), name, split=split, **options)
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
    options = {**extra, **_cache_by_content(files)}
    return datasets.load_dataset(kind, data_files={"train": paths}, split="train", **options)


def _cache_by_content(files: Iterable[Path]) -> dict[str, str]:
    """Options of `load_dataset` by which the library keeps what it read under the files' content.

    By itself it tells files apart by their time alone, and takes compressed ones by their path.
    """
    import datasets

    key = fingerprint(stamp_of_files(sorted(files)))
    return {"cache_dir": str(Path(datasets.config.HF_DATASETS_CACHE) / "attar" / key)}
