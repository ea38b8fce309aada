"""What is shown before it is done, and writes nothing: shapes of students, and what is learned.

`distill build --dry-run` shows the shapes that a search would choose from, `distill data` the first
rows as they will be learned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import distill.data
from attar.errors import RecipeError, RunError
from attar.quiet import errors_only
from distill.data.bad_rows import RowError, place_of
from distill.data.config import DataConfig, sources_of
from distill.data.examples import ALONE, REJECTED
from distill.data.labelled_texts import LabelledTexts
from distill.data.masked_texts import MaskedTexts
from distill.data.reader import NextTokenTexts, Reader
from distill.data.sources import load_rows
from distill.data.split import describe_skipped
from distill.data.tokenize import IGNORE
from distill.run.context import Run
from distill.stages.build import load_whole
from distill.stages.preflight import check_before_work
from distill.stages.shape_search import search_shape
from distill.stages.status import is_done


def preview_shapes(run: Run) -> list[list[str]]:
    """The table of the shapes that `build` would choose from; the run folder stays as it is.

    Raises `RunError` where the teacher has yet to be adapted, and `RecipeError` where the recipe
    has no target.
    """
    target = run.recipe.student.target
    if target is None:
        raise RecipeError(
            "`--dry-run` shows what a search finds; give `student.target`, for example "
            "`student.target.parameters: 60%`."
        )
    check_before_work(run)
    if not is_done(run, "adapt-teacher"):
        raise RunError(
            f"The teacher is not adapted yet in {run.folder}; run `distill adapt-teacher`."
        )
    with TemporaryDirectory() as folder:
        copy = Run(run.recipe, Path(folder))
        if run.recipe.teacher.adapt is not None:
            copy.folder.teacher.symlink_to(run.folder.teacher.absolute())
        copy.prepare_data()
        return search_shape(copy, load_whole(copy), target).table()


MARKS = "\u27ea", "\u27eb"  # around what is learned
SHOWN_CHARACTERS = 600  # of a piece of a text


def preview_rows(run: Run, data: DataConfig, number: int) -> Iterator[str]:
    """Lines on the first rows of each training source: what is learned of them stands in marks.

    A row that is left out says why. Raises `DataError` for data that cannot be read.
    """
    tokenizer, reader = run.tokenizer, run.reader(data)
    sources = sources_of(data)
    tables = [load_rows(source, data.split, data.name) for source in sources]
    with errors_only(distill.data.__name__):  # what reading says of the data, preparing has said
        readings = reader.open(tokenizer, data, tables, sources)
    for table, source, read in zip(tables, sources, readings, strict=True):
        for i in range(min(number, len(table))):
            tally = Counter[str]()
            try:
                examples = read(table[i], tally)
            except RowError as error:
                yield f"{place_of(table, source, i)}: left out: such rows {error.reason}"
                continue
            notes = describe_skipped(+tally, data.section)
            yield f"{place_of(table, source, i)}{notes and f': {notes}'}"
            for example in examples:
                yield from (f"    {line}" for line in _shown_texts(reader, tokenizer, example))


def _shown_texts(reader: Reader, tokenizer: Any, example: Sequence[Any]) -> Iterator[str]:
    """Lines on an example: its text, and the prompt that the teacher reads in place of its own; of
    judged answers, each with its judgement before it.
    """
    ids, labels, *more = example
    _, role, other, *margin = more if len(more) >= 3 else (None, ALONE, None)
    if role == ALONE:
        yield _shown(reader, tokenizer, example)
        if len(margin) == 2:
            yield f"the teacher's prompt: {_escaped(tokenizer.decode(margin[1]))}"
        return
    names = ("chosen", "rejected") if other is not None else ("good", "bad")
    better = f", better by {margin[0]:g}" if margin and margin[0] else ""
    yield f"{names[role == REJECTED]}{better}: {_shown(reader, tokenizer, (ids, labels))}"
    if other is not None:
        yield f"{names[1]}: {_shown(reader, tokenizer, other)}"


def _shown(reader: Reader, tokenizer: Any, example: Sequence[Any]) -> str:
    """The text of an example, its control characters escaped."""
    ids, labels = example[0], example[1]
    if isinstance(reader, MaskedTexts):
        return _marked(
            tokenizer,
            [i if n == IGNORE else n for i, n in zip(ids, labels, strict=True)],
            [label != IGNORE for label in labels],
        )
    if not isinstance(reader, NextTokenTexts):
        known = f"{reader.names[labels[0]]}: " if isinstance(reader, LabelledTexts) else ""
        return known + _escaped(tokenizer.decode(ids))
    return _marked(tokenizer, ids, [False, *(label != IGNORE for label in labels[:-1])])


def _marked(tokenizer: Any, ids: Sequence[int], learned: Sequence[bool]) -> str:
    """The text of ids, with marks around those that are learned."""
    text = ""
    for counts, pairs in groupby(zip(learned, ids, strict=True), key=lambda pair: pair[0]):
        piece = _escaped(tokenizer.decode([i for _, i in pairs]))
        text += f"{MARKS[0]}{piece}{MARKS[1]}" if counts else piece
    return text


def _escaped(text: str) -> str:
    text = repr(text)[1:-1]
    half = SHOWN_CHARACTERS // 2
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:half]} ... {text[-half:]}"
