"""The run folder: where each stage leaves its files, and a record of what they were made from.

recipe.yaml  run.log  report.json  report.html
data/        tokenised examples          records/     one JSON a finished stage
teacher/     the adapted teacher         cache/       the teacher's signals
student/     the student before training arms/NAME/   checkpoints, student/, result.json
arms/chosen.json  the best candidate of each arm, where arms have several
specialized/ adapter/ and merged/        artifacts/   what is deployed
reference/   what preferences are compared with
teacher_texts/ and teacher_cache/ where the student has another tokenizer
answers/     what a model wrote to prompts, and the training part of it
prompt/      what `distill prompt` chose and measured
evaluation/  numbers a model, per-token arrays
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from attar.checksums import Recorded, faults_of
from attar.distributed import is_alone, process_state
from attar.errors import RunError
from attar.files import fingerprint, read_json_object, write_json
from attar.locks import LockFile, hold_lock


@dataclass
class StageRecord:
    """What a finished stage leaves about itself.

    inputs: the fingerprint of its inputs, the files of the stages before it included. files: what
    it left for later commands, by path in the run folder, with size and checksum.
    """

    stage: str
    inputs: str = ""
    seconds: float = 0.0
    tokens: int = 0
    bytes: int = 0
    peak_memory_bytes: int = 0
    notes: dict[str, Any] = field(default_factory=dict)
    files: Recorded = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Changes with the bytes of the files that later stages work on. A training's result.json
        is not among them: it tells the report how long it took, which differs every time.
        """
        return fingerprint({n: f for n, f in self.files.items() if Path(n).name != "result.json"})


def read_stage_record(file: Path, stage: str) -> StageRecord:
    """A record from its file. Raises `RunError` for one that is damaged or of another version."""
    found = read_json_object(file)
    kinds = {one.name: type(getattr(StageRecord(stage), one.name)) for one in fields(StageRecord)}
    said, fault = found.pop("checksum", None), None
    if other := sorted(found.keys() ^ kinds.keys()):
        known = "lacks" if other[0] in kinds else "has the unknown key"
        fault = f"it {known} `{other[0]}`: another version of attar wrote it"
    elif wrong := [name for name, kind in kinds.items() if not _is_of(found[name], kind)]:
        fault = f"`{wrong[0]}` is not of the type that attar writes"
    elif said != fingerprint(found) or found["stage"] != stage:
        fault = "it was changed after it was written"
    if fault is not None:
        raise RunError(
            f"{file} is not the record of `{stage}` ({fault}); delete it and run again: the stage "
            "is then done again."
        )
    return StageRecord(**found)


def _is_of(value: Any, kind: type) -> bool:
    return isinstance(value, (int, float) if kind is float else kind)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, not a model's."""
    return (folder / "recipe.yaml").is_file()


