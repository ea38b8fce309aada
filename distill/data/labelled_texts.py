"""Labelled texts: which columns hold them, what their classes are, and their examples.

An example is a text, or a pair of texts, with its class. `labels` has the class at position 0 and
`IGNORE` elsewhere, so that a text counts once where tokens are counted. The key is a hash of the
ids alone, so it does not depend on the class. Legend: T tokens.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from attar.errors import DataError, nearest
from attar.models.task_heads import has_default_labels, label_permutation
from distill.data.bad_rows import MOST_BAD, BadRows, RowError, column_values, place_of
from distill.data.config import DataConfig
from distill.data.doubtful_classes import doubtful_classes
from distill.data.examples import Examples
from distill.data.reader import ReadExamples, Reading, log_unread
from distill.data.row_formats import TEXT_COLUMNS, check_column, choose_column, plain_text, whole
from distill.data.tokenize import CUT, IGNORE, NO_CLASS, NO_TEXT

log = logging.getLogger(__name__)

LABELLED_TEXT_COLUMNS = (*TEXT_COLUMNS, "sentence", "review", "query")
LABEL_COLUMNS = ("label", "labels", "class", "intent")


@dataclass(frozen=True)
class LabelledColumns:
    """Which columns hold a text, the second text of a pair, and the class."""

    text: str
    pair: str | None
    label: str


def columns_of(features: Mapping[str, Any], source: str, config: DataConfig) -> LabelledColumns:
    """The columns of a table's texts and classes.

    Raises `DataError` for a missing column.
    """
    text = text_column(features, source, config)
    key = f"{config.section}.label_column"
    label = choose_column(
        features, config.label_column, LABEL_COLUMNS, source=source, key=key, holds="classes"
    )
    if config.pair_column is not None:
        check_column(config.pair_column, list(features), source, f"{config.section}.pair_column")
    return LabelledColumns(text, config.pair_column, label)


def text_column(features: Mapping[str, Any], source: str, config: DataConfig) -> str:
    """The column of a table's texts. Raises `DataError` where none is named or has a usual name."""
    key = f"{config.section}.text_column"
    return choose_column(
        features, config.text_column, LABELLED_TEXT_COLUMNS, source=source, key=key, holds="texts"
    )


class Classes:
    """Names of the classes of some data, in order."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self._numbers = {name: i for i, name in enumerate(self.names)}

    def number(self, name: str) -> int:
        """The number of a class. Raises `RowError` for an unknown name."""
        if name not in self._numbers:
            raise RowError(
                f"have the label `{name}`, which is not among the {len(self.names)} classes "
                f"({_some(self.names)}){nearest(name, self.names).rstrip('?').lower()}"
            )
        return self._numbers[name]


def _some(names: Iterable[Any]) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown) if len(shown) <= 8 else f"{', '.join(shown[:8])}, ..."


NameOf = Callable[[Any], str | None]


def cell_names(feature: Any, label_names: Sequence[str] | None) -> NameOf:
    """A function from a cell of a label column to the name of its class; None for an empty cell.

    A word is a name itself. A number has the name that its table gives it, else the one in
    `label_names`, else the number is the name. `label_names` that share no name with the table's
    replace them. The function raises `RowError` for a number that has no name.
    """
    own = getattr(feature, "names", None)
    if own and label_names:
        order = {name.casefold(): name for name in label_names}
        known = [order.get(name.casefold()) for name in own]
        own = [new or old for new, old in zip(known, own, strict=True)] if any(known) else None
    named = own or label_names

    def name_of(cell: Any) -> str | None:
        value = class_of(cell)
        if value is None or isinstance(value, str) or named is None:
            return None if value is None else str(value)
        if value == -1:
            return None
        if not 0 <= value < len(named):
            raise RowError(
                f"have {value} as label, and there are {len(named)} classes, 0 to "
                f"{len(named) - 1} ({_some(named)})"
            )
        return str(named[int(value)])

    return name_of


def class_of(cell: Any) -> str | int | None:
    """A cell of a label column as a word or a whole number (1.0 is 1); None where it is empty.

    Raises `RowError` for a fraction, a list or an object.
    """
    value = whole(cell)
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, float):
        raise RowError("have numbers with fractions as label; classes are words or whole numbers")
    if not isinstance(value, str | int):
        kind = type(value).__name__
        raise RowError(f"have a label that is a {kind}; classes are words or numbers")
    return value


def _holds_words(feature: Any) -> bool:
    return str(getattr(feature, "dtype", "")).endswith("string")


@dataclass
class Label:
    """A value of a table's label column: how many rows have it, and the place of the first."""

    rows: int
    place: str


