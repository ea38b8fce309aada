"""Rows of files, folders and hub data sets; `row_formats.py` says what their columns mean."""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attar.checksums import stamp_of_files
from attar.errors import DataError
from attar.files import fingerprint
from attar.models.locations import because_of, nearest_path
from distill.data.file_rows import FileRows

log = logging.getLogger(__name__)

BUILDERS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}
KINDS = "json, jsonl, ndjson, csv, tsv, parquet or txt"
ABOUT_DATA = ("readme", "license", "licence", "dataset_info", "state")  # beside data in a folder


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
        raise DataError(f"There is no file or folder {source}.{nearest_path(source)}")
    return []


def load_rows(source: str, split: str, name: str | None) -> Any:
    """The table of one source, a local file, a glob, a saved folder or a hub id: `FileRows`, or a
    `datasets.Dataset`.

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
            return _load_folder(files[0], split, name)
        _check_no_split(source, split)
        return _load_files(source, files)
    except DataError:
        raise
    except Exception as error:  # datasets raises many kinds, from many libraries
        if not files and _is_unknown(error):
            raise DataError(
                f"There is no file or folder {source} here, and no data set of that name could be "
                f"fetched from the hub{because_of(error)}.{nearest_path(source)}"
            ) from error
        reason = " ".join(f"{error.__cause__ or error}".split())[:300]
        mend = (
            "; it is damaged, or not what its name says: fetch or write it again" if files else ""
        )
        raise DataError(f"`{source}` cannot be read as a data set ({reason}){mend}.") from error


def _is_unknown(error: Exception) -> bool:
    """Whether the hub did not give a data set at all, where it may also have none that reads."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    kinds = (ConnectionError, FileNotFoundError, HfHubHTTPError, HFValidationError)
    return isinstance(error, (*kinds, OfflineModeIsEnabled))


def _check_no_split(source: str, split: str) -> None:
    if split != "train":
        raise DataError(f"`{source}` has no splits, so there is no `{split}` in it; name a file.")


def _load_folder(folder: Path, split: str, name: str | None) -> Any:
    """A split of a folder of files, by their names as on the hub: all are of one kind."""
    import datasets

    found = sorted(p for p in folder.rglob("*") if p.is_file() and not _is_hidden(p, folder))
    data = [path for path in found if path.name.lower().split(".")[0] not in ABOUT_DATA]
    kinds = {BUILDERS[_suffix(path)] for path in data if _suffix(path) in BUILDERS}
    others = [path for path in data if _suffix(path) not in BUILDERS]
    if kinds and others:
        log.warning(
            "data: %d files in %s are of another kind and not read, the first is %s",
            len(others), folder, others[0].name,
        )  # fmt: skip
    if len(kinds) > 1:
        raise DataError(
            f"`{folder}` holds files of several kinds ({', '.join(sorted(kinds))}); name those to "
            f"read, e.g. `{folder}/*{_suffix(data[0])}`."
        )
    card = folder / "README.md"
    described = name is not None or (
        card.exists() and "configs:" in card.read_text("utf8", "replace")
    )
    if not kinds or kinds == {"parquet"} or described:
        return datasets.load_dataset(str(folder), name, split=split, **_cache_by_content(found))
    patterns = datasets.data_files.get_data_patterns(str(folder))
    if split not in patterns:
        raise DataError(
            f"`{folder}` has no split `{split}`; it has {', '.join(map(str, patterns))}."
        )
    chosen = datasets.data_files.DataFilesList.from_patterns(patterns[split], str(folder))
    return _load_files(str(folder), [p for p in map(Path, chosen) if _suffix(p) in BUILDERS])


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)


def _load_files(source: str, files: Iterable[Path]) -> Any:
    import datasets

    files = list(files)
    kinds = {BUILDERS.get(_suffix(path)) for path in files}
    if None in kinds or len(kinds) != 1:
        named = ", ".join(path.name for path in files[:4])
        if len(files) == 1:
            raise DataError(
                f"`{source}` is of no kind that can be read; save its rows as {KINDS} (.gz, .bz2, "
                ".xz, .zst allowed)."
            )
        raise DataError(
            f"`{source}` must be files of one kind, {KINDS} (.gz, .bz2, .xz, .zst allowed), and is "
            f"{named}{', ...' if len(files) > 4 else ''}; save the rows as one of these."
        )
    if all(path.stat().st_size == 0 for path in files):
        raise DataError(f"`{source}` is empty.")
    if kinds == {"parquet"}:
        paths = [str(path) for path in files]
        options = _cache_by_content(files)
        return datasets.load_dataset(
            "parquet", data_files={"train": paths}, split="train", **options
        )
    return FileRows((path, BUILDERS[_suffix(path)]) for path in files)


def _cache_by_content(files: Iterable[Path]) -> dict[str, str]:
    """Options of `load_dataset` by which the library keeps what it read under the files' content.

    By itself it tells files apart by their time alone, and takes compressed ones by their path.
    """
    import datasets

    key = fingerprint(stamp_of_files(sorted(files)))
    return {"cache_dir": str(Path(datasets.config.HF_DATASETS_CACHE) / "attar" / key)}
