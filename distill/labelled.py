"""Labelled texts: which columns hold them, what their classes are, and their examples.

An example is a text, or a pair of texts, and its class. `labels` has the class at position 0 and
`IGNORE` elsewhere, so that a text counts once wherever tokens are counted, and its key, a hash of
its ids, does not tell its class. Legend: T tokens.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from attar.errors import DataError, nearest
from distill.data import DataConfig, Examples
from distill.layouts import TEXTS, check_column, first_of, text_of
from distill.readers import Found, Reading
from distill.tokenizing import CUT, IGNORE, NO_TEXT

log = logging.getLogger(__name__)

TEXT_COLUMNS = (*TEXTS, "sentence", "review", "query")
LABEL_COLUMNS = ("label", "labels", "class", "intent")
NO_CLASS = "have no label"


@dataclass(frozen=True)
class Columns:
    """Which columns hold a text, the second text of a pair, and the class."""

    text: str
    pair: str | None
    label: str


def columns_of(features: Mapping[str, Any], source: str, config: DataConfig) -> Columns:
    """Where a table's texts and classes are. Raises `DataError` where a column is not there, or
    the labels are numbers with fractions.
    """
    text = text_column(features, source, config)
    label = _column(features, source, "label_column", config.label_column, LABEL_COLUMNS, "classes")
    if config.pair_column is not None:
        check_column(config.pair_column, list(features), source, "data.pair_column")
    kind = str(getattr(features[label], "dtype", type(features[label]).__name__))
    if kind.startswith(("float", "double", "decimal")):
        raise DataError(
            f"`{label}` of `{source}` holds numbers with fractions; classes are words or whole "
            "numbers. Round them into classes, or name another `data.label_column`."
        )
    if not kind.startswith(("int", "uint", "bool", "string", "large_string", "null")):
        raise DataError(f"`{label}` of `{source}` holds {kind}; classes are words or numbers.")
    return Columns(text, config.pair_column, label)


def text_column(features: Mapping[str, Any], source: str, config: DataConfig) -> str:
    """The column of a table's texts. Raises `DataError` where it is not there, or not known."""
    return _column(features, source, "text_column", config.text_column, TEXT_COLUMNS, "texts")


def _column(
    features: Mapping[str, Any],
    source: str,
    key: str,
    named: str | None,
    usual: Sequence[str],
    what: str,
) -> str:
    known = list(features)
    if named is not None:
        check_column(named, known, source, f"data.{key}")
    found = named or first_of(usual, known)
    if found is None:
        raise DataError(
            f"`{source}` has columns {', '.join(known)}: which holds the {what}? Name it with "
            f"`data.{key}`."
        )
    return found


class Classes:
    """The classes of some data: their names in order, and the number of a cell's value."""

    def __init__(self, names: Sequence[str], numbered: bool) -> None:
        self.names, self.numbered = tuple(names), numbered
        self._numbers = {name: i for i, name in enumerate(self.names)}

    def number(self, value: Any) -> int | None:
        """The class of a cell; None where it has none, `DataError` where it is not known."""
        if value is None or value == "" or (self.numbered and value == -1):
            return None
        if self.numbered:
            if not 0 <= int(value) < len(self.names):
                raise DataError(
                    f"A label is {value}, and there are {len(self.names)} classes, 0 to "
                    f"{len(self.names) - 1} ({_some(self.names)})."
                )
            return int(value)
        name = str(value)
        if name not in self._numbers:
            raise DataError(
                f"A label is `{name}`, which is none of the {len(self.names)} classes "
                f"({_some(self.names)}).{nearest(name, self.names)}"
            )
        return self._numbers[name]


def _some(names: Iterable[Any]) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown) if len(shown) <= 8 else f"{', '.join(shown[:8])}, ..."


def find_classes(tables: Sequence[Any], columns: Sequence[Columns], config: DataConfig) -> Classes:
    """The classes of the training tables: by `data.label_names`, by the table's own names, else
    every value that occurs, sorted. Raises `DataError` where there are fewer than two.
    """
    kinds = [table.features[one.label] for table, one in zip(tables, columns, strict=True)]
    own = next((names for kind in kinds if (names := getattr(kind, "names", None))), None)
    words = any(str(getattr(kind, "dtype", "")).endswith("string") for kind in kinds)
    if config.label_names is not None:
        return Classes(config.label_names, numbered=not words)
    if own is not None:
        return Classes(own, numbered=True)
    values: set[Any] = set()
    for table, one in zip(tables, columns, strict=True):
        values |= {value for value in table.unique(one.label) if value not in (None, "")}
    if len(values) < 2:
        found = f"only {_some(values)}" if values else "no class at all"
        raise DataError(
            f"`{columns[0].label}` holds {found}; a classifier needs at least two classes."
        )
    return Classes([str(value) for value in sorted(values)], numbered=False)


