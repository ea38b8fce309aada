"""Types of the columns of files, by the values that stand in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ColumnType:
    """The type of a column's values: string, bool, int64, float64, null, or json: anything."""

    dtype: str


def type_of(value: Any) -> str:
    """The name of a value's type."""
    if isinstance(value, str):
        return "string"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64"
    return "float64" if isinstance(value, float) else "json"


def common_type(kinds: set[str]) -> str:
    """The type of values of several types; whole numbers beside fractions are fractions."""
    if not kinds:
        return "null"
    if kinds == {"int64", "float64"}:
        return "float64"
    return kinds.pop() if len(kinds) == 1 else "json"


def holds_text(kind: Any) -> bool:
    """Whether a column of this type holds text."""
    return str(getattr(kind, "dtype", "")).endswith("string")


def is_nested(kind: Any) -> bool:
    """Whether a column of this type holds lists or objects."""
    dtype = getattr(kind, "dtype", None)
    return dtype is None or str(dtype).startswith(("json", "list", "dict"))
