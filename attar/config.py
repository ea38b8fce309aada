"""The base class of every section of a recipe: unknown keys are refused, values are checked."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo


class Section(BaseModel):
    """One section of the recipe. Configuration only: behaviour lives in functions beside it."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        serialize_by_alias=True,  # whatever is dumped can be read again
    )


def as_share(value: Any) -> Any:
    """Turn a share written as `60%` into 0.6; return any other value unchanged.

    Raises `ValueError` for a percentage that is not above 0 and at most 100.
    """
    found = re.fullmatch(r"(\d*\.?\d+)\s*%", value.strip()) if isinstance(value, str) else None
    if found is None:
        return value
    share = float(found[1]) / 100
    if not 0 < share <= 1:
        raise ValueError(f"{value!r} is not a share; write one above 0% and at most 100%")
    return share


def is_tag(field: FieldInfo) -> bool:
    """Whether a field tells members of a union apart: it has one possible value."""
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


def refuse_given(section: BaseModel, path: str, key: str, reason: str) -> None:
    """Raise `ValueError` where a key that has no effect differs from its default; say why."""
    if getattr(section, key) != type(section).model_fields[key].default:
        raise ValueError(f"`{path}{key}` has no effect {reason}; leave it out")
