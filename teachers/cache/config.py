"""The recipe's section on the signal cache (codec, hidden states, folder), and its manifest."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from attar.config import Section
from attar.errors import CacheError, RecipeError
from attar.registry import Registry
from teachers.codecs.codec import (
    CODECS,
    LAYER_CODECS,
    TEXT_CODECS,
    LayerCodec,
    SignalCodec,
    is_label_codec,
    is_text_codec,
)
from teachers.codecs.layer_states import Int8
from teachers.codecs.topk import TopK


def _any_of(*registries: Registry[Any]) -> Any:
    """The type of a recipe key that takes any registered codec, discriminated by its name.

    A name alone means the codec with its defaults. This puts every codec into the recipe's schema.
    """

    def with_defaults(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        codecs = next((one for one in registries if value in one), registries[0])
        try:
            return codecs[value]()
        except RecipeError as error:
            raise ValueError(str(error)) from None

    kinds: Any = reduce(or_, [kind for codecs in registries for _, kind in codecs.items()])
    by_name: Any = Annotated[kinds, Field(discriminator="name")]
    return Annotated[by_name, BeforeValidator(with_defaults, json_schema_input_type=str | by_name)]


if TYPE_CHECKING:
    AnyCodec = SignalCodec
    AnyLayerCodec = LayerCodec
else:
    AnyCodec, AnyLayerCodec = _any_of(CODECS, TEXT_CODECS), _any_of(LAYER_CODECS)


class HiddenStatesConfig(Section):
    """Which hidden states are stored. Layer 0 is the embeddings, layer l the output of block l."""

    layers: list[int] = Field(default_factory=list)
    attention: list[int] = Field(
        default_factory=list, description="blocks whose attention inputs are kept, for `relation`"
    )
    codec: AnyLayerCodec = Field(
        default_factory=Int8, description="how they are stored: a name, or a name and parameters"
    )

    @field_validator("layers", "attention")
    @classmethod
    def _sorted(cls, value: list[int]) -> list[int]:
        return sorted(set(value))

    @model_serializer(mode="wrap")
    def _without_empty(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out an empty `attention`, as manifests did before that key existed."""
        found: dict[str, Any] = dump(self)
        if not found.get("attention"):
            found.pop("attention", None)
        return found

    @property
    def parts(self) -> list[str]:
        """Names of what `codec` stores, in columns and assets: `layer_4`, `attention_7`."""
        layers = [f"layer_{layer}" for layer in self.layers]
        return layers + [f"attention_{block}" for block in self.attention]


class CacheConfig(Section):
    """How the teacher's signals are stored."""

    codec: AnyCodec = Field(default_factory=TopK, description="a name, or a name and parameters")
    hidden: HiddenStatesConfig = Field(default_factory=HiddenStatesConfig)
    labels: bool = Field(
        False, description="keep the log-probability of the text's own tokens beside the codec"
    )
    dir: str | None = Field(None, description="folder or fsspec URL; RUN/cache when absent")
    unfinished: bool = Field(
        False, description="learn from the finished shards of a cache that is still being built"
    )
    shard_tokens: int = Field(32768, ge=1, description="counted tokens a shard; a kill loses one")
    batch_tokens: int = Field(2048, ge=1, description="padded tokens in one teacher forward")

    @model_validator(mode="after")
    def _labels_have_an_effect(self) -> CacheConfig:
        if self.labels and is_label_codec(self.codec):
            raise ValueError(
                f"`labels` has no effect with codec `{self.codec.name}`, which stores the same; "
                "leave it out"
            )
        if self.labels and is_text_codec(self.codec):
            raise ValueError(
                f"`labels` keeps probabilities of next tokens, and codec `{self.codec.name}` is of "
                "whole texts; leave it out"
            )
        return self

    def settings_of_signals(self) -> dict[str, Any]:
        """What the stored signals depend on; `labels` is there only where it is true."""
        found = self.model_dump(exclude={"batch_tokens"})
        return {name: value for name, value in found.items() if name != "labels" or value}

    @property
    def has_labels(self) -> bool:
        """Whether the log-probability of the examples' own tokens is stored."""
        return self.labels or is_label_codec(self.codec)


def manifest_of(
    config: CacheConfig, teacher: dict[str, Any], tokenizer: dict[str, Any], data: dict[str, Any]
) -> dict[str, Any]:
    """The manifest of a cache: the fields in which a cache and its user must agree.

    `labels` is there only where it is true.
    """
    return {
        "teacher": teacher,
        "tokenizer": tokenizer,
        "data": data,
        "codec": config.codec.model_dump(),
        "hidden": config.hidden.model_dump(),
        **({"labels": True} if config.labels else {}),
        "shard_tokens": config.shard_tokens,
    }


def config_of(manifest: dict[str, Any]) -> CacheConfig:
    """The configuration with which an existing cache was made, from its manifest."""
    try:
        found = {key: manifest[key] for key in ("codec", "hidden", "shard_tokens")}
        return CacheConfig.model_validate({**found, "labels": manifest.get("labels", False)})
    except (KeyError, ValueError) as error:
        about = str(error).split("\n")[0]
        raise CacheError(f"The manifest of the cache names no known codec ({about}).") from None