def find_labels(
    tables: Sequence[Any], sources: Sequence[str], columns: Sequence[LabelledColumns]
) -> list[dict[str | int, Label]]:
    """All values of each table's label column, without empty ones.

    Raises `DataError` where more than a tenth of the rows have no such value but another.
    """
    each: list[dict[str | int, Label]] = []
    for table, source, one in zip(tables, sources, columns, strict=True):
        bad, found = BadRows(), dict[str | int, Label]()
        bad.expect(source, len(table))
        for i, cell in column_values(table, one.label):
            value = bad.attempt(partial(class_of, cell), table, source, i)
            if value is not None:
                found.setdefault(value, Label(0, place_of(table, source, i))).rows += 1
        each.append(found)
    return each


def find_classes(
    tables: Sequence[Any],
    columns: Sequence[LabelledColumns],
    labels: Iterable[str | int],
    config: DataConfig,
) -> Classes:
    """The classes of the training tables: `data.label_names`, else the tables' own names, else all
    labels that occur, sorted. Raises `DataError` where there are fewer than two.
    """
    if config.label_names is not None:
        return Classes(config.label_names)
    kinds = [table.features[one.label] for table, one in zip(tables, columns, strict=True)]
    own = dict.fromkeys(name for kind in kinds for name in getattr(kind, "names", None) or ())
    if own:
        return Classes(own)
    values = list(labels)
    words = any(isinstance(value, str) for value in values)
    names = dict.fromkeys(map(str, sorted(values, key=str if words else None)))
    if len(names) < 2:
        found = f"only {_some(names)}" if names else "no class"
        raise DataError(
            f"`{columns[0].label}` holds {found}; a classifier needs at least two classes."
        )
    return Classes(names)


def doubts(
    labels: Sequence[Mapping[str | int, Label]], cells: Sequence[NameOf], names: Sequence[str]
) -> list[str]:
    """Sentences on classes of the training tables that may be mistakes, by the labels of each."""
    rows, places = dict.fromkeys(names, 0), dict[str, str]()
    for found, name_of in zip(labels, cells, strict=True):
        for value, label in found.items():
            try:
                name = name_of(value)
            except RowError:
                continue
            if name in rows:
                rows[name] += label.rows
                places.setdefault(name, label.place)
    return doubtful_classes(rows, places)


class LabelledTexts:
    """Reader of tables of labelled texts.

    order: names of the classes of a teacher that knows them already, in its order.
    """

    counts_all: ClassVar[bool] = False

    def __init__(self, order: Sequence[str] | None = None) -> None:
        self._order = list(order) if order is not None else None
        self._classes: Classes | None = None
        self._doubts: list[str] = []

    @property
    def names(self) -> list[str]:
        """Names of the classes of the opened tables; the teacher's names where it has any."""
        assert self._classes is not None
        if self._order is None or has_default_labels(self._order):
            return list(self._classes.names)
        return self._order

    @property
    def stamp(self) -> list[Any]:
        """What examples depend on beside data, tokenizer and seed; part of the fingerprint."""
        return ["classes", self._order]

    def open(
        self, tokenizer: Any, config: DataConfig, tables: Sequence[Any], sources: Sequence[str]
    ) -> list[Reading]:
        """For each table, the function that reads a row; the first call has the training tables."""
        pairs = list(zip(tables, sources, strict=True))
        columns = [columns_of(table.features, source, config) for table, source in pairs]
        cells = [
            cell_names(table.features[one.label], config.label_names)
            for table, one in zip(tables, columns, strict=True)
        ]
        for (table, source), one in zip(pairs, columns, strict=True):
            log_unread(table, source, [one.text, one.pair or "", one.label])
        if self._classes is None:
            labels = find_labels(tables, sources, columns)
            values = dict.fromkeys(value for found in labels for value in found)
            classes = find_classes(tables, columns, values, config)
            if config.label_names is None and all(isinstance(value, str) for value in values):
                self._tell_assumed_order(classes, config.section)
            if self._order is not None:
                classes = in_order(classes, self._order, config.section)
            self._classes = classes
            self._doubts = doubts(labels, cells, classes.names)
            for sentence in self._doubts:
                log.warning("data: %s", sentence)
        else:
            for (table, source), one, name_of in zip(pairs, columns, cells, strict=True):
                _refuse_unseen(table, source, one, name_of, self._classes, config.section)
        return [
            self._reading(tokenizer, config, one, name_of)
            for one, name_of in zip(columns, cells, strict=True)
        ]

    def _tell_assumed_order(self, found: Classes, section: str) -> None:
        """Warn where words get the rows of a head whose classes have only default names."""
        order = self._order
        if order is not None and has_default_labels(order) and len(order) == len(found.names):
            log.warning(
                "data: the teacher's classes have no names (%s), and are taken to be %s, in "
                "alphabetical order; name them in its order with `%s.label_names`",
                _some(order), _some(found.names), section,
            )  # fmt: skip

    def _reading(
        self, tokenizer: Any, config: DataConfig, columns: LabelledColumns, name_of: NameOf
    ) -> Reading:
        classes = self._classes
        assert classes is not None

        def read(row: Mapping[str, Any], tally: Counter[str]) -> ReadExamples:
            name = name_of(row[columns.label])
            if name is None:
                tally[NO_CLASS] += 1
                return []
            number = classes.number(name)
            texts = [plain_text(row[name], name) for name in (columns.text, columns.pair) if name]
            if not all(text.strip() for text in texts):
                tally[NO_TEXT] += 1
                return []
            return [tokenize_labelled(tokenizer, texts, number, config.max_length, tally)]

        names = (columns.text, columns.pair)
        return Reading(tuple(name for name in names if name is not None), read)

    def finish(self, files: Mapping[str, Path]) -> dict[str, Any]:
        """The classes, how many examples each has in every part, and what is doubtful in them."""
        assert self._classes is not None
        names = self._classes.names
        counts = {}
        for part, file in files.items():
            seen = Counter(int(example.labels[0]) for example in Examples(file))
            counts[part] = [seen[i] for i in range(len(names))]
        for part, said in (("validation", "validation"), ("held_out", "held-out")):
            pairs = zip(names, counts["train"], counts[part], strict=True)
            unseen = [name for name, learned, asked in pairs if asked and not learned]
            if unseen:
                log.warning(
                    "data: %d classes have %s examples and none to learn from: %s",
                    len(unseen), said, _some(unseen),
                )  # fmt: skip
        return {"classes": list(names), "examples_by_class": counts, "left_out": self._doubts}


