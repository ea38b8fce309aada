"""Numbers that change with the step: any number of an objective's term.

They are functions of the step alone, so a checkpoint holds nothing of them.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from attar.config import Section
from attar.mistakes import words_of


class Ramp(Section):
    """A number that goes from one value to another over some steps, and is constant outside them.

    `linear` and `cosine` (half a wave) need `from`; `warmup` is linear from 0 over the first tenth
    of the steps unless `over` is given; `constant` is always `to`, as a plain number is.
    """

    schedule: Literal["constant", "linear", "cosine", "warmup"]
    from_: float | None = Field(None, alias="from", description="value until it starts")
    to: float = Field(description="value from its end on")
    over: tuple[float, float] | None = Field(
        None,
        description="start and end: shares of the steps, or numbers of steps",
    )

    @model_validator(mode="after")
    def _whole(self) -> Ramp:
        if self.schedule in ("linear", "cosine") and self.from_ is None:
            raise ValueError(f"a `{self.schedule}` schedule needs `from`")
        if self.schedule == "constant" and (self.from_ is not None or self.over is not None):
            raise ValueError("a `constant` schedule has only `to`")
        if self.over is not None:
            start, end = self.over
            if not 0 <= start < end:
                raise ValueError("`over` is [start, end], the end after the start")
            if end > 1 and 0 < start < 1:
                raise ValueError(
                    f"`over` is two shares of the steps (up to 1) or two numbers of steps, not "
                    f"{start:g} and {end:g}"
                )
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """Return its first and its last value."""
        if self.schedule == "constant":
            return self.to, self.to
        return (0.0 if self.from_ is None else self.from_), self.to

    def at(self, step: int, total: int) -> float:
        """Return its value in step `step` (from 0) of `total`; after the last, its last value."""
        first, last = self.ends
        if step >= total:
            return last
        start, stop = self.over or ((0.0, 0.1) if self.schedule == "warmup" else (0.0, 1.0))
        if stop <= 1:
            start, stop = start * max(1, total - 1), stop * max(1, total - 1)
        progress = min(1.0, max(0.0, (step - start) / (stop - start)))
        if self.schedule == "cosine":
            progress = 0.5 * (1 - math.cos(math.pi * progress))
        return first + (last - first) * progress


def scheduled(annotation: Any) -> Any:
    """Return the type of a recipe's number that may be a `Ramp`, whose ends must both fit it."""
    adapter: TypeAdapter[float] = TypeAdapter(annotation)

    def fits(value: float | Ramp) -> float | Ramp:
        for end in value.ends if isinstance(value, Ramp) else ():
            try:
                adapter.validate_python(end)
            except ValidationError as error:
                reason = words_of(error.errors()[0])
                raise ValueError(f"{end:g} is an end of the schedule: it {reason}") from None
        return value

    def kind(value: Any) -> str:
        return "ramp" if isinstance(value, (dict, Ramp)) else "number"

    either: Any = Annotated[annotation, Tag("number")] | Annotated[Ramp, Tag("ramp")]
    return Annotated[either, Discriminator(kind), AfterValidator(fits)]
