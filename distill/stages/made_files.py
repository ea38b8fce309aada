"""Files that some run made, read by other commands: they are checked against that run's records."""

from __future__ import annotations

from pathlib import Path

from attar.checksums import faults_of
from attar.errors import RunError
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
    known = _check_against_records(path)
    if not known and (path / MANIFEST_FILE).is_file():
        check_whole(path)  # an artifact outside its run


def _check_against_records(path: Path) -> bool:
    """Check the files at or below `path` that some stage's record lists; whether there are any."""
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
