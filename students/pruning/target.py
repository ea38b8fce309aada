"""The recipe's `student.target`: the size limit of the student and the axes that may be cut."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from attar.config import Section, as_share, refuse_given
from attar.errors import RecipeError
from attar.models.loading import skeleton
from students.pruning.architectures import Sizes, prunable_architecture, sizes_of
from students.pruning.cost_model import Costs, Latencies, WeightFormat
from students.pruning.shape_search import Axis, ShapeSpace

Amount = Annotated[
    float | int | str, BeforeValidator(as_share, json_schema_input_type=float | int | str)
]
UNITS = {
    "parameters": {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9},
    "bytes": {"": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9},
    "latency": {"ms": 1e-3, "s": 1.0},
}


def read_amount(kind: str, amount: Amount) -> tuple[float, bool]:
    """Return (number, is_share): parameters, bytes or seconds, or a share of the teacher's.

    Raises `ValueError` for an amount that is neither.
    """
    amount = as_share(amount)
    if isinstance(amount, float) and 0 < amount <= 1:
        return amount, True
    found = re.fullmatch(r"([\d_]*\.?\d+)\s*([a-zA-Z]*)", str(amount).strip())
    units = {unit.lower(): size for unit, size in UNITS[kind].items()}
    if found is None or found[2].lower() not in units:
        example = {"parameters": "80M", "bytes": "200MB", "latency": "12ms"}[kind]
        raise ValueError(f"{amount!r} is not a target; write a share (60%) or a number ({example})")
    number = float(found[1].replace("_", "")) * units[found[2].lower()]
    if number <= 0:
        raise ValueError(f"{amount!r} is not a target; it must be above 0")
    return number, False


class TargetConfig(Section):
    """The size limit of the student; the shape under it is searched for."""

    parameters: Amount | None = Field(None, description="`60%` of the teacher's, or `80M`")
    bytes: Amount | None = Field(None, description="`60%`, or `200MB`, of its weights as `form`")
    latency: Amount | None = Field(
        None,
        description="`60%`, or `12ms`, measured on this machine: one token with a KV cache; for "
        "encoders a text of 32 tokens",
    )
    form: WeightFormat = Field(
        "bf16", description="the weight format that `bytes` are counted in: bf16, int8, nf4"
    )
    axes: list[Axis] = Field(
        ["layers", "heads", "feed_forward", "hidden"],
        min_length=1,
        description="the axes that may be cut",
    )
    candidates: int = Field(12, ge=1, description="shapes under the target that are measured")
    finalists: int = Field(
        3,
        ge=1,
        description="how many of the best are compared after refit and healing, besides shapes cut "
        "along one axis",
    )
    heal_steps: int = Field(
        0, ge=0, description="steps of distillation for each finalist before it is compared"
    )
    calibration_tokens: int = Field(
        1024, ge=2, description="training tokens that blocks are ranked on"
    )
    tokens: int = Field(2048, ge=2, description="validation tokens that shapes are compared on")

    @property
    def kind(self) -> str:
        """Which of `parameters`, `bytes` and `latency` is given."""
        return next(kind for kind in UNITS if getattr(self, kind) is not None)

    @property
    def amount(self) -> Amount:
        """The value given for it."""
        found: Amount = getattr(self, self.kind)
        return found

    @property
    def words(self) -> str:
        """The target as the recipe writes it, for messages."""
        number, share = read_amount(self.kind, self.amount)
        said = f"{100 * number:g}%" if share else self.amount
        return f"`student.target.{self.kind}: {said}`"

    @field_validator("parameters", "bytes", "latency")
    @classmethod
    def _is_an_amount(cls, value: Amount | None, info: Any) -> Amount | None:
        if value is None:
            return None
        read_amount(info.field_name, value)
        return value

    @model_validator(mode="after")
    def _one_target(self) -> TargetConfig:
        given = [kind for kind in UNITS if getattr(self, kind) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"give one of `parameters`, `bytes`, `latency`; found {found}")
        if self.form != "bf16" and self.kind != "bytes":
            raise ValueError("`form` is only used with `bytes`; leave it out")
        if "layers" not in self.axes:
            refuse_given(self, "", "calibration_tokens", "where `axes` does not name `layers`")
        return self

    def space(self, teacher_config: Any) -> ShapeSpace:
        """Return the shapes to search; raise `RecipeError` for axes that cut nothing."""
        family = prunable_architecture(teacher_config)
        space = ShapeSpace(sizes_of(teacher_config), family, tuple(self.axes))
        if "heads" in self.axes and "hidden" not in self.axes and not family.head_size_key:
            raise RecipeError(
                f"`student.target.axes` names `heads`, but the heads of a {family.name} make up "
                "its width: name `hidden`, which cuts both, or leave `heads` out."
            )
        if space.smallest() == space.whole:
            raise RecipeError(
                f"`student.target.axes: [{', '.join(self.axes)}]` cuts nothing of this "
                "model; name more of layers, heads, feed_forward, hidden."
            )
        return space

    def cost(self, costs: Costs, sizes: Sizes) -> float:
        """Return the parameters or bytes of a student; parameters where the target is a latency."""
        if self.kind == "bytes":
            return costs.bytes(sizes, self.form)
        return costs.parameters(sizes)

    def limit(self, costs: Costs, latencies: Latencies | None = None) -> float:
        """Return the cost limit: parameters, bytes, or a share of the teacher's latency."""
        number, share = read_amount(self.kind, self.amount)
        if self.kind != "latency":
            return number * (self.cost(costs, costs.whole) if share else 1.0)
        if share:
            return number
        assert latencies is not None  # an absolute time
        return number / latencies.seconds

    def provisional(self, teacher_config: Any, auto: str) -> Sizes:
        """Return a shape under the target before any search: the one that cuts each axis least.

        It is only an estimate for a latency, and for a model with code of its own. auto: the
        model's `transformers` auto class. Raises `RecipeError` where no shape is under a number of
        parameters or bytes, and names the part that is too large.
        """
        space, model = self.space(teacher_config), skeleton(teacher_config, auto)
        number, share = read_amount(self.kind, self.amount)
        if model is None or (self.kind == "latency" and not share):
            return space.whole
        costs = Costs(model)
        if self.kind == "latency":
            limit = number * costs.parameters(costs.whole)
        else:
            limit = self.limit(costs)
            self.check_possible(space, costs, limit)
        shapes = space.filled(lambda sizes: self.cost(costs, sizes), limit) or [space.smallest()]
        return min(shapes, key=lambda one: max(space.removed(one).values()))

    def check_possible(self, space: ShapeSpace, costs: Costs, limit: float) -> None:
        """Raise `RecipeError` if no shape is under the limit; name the part that is too large."""
        smallest = space.smallest()
        if (least := self.cost(costs, smallest)) <= limit:
            return
        outside, whole = costs.outside_blocks(smallest), costs.parameters(smallest)
        way = (
            f"{outside / 1e6:,.2f}M of its {whole / 1e6:,.2f}M parameters are embeddings and head; "
            'cut the vocabulary first (docs/guides/pruning.md, "Fewer ids")'
            if outside > whole / 2
            else f"{(whole - outside) / 1e6:,.2f}M of its {whole / 1e6:,.2f}M parameters are blocks"
        )
        unit = "bytes" if self.kind == "bytes" else "parameters"
        more = [
            axis for axis in ("layers", "heads", "feed_forward", "hidden") if axis not in self.axes
        ]
        allow = f", or allow {', '.join(more)} in `student.target.axes`" if more else ""
        raise RecipeError(
            f"{self.words} cannot be met: the smallest student that may be cut has {least:,.0f} "
            f"{unit}, the target is {limit:,.0f}. {way}{allow}."
        )
