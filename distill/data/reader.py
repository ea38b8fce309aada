"""Readers: how rows become examples, for texts to continue, to label, to unmask and to embed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from attar.errors import DataError
from attar.word_lists import counted
from distill.data.preference_rows import format_of_table, known_text
from distill.data.row_formats import RowFormat, check_column
from distill.data.teacher_prompts import KEY, TeacherPrompts
from distill.data.tokenize import tokenize_document
from distill.data.tokenize_answers import tokenize_judged

if TYPE_CHECKING:
    from distill.data.config import DataConfig

log = logging.getLogger(__name__)

# Of each example of a row what `example_of` takes: (ids, labels), or (ids, labels, token types or
# None), or also the role and the rejected text of judged answers, or the teacher's prompt.
ReadExamples = Sequence[tuple[Any, ...]]


@dataclass(frozen=True)
class Reading:
    """How the rows of one table are read.

    columns: those that hold a row's text, by which equal texts are known. read: a row's examples
    in the order of its text; what was cut or left out is counted by reason. copies: how many times
    they go through the text. known: of rows whose text is not all of some columns, what they are
    known by instead; rows of one such text are one document.
    """

    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any], Counter[str]], ReadExamples]
    copies: int = 1
    known: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None

    def text(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The values by which equal texts are known. Raises `RowError` for a row without them."""
        if self.known is not None:
            return self.known(row)
        return {column: row[column] for column in self.columns}

    def __call__(self, row: Mapping[str, Any], tally: Counter[str]) -> ReadExamples:
        """The examples of a row."""
        return self.read(row, tally)


class Reader(Protocol):
    """How the rows of a task's tables become examples."""

    counts_all: ClassVar[bool]  # whether every token of a window but its first is predicted

    @property
    def stamp(self) -> list[Any]:
        """What examples depend on beside data, tokenizer and seed; part of the fingerprint."""

    def open(
        self, tokenizer: Any, config: DataConfig, tables: Sequence[Any], sources: Sequence[str]
    ) -> list[Reading]:
        """For each table, the function that reads a row; the first call has the training tables."""

    def finish(self, files: Mapping[str, Path]) -> dict[str, Any]:
        """What stats.json keeps beside the numbers of the parts, from the file of each part.

        `left_out` holds sentences to add to those on what of the rows was cut or left out.
        """


def log_unread(table: Any, source: str, read: Iterable[str]) -> None:
    """Name the columns that are not read, with how many rows have a value there."""
    filled = getattr(table, "filled", None) or dict.fromkeys(table.features, len(table))
    others = [name for name in table.features if name not in set(read)]
    if others:
        named = ", ".join(f"{name} ({filled.get(name, 0):,} rows)" for name in others)
        log.info("data: columns of %s that are not read: %s", source, named)


def judged_reading(
    layout: RowFormat,
    table: Any,
    source: str,
    read: Callable[[Mapping[str, Any], Counter[str]], ReadExamples],
) -> Reading:
    """The reading of a table of judged answers: rows of one prompt are one document."""
    known, few = known_text(table, layout)
    if few:
        log.warning(
            "data: %s has only %s, with many answers each, so it is divided by prompt and "
            "answers: a prompt stands in several parts",
            source, counted(few, "prompt"),
        )  # fmt: skip
    return Reading(layout.columns, read, known=known)


def _check_prompts(layouts: Sequence[RowFormat], sources: Sequence[str]) -> None:
    """Raise `DataError` for a table whose rows are no prompts with one answer each."""
    for layout, source in zip(layouts, sources, strict=True):
        if layout.kind == "text":
            raise DataError(
                f"`data.answers` writes answers to prompts, and `{source}` has none: its rows are "
                "plain texts; give rows with `prompt` and `completion`, or with `messages`, or "
                "leave `data.answers` out."
            )
        if layout.kind in ("preference", "rated"):
            raise DataError(
                f"`data.answers` writes the answers that are learned, and `{source}` has judged "
                "ones; give rows with `prompt` and `completion`, or leave `data.answers` out."
            )


