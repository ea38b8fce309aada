"""What to write instead of a value that cannot be: the mend at the end of a sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from attar.errors import nearest

# Sections that people write as the one value that matters to them.
INSTEAD = {
    "data": "{{train: {}}}",
    "teacher": "{{model: {}}}",
    "student": "{{from: {}}}",
    "specialize": "{{method: {}}}",
    "codec": "{{name: {}}}",
    "layers": "{{keep: {}}}",
    "objective": "[{{loss: {}}}]",
    "objective[]": "{{loss: {}}}",
}
SECTION_TYPES = {"model_type", "model_attributes_type", "dict_type"}
PERCENT = re.compile(r"^(-?\d+(?:\.\d+)?)\s*%$")
DECIMAL_COMMA = re.compile(r"^(-?\d+),(\d+)$")


def mend_of(path: str, mistakes: Sequence[Mapping[str, Any]], found: Any) -> str:
    """' Write ...' for what a value was probably meant to be, or an empty string.

    path: the key as the user wrote it, `train.objective[0]`. mistakes: of
    `ValidationError.errors()`, all of this value. found: the value.
    """
    types = {mistake["type"] for mistake in mistakes}
    last = re.sub(r"\[\d+\]$", "[]", path.rpartition(".")[2])
    if found is None and types & SECTION_TYPES:
        return f" Write its keys, or leave `{path}` out."
    if not isinstance(found, str):
        return ""
    if last in INSTEAD and types & (SECTION_TYPES | {"list_type"}):
        key = last.removesuffix("[]") + ": " if not last.endswith("[]") else ""
        return f" Write `{key}{INSTEAD[last].format(found)}`."
    if types == {"list_type"}:
        return f" Write `[{found}]`."
    if "literal_error" in types:
        expected = " ".join(str(m["ctx"]["expected"]) for m in mistakes if "expected" in m["ctx"])
        return nearest(found, re.findall(r"'([^']+)'", expected))
    if types & {"float_parsing", "float_type"}:
        if percent := PERCENT.match(found):
            return f" Write `{float(percent[1]) / 100:g}`."
        if comma := DECIMAL_COMMA.match(found):
            return f" Write `{comma[1]}.{comma[2]}`."
    return ""
