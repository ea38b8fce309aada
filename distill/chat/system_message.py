"""The system message that a run's training conversations begin with."""

from __future__ import annotations

from pathlib import Path

from attar.errors import UserError
from distill.data.config import sources_of
from distill.data.conversations import conversation_of
from distill.data.preference_rows import format_of_table, ordinary_rows
from distill.data.sources import load_rows, local_files
from distill.run.load import load_recipe

ROWS_READ = 50  # of the first source


def system_message_of(run: Path) -> str | None:
    """The message that the first rows of a run's own training data share; None without one.

    The data of the section `specialize` come before those of the run: they were learned last. Only
    local files are read; what cannot be read any more has none.
    """
    try:
        recipe = load_recipe(str(run / "recipe.yaml"))
        special = recipe.specialize
        data = special.data if special is not None and special.data is not None else recipe.data
        source = sources_of(data)[0]
        if not local_files(source):
            return None  # a data set of the hub, which may have to be fetched
        table = load_rows(source, data.split, data.name)
        layout = format_of_table(table, source, data)
        if layout.kind == "text":
            return None
        rows = [table[i] for i in range(min(ROWS_READ, len(table)))]
        if layout.kind in ("messages", "pair"):
            first = [conversation_of(row, layout) for row in rows]
        else:
            answers = [answer for row in rows for answer in ordinary_rows(row, layout)]
            first = [conversation_of(answer.values, answer.layout) for answer in answers]
    except (UserError, OSError):
        return None
    said = {
        one.messages[0]["content"] if one.messages and one.messages[0]["role"] == "system" else None
        for one in first
    }
    return said.pop() if len(said) == 1 else None
