"""`lora` and `qlora`: a product of two thin matrices beside each linear layer, through peft.

On a quantised base the products are computed in bfloat16. Adapters are merged into full-precision
weights, since the change is small against the step of the quantisation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn

from attar.config import Section
from attar.errors import RecipeError
from attar.models.loading import Quantization, skeleton
from attar.models.task_heads import CAUSAL
from students.tuning.method import METHODS, Leaves
from students.tuning.peft_wrapper import wrap_with_peft
from students.tuning.target_modules import target_linears


class LowRank(Section):
    """Settings of both: the size of the matrices, their places and their initial values."""

    leaves: ClassVar[Leaves] = "adapter"
    merges: ClassVar[bool] = True
    prepends: ClassVar[bool] = False
    if TYPE_CHECKING:
        method: str
        base: Quantization
    rank: int = Field(16, ge=1, description="columns of the thin matrices")
    alpha: float | None = Field(
        None,
        gt=0,
        description="the change is scaled by alpha / rank (alpha / root of rank with `rslora`); "
        "twice the rank by default",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapters' input")
    targets: str | list[str] = Field(
        "all-linear",
        description="all-linear (every linear layer but the head), names of linear layers, or a "
        "regular expression for whole names",
    )
    rslora: bool = Field(False, description="scale by 1 / root of rank (arXiv 2312.03732)")
    dora: bool = Field(
        False, description="train the length and the direction of each row apart (arXiv 2402.09353)"
    )
    init: Literal["default", "pissa", "olora", "orthogonal"] = Field(
        "default",
        description="default: one matrix is zero, so nothing changes at first; pissa: the largest "
        "singular vectors (2404.02948); olora: a QR decomposition (2406.01775); orthogonal",
    )

    @model_validator(mode="after")
    def _starts_fit(self) -> LowRank:
        if self.init in ("pissa", "olora"):
            if self.base != "none":
                raise ValueError(
                    f"`init: {self.init}` decomposes the weights, which an {self.base} base does "
                    "not have in full precision; leave `init` out, or use `method: lora`"
                )
            if self.dora:
                raise ValueError(
                    f"`init: {self.init}` changes the weights whose rows `dora` measures; use only "
                    "one"
                )
        if self.dora and self.base == "int8":
            raise ValueError(
                "`dora` reads the weights in every step, and peft loses the scales of an int8 base "
                "when it does; use `base: nf4`, or leave `dora` out"
            )
        if self.init == "orthogonal" and self.rank % 2:
            raise ValueError("`init: orthogonal` needs an even `rank`")
        return self

    def check(self, config: Any) -> None:
        """Raise `RecipeError` for targets that the student lacks, or a rank too high for them."""
        model = skeleton(config, CAUSAL)
        if model is not None:
            self._check_targets(model)

    def _check_targets(self, model: Any) -> None:
        chosen = target_linears(model, self.targets)
        sizes = {name: min(module.weight.shape) for name, module in chosen.items()}  # type: ignore[arg-type]
        name = min(sizes, key=lambda name: sizes[name])
        if self.init in ("pissa", "olora") and self.rank > sizes[name]:
            raise RecipeError(
                f"`specialize.rank` is {self.rank}; `{name}` has {sizes[name]} singular vectors, "
                f"the highest rank for `init: {self.init}`."
            )
        if self.dropout and model.get_output_embeddings() in chosen.values():
            raise RecipeError(
                "`specialize.dropout` has no effect on the head, which `targets` names, because "
                "its logits are computed in chunks; leave one of them out."
            )

    def attach(self, model: Any, seed: int) -> nn.Module:
        """Wrap the student by peft."""
        from peft import LoraConfig

        chosen = target_linears(model, self.targets)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha if self.alpha is not None else 2 * self.rank,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=self.targets if isinstance(self.targets, str) else list(self.targets),
            use_rslora=self.rslora,
            use_dora=self.dora,
            init_lora_weights=True if self.init == "default" else self.init,
            task_type="CAUSAL_LM",
        )
        failure = (
            f"`specialize.targets: {self.targets}` names {len(chosen)} linear layers, but not all "
            f"of them can take {self.method}"
        )
        return wrap_with_peft(model, config, seed, failure)


@METHODS.add("lora")
class Lora(LowRank):
    """LoRA (arXiv 2106.09685) on float32 weights."""

    base: ClassVar[Quantization] = "none"  # type: ignore[misc]
    method: Literal["lora"] = "lora"


@METHODS.add("qlora")
class QLora(LowRank):
    """LoRA on a quantised base (arXiv 2305.14314): nf4 takes an eighth of the weights' memory."""

    method: Literal["qlora"] = "qlora"
    base: Literal["nf4", "fp4", "int8"] = Field(
        "nf4", description="quantisation of the frozen weights"
    )
