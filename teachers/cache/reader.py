"""Reading a signal cache: the signals of examples, by key.

Legend: N tokens counted, H width.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.errors import CacheError, RecipeError
from attar.models.structure import label_logprobs
from teachers.cache.attention_inputs import attention_from_inputs
from teachers.cache.config import CacheConfig, config_of
from teachers.cache.shard import BatchColumns, ExampleRow, ShardReader, example_rows
from teachers.cache.store import SignalStore
from teachers.codecs.codec import (
    Assets,
    LayerCodec,
    SignalCodec,
    SignalColumns,
    check_gives_label_logprobs,
    is_label_codec,
)
from teachers.codecs.label import LABEL_COLUMN, stored_label_logprobs
from teachers.codecs.vectors import Vectors
from teachers.signals import Attention, DenseDistribution, Distribution, SparseDistribution

LABELS = "labels"  # the part of the labels' log-probabilities, whichever codec is beside them
PART_COLUMN = re.compile(r"((?:layer|attention)_\d+)(_.*)?")


def part_of(column: str) -> str | None:
    """The part of a column, `layer_4`, `attention_7` or `labels`; None: of distributions."""
    if column == LABEL_COLUMN:
        return LABELS
    found = PART_COLUMN.fullmatch(column)
    return found[1] if found else None


@dataclass
class Signals:
    """The cached signals of some tokens, decoded on first use, in the order of the examples."""

    columns: SignalColumns
    num_tokens: int
    config: CacheConfig
    assets: dict[str, Assets]
    vocabulary: int | None = None  # number of ids; None: not known
    _decoded: dict[Any, Any] = field(default_factory=dict)

    def distribution(self, temperature: float) -> Distribution:
        """Next-token distributions at a temperature; for classes, one a text."""
        if temperature not in self._decoded:
            columns = {k: v for k, v in self.columns.items() if part_of(k) is None}
            with _decoding_with(self.config.codec):
                self._decoded[temperature] = self.config.codec.decode(
                    columns, self.num_tokens, temperature, self.assets.get("distribution", {})
                )
                _check_ids_in_vocabulary(self._decoded[temperature], self.vocabulary)
        result: Distribution = self._decoded[temperature]
        return result

    def label_logprobs(self, labels_N: Tensor) -> Tensor:
        """Log-probability of the tokens' labels (N,), float32, stored or from the final states.

        Stored are those of the examples' own labels, which `labels_N` must be. Raises `RecipeError`
        for a cache from which they are not known.
        """
        assert labels_N.shape == (self.num_tokens,), f"{labels_N.shape}: {self.num_tokens} tokens"
        known = self._decoded.get("label_logprobs")
        if known is None or not torch.equal(known[0], labels_N):
            known = labels_N, self._label_logprobs(labels_N).to(labels_N.device)
            self._decoded["label_logprobs"] = known
        result: Tensor = known[1]
        return result

    def _label_logprobs(self, labels_N: Tensor) -> Tensor:
        check_gives_label_logprobs(self.config.codec, self.config.labels)
        if self.config.has_labels:
            return self.stored_logprobs()
        found = self.distribution(1.0)
        assert isinstance(found, DenseDistribution), "the codec says that it is full"
        return label_logprobs(found.hidden_NH, found.head, labels_N)

    def stored_logprobs(self) -> Tensor:
        """Log-probability of the examples' own labels (N,), from a cache that has them."""
        codec = self.config.codec
        assert self.config.has_labels, f"codec `{codec.name}` does not store it"
        if is_label_codec(codec):
            with _decoding_with(codec):
                return codec.logprobs(self.columns, self.num_tokens)
        if LABEL_COLUMN not in self.columns:
            raise _missing(f"column `{LABEL_COLUMN}`")
        with _cache_at_fault(f"column `{LABEL_COLUMN}` does not fit its tokens"):
            return stored_label_logprobs(self.columns, self.num_tokens)

    def vectors(self) -> Tensor:
        """Float32 vectors (B, H) of the texts, from a cache of codec `vectors`."""
        if "vectors" not in self._decoded:
            codec = self.config.codec
            assert isinstance(codec, Vectors), f"codec `{codec.name}` does not store vectors"
            with _decoding_with(codec):
                self._decoded["vectors"] = codec.vectors(self.columns)
        result: Tensor = self._decoded["vectors"]
        return result

    def hidden(self, layer: int) -> Tensor:
        """Float32 hidden states (N, H) of a cached layer."""
        if layer not in self.config.hidden.layers:
            raise RecipeError(
                f"Layer {layer} is not in the cache; add it to `cache.hidden.layers` "
                f"(now {self.config.hidden.layers})."
            )
        part = f"layer_{layer}"
        if part not in self._decoded:
            self._decoded[part] = self.states(part)
        result: Tensor = self._decoded[part]
        return result

    def attention(self, block: int) -> Attention:
        """Queries, keys and values of a block whose attention inputs are cached."""
        if block not in self.config.hidden.attention:
            raise RecipeError(
                f"The attention of block {block} is not in the cache; add it to "
                f"`cache.hidden.attention` (now {self.config.hidden.attention})."
            )
        part = f"attention_{block}"
        if part not in self._decoded:
            inputs_NH, assets = self.states(part), self.assets.get(part, {})
            if "query_weight" not in assets:
                raise _missing(f"maps of `{part}` in its assets")
            with _cache_at_fault(f"maps of `{part}` do not fit its inputs"):
                self._decoded[part] = attention_from_inputs(inputs_NH, assets)
        result: Attention = self._decoded[part]
        return result

    def states(self, part: str) -> Tensor:
        """Float32 states (N, H) of a part, decoded at each call."""
        mine = {
            name.removeprefix(part): column
            for name, column in self.columns.items()
            if part_of(name) == part
        }
        if not mine:
            raise _missing(f"columns `{part}`")
        with _decoding_with(self.config.hidden.codec):
            return self.config.hidden.codec.decode(mine, self.num_tokens, self.assets.get(part, {}))


