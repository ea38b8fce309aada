"""The run folder: where each stage leaves its files, and a record of what they were made from.

recipe.yaml  run.log  report.json  report.html
data/        tokenised examples          records/     one JSON a finished stage
teacher/     the adapted teacher         cache/       the teacher's signals
student/     the student before training arms/NAME/   checkpoints, student/, result.json
specialized/ adapter/ and merged/        artifacts/   what is deployed
evaluation/  numbers a model, per-token arrays
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from attar.distributed import is_alone, process_state
from attar.errors import RunError
from attar.files import read_json, write_json, write_text
from attar.locks import LockFile, hold_lock
from attar.models.loading import load_config
from attar.models.tokenizers import load_tokenizer, tokenizer_fingerprint, vocabulary_size
from distill.data.config import DataConfig
from distill.data.examples import Examples
from distill.data.prepare import prepare
from distill.objective.layer_map import LayerMap
from distill.objective.terms import reads_from
from distill.recipe.export import artifacts_of
from distill.recipe.schema import Recipe
from distill.tasks.registry import task_of
from distill.tasks.task import Task
from students.fresh import fresh_config
from students.pruning.record import FILE, channel_map, read_pruning
from teachers.load import TeacherConfig

log = logging.getLogger(__name__)


@dataclass
class Record:
    """What a finished stage says of itself."""

    stage: str
    inputs: str
    seconds: float = 0.0
    tokens: int = 0
    bytes: int = 0
    peak_memory_bytes: int = 0
    notes: dict[str, Any] = field(default_factory=dict)


class Run:
    """One recipe in one folder. Knows where things are; does nothing by itself."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self.inputs: dict[str, str] = {}  # fingerprints by stage, see inputs.py

    # Places ----------------------------------------------------------------------------------

    @property
    def teacher_folder(self) -> Path:
        """The adapted teacher."""
        return self.folder / "teacher"

    @property
    def student_folder(self) -> Path:
        """The student before training."""
        return self.folder / "student"

    @property
    def specialized_folder(self) -> Path:
        """Adapter and merged student of the low-rank stage."""
        return self.folder / "specialized"

    @property
    def cache_url(self) -> str:
        """Folder or URL of the signal cache."""
        return self.recipe.cache.dir or str(self.folder / "cache")

    def arm_folder(self, arm: str) -> Path:
        """Checkpoints and student of one arm."""
        return self.folder / "arms" / arm

    def artifact_folder(self, name: str) -> Path:
        """One deployable checkpoint."""
        return self.folder / "artifacts" / name

    @property
    def merged_student(self) -> Path | None:
        """The student in full precision with what was specialised merged in; the distilled student
        where nothing was, None where the method leaves an adapter that cannot be merged.
        """
        special = self.recipe.specialize
        if special is None:
            return self.arm_folder("distill") / "student"
        if special.leaves == "adapter" and not special.merges:
            return None
        return self.specialized_folder / "merged"

    @property
    def artifacts(self) -> list[str]:
        """Names of the artifacts to make."""
        return artifacts_of(self.recipe.export, self.recipe.specialize)

    # What the recipe comes to ------------------------------------------------------------------

    @property
    def teacher(self) -> TeacherConfig:
        """The teacher as used: the adapted one where the recipe adapts it."""
        config = self.recipe.teacher
        values = config.model_dump(exclude={"adapt"})
        if config.adapt is not None:
            values.update(model=str(self.teacher_folder))
        return TeacherConfig(**values)

    @property
    def trusts_code(self) -> bool:
        """Whether students may load code that came with a model: one of the two was trusted."""
        return self.recipe.teacher.trust_remote_code or self.recipe.student.trust_remote_code

    @cached_property
    def task(self) -> Task:
        """What is the recipe's task's own."""
        return task_of(self.recipe)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, as `prepare_data` found them; of labelled texts."""
        found: list[str] = read_json(self.folder / "data" / "stats.json")["classes"]
        return found

    @cached_property
    def tokenizer(self) -> Any:
        """The teacher's tokenizer: data is tokenised by it, students keep it."""
        teacher = self.recipe.teacher
        return load_tokenizer(teacher.model, trust_remote_code=teacher.trust_remote_code)

    @cached_property
    def vocabulary(self) -> int:
        """V: ids the tokenizer knows."""
        return vocabulary_size(self.tokenizer)

    @cached_property
    def teacher_config(self) -> Any:
        """The teacher's `PretrainedConfig`."""
        teacher = self.recipe.teacher
        return load_config(teacher.model, trust_remote_code=teacher.trust_remote_code)

    @property
    def teacher_width(self) -> int:
        """H of the teacher."""
        return int(self.teacher_config.get_text_config().hidden_size)

    @property
    def teacher_depth(self) -> int:
        """Number of the teacher's blocks."""
        return int(self.teacher_config.get_text_config().num_hidden_layers)

    @cached_property
    def student_config(self) -> Any:
        """The student's `PretrainedConfig`, known before it is built."""
        student, whole = self.recipe.student, self.whole_config
        if isinstance(student.from_, dict) or not student.cuts:
            return whole
        return self._searched_config() or student.cut_config(whole, self.task.auto)

    @cached_property
    def whole_config(self) -> Any:
        """That of the student before anything is cut."""
        student = self.recipe.student
        if isinstance(student.from_, dict):
            return fresh_config(student.from_, self.teacher_config)
        if student.from_ == "teacher":
            return self.teacher_config
        return load_config(student.from_, trust_remote_code=student.trust_remote_code)

    def _searched_config(self) -> Any:
        """That of the shape which a search found for the recipe's target; None before it did."""
        student, file = self.recipe.student, self.student_folder / FILE
        if student.target is None or not file.exists():
            return None
        found = read_json(file)
        if (found.get("model"), found.get("target")) != (
            self.cut_model,
            student.target.model_dump(),
        ):
            return None
        return load_config(str(self.student_folder), trust_remote_code=self.trusts_code)

    @property
    def cut_model(self) -> str:
        """The model that the student is cut out of, or is: the teacher as used, or another."""
        source = self.recipe.student.from_
        return source if isinstance(source, str) and source != "teacher" else self.teacher.model

    def student_was_built(self) -> None:
        """Look at the student's shape anew: a search may have found another than was assumed."""
        self.__dict__.pop("student_config", None)

    @property
    def student_depth(self) -> int:
        """Number of the student's blocks, known before it is built."""
        return int(self.student_config.get_text_config().num_hidden_layers)

    @property
    def comes_from_teacher(self) -> bool:
        """Whether the student is cut out of the teacher, or out of a student that was."""
        source = self.recipe.student.from_
        if isinstance(source, dict):
            return False
        return source == "teacher" or read_pruning(source, self.teacher.model) is not None

    def layer_map(self, depth: int | None = None) -> LayerMap:
        """What is known of both models' layers, and how the student was cut where it was.

        depth: of a student of so many blocks instead.
        """
        hidden, file = self.recipe.cache.hidden, self.student_folder / FILE
        depth, kept = depth or self.student_depth, None
        if self.comes_from_teacher:
            kept = read_json(file)["kept"] if file.exists() else []
            if len(kept) != depth:  # not cut yet, or for another recipe: enough to check by
                kept = list(range(depth))
        return LayerMap(depth, self.teacher_depth, hidden.layers, hidden.attention, kept)

    def channel_map(self) -> Tensor | None:
        """How the teacher's channels became the student's, where it was cut from a wider teacher:
        (teacher's, student's).
        """
        if not self.comes_from_teacher:
            return None
        return channel_map(self.student_folder, self.teacher_width)

    def prepare_data(self) -> None:
        """Tokenise what the recipe learns from, unless it is there. All processes call this."""
        special = self.recipe.specialize.data if self.recipe.specialize is not None else None
        identity = tokenizer_fingerprint(self.tokenizer)
        with on_first_process():
            for config in (self.recipe.data, special):
                if config is not None:
                    folder = self._data_folder(config)
                    adapted = self.recipe.teacher.adapt is not None
                    reader = self.task.reader(self.teacher_config, adapted, self.recipe.seed)
                    prepare(config, self.tokenizer, identity, self.recipe.seed, folder, reader)

    def _data_folder(self, config: DataConfig) -> Path:
        return self.folder / ("data" if config is self.recipe.data else "data-specialize")

    def data(self, config: DataConfig | None = None) -> tuple[Examples, Examples]:
        """(train, held-out) examples, as `prepare_data` left them."""
        folder = self._data_folder(config or self.recipe.data)
        return Examples(folder / "train.arrow"), Examples(folder / "held_out.arrow")

    def training_examples(self) -> Examples:
        """The examples that are learned from."""
        return self.data()[0]

    def cached_examples(self) -> list[Examples]:
        """All sets of examples whose signals some objective reads."""
        sets = list(self.data())
        special = self.recipe.specialize
        if special is not None and special.data is not None and self.specialize_reads_cache:
            sets += self.data(special.data)
        return sets

    @property
    def reads_cache(self) -> bool:
        """Whether any objective reads the teacher's signals."""
        return any(reads_from(section, "cache") for section in self.recipe.learning().values())

    @property
    def specialize_reads_cache(self) -> bool:
        """Whether specialising does."""
        special = self.recipe.specialize
        return special is not None and reads_from(special, "cache")

    # Records -----------------------------------------------------------------------------------

    def record(self, stage: str) -> Record | None:
        """The record of a finished stage, or None."""
        file = self.folder / "records" / f"{stage}.json"
        return Record(**read_json(file)) if file.exists() else None

    def write_record(self, record: Record) -> None:
        """Mark a stage as finished."""
        write_json(self.folder / "records" / f"{record.stage}.json", vars(record))

    def write_recipe(self) -> None:
        """The recipe as checked, defaults filled in."""
        values = self.recipe.model_dump(mode="json", by_alias=True)
        write_text(self.folder / "recipe.yaml", yaml.safe_dump(values, sort_keys=False))

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Hold the run folder: a second command on it is refused by name."""
        if not is_alone() and not process_state().is_main_process:
            yield
            return
        lock = LockFile(self.folder / "run.lock")
        with hold_lock(lock, f"The run folder {self.folder}", RunError):
            yield


@contextmanager
def on_first_process() -> Iterator[bool]:
    """Let the first process do the block before the others enter it."""
    if is_alone():
        yield True
        return
    with process_state().main_process_first():
        yield bool(process_state().is_main_process)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """So far."""
        return time.perf_counter() - self._start
