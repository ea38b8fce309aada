"""What a recipe says of the cache: codec, layers, where it is."""

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
)

from attar.config import Section
from attar.errors import CacheError, RecipeError
from attar.registry import Registry
from teachers.codecs.codec import CODECS, LAYER_CODECS, TEXT_CODECS
from teachers.codecs.layer_states import Int8
from teachers.codecs.topk import TopK


def _by_name(*registries: Registry[type[Any]]) -> Any:
    """Any registered codec, told apart by its name; a name alone is the codec with its defaults.

    What enrols a codec in the recipe's schema.
    """

    def full(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        codecs = next((one for one in registries if value in one), registries[0])
        try:
            return codecs[value]()
        except RecipeError as error:
            raise ValueError(str(error)) from None

    kinds: Any = reduce(or_, [kind for codecs in registries for _, kind in codecs.items()])
    told_apart: Any = Annotated[kinds, Field(discriminator="name")]
    return Annotated[told_apart, BeforeValidator(full, json_schema_input_type=str | told_apart)]


if TYPE_CHECKING:
    AnyCodec = Any
    AnyLayerCodec = Any
else:
    AnyCodec, AnyLayerCodec = _by_name(CODECS, TEXT_CODECS), _by_name(LAYER_CODECS)


class HiddenConfig(Section):
    """Which layers' hidden states are kept. Layer 0 is the embeddings, l the output of block l."""

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
        """Without attention, manifests are what they were before there was such a key."""
        found: dict[str, Any] = dump(self)
        if not found.get("attention"):
            found.pop("attention", None)
        return found

    @property
    def parts(self) -> list[str]:
        """What goes through `codec`, as columns and assets name it: `layer_4`, `attention_7`."""
        layers = [f"layer_{layer}" for layer in self.layers]
        return layers + [f"attention_{block}" for block in self.attention]


class CacheConfig(Section):
    """How the teacher's signals are stored."""

    codec: AnyCodec = Field(default_factory=TopK, description="a name, or a name and parameters")
    hidden: HiddenConfig = Field(default_factory=HiddenConfig)
    dir: str | None = Field(None, description="folder or fsspec URL; RUN/cache when absent")
    unfinished: bool = Field(
        False, description="learn from a cache that is still being built, from what is there"
    )
    shard_tokens: int = Field(32768, ge=1, description="counted tokens a shard; a kill loses one")
    batch_tokens: int = Field(2048, ge=1, description="padded tokens in one teacher forward")


def manifest_of(
    config: CacheConfig, teacher: dict[str, Any], tokenizer: dict[str, Any], data: dict[str, Any]
) -> dict[str, Any]:
    """What must agree between a cache and its user, as the manifest stores it."""
    return {
        "teacher": teacher,
        "tokenizer": tokenizer,
        "data": data,
        "codec": config.codec.model_dump(),
        "hidden": config.hidden.model_dump(),
        "shard_tokens": config.shard_tokens,
    }


def config_of(manifest: dict[str, Any]) -> CacheConfig:
    """How the signals of an existing cache are stored, from its manifest."""
    try:
        return CacheConfig.model_validate(
            {key: manifest[key] for key in ("codec", "hidden", "shard_tokens")}
        )
    except (KeyError, ValueError) as error:
        about = str(error).split("\n")[0]
        raise CacheError(f"The manifest of the cache names no known codec ({about}).") from None
