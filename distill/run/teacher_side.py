"""A run as its teacher sees it, where the student has another tokenizer: its own ids and examples.

The teacher's cache is made of this view as any cache is made of a run, so a cache that was made for
another student, or for none, serves.
"""

from __future__ import annotations

from typing import Any

from distill.data.config import DataConfig
from distill.data.examples import Examples
from distill.data.teacher_texts import TeacherTexts, prepare_teacher_texts
from distill.run.context import Run
from distill.run.folder import on_first_process
from teachers.cache.store import SignalStore


class TeacherSide(Run):
    """The same recipe and folder, with the teacher's tokenizer, its examples and its cache."""

    def __init__(self, run: Run) -> None:
        assert run.transports, "the student has another tokenizer"
        super().__init__(run.recipe, run.folder.path, run.overwrite)
        self.fingerprints, self.inputs_read = run.fingerprints, run.inputs_read
        self.student_side = run
        found = SignalStore(self.cache_url).manifest()
        if found is None or found.get("labels"):
            labels = run.recipe.cache.model_copy(update={"labels": True})
            self.recipe = run.recipe.model_copy(update={"cache": labels})

    @property
    def tokenizer(self) -> Any:
        """The teacher's tokenizer."""
        return self.student_side.teacher_tokenizer

    @property
    def transports(self) -> bool:
        """False: these are the teacher's own ids."""
        return False

    @property
    def cache_url(self) -> str:
        """The teacher's cache: the one that the recipe names, or one in the run folder."""
        return self.recipe.cache.dir or str(self.folder.teacher_cache)

    def prepare_data(self) -> None:
        """Prepare the student's data, then the teacher's texts of them."""
        run = self.student_side
        run.prepare_data()
        with on_first_process():
            for config in self._sections():
                train, validation = run.data(config)
                self._prepare(config, {"train": train, "validation": validation})

    def _sections(self) -> list[DataConfig]:
        """The sections of data whose examples are cached."""
        special = self.recipe.specialize
        own = special.data if special is not None and self.specialize_reads_cache else None
        return [self.recipe.data, *([own] if own is not None else [])]

    def _prepare(self, config: DataConfig, parts: dict[str, Examples]) -> TeacherTexts:
        run = self.student_side
        return prepare_teacher_texts(
            config, run.tokenizer, run.teacher_tokenizer, self.recipe.seed, parts,
            self.folder.data(config.section), self.folder.teacher_texts(config.section),
        )  # fmt: skip

    def held_out(self) -> TeacherTexts:
        """The teacher's texts of the held-out part; for the `evaluate` stage alone."""
        run = self.student_side
        parts = {"held_out": Examples(self.folder.data() / "held_out.arrow")}
        return prepare_teacher_texts(
            self.recipe.data, run.tokenizer, run.teacher_tokenizer, self.recipe.seed, parts,
            self.folder.data(), self.folder.teacher_texts("held_out"),
        )  # fmt: skip

    def texts(self) -> list[TeacherTexts]:
        """The teacher's texts, as `prepare_data` left them."""
        folders = [self.folder.teacher_texts(config.section) for config in self._sections()]
        return [TeacherTexts.read(folder) for folder in folders]

    def all_examples(self) -> list[Examples]:
        """The teacher's examples of all texts whose signals some objective reads."""
        return [texts.examples for texts in self.texts()]