def _refuse_unseen(
    table: Any,
    source: str,
    columns: LabelledColumns,
    name_of: NameOf,
    classes: Classes,
    section: str,
) -> None:
    unseen = Counter[str]()
    for _, cell in column_values(table, columns.label):
        try:
            name = name_of(cell)
        except RowError:
            continue
        if name is not None and name not in classes.names:
            unseen[name] += 1
    rows = unseen.total()
    if rows > MOST_BAD * len(table):
        words = _holds_words(table.features[columns.label])
        advice = "" if words else f" Numbers are named by `{section}.label_names`."
        raise DataError(
            f"{rows} rows of `{source}` have classes that are not in the training data: "
            f"{_some(unseen)}; known are {_some(classes.names)}.{advice}"
        )


def in_order(found: Classes, order: Sequence[str], section: str) -> Classes:
    """The classes in the order of a teacher, with those of the teacher's that the data lack.

    Raises `DataError` where their number or their names differ.
    """
    places = label_permutation(found.names, order)
    if places is not None:
        names = list(order)
        for name, place in zip(found.names, places, strict=True):
            names[place] = name
        return Classes(names)
    if len(order) != len(found.names):
        raise DataError(
            f"The teacher knows {len(order)} classes ({_some(order)}) and the data have "
            f"{len(found.names)} ({_some(found.names)}); adapt it to them with `teacher.adapt`."
        )
    raise DataError(
        f"The teacher's classes are {_some(order)}, the data's {_some(found.names)}; rename the "
        f"data's (numbers by `{section}.label_names`), or adapt the teacher with `teacher.adapt`."
    )


def tokenize_labelled(
    tokenizer: Any, texts: Sequence[str], number: int, max_length: int, tally: Counter[str]
) -> tuple[list[int], list[int], list[int] | None]:
    """(ids, labels, token types or None) of a text or a pair, truncated to `max_length`.

    number: of the class. The longer text of a pair is truncated first. Truncated rows are counted
    in the tally.
    """
    encode: Callable[..., Any] = tokenizer
    encoded = encode(*texts, verbose=False)
    if len(encoded["input_ids"]) > max_length:
        tally[CUT] += 1
        encoded = encode(*texts, truncation=True, max_length=max_length)
    ids: list[int] = list(encoded["input_ids"])
    types = encoded.get("token_type_ids")
    return (
        ids,
        [number, *[IGNORE] * (len(ids) - 1)],
        list(types) if len(texts) > 1 and types else None,
    )
