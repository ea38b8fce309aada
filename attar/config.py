"""The base of every section of a recipe: unknown keys are refused, values are checked."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One section of the recipe. Configuration only: behaviour lives in functions beside it."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


def as_share(value: Any) -> Any:
    """A share written `60%` as 0.6; what is written otherwise as it is.

    Raises `ValueError` for one that is nothing, or more than all.
    """
    found = re.fullmatch(r"(\d*\.?\d+)\s*%", value.strip()) if isinstance(value, str) else None
    if found is None:
        return value
    share = float(found[1]) / 100
    if not 0 < share <= 1:
        raise ValueError(f"{value!r} is no share; one lies between 0% and 100%")
    return share


def refuse_given(section: BaseModel, path: str, key: str, reason: str) -> None:
    """Raise `ValueError` for a key with a value of its own that has no effect, and why."""
    if getattr(section, key) != type(section).model_fields[key].default:
        raise ValueError(f"`{path}{key}` has no effect {reason}; leave it out")
