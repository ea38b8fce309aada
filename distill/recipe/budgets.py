"""Times and shares of a training that several sections write alike."""

from __future__ import annotations

import itertools
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d)")
UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def _as_seconds(value: Any) -> Any:
    """`90s`, `30m`, `2h` or `1d` in seconds; a number is seconds. Else raises `ValueError`."""
    if isinstance(value, str) and (found := DURATION.fullmatch(value.strip())) is not None:
        value = float(found[1]) * UNITS[found[2]]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise ValueError("is no time; write seconds, or one such as `90s`, `30m`, `2h`")
    return value


def _rising(value: list[float]) -> list[float]:
    rises = all(a < b for a, b in itertools.pairwise(value))
    if not value or not rises or value[0] <= 0 or value[-1] != 1:
        raise ValueError("must be shares that rise from above 0 to 1, as in `[0.11, 0.33, 1.0]`")
    return value


Duration = Annotated[float, BeforeValidator(_as_seconds)]  # seconds
Rungs = Annotated[list[float], AfterValidator(_rising)]  # shares of the steps, the last of them 1
