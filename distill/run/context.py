"""One recipe in one folder: the models, the tokenizer and the data that the recipe comes to.

`Run` only looks things up and keeps them; the stages do the work.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from attar.files import read_json, write_text
from attar.models.loading import load_config
from attar.models.structure import usable_positions
from attar.models.tokenizers import (
    differing_ids,
    load_tokenizer,
    tokenizer_fingerprint,
    vocabulary_size,
)
from distill.data.config import DataConfig
from distill.data.examples import Examples
from distill.data.prepare import data_faults, prepare
from distill.data.reader import NextTokenTexts, Reader
from distill.data.teacher_prompts import TeacherPrompts
from distill.objective.layer_map import LayerMap
from distill.objective.losses import LOSSES
from distill.objective.terms import reads_from, reads_rejected
from distill.recipe.export import artifacts_of
from distill.recipe.schema import Recipe
from distill.run.folder import RunFolder, on_first_process
from distill.tasks.registry import task_of
from distill.tasks.task import Task
from students.fresh import fresh_config
from students.pruning.record import PRUNING_FILE, channel_map, read_pruning
from teachers.cache.store import SignalStore
from teachers.load import TeacherConfig, teacher_dtype

BUILD = "build"  # the stage that leaves the student
SPECIAL = ("bos", "eos", "pad")  # tokens that configs name


class Run:
    """One recipe in one folder."""

    def __init__(self, recipe: Recipe, folder: Path, overwrite: bool = False) -> None:
        """overwrite: whether another run's models in the folder may be replaced."""
        self.recipe, self.folder, self.overwrite = recipe, RunFolder(folder), overwrite
        self.fingerprints: dict[str, str] = {}  # of each stage's inputs: stages/status.py
        self.inputs_read: dict[str, list[Any]] = {}  # stages/fingerprints.py

    @cached_property
    def task(self) -> Task:
        """The recipe's task."""
        return task_of(self.recipe)

    @property
    def artifacts(self) -> list[str]:
        """Names of the artifacts to make."""
        return artifacts_of(self.recipe.export, self.recipe.specialize)

    @property
    def merged_student(self) -> Path | None:
        """The student in full precision with what was specialised merged in; the distilled student
        where nothing was; None where the method leaves an adapter that cannot be merged.
        """
        special = self.recipe.specialize
        if special is None:
            return self.folder.arm_student()
        if special.leaves == "adapter" and not special.merges:
            return None
        return self.folder.merged

    def write_recipe(self) -> None:
        """Write the recipe as checked, defaults filled in."""
        values = self.recipe.model_dump(mode="json", by_alias=True)
        write_text(self.folder.path / "recipe.yaml", yaml.safe_dump(values, sort_keys=False))

    # Teacher and tokenizer ---------------------------------------------------------------------

    @property
    def teacher(self) -> TeacherConfig:
        """The teacher as used: the adapted one where the recipe adapts it."""
        config = self.recipe.teacher
        values = config.model_dump(exclude={"adapt", "prompt"})
        if config.adapt is not None:
            dtype = str(teacher_dtype(TeacherConfig(**values))).removeprefix("torch.")
            values.update(model=str(self.folder.teacher), dtype=dtype)
        return TeacherConfig(**values)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the data and of students: the teacher's, or the student's own where it
        has another vocabulary.
        """
        return self.teacher_tokenizer if self._other_tokenizer is None else self._other_tokenizer

    @cached_property
    def teacher_tokenizer(self) -> Any:
        """The teacher's own tokenizer."""
        teacher = self.recipe.teacher
        return load_tokenizer(teacher.model, trust_remote_code=teacher.trust_remote_code)

    @cached_property
    def _other_tokenizer(self) -> Any:
        """The student's tokenizer where an id stands for another string than in the teacher's."""
        student = self.recipe.student
        source = student.named_tokenizer
        if source is None:
            return None
        found = load_tokenizer(source, trust_remote_code=student.trust_remote_code)
        return found if differing_ids(self.teacher_tokenizer, found) else None

    @property
    def transports(self) -> bool:
        """Whether the student has another vocabulary than the teacher, whose signals are then
        transported to the student's ids.
        """
        return self._other_tokenizer is not None

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

    @property
    def trusts_student(self) -> bool:
        """Whether students may run code that came with the model that they were made of.

        Trust in the teacher is no trust in another model that `student.from` names.
        """
        student, teacher = self.recipe.student, self.recipe.teacher
        if isinstance(student.from_, str) and student.from_ != "teacher":
            return student.trust_remote_code
        return teacher.trust_remote_code

    # Student -----------------------------------------------------------------------------------

    @cached_property
    def uncut_config(self) -> Any:
        """The `PretrainedConfig` of the student before anything is cut."""
        student = self.recipe.student
        if isinstance(student.from_, dict):
            return fresh_config(self.fresh_values, self.teacher_config)
        if student.from_ == "teacher":
            return self.teacher_config
        return load_config(student.from_, trust_remote_code=student.trust_remote_code)

    @property
    def fresh_values(self) -> dict[str, Any]:
        """The keys of a student with random weights; where it has a tokenizer of its own, as many
        ids as that has, and the special ones that it names, unless the recipe says otherwise.
        """
        values = self.recipe.student.from_
        assert isinstance(values, dict), "the student has random weights"
        if not self.transports:
            return values
        ids = {f"{name}_token_id": getattr(self.tokenizer, f"{name}_token_id") for name in SPECIAL}
        return {"vocab_size": self.vocabulary, **ids, **values}

    @cached_property
    def student_config(self) -> Any:
        """The student's `PretrainedConfig`, known before the student is built.

        Before a search has found a shape for `student.target`, that of a provisional shape.
        """
        student = self.recipe.student
        if isinstance(student.from_, dict) or not student.cuts:
            return self.uncut_config
        return self._searched_config() or student.cut_config(self.uncut_config, self.task.auto)

    def _searched_config(self) -> Any:
        """The config of the shape that a search found for the recipe's target, or None."""
        student, found = self.recipe.student, self._pruning()
        if student.target is None or not found:
            return None
        if (found.get("model"), found.get("target")) != (
            self.cut_model,
            student.target.model_dump(),
        ):
            return None
        return load_config(str(self.folder.student), trust_remote_code=self.trusts_student)

    def _pruning(self) -> dict[str, Any]:
        """The student's pruning.json; nothing where `build` has still to make it, or again."""
        file = self.folder.student / PRUNING_FILE
        if not file.exists() or self.folder.faults(BUILD):
            return {}
        found: dict[str, Any] = read_json(file)
        return found

    def forget_student_config(self) -> None:
        """Read the student's config again: a search may have found another shape than assumed."""
        self.__dict__.pop("student_config", None)

    @property
    def student_depth(self) -> int:
        """Number of the student's blocks, known before it is built."""
        return int(self.student_config.get_text_config().num_hidden_layers)

    @property
    def cut_model(self) -> str:
        """The model that the student is cut out of: the teacher as used, or another."""
        source = self.recipe.student.from_
        return source if isinstance(source, str) and source != "teacher" else self.teacher.model

    @property
    def comes_from_teacher(self) -> bool:
        """Whether the student is cut out of the teacher, or out of a student that was."""
        source = self.recipe.student.from_
        if isinstance(source, dict):
            return False
        return source == "teacher" or read_pruning(source, self.teacher.model) is not None

    def layer_map(self, depth: int | None = None) -> LayerMap:
        """Which layers the two models have, and which of the teacher's blocks the student keeps.

        depth: assume a student of this many blocks instead.
        """
        hidden = self.recipe.cache.hidden
        depth, kept = depth or self.student_depth, None
        if self.comes_from_teacher:
            kept = self._pruning().get("kept", [])
            if len(kept) != depth:  # not cut yet, or for another recipe: enough to check by
                kept = list(range(depth))
        return LayerMap(depth, self.teacher_depth, hidden.layers, hidden.attention, kept)

    def channel_map(self) -> Tensor | None:
        """How the teacher's channels became the student's, (teacher's, student's), where the
        student was cut from a wider teacher.
        """
        if not self.comes_from_teacher:
            return None
        return channel_map(self.folder.student, self.teacher_width)

    # Data --------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Tokenise what the recipe learns from, unless it is there. All processes call this."""
        special = self.recipe.specialize.data if self.recipe.specialize is not None else None
        identity = tokenizer_fingerprint(self.tokenizer)
        with on_first_process():
            for config in (self.recipe.data, special):
                if config is not None:
                    folder, reader = self.folder.data(config.section), self.reader(config)
                    beside = None if config is self.recipe.data else self.folder.data()
                    seed = self.recipe.seed
                    prepare(config, self.tokenizer, identity, seed, folder, reader, beside)

    def reader(self, config: DataConfig) -> Reader:
        """How the rows of a section's data become examples."""
        template, special = self.recipe.teacher.prompt, self.recipe.specialize
        if config is not self.recipe.data:
            asks = (reads_from(special, source) for source in ("cache", "online"))
            template = template if special is not None and any(asks) else None
        if template is not None:
            return NextTokenTexts(TeacherPrompts(template, usable_positions(self.teacher_config)))
        adapted = self.recipe.teacher.adapt is not None
        own = self.task.reader(self.teacher_config, adapted, self.recipe.seed)
        return own or NextTokenTexts()

    def data_are_whole(self) -> bool:
        """Whether the examples that `prepare_data` left, if it did, are as it left them."""
        return not any(data_faults(folder) for folder in self.folder.data_folders)

    def data(
        self, config: DataConfig | None = None, *, gold: bool = False
    ) -> tuple[Examples, Examples]:
        """(train, validation) examples of a section, as `prepare_data` left them.

        Where a model writes the answers that are learned (`data.answers`), and has, the training
        examples are those it wrote; gold: the data's own. The held-out part is opened by the
        `evaluate` stage alone.
        """
        config = config or self.recipe.data
        folder = self.folder.data(config.section)
        train = folder / "train.arrow"
        if config.answers is not None and not gold and self.folder.written_part.exists():
            train = self.folder.written_part
        return Examples(train), Examples(folder / "validation.arrow")

    def training_examples(self) -> Examples:
        """The examples that are learned from."""
        return self.data()[0]

    def validation_examples(self) -> Examples:
        """The examples that choose: checkpoints, merges, shapes, codecs."""
        return self.data()[1]

    @property
    def classes(self) -> list[str]:
        """Names of the classes of labelled texts, as `prepare_data` found them."""
        found: list[str] = read_json(self.folder.data() / "stats.json")["classes"]
        return found

    # Signals -----------------------------------------------------------------------------------

    @property
    def cache_url(self) -> str:
        """Folder or URL of the signal cache, in the student's ids."""
        own = str(self.folder.path / "cache")
        return own if self.transports_itself else self.recipe.cache.dir or own

    @cached_property
    def transports_itself(self) -> bool:
        """Whether the run transports its teacher's signals, since `cache.dir` has not got them in
        the student's ids already.
        """
        if not self.transports or self.recipe.cache.dir is None:
            return self.transports
        return "transported" not in (SignalStore(self.recipe.cache.dir).manifest() or {})

    @property
    def reads_cache(self) -> bool:
        """Whether any objective reads the teacher's signals."""
        return any(reads_from(section, "cache") for section in self.recipe.learning().values())

    @property
    def makes_cache(self) -> bool:
        """Whether the run has a cache: some objective reads it, or it holds the labels'
        log-probabilities, which say by themselves how well the teacher fits the text.
        """
        return self.reads_cache or self.recipe.cache.has_labels

    @property
    def specialize_reads_cache(self) -> bool:
        """Whether the objective of `specialize` reads the teacher's signals."""
        special = self.recipe.specialize
        return special is not None and reads_from(special, "cache")

    @property
    def caches_rejected(self) -> bool:
        """Whether the cache holds rejected answers: not where every objective that reads it learns
        from chosen answers and texts alone, and the task itself does not compare answers.
        """
        readers = [one for one in self.recipe.learning().values() if reads_from(one, "cache")]
        compares = LOSSES[self.task.label_loss].reads == "order"
        return compares or not readers or any(reads_rejected(one.objective) for one in readers)

    def cached_examples(self) -> list[Examples]:
        """All sets of examples whose signals some objective reads; of pairs with the chosen answer
        alone where rejected ones are not cached.
        """
        sets = self.all_examples()
        return sets if self.caches_rejected else [one.without_rejected() for one in sets]

    def all_examples(self) -> list[Examples]:
        """The same sets with both answers of every pair."""
        sets = list(self.data())
        special = self.recipe.specialize
        if special is not None and special.data is not None and self.specialize_reads_cache:
            sets += self.data(special.data)
        return sets
