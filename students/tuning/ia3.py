"""`ia3`: a trained factor for every channel of keys, values and the feed-forward, through peft."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn

from attar.config import Section
from attar.errors import RecipeError
from attar.models.loading import Quantization, skeleton
from attar.models.task_heads import CAUSAL
from students.tuning.method import METHODS, Leaves
from students.tuning.peft_wrapper import wrap_with_peft
from students.tuning.target_modules import target_linears


@METHODS.add("ia3")
class IA3(Section):
    """(IA)^3 (arXiv 2205.05638): the fewest parameters of all methods that can be merged."""

    leaves: ClassVar[Leaves] = "adapter"
    merges: ClassVar[bool] = True
    prepends: ClassVar[bool] = False
    method: Literal["ia3"] = "ia3"
    base: Quantization = Field("none", description="quantisation of the frozen weights")
    targets: list[str] | None = Field(
        None,
        min_length=1,
        description="names of linear layers whose output is scaled; by default those that peft "
        "knows for the student's family",
    )
    feedforward: list[str] | None = Field(
        None, description="those of `targets` whose input is scaled, not the output"
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
        """Raise `RecipeError` if no default layers are known, or the named ones do not exist."""
        self._targets_for(config)
        model = skeleton(config, CAUSAL)
        if model is not None and self.targets is not None:
            target_linears(model, self.targets)

    def _targets_for(self, config: Any) -> tuple[list[str] | None, list[str] | None]:
        """Return the target names for peft; (None, None) for its defaults of the family."""
        from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

        if self.targets is None:
            if config.model_type not in KNOWN:
                raise RecipeError(
                    f"`specialize.targets` must be given: no default layers for ia3 are known "
                    f"for the family {config.model_type}."
                )
            return None, None
        return list(self.targets), list(self.feedforward or [])

    def attach(self, model: Any, seed: int) -> nn.Module:
        """Wrap the student by peft; every factor starts at 1."""
        from peft import IA3Config

        targets, feedforward = self._targets_for(model.config)
        if targets is not None:
            target_linears(model, targets)
        config = IA3Config(
            target_modules=targets, feedforward_modules=feedforward, task_type="CAUSAL_LM"
        )
        failure = f"{type(model).__name__} cannot be specialised by ia3"
        wrapped = wrap_with_peft(model, config, seed, failure)
        keep_input_dtype(wrapped)
        return wrapped


def keep_input_dtype(model: nn.Module) -> None:
    """Make layers scaled by (IA)^3 return the dtype of their input.

    On a quantised base peft's layers return float32, which the attention of a bfloat16 student
    rejects outside autocast.
    """
    for module in model.modules():
        if hasattr(module, "ia3_l"):
            module.register_forward_hook(lambda _m, given, made: made.to(given[0].dtype))