@dataclass(frozen=True)
class RunFolder:
    """Paths in a run folder, and the records of finished stages."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def teacher(self) -> Path:
        """The adapted teacher."""
        return self.path / "teacher"

    @property
    def student(self) -> Path:
        """The student before training."""
        return self.path / "student"

    @property
    def specialized(self) -> Path:
        """What the `specialize` stage leaves."""
        return self.path / "specialized"

    @property
    def adapter(self) -> Path:
        """The adapter of the specialised student."""
        return self.specialized / "adapter"

    @property
    def merged(self) -> Path:
        """The specialised student in full precision, where the method's adapter can be merged."""
        return self.specialized / "merged"

    @property
    def evaluation(self) -> Path:
        """Numbers of every measured model, and arrays by token or text."""
        return self.path / "evaluation"

    @property
    def features(self) -> Path:
        """Frozen features and the classifier on them."""
        return self.path / "features"

    @property
    def prompt(self) -> Path:
        """The prompt that `distill prompt` chose, and what it was measured on."""
        return self.path / "prompt"

    @property
    def log(self) -> Path:
        """The log of every command on this run."""
        return self.path / "run.log"

    @property
    def report(self) -> Path:
        """report.json."""
        return self.path / "report.json"

    @property
    def report_page(self) -> Path:
        """report.html."""
        return self.path / "report.html"

    def reference(self, section: str) -> Path:
        """Log-probabilities of answers under the reference of a section that learns preferences."""
        return self.path / "reference" / section.replace(".", "-")

    @property
    def answers(self) -> Path:
        """What a model wrote to the prompts of the training part."""
        return self.path / "answers"

    @property
    def written_part(self) -> Path:
        """The training part of written answers."""
        return self.answers / "train.arrow"

    @property
    def audit(self) -> Path:
        """What `cache audit` measured."""
        return self.path / "audit.json"

    def data(self, section: str = "data") -> Path:
        """Tokenised examples of a section: `data`, or `specialize.data`."""
        return self.path / ("data" if section == "data" else "data-specialize")

    def teacher_texts(self, section: str = "data") -> Path:
        """The texts of a section, or of `held_out`, as read by a teacher of another tokenizer."""
        return self.path / "teacher_texts" / section.replace(".", "-")

    @property
    def teacher_cache(self) -> Path:
        """The signals of a teacher of another tokenizer, in its own ids."""
        return self.path / "teacher_cache"

    @property
    def data_folders(self) -> list[Path]:
        """Folders of tokenised examples, those that a run may have."""
        return [self.data(), self.data("specialize.data")]

    def arm(self, name: str) -> Path:
        """Checkpoints and student of one training of an arm."""
        return self.path / "arms" / name

    @property
    def chosen(self) -> Path:
        """Which candidate of each arm the validation part chose; absent where none has several."""
        return self.path / "arms" / "chosen.json"

    def chosen_of(self, arm: str) -> str:
        """Name of the training, by the first seed, whose student stands for an arm."""
        found = read_json_object(self.chosen) if self.chosen.exists() else {}
        return str(found.get(arm, arm))

    def arm_student(self, name: str = "distill") -> Path:
        """The trained student of one arm: by the first seed, of its chosen candidate."""
        return self.arm(self.chosen_of(name)) / "student"

    def artifact(self, name: str) -> Path:
        """One deployable form of the student."""
        return self.path / "artifacts" / name

    def recovered(self, number_format: str) -> Path:
        """Checkpoints of the training that teaches a rounded student what rounding lost."""
        return self.path / "recovered" / number_format

    # Records -----------------------------------------------------------------------------------

    def _record_file(self, stage: str) -> Path:
        return self.path / "records" / f"{stage}.json"

    def record(self, stage: str) -> StageRecord | None:
        """The record of a finished stage, or None."""
        file = self._record_file(stage)
        return read_stage_record(file, stage) if file.exists() else None

    def write_record(self, record: StageRecord) -> None:
        """Mark a stage as finished."""
        values = vars(record)
        write_json(self._record_file(record.stage), {**values, "checksum": fingerprint(values)})

    def faults(self, stage: str, *, every_byte: bool = False) -> list[str]:
        """A sentence for each file that is not as a finished stage left it; see `faults_of`."""
        record = self.record(stage)
        found = faults_of(record.files, self.path, every_byte=every_byte) if record else {}
        return [f"{name}, which `{stage}` made, {fault}" for name, fault in found.items()]

    def forget_record(self, stage: str) -> None:
        """Mark a stage as not finished."""
        self._record_file(stage).unlink(missing_ok=True)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Hold the run folder while the block runs: a second command on it is refused by name."""
        if not is_alone() and not process_state().is_main_process:
            yield
            return
        with hold_lock(LockFile(self.path / "run.lock"), f"The run folder {self.path}", RunError):
            yield


@contextmanager
def on_first_process() -> Iterator[bool]:
    """Let the first process do the block before the others enter it; gives whether it is that."""
    if is_alone():
        yield True
        return
    with process_state().main_process_first():
        yield bool(process_state().is_main_process)
