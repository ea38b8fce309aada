"""`adapter`: bottleneck adapters; the module is in `students/tuning/bottleneck_module.py`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn

from attar.config import Section
from attar.errors import ModelError, RecipeError
from attar.models.loading import Quantization, skeleton
from attar.models.task_heads import CAUSAL
from students.tuning.bottleneck_module import BottleneckConfig, adapted_linears, add_bottleneck
from students.tuning.method import METHODS, Leaves


@METHODS.add("adapter")
class BottleneckAdapter(Section):
    """Two small linear layers with a nonlinearity between them, so it cannot be merged."""

    leaves: ClassVar[Leaves] = "adapter"
    merges: ClassVar[bool] = False
    prepends: ClassVar[bool] = False
    method: Literal["adapter"] = "adapter"
    base: Quantization = Field("none", description="quantisation of the frozen weights")
    placement: Literal["houlsby", "pfeiffer"] = Field(
        "pfeiffer",
        description="houlsby: behind attention and behind feed-forward (arXiv 1902.00751); "
        "pfeiffer: behind feed-forward only (2005.00247)",
    )
    reduction: int = Field(
        16, ge=1, description="channels between the two layers: the student's width / reduction"
    )
    size: int | None = Field(
        None, ge=1, description="the number of those channels, instead of `reduction`"
    )
    activation: Literal["gelu", "relu", "silu", "tanh"] = Field(
        "gelu", description="the nonlinearity between the two layers"
    )
    scale: float = Field(1.0, gt=0, description="factor on the adapter's output")

    @model_validator(mode="after")
    def _one_of_size_and_reduction(self) -> BottleneckAdapter:
        usual = type(self).model_fields["reduction"].default
        if self.size is not None and self.reduction != usual:
            raise ValueError("`reduction` has no effect beside `size`; leave one of them out")
        return self

    @property
    def layout(self) -> BottleneckConfig:
        """The configuration that is saved beside the adapter's weights."""
        return BottleneckConfig(
            self.placement, self.reduction, self.size, self.activation, self.scale
        )

    def check(self, config: Any) -> None:
        """Raise `RecipeError` where no channel is left, or for an unknown family."""
        try:
            self.layout.size_for(int(config.get_text_config().hidden_size))
            model = skeleton(config, CAUSAL)
            if model is not None:
                adapted_linears(model, self.placement)
        except ValueError as error:
            raise RecipeError(f"`specialize.method: adapter`: {error}") from None

    def attach(self, model: Any, seed: int) -> nn.Module:
        """Add adapters, which change nothing at first."""
        try:
            return add_bottleneck(model, self.layout, seed)
        except ValueError as error:
            raise ModelError(f"`specialize.method: adapter`: {error}") from None
