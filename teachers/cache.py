"""The signal cache as its readers and its builder see it: signals of examples, by key.

Legend: N tokens counted, H width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator
from torch import Tensor

from attar.errors import CacheError, RecipeError
from attar.strict import Section
from teachers.codecs import CODECS, LAYER_CODECS, Columns
from teachers.codecs.topk import TopK
from teachers.signals import Distribution
from teachers.store import SignalStore


def _codec_field() -> Any:
    """Any registered codec, told apart by its name; what enrols a codec in the recipe's schema."""
    kinds = [kind for _, kind in CODECS.items()]
    if len(kinds) == 1:
        return kinds[0]
    return Annotated[reduce(or_, kinds), Field(discriminator="name")]


class HiddenConfig(Section):
    """Which layers' hidden states are kept. Layer 0 is the embeddings, l the output of block l."""

    layers: list[int] = Field(default_factory=list)
    codec: str = Field("int8", description="how they are stored: " + ", ".join(LAYER_CODECS))

    @field_validator("codec")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            LAYER_CODECS[value]
        except RecipeError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("layers")
    @classmethod
    def _sorted(cls, value: list[int]) -> list[int]:
        return sorted(set(value))


class CacheConfig(Section):
    """How the teacher's signals are stored."""

    codec: _codec_field() = Field(default_factory=TopK)  # type: ignore[valid-type]
    hidden: HiddenConfig = Field(default_factory=HiddenConfig)
    dir: str | None = Field(None, description="folder or fsspec URL; RUN/cache when absent")
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


@dataclass(frozen=True)
class Signals:
    """What the teacher said at N counted tokens, in the order in which they were asked for."""

    columns: Columns
    num_tokens: int
    config: CacheConfig
    width: int

    def distribution(self, temperature: float = 1.0) -> Distribution:
        """Next-token distributions at a temperature."""
        result: Distribution = self.config.codec.decode(self.columns, self.num_tokens, temperature)
        return result

    def hidden(self, layer: int) -> Tensor:
        """Float32 hidden states (N, H) of a cached layer."""
        if layer not in self.config.hidden.layers:
            raise RecipeError(
                f"Layer {layer} is not in the cache; add it to `cache.hidden.layers` "
                f"(now {self.config.hidden.layers})."
            )
        prefix = f"layer_{layer}"
        mine = {
            name.removeprefix(prefix): column
            for name, column in self.columns.items()
            if name == prefix or name.startswith(prefix + "_")
        }
        return LAYER_CODECS[self.config.hidden.codec].decode(mine, self.width)


class SignalCache:
    """Reads a finished cache. Shards are checked against their SHA-256 when first touched."""

    def __init__(self, url: str, config: CacheConfig, width: int = 0) -> None:
        """Opens the cache; `width` is the teacher's H, needed where hidden states are cached."""
        self.config, self.width = config, width
        self.store = SignalStore(url)
        if self.store.manifest() is None:
            raise CacheError(f"There is no cache at {url}; run `distill cache build` first.")
        self._shards: dict[int, pa.RecordBatch] = {}
        self._where: dict[str, tuple[int, int]] = {}
        self._columns: dict[int, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
        self._unchecked = self.store.entries()
        for number, entry in self._unchecked.items():
            batch = self.store.read_shard(number, entry)
            self._shards[number] = batch
            for row, key in enumerate(batch.column("key").to_pylist()):
                self._where[key] = (number, row)

    def __contains__(self, key: str) -> bool:
        return key in self._where

    def signals(self, keys: list[str]) -> Signals:
        """Signals of whole examples, concatenated in the order of `keys`."""
        pieces: dict[str, list[np.ndarray]] = {}
        num_tokens = 0
        for key in keys:
            if key not in self._where:
                raise CacheError(
                    f"The cache {self.store.url} lacks example {key}; it was made from other data: "
                    "build it again with this recipe."
                )
            number, row = self._where[key]
            num_tokens += self._shards[number].column("tokens")[row].as_py()
            for name, (offsets, values) in self._arrays(number).items():
                pieces.setdefault(name, []).append(values[offsets[row] : offsets[row + 1]])
        columns = {name: np.concatenate(parts) for name, parts in pieces.items()}
        return Signals(columns, num_tokens, self.config, self.width)

    def _arrays(self, number: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """(offsets, values) of every column of a shard, without a copy."""
        if number not in self._columns:
            self.store.check_shard(number, self._unchecked.pop(number))
            batch = self._shards[number]
            self._columns[number] = {
                name: (
                    batch.column(name).offsets.to_numpy(),
                    batch.column(name).values.to_numpy(zero_copy_only=True),
                )
                for name in batch.schema.names
                if name not in ("key", "tokens")
            }
        return self._columns[number]
