"""A run with its data prepared, without leaving anything where there was nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from distill.run.context import Run


@contextmanager
def prepared(run: Run) -> Iterator[Run]:
    """The run with its data prepared: in its folder where there is one, else in a temporary one."""
    if run.folder.path.is_dir():
        with run.folder.owned():
            run.prepare_data()
        yield run
    else:
        with prepared_copy(run) as copy:
            yield copy


@contextmanager
def prepared_copy(run: Run) -> Iterator[Run]:
    """The same recipe in a temporary folder, with its data prepared; with the answers that a model
    wrote, where they are there.
    """
    with TemporaryDirectory() as folder:
        copy = Run(run.recipe, Path(folder))
        copy.prepare_data()
        if run.folder.written_part.exists():
            copy.folder.answers.mkdir()
            copy.folder.written_part.symlink_to(run.folder.written_part.resolve())
        yield copy