class LabelledTexts:
    """How tables of labelled texts are read: what `prepare` asks.

    `order`: names of the classes that a given teacher knows, in its order. After the training
    tables are opened, `names` are the classes.
    """

    counts_all: ClassVar[bool] = False

    def __init__(self, order: Sequence[str] | None = None) -> None:
        self._order = list(order) if order is not None else None
        self._classes: Classes | None = None

    @property
    def names(self) -> Sequence[str]:
        """The classes, once training tables were opened."""
        assert self._classes is not None
        return self._classes.names

    @property
    def stamp(self) -> list[Any]:
        """What examples depend on beside data, tokenizer and seed."""
        return ["classes", self._order]

    def open(
        self, tokenizer: Any, config: DataConfig, tables: Sequence[Any], sources: Sequence[str]
    ) -> list[Reading]:
        """For each table, what makes a row an example; the first call is of the training tables."""
        pairs = list(zip(tables, sources, strict=True))
        columns = [columns_of(table.features, source, config) for table, source in pairs]
        if self._classes is None:
            found = find_classes(tables, columns, config)
            self._classes = in_order(found, self._order) if self._order is not None else found
        else:
            for (table, source), one in zip(pairs, columns, strict=True):
                _refuse_unseen(table, source, one, self._classes)
        return [self._reading(tokenizer, config, one) for one in columns]

    def _reading(self, tokenizer: Any, config: DataConfig, columns: Columns) -> Reading:
        classes = self._classes
        assert classes is not None

        def read(row: Mapping[str, Any], tally: Counter[str]) -> Found:
            number = classes.number(row[columns.label])
            if number is None:
                tally[NO_CLASS] += 1
                return []
            texts = [text_of(row[name]) for name in (columns.text, columns.pair) if name]
            if not all(text.strip() for text in texts):
                tally[NO_TEXT] += 1
                return []
            return [tokenize_labelled(tokenizer, texts, number, config.max_length, tally)]

        return read

    def finish(self, train: Path, held_out: Path) -> dict[str, Any]:
        """What is kept of both parts: the classes, and how many examples each has."""
        assert self._classes is not None
        names = self._classes.names
        counts = {}
        for part, file in (("train", train), ("held_out", held_out)):
            seen = Counter(int(example.labels[0]) for example in Examples(file))
            counts[part] = [seen[i] for i in range(len(names))]
        pairs = zip(names, counts["train"], counts["held_out"], strict=True)
        unseen = [name for name, learned, asked in pairs if asked and not learned]
        if unseen:
            log.warning(
                "data: %d classes have held-out examples and none to learn from: %s",
                len(unseen), _some(unseen),
            )  # fmt: skip
        return {"classes": list(names), "examples_by_class": counts}


def _refuse_unseen(table: Any, source: str, columns: Columns, classes: Classes) -> None:
    unseen = []
    for value in table.unique(columns.label):
        try:
            classes.number(value)
        except DataError:
            unseen.append(value)
    if unseen:
        wanted = set(unseen)
        rows = sum(value in wanted for value in table[columns.label])
        raise DataError(
            f"{rows} rows of `{source}` have classes that are not in the training data: "
            f"{_some(unseen)}; known are {_some(classes.names)}."
        )


def in_order(found: Classes, order: Sequence[str]) -> Classes:
    """The classes as a given teacher has them: in its order, with those that the data lack.

    Names are compared without regard to case; `LABEL_0`, ... say nothing, and numbers keep theirs.
    Raises `DataError` where number or names differ.
    """
    known = {name.casefold(): name for name in found.names}
    theirs = [name.casefold() for name in order]
    if not found.numbered and known.keys() <= set(theirs):
        names = [known.get(name, own) for name, own in zip(theirs, order, strict=True)]
        return Classes(names, numbered=False)
    if len(order) != len(found.names):
        raise DataError(
            f"The teacher knows {len(order)} classes ({_some(order)}) and the data have "
            f"{len(found.names)} ({_some(found.names)}); adapt it to them with `teacher.adapt`."
        )
    nameless = all(name.upper() == f"LABEL_{i}" for i, name in enumerate(order))
    numbers = all(name.isdigit() for name in found.names)
    if nameless or numbers or list(known) == theirs:
        return found
    raise DataError(
        f"The teacher's classes are {_some(order)}, the data's {_some(found.names)}; name the "
        "data's in the teacher's order with `data.label_names`, or adapt it with `teacher.adapt`."
    )


def tokenize_labelled(
    tokenizer: Any, texts: Sequence[str], number: int, max_length: int, tally: Counter[str]
) -> tuple[list[int], list[int], list[int] | None]:
    """(ids, labels, token types or None) of a text or a pair, truncated to `max_length`.

    Of a pair, the longer text is cut first. Those that were cut are counted in the tally.
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
