"""The base of every section of a recipe: unknown keys are refused, values are checked."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One section of the recipe. Configuration only: behaviour lives in functions beside it."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )
