"""The rows of a comparison: three parts that are measured, nested subsets to learn from.

An arm chooses for itself, its best step or its prompt, by the validation rows; arms are chosen by
the selection rows, so that one which tries much is not the better for it; the test rows report.

They are written as files of JSON rows, so that every arm is an ordinary run on the same rows. A
subset of n rows is the first n of one order, which a seed draws, so subsets are nested.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar.errors import DataError
from attar.files import write_text
from distill.data.bad_rows import RowError
from distill.data.config import DataConfig, sources_of
from distill.data.labelled_texts import cell_names, columns_of
from distill.data.sources import load_rows

Row = Mapping[str, Any]
MOST_OF_TRAINING = 0.25  # share of the training rows that a part may take of them
SOURCES = {"test": "held_out", "validation": "validation", "selection": "validation"}
LABEL = "label"  # column of the class's name in the written rows
WORD = "label_word"  # column of the word that stands for the class where a model writes


@dataclass(frozen=True)
class RowParts:
    """The parts, as rows. classes: names of the classes in order; empty where rows have none.

    columns: those of a labelled row's text and of the second text of a pair.
    """

    train: list[Row]
    validation: list[Row]
    selection: list[Row]
    test: list[Row]
    classes: list[str]
    columns: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[list[Row], ...]:
        """Every part."""
        return self.train, self.validation, self.selection, self.test


def read_rows(config: DataConfig, source: str, split: str, labelled: bool) -> list[Row]:
    """Rows of one source; where they are labelled, with the name of the class in `label`.

    Rows without a class are left out. Raises `DataError` for a missing column.
    """
    table = load_rows(source, split, config.name)
    if not labelled:
        return [dict(row) for row in table]
    columns = columns_of(table.features, source, config)
    name_of = cell_names(table.features[columns.label], config.label_names)
    found: list[Row] = []
    for row in table:
        try:
            name = name_of(row[columns.label])
        except RowError:
            continue
        if name is not None:
            found.append({**{k: v for k, v in row.items() if k != columns.label}, LABEL: name})
    return found


def text_columns(config: DataConfig, labelled: bool) -> tuple[str, ...]:
    """The columns of a labelled row's text, and of the second text of a pair."""
    if not labelled:
        return ()
    source = sources_of(config)[0]
    found = columns_of(load_rows(source, config.split, config.name).features, source, config)
    return (found.text,) if found.pair is None else (found.text, found.pair)


def row_parts(config: DataConfig, labelled: bool, sizes: Mapping[str, int]) -> RowParts:
    """The parts, without a text in two of them.

    sizes: most rows of `test`, `selection` and `validation`. Test rows come from the source of
    `held_out`, the other two from that of `validation`; where these have none of their own, from up
    to a quarter of the training rows each. Raises `DataError` where no row is left to learn from,
    and of labelled rows where they have one class.
    """
    columns = text_columns(config, labelled)
    pool: list[Row] = []
    for source in sources_of(config):
        pool += read_rows(config, source, config.split, labelled)
    random.Random(0).shuffle(pool)
    most = max(1, int(MOST_OF_TRAINING * len(pool)))
    seen: set[str] = set()
    parts: dict[str, list[Row]] = {}
    for name, key in SOURCES.items():
        own, limit = getattr(config, key), sizes[name]
        rows = _named(config, own, labelled) if isinstance(own, str) else pool
        limit = limit if isinstance(own, str) else min(limit, most)
        parts[name] = _first_new(rows, limit, seen, columns)
    train = _first_new(pool, len(pool), seen, columns)
    if not train or not all(parts.values()):
        raise DataError(
            f"`{config.section}.train` ({', '.join(sources_of(config))}) has {len(pool)} rows that "
            "can be used, too few for what is learned, two parts that choose, and a test part; "
            "give more."
        )
    classes = _classes(config, train) if labelled else []
    return RowParts(**parts, train=train, classes=classes, columns=columns)


def _named(config: DataConfig, source: str, labelled: bool) -> list[Row]:
    """Rows of a part's own source, in an order that does not follow the file's."""
    if source.startswith("split:"):
        named = [(one, source.removeprefix("split:")) for one in sources_of(config)]
    else:
        named = [(source, config.split if Path(source).is_dir() else "train")]
    rows = [row for one, split in named for row in read_rows(config, one, split, labelled)]
    random.Random(0).shuffle(rows)
    return rows


def _first_new(
    rows: Iterable[Row], limit: int, seen: set[str], columns: Sequence[str]
) -> list[Row]:
    """The first rows whose text, or of rows without text columns the whole, was not seen yet."""
    found: list[Row] = []
    for row in rows:
        if len(found) == limit:
            break
        key = repr([(name, str(row[name])) for name in columns or sorted(row)])
        if key not in seen:
            seen.add(key)
            found.append(row)
    return found


def _classes(config: DataConfig, train: Sequence[Row]) -> list[str]:
    """Names of the classes, in the recipe's order or sorted. Raises `DataError` for one alone."""
    found = {str(row[LABEL]) for row in train}
    if len(found) < 2:
        raise DataError(
            f"All rows of `{config.section}.train` have one class ({', '.join(found)}); a "
            "comparison of classifiers needs two."
        )
    return [*(config.label_names or sorted(found))]


# Subsets -----------------------------------------------------------------------------------------


def learning_order(rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows in an order that the seed draws, whose beginnings are the subsets.

    Of labelled rows every beginning has the classes about in proportion, and each class once before
    any twice, so that few labels miss no class that they need not miss.
    """
    shuffled = list(rows)
    random.Random(f"{seed}").shuffle(shuffled)
    if not shuffled or LABEL not in shuffled[0]:
        return shuffled
    totals: dict[Any, int] = defaultdict(int)
    for row in shuffled:
        totals[row[LABEL]] += 1
    seen: dict[Any, int] = defaultdict(int)
    places = []
    for i, row in enumerate(shuffled):
        rank = seen[row[LABEL]]
        seen[row[LABEL]] += 1
        share = 0.0 if rank == 0 else (rank + 0.5) / totals[row[LABEL]]
        places.append((rank > 0, share, i))
    return [shuffled[i] for *_, i in sorted(places)]


def sizes_of(labels: Sequence[int | str] | None, rows: int) -> list[int]:
    """Numbers of rows of the learning curves' points.

    Raises `DataError` for more than there are.
    """
    if labels is None:
        return sorted({max(2, rows // 16), max(2, rows // 4), rows})
    found = [rows if one == "all" else int(one) for one in labels]
    if found[-1] > rows:
        raise DataError(
            f"`compare.labels` asks for {found[-1]:,} rows, and {rows:,} are left to learn from "
            "beside those that are held out; lower it, or write `all`."
        )
    return sorted(set(found))


def write_rows(file: Path, rows: Iterable[Row]) -> Path:
    """Write rows as lines of JSON; a file that holds them already stays as it is."""
    text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    if not file.is_file() or file.read_text("utf8") != text:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    return file
