"""`ia3`: a learned factor for every channel of keys, values and the feed-forward's inside."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from attar.config import Section
from attar.errors import ModelError, RecipeError
from attar.models.loading import Quantization, skeleton
from attar.models.task_heads import CAUSAL
from students.tuning.method import METHODS, Leaves
from students.tuning.target_modules import (
    silence_peft_warnings,
    target_linears,
    trainable_to_float32,
)


@METHODS.add("ia3")
class IA3(Section):
    """(IA)^3 (arXiv 2205.05638): the fewest parameters of all methods that can be merged."""

    leaves: ClassVar[Leaves] = "adapter"
    merges: ClassVar[bool] = True
    prepends: ClassVar[bool] = False
    method: Literal["ia3"] = "ia3"
    base: Quantization = Field("none", description="the frozen weights' form")
    targets: list[str] | None = Field(
        None,
        min_length=1,
        description="names of linear layers whose output is scaled; as usual for the student's "
        "family if absent",
    )
    feedforward: list[str] | None = Field(
        None, description="those of `targets` whose input is scaled instead"
    )

    @model_validator(mode="after")
    def _feedforward_among_targets(self) -> IA3:
        other = [name for name in self.feedforward or () if name not in (self.targets or ())]
        if other:
            raise ValueError(
                f"`feedforward` names {', '.join(other)}, which `targets` does not; add it there"
            )
        return self

    def check(self, config: Any) -> None:
        """Raise `RecipeError` where the family has no usual maps, or has not those named."""
        self._targets_for(config)
        model = skeleton(config, CAUSAL)
        if model is not None and self.targets is not None:
            target_linears(model, self.targets)

    def _targets_for(self, config: Any) -> tuple[list[str] | None, list[str] | None]:
        """What peft is told; (None, None) means what it knows of the family."""
        from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

        if self.targets is None:
            if config.model_type not in KNOWN:
                raise RecipeError(
                    f"`specialize.targets` must be given: which maps ia3 scales is not known for "
                    f"the family {config.model_type}."
                )
            return None, None
        return list(self.targets), list(self.feedforward or [])

    def attach(self, model: Any, seed: int) -> nn.Module:
        """The student wrapped by peft; every factor is 1 at first."""
        from peft import IA3Config, get_peft_model

        targets, feedforward = self._targets_for(model.config)
        if targets is not None:
            target_linears(model, targets)
        torch.manual_seed(seed)
        model.requires_grad_(False)
        config = IA3Config(
            target_modules=targets, feedforward_modules=feedforward, task_type="CAUSAL_LM"
        )
        try:
            with silence_peft_warnings():
                wrapped = get_peft_model(model, config)
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(
                f"{type(model).__name__} cannot be specialised by ia3: {reason}"
            ) from None
        keep_precision(wrapped)
        return trainable_to_float32(wrapped)


def keep_precision(model: nn.Module) -> None:
    """Let maps that (IA)^3 scales give what they are given: on a quantised base peft's give
    float32, which the attention of a bfloat16 student refuses outside autocast.
    """
    for module in model.modules():
        if hasattr(module, "ia3_l"):
            module.register_forward_hook(lambda _m, given, made: made.to(given[0].dtype))