def _check_teacher_prompts(
    prompts: TeacherPrompts,
    tables: Sequence[Any],
    layouts: Sequence[RowFormat],
    sources: Sequence[str],
) -> None:
    """Raise `DataError` for a table without prompts, or without a column of the template."""
    for table, layout, source in zip(tables, layouts, sources, strict=True):
        if layout.kind not in ("pair", "messages"):
            what = "plain texts" if layout.kind == "text" else "judged answers"
            raise DataError(
                f"`{KEY}` stands in the place of a row's prompt, and the rows of `{source}` are "
                f"{what}; give rows with `prompt` and `completion`, or with `messages`, or leave "
                f"`{KEY}` out."
            )
        for name in prompts.columns:
            check_column(name, table.features, source, KEY)


class NextTokenTexts:
    """Reader of texts, conversations, and prompts with answers, whose next tokens are predicted.

    teacher_prompts: what the teacher reads in place of the prompts; None: the prompts. logs:
    whether columns that are not read are logged; once is enough for all tokenizers.
    """

    counts_all: ClassVar[bool] = True

    def __init__(self, teacher_prompts: TeacherPrompts | None = None, *, logs: bool = True) -> None:
        self.teacher_prompts, self._logs = teacher_prompts, logs

    @property
    def stamp(self) -> list[Any]:
        """What examples depend on beside data, tokenizer and seed."""
        prompts = self.teacher_prompts
        return [] if prompts is None else [KEY, prompts.template, prompts.positions]

    def open(
        self, tokenizer: Any, config: DataConfig, tables: Sequence[Any], sources: Sequence[str]
    ) -> list[Reading]:
        """For each table, the function that reads a row, by the format that its columns have."""
        pairs = zip(tables, sources, strict=True)
        layouts = []
        asked = self.teacher_prompts.columns if self.teacher_prompts is not None else []
        for table, source in pairs:
            layouts.append(format_of_table(table, source, config))
            if self._logs:
                log_unread(table, source, [*layouts[-1].read, *asked])
        if self.teacher_prompts is not None:
            _check_teacher_prompts(self.teacher_prompts, tables, layouts, sources)
        if config.answers is not None:
            _check_prompts(layouts, sources)
        if not tokenizer.is_fast and any(layout.kind != "text" for layout in layouts):
            raise DataError(
                "The tokenizer does not say where in a text a token stands (it is not a fast "
                "tokenizer), so answers cannot be told from prompts; save it with a "
                f"tokenizer.json, or name a text with `{config.section}.text_column`."
            )
        return [
            self._judged(tokenizer, config, layout, table, source)
            if layout.kind in ("preference", "rated")
            else self._reading(tokenizer, config, layout)
            for layout, table, source in zip(layouts, tables, sources, strict=True)
        ]

    def _reading(self, tokenizer: Any, config: DataConfig, layout: RowFormat) -> Reading:
        prompts = self.teacher_prompts

        def read(row: Mapping[str, Any], tally: Counter[str]) -> ReadExamples:
            if prompts is not None:
                return prompts.tokenize(tokenizer, row, layout, config, tally)
            return tokenize_document(tokenizer, row, layout, config, tally)

        # A text is the same whatever its class.
        columns = tuple(name for name in layout.read if name != config.label_column)
        return Reading(columns, read)

    def _judged(
        self, tokenizer: Any, config: DataConfig, layout: RowFormat, table: Any, source: str
    ) -> Reading:
        def read(row: Mapping[str, Any], tally: Counter[str]) -> ReadExamples:
            return tokenize_judged(tokenizer, row, layout, config, tally)

        return judged_reading(layout, table, source, read)

    def finish(self, files: Mapping[str, Path]) -> dict[str, Any]:
        """Keep nothing more."""
        return {}
