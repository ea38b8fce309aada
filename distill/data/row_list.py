"""Rows that are in memory: as a table, and as the examples that a recipe would make of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from distill.data.bad_rows import BadRows, RowError
from distill.data.column_types import ColumnType, common_type, type_of
from distill.data.config import DataConfig, sources_of
from distill.data.examples import Example, example_of
from distill.data.reader import NextTokenTexts


class RowList:
    """Rows in memory as one table, like `FileRows` of files; a missing column has no value."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = rows
        found: dict[str, set[str]] = {}
        for row in rows:
            for name, value in row.items() if isinstance(row, Mapping) else ():
                kinds = found.setdefault(name, set())
                kinds |= set() if value is None else {type_of(value)}
        self.features = {name: ColumnType(common_type(kinds)) for name, kinds in found.items()}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = self._rows[i]
        if not isinstance(row, Mapping):
            raise RowError("are no mapping of columns to values")
        return {name: row.get(name) for name in self.features}


def examples_of(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, config: DataConfig
) -> list[Example]:
    """The examples of rows: texts, conversations, or prompts with answers (docs/reference/rows.md).

    They are those that a recipe with this section `data` would make, in the order of the rows: an
    equal row gives equal keys, by which a cache knows its signals. Rows are not divided in parts
    and no limit on tokens holds. config.train: what messages call the rows.

    Rows that cannot be used are left out with one warning. Raises `DataError` where that is more
    than a tenth of them, or where no column is known.
    """
    source, table = ", ".join(sources_of(config)), RowList(rows)
    (reading,) = NextTokenTexts().open(tokenizer, config, [table], [source])
    bad, tally, found = BadRows(), Counter[str](), list[Example]()
    bad.expect(source, len(table))
    for i in range(len(table)):
        read = bad.try_row(table, source, i, lambda row: reading(row, tally)) or ()
        found += [example_of(*example) for example in read]
    bad.finish(config.section)
    return found
