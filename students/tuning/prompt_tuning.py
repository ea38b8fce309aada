"""`prefix`, `prompt` and `p_tuning`: learned positions before the text, through peft.

`prompt` and `p_tuning` learn embeddings of positions before the text; `prefix` learns the keys and
values of such positions in every block. None of them can be merged into weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn

from attar.config import Section
from attar.errors import RecipeError
from attar.models.loading import Quantization
from students.tuning.method import METHODS, Leaves
from students.tuning.peft_wrapper import wrap_with_peft


class Prompting(Section):
    """Settings of all three: how many positions, on which weights."""

    leaves: ClassVar[Leaves] = "adapter"
    merges: ClassVar[bool] = False
    prepends: ClassVar[bool] = True
    if TYPE_CHECKING:
        method: str
    virtual_tokens: int = Field(20, ge=1, description="learned positions before each text")
    base: Quantization = Field("none", description="quantisation of the frozen weights")

    def check(self, config: Any) -> None:
        """Raise `RecipeError` if the learned positions leave no room for text."""
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        if positions is not None and self.virtual_tokens >= positions:
            raise RecipeError(
                f"`specialize.virtual_tokens` is {self.virtual_tokens}; the student has "
                f"{positions} positions, and the text needs some."
            )

    def _wrap(self, model: Any, seed: int, config: Any) -> nn.Module:
        failure = f"{type(model).__name__} cannot be specialised by {self.method}"
        return wrap_with_peft(model, config, seed, failure)


@METHODS.add("prefix")
class Prefix(Prompting):
    """Prefix tuning (arXiv 2101.00190): keys and values before the text in every block."""

    method: Literal["prefix"] = "prefix"
    projection: bool = Field(
        False, description="compute them by two trained layers, which are not needed afterwards"
    )
    encoder_hidden_size: int | None = Field(
        None, ge=1, description="width of the `projection`; the student's own if absent"
    )

    @model_validator(mode="after")
    def _width_needs_projection(self) -> Prefix:
        if self.encoder_hidden_size is not None and not self.projection:
            raise ValueError("`encoder_hidden_size` has no effect without `projection: true`")
        return self

    def attach(self, model: Any, seed: int) -> nn.Module:
        """Wrap the student by peft."""
        from peft import PrefixTuningConfig

        hidden = self.encoder_hidden_size or model.config.get_text_config().hidden_size
        config = PrefixTuningConfig(
            num_virtual_tokens=self.virtual_tokens,
            prefix_projection=self.projection,
            encoder_hidden_size=hidden,
            task_type="CAUSAL_LM",
        )
        return self._wrap(model, seed, config)


@METHODS.add("prompt")
class Prompt(Prompting):
    """Prompt tuning (arXiv 2104.08691): embeddings before the text's."""

    method: Literal["prompt"] = "prompt"
    init_text: str | None = Field(
        None,
        min_length=1,
        description="start from the embeddings of this text, repeated or cut to `virtual_tokens`; "
        "by default from ids drawn from the vocabulary",
    )

    def attach(self, model: Any, seed: int) -> nn.Module:
        """Wrap the student by peft; with `init_text` its folder must hold a tokenizer."""
        from peft import PromptTuningConfig, PromptTuningInit

        text: dict[str, Any] = {"prompt_tuning_init": PromptTuningInit.SAMPLE_VOCAB}
        if self.init_text is not None:
            text = {
                "prompt_tuning_init": PromptTuningInit.TEXT,
                "prompt_tuning_init_text": self.init_text,
                "tokenizer_name_or_path": model.name_or_path,
            }
        config = PromptTuningConfig(
            num_virtual_tokens=self.virtual_tokens, task_type="CAUSAL_LM", **text
        )
        return self._wrap(model, seed, config)


@METHODS.add("p_tuning")
class PTuning(Prompting):
    """P-tuning (arXiv 2103.10385): embeddings before the text's, computed by a small network."""

    method: Literal["p_tuning"] = "p_tuning"
    encoder: Literal["mlp", "lstm"] = Field(
        "mlp", description="the network, which is not needed afterwards"
    )
    encoder_hidden_size: int | None = Field(
        None, ge=1, description="its width; the student's own if absent"
    )

    def attach(self, model: Any, seed: int) -> nn.Module:
        """Wrap the student by peft."""
        from peft import PromptEncoderConfig, PromptEncoderReparameterizationType

        hidden = self.encoder_hidden_size or model.config.get_text_config().hidden_size
        config = PromptEncoderConfig(
            num_virtual_tokens=self.virtual_tokens,
            encoder_reparameterization_type=PromptEncoderReparameterizationType[
                self.encoder.upper()
            ],
            encoder_hidden_size=hidden,
            task_type="CAUSAL_LM",
        )
        return self._wrap(model, seed, config)
