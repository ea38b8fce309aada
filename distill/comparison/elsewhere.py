"""Rows of another source than the training's, which arms are measured on, too: `compare.elsewhere`.

Classes are matched by their names; columns have the training's names, or usual ones.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from attar.errors import DataError, nearest
from distill.comparison.rows import LABEL, Row, RowParts, read_rows
from distill.data.config import DataConfig
from distill.data.labelled_texts import columns_of
from distill.data.sources import load_rows


def elsewhere_rows(
    config: DataConfig, source: str, limit: int, parts: RowParts, *, labelled: bool
) -> list[Row]:
    """The rows, at most `limit`, in the columns of the comparison's own.

    Texts that the comparison's own parts have are left out. Raises `DataError` for a class that is
    not one of the comparison's, for a missing column, and where no row is left.
    """
    if not labelled:
        rows = read_rows(config, source, "train", labelled)
        names: Sequence[str] = sorted(parts.train[0])
    else:
        rows, names = _labelled(config, source, parts.columns, parts.classes), parts.columns
    seen = {_text(row, names) for part in parts.all for row in part}
    random.Random(0).shuffle(rows)
    found: list[Row] = []
    for row in rows:
        if len(found) < limit and (text := _text(row, names)) not in seen:
            seen.add(text)
            found.append(row)
    if not found:
        raise DataError(
            f"`compare.elsewhere`: {source} has no labelled row that the comparison's own rows "
            "have not; name another source, or leave it out."
        )
    return found


def _labelled(
    config: DataConfig, source: str, columns: Sequence[str], classes: Sequence[str]
) -> list[Row]:
    """Labelled rows of the source, with the comparison's columns and the names of classes."""
    features = load_rows(source, "train", config.name).features
    named = {key: getattr(config, key) for key in ("text_column", "label_column")}
    missing = {key: None for key, name in named.items() if name not in features}
    own = config.model_copy(update=missing)
    found = columns_of(features, source, own)
    rows: list[Row] = []
    for row in read_rows(own, source, "train", labelled=True):
        if row[LABEL] not in classes:
            raise DataError(
                f"`compare.elsewhere`: {source} has rows of the class `{row[LABEL]}`, and the "
                f"classes are {', '.join(classes)}; give it the same names."
                f"{nearest(row[LABEL], list(classes))}"
            )
        texts = [row[name] for name in (found.text, found.pair) if name is not None]
        rows.append({**dict(zip(columns, texts, strict=True)), LABEL: row[LABEL]})
    return rows


def _text(row: Row, names: Sequence[str]) -> str:
    return repr([str(row.get(name)) for name in names])
