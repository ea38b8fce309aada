"""Files that some run made, read by other commands: they are checked against that run's records."""

from __future__ import annotations

from pathlib import Path

from attar.checksums import faults_of
from attar.errors import RunError
from attar.files import read_json_object
from distill.run.folder import RunFolder
from distill.stages.stage import STAGES
from students.artifacts.artifact import MANIFEST_FILE, check_whole


def run_of(path: Path) -> Path | None:
    """The run folder that holds a path, or None."""
    for folder in path.resolve().parents:
        if (folder / "recipe.yaml").is_file() and (folder / "records").is_dir():
            return folder
    return None


def check_made(source: str | Path) -> None:
    """Raise `RunError` or `ModelError` where a model's files are not as the run that made them, or
    the export, left them. Nothing is known of models from elsewhere.
    """
    path = Path(source).expanduser()
    if not path.exists():
        return
    if not check_against_records(path) and _is_artifact(path):
        check_whole(path)  # outside its run


def _is_artifact(folder: Path) -> bool:
    """Whether a folder has a manifest of ours; others have files of that name too."""
    try:
        return bool(read_json_object(folder / MANIFEST_FILE, "artifact", "files"))
    except (OSError, RunError):
        return False


def check_against_records(path: Path) -> bool:
    """Whether some stage's record lists files at or below `path`; raises `RunError` where one of
    them is not as that stage left it.
    """
    folder = run_of(path)
    if folder is None:
        return False
    run, inside = RunFolder(folder), path.resolve().relative_to(folder).as_posix()
    known = False
    for stage in STAGES.values():
        record = run.record(stage.name)
        files = record.files if record is not None else {}
        mine = {n: f for n, f in files.items() if n == inside or n.startswith(f"{inside}/")}
        known |= bool(mine)
        for name, fault in faults_of(mine, folder).items():
            raise RunError(
                f"{folder / name}, which `{stage.name}` made, {fault}; run `distill "
                f"{stage.command} {folder}` to make it again."
            )
    return known
