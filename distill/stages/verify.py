"""`distill verify`: every file of a run against the checksum it was left with, all bytes read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from attar.checksums import faults_of, files_below
from attar.errors import UserError
from attar.files import read_json_object
from distill.data.prepare import data_faults
from distill.run.context import Run
from distill.run.teacher_side import TeacherSide
from distill.stages.stage import STAGES
from distill.training.checkpoint import BEST_FILE, damage_of, step_of_learned
from students.artifacts.artifact import check_whole, failure_of
from teachers.cache.store import SignalStore
from teachers.cache_tools.verify import verify as verify_cache


@dataclass(frozen=True)
class Verified:
    """A part of a run: how many files and bytes it has, and a sentence for each fault."""

    part: str
    files: int
    bytes: int
    faults: list[str]


def verify_run(run: Run) -> list[Verified]:
    """What each stage left, the data, the cache, checkpoints, artifacts, features, prompt; parts
    that are not there are left out.
    """
    parts = (_stages, _data, _cache, _checkpoints, _artifacts, _features, _prompt)
    return [one for part in parts for one in part(run)]


def verified_rows(found: list[Verified]) -> list[list[str]]:
    """The outcome as a table of text, header first."""
    rows = [["", "files", "bytes", ""]]
    for one in found:
        outcome = "as written" if not one.faults else f"{len(one.faults)} damaged"
        rows.append([one.part, f"{one.files:,}", f"{one.bytes:,}", outcome])
    return rows


def _checked(part: str, files: list[Path], faults: list[str]) -> Verified:
    there = files_below(files)
    return Verified(part, len(there), sum(file.stat().st_size for file in there), faults)


def _stages(run: Run) -> Iterator[Verified]:
    for stage in STAGES:
        try:
            record = run.folder.record(stage)
            if record is not None and record.files:
                files = [run.folder.path / name for name in record.files]
                yield _checked(stage, files, run.folder.faults(stage, every_byte=True))
        except UserError as error:
            yield Verified(stage, 0, 0, [str(error)])


def _data(run: Run) -> Iterator[Verified]:
    for folder in (*run.folder.data_folders, run.folder.features / "data"):
        if folder.is_dir():
            faults = data_faults(folder, every_byte=True)
            sentences = [f"{folder / name} {fault}" for name, fault in faults.items()]
            yield _checked(str(folder.relative_to(run.folder.path)), [folder], sentences)


def _cache(run: Run) -> Iterator[Verified]:
    if not run.makes_cache:
        return
    sides = {"cache": run}
    if run.transports_itself and run.recipe.cache.dir is None:
        sides["teacher_cache"] = TeacherSide(run)
    for name, side in sides.items():
        store = SignalStore(side.cache_url)
        if store.folder.exists("manifest.json") or store.folder.names("shards"):
            faults = verify_cache(side.cache_url)
            entries = {} if faults else store.entries()
            size = sum(one["bytes"] for one in entries.values())
            yield Verified(name, len(entries), size, faults)


def _checkpoints(run: Run) -> Iterator[Verified]:
    """What trainings go on from, and the best weights beside it."""
    for progress in sorted(run.folder.path.glob("**/last/progress.json")):
        last, best = progress.parent, progress.parent.parent / BEST_FILE
        faults = [fault for fault in [damage_of(last)] if fault is not None]
        if best.is_file():
            try:
                step_of_learned(best)
            except UserError as error:
                faults.append(str(error))
        name = str(last.relative_to(run.folder.path))
        yield _checked(name, [last, best], faults)


def _artifacts(run: Run) -> Iterator[Verified]:
    for name in run.artifacts:
        folder, faults = run.folder.artifact(name), []
        if folder.is_dir() and failure_of(folder) is None:
            try:
                check_whole(folder)
            except UserError as error:
                faults = [str(error)]
            yield _checked(f"artifacts/{name}", [folder], faults)


def _features(run: Run) -> Iterator[Verified]:
    yield from _listed("features", run.folder.features, "metrics.json")


def _prompt(run: Run) -> Iterator[Verified]:
    yield from _listed("prompt", run.folder.prompt, "numbers.json")


def _listed(part: str, folder: Path, record: str) -> Iterator[Verified]:
    """The files that the record of a command that is no stage lists, where there is one."""
    if not (folder / record).is_file():
        return
    try:
        files = read_json_object(folder / record, "files")["files"]
        faults = faults_of(files, folder, every_byte=True)
        sentences = [f"{folder / name} {fault}" for name, fault in faults.items()]
        yield _checked(part, [folder / name for name in files], sentences)
    except UserError as error:
        yield Verified(part, 0, 0, [str(error)])