def _missing(what: str) -> CacheError:
    return CacheError(
        f"The cache has no {what}, though its manifest promises them; delete it and build it again."
    )


@contextmanager
def _cache_at_fault(fault: str) -> Iterator[None]:
    """Turn errors of decoding into a `CacheError`: what cannot be decoded is a damaged cache."""
    try:
        yield
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        about = f"{type(error).__name__}: {error}".split("\n")[0][:300]
        raise CacheError(f"The cache's {fault} ({about}); delete it and build it again.") from error


def _decoding_with(codec: SignalCodec | LayerCodec) -> AbstractContextManager[None]:
    return _cache_at_fault(f"columns were not written by codec `{codec.name}`")


def _check_ids_in_vocabulary(decoded: Distribution, vocabulary: int | None) -> None:
    if vocabulary is None or not isinstance(decoded, SparseDistribution):
        return
    if not decoded.ids_NK.numel():
        return
    lowest, highest = decoded.ids_NK.aminmax()
    if lowest < 0 or highest >= vocabulary:
        raise ValueError(f"id {int(highest)} with {vocabulary} ids in the vocabulary")


class SignalCache:
    """Reads a cache. A shard is checked against its SHA-256 when it is first read.

    The most recently used unpacked record batches are kept in memory, up to `keep_bytes`.
    """

    def __init__(
        self,
        url: str,
        *,
        unfinished: bool = False,
        device: torch.device | None = None,
        keep_bytes: int = 256 << 20,
    ) -> None:
        """Raises `CacheError` for a cache that is still being built, unless `unfinished`."""
        self.store = SignalStore(url)
        found = self.store.manifest()
        if found is not None:
            config_of(found)  # what it says of its signals is refused before its shards are
        manifest, self._entries = self.store.contents()
        if manifest is None:
            raise CacheError(f"There is no cache at {url}; run `distill cache build` first.")
        self.manifest, self.config = manifest, config_of(manifest)
        self._check_finished(unfinished)
        self.store.check_files_exist(self._entries)
        self.assets = _on_device(self.store.assets() or {}, device or torch.device("cpu"))
        self._where: dict[str, tuple[int, ExampleRow]] = {}
        for number, entry in self._entries.items():
            for row in example_rows(entry):
                if row.key in self._where:
                    raise CacheError(f"Two shards of the cache {url} hold example {row.key}.")
                self._where[row.key] = (number, row)
        self._readers: dict[int, ShardReader] = {}
        self._batches: OrderedDict[tuple[int, int], BatchColumns] = OrderedDict()
        self._keep, self._kept = keep_bytes, 0
        self._lock = Lock()

    def __contains__(self, key: str) -> bool:
        return key in self._where

    def keys(self) -> list[str]:
        """Keys of its examples, in stored order."""
        return list(self._where)

    def tokens(self, key: str) -> int:
        """Counted tokens of an example."""
        return self._where[key][1].tokens

    def signals(self, keys: list[str]) -> Signals:
        """Signals of whole examples, concatenated in the order of `keys`."""
        return self.assembled([self.columns(key) for key in keys], sum(map(self.tokens, keys)))

    def assembled(self, rows: list[SignalColumns], num_tokens: int) -> Signals:
        """Signals of examples whose columns are known: this cache's, or one's with its assets."""
        columns = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        size = self.manifest["tokenizer"].get("size")
        vocabulary = size if isinstance(size, int) else None
        return Signals(columns, num_tokens, self.config, self.assets, vocabulary)

    def columns(self, key: str) -> SignalColumns:
        """The stored columns of one example, flat."""
        if key not in self._where:
            raise CacheError(
                f"The cache {self.store.url} does not have example {key}; it was made from other "
                "data: build it again with this recipe."
            )
        number, row = self._where[key]
        arrays = self._batch(number, row.batch)
        return {
            name: values[offsets[row.row] : offsets[row.row + 1]]
            for name, (offsets, values) in arrays.items()
        }

    def _batch(self, number: int, batch: int) -> BatchColumns:
        with self._lock:  # training reads ahead in a thread while evaluation reads in another
            return self._read_batch(number, batch)

    def _read_batch(self, number: int, batch: int) -> BatchColumns:
        if (number, batch) in self._batches:
            self._batches.move_to_end((number, batch))
            return self._batches[number, batch]
        if number not in self._readers:
            self._readers[number] = self.store.open_shard(number, self._entries[number])
        arrays = self._readers[number].batch(batch)
        self._batches[number, batch] = arrays
        self._kept += _bytes_held(arrays)
        while self._kept > self._keep and len(self._batches) > 1:
            _, oldest = self._batches.popitem(last=False)
            self._kept -= _bytes_held(oldest)
        return arrays

    def _check_finished(self, unfinished: bool) -> None:
        rows = sum(entry["rows"] for entry in self._entries.values())
        wanted = self.manifest["data"].get("examples")
        if rows != wanted and not unfinished:
            raise CacheError(
                f"The cache {self.store.url} has {rows} of {wanted} examples: it is still being "
                "built, or its build was stopped. Run `distill cache build` on its recipe, or set "
                "`cache.unfinished: true` to learn from its finished shards."
            )


def _bytes_held(arrays: BatchColumns) -> int:
    return sum(offsets.nbytes + values.nbytes for offsets, values in arrays.values())


def _on_device(assets: dict[str, Assets], device: torch.device) -> dict[str, Assets]:
    """Assets on a device; on a CPU in float32, since 16-bit products are slow there."""
    cpu = device.type == "cpu"
    return {
        part: {
            name: tensor.float() if cpu and tensor.is_floating_point() else tensor.to(device)
            for name, tensor in own.items()
        }
        for part, own in assets.items()
    }
