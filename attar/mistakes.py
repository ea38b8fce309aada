"""What is wrong with a value, in words of this program instead of pydantic's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TYPES = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a section of keys",
    "model_type": "a section of keys",
    "model_attributes_type": "a section of keys",
    "none_required": "empty",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "too_short": "a list of at least {min_length}, and has {actual_length}",
    "too_long": "a list of at most {max_length}, and has more",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "string_pattern_mismatch": "text of the form `{pattern}`",
}


def wanted_of(mistake: Mapping[str, Any]) -> str | None:
    """What a value must be, as in `must be a whole number`; None for a check of our own.

    mistake: one of `ValidationError.errors()`.
    """
    found = TYPES.get(mistake["type"])
    if found is None:
        return None
    limits = mistake.get("ctx", {}).items()
    return found.format(**{k: f"{v:g}" if isinstance(v, float) else v for k, v in limits})


def words_of(mistake: Mapping[str, Any]) -> str:
    """The mistake as a clause about the value, without a full stop."""
    if wanted := wanted_of(mistake):
        return f"must be {wanted}"
    text = str(mistake["msg"]).removeprefix("Value error, ").removesuffix(".")
    return text.replace("Input should be", "must be").replace("Field required", "is missing")
