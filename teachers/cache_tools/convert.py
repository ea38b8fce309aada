"""A cache in another codec, from what is stored of the teacher: no teacher is run.

    final_hidden      -> any codec        the full distribution is there
    topk, nucleus     -> topk, nucleus    with at most as many entries; the others join the tail
    hybrid, sampled   -> nothing          ids that were not drawn are unknown, their mass as well
    hidden states     -> any codec        of layers, and attention inputs: decoded and encoded
                                          again; what was rounded stays rounded

Legend: N tokens counted, H width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.errors import CacheError
from teachers.cache.attention_inputs import maps_among
from teachers.cache.reader import SignalCache, Signals, part_of
from teachers.cache_tools.rewrite import (
    Draft,
    counts_of,
    in_groups,
    manifest_like,
    probe_among,
    vocabulary_of,
)
from teachers.codecs.codec import TEXT_CODECS, Assets, Columns, split_columns
from teachers.runners.build_cache import LEARN_TOKENS
from teachers.runners.next_token import encode_by_chunks, rows_per_chunk
from teachers.signals import (
    DenseDistribution,
    HasLogits,
    KnownLogits,
    SparseDistribution,
    TeacherChunk,
    seeds_of,
)

MEND = "build it again with that codec, or with `final_hidden`, which converts to any"


@dataclass(frozen=True)
class SparseChunk:
    """Tokens of which some entries are known, the mass outside spread evenly: to learn from."""

    sparse: SparseDistribution
    vocabulary: int
    seeds_N: np.ndarray

    def logits(self) -> Tensor:
        """Float32 (N, V); where nothing is outside, a number that is no probability any more."""
        logprobs_NK, tail_N = self.sparse.logprobs_NK, self.sparse.tail_N
        outside_N = self.vocabulary - (logprobs_NK > -torch.inf).sum(-1)
        share_N = torch.full(outside_N.shape, -1e4)
        if tail_N is not None:
            share_N = torch.maximum(tail_N - outside_N.clamp(min=1).log(), share_N)
        logits_NV = share_N[:, None].repeat(1, self.vocabulary)
        used_NK = logprobs_NK > -torch.inf
        rows_E, slots_E = used_NK.nonzero(as_tuple=True)
        logits_NV[rows_E, self.sparse.ids_NK[rows_E, slots_E]] = logprobs_NK[rows_E, slots_E]
        return logits_NV

    def rows(self, start: int, stop: int) -> SparseChunk:
        """Tokens start..stop of these."""
        part = self.sparse.rows(start, stop)
        return SparseChunk(part, self.vocabulary, self.seeds_N[start:stop])


def converted(
    url: str,
    *,
    codec: Any = None,
    layer_codec: Any = None,
    device: torch.device | None = None,
) -> Draft:
    """The cache with its distributions in `codec` and its layers in `layer_codec`; None leaves
    them as they are, bit for bit. Raises `CacheError` where the information is not there.
    """
    cache = SignalCache(url, device=device)
    config = cache.config
    codec = _completed(codec, config.codec) if codec is not None else config.codec
    layer_codec = layer_codec or config.hidden.codec
    changes = codec != config.codec
    changes_layers = layer_codec != config.hidden.codec
    if changes_layers and not config.hidden.parts:
        raise CacheError(f"The cache {url} has no hidden states of layers to convert.")
    if not changes and not changes_layers:
        raise CacheError(f"The cache {url} is in that codec already; there is nothing to convert.")
    if changes and config.codec.name in TEXT_CODECS:
        raise CacheError(
            f"The cache {url} holds `{config.codec.name}` of texts, as they are: "
            "leave `--codec` out."
        )
    if changes:
        check_convertible(config.codec, codec, url)
    job = _Conversion(
        cache,
        codec if changes else None,
        layer_codec if changes_layers else None,
        device or torch.device("cpu"),
    )
    counts = counts_of(cache)
    hidden = {**cache.manifest["hidden"], "codec": layer_codec.model_dump()}
    was = {"codec": cache.manifest["codec"], "hidden": cache.manifest["hidden"]}
    return Draft(
        sources=[url],
        manifest=manifest_like(
            cache.manifest, counts, codec=codec.model_dump(), hidden=hidden, converted_from=was
        ),
        counts=counts,
        learn=job.learn,
        rows=job.rows,
        padding_mass=cache.store.totals()["padding_mass"],
    )


def _completed(wanted: Any, own: Any) -> Any:
    """Temperatures that are not asked for are those that are stored."""
    given = "temperatures" in wanted.model_fields_set
    if given or "temperatures" not in type(wanted).model_fields or own.tail != "bucket":
        return wanted
    return type(wanted)(**{**wanted.model_dump(), "temperatures": own.temperatures})


def check_convertible(own: Any, wanted: Any, url: str) -> None:
    """Raise `CacheError` where the `wanted` codec needs what `own` has not stored."""
    refusal = _refusal(own, wanted)
    if refusal:
        raise CacheError(f"The cache {url} {refusal}; {MEND}.")


def _refusal(own: Any, wanted: Any) -> str | None:
    if own.tail == "none":
        return None
    if own.tail == "sampled":
        return (
            f"holds samples (`{own.name}`): the ids that were not drawn are unknown, so they "
            f"cannot become `{wanted.name}`"
        )
    if wanted.tail != "bucket":
        return (
            f"holds the largest entries only (`{own.name}`), and `{wanted.name}` needs the full "
            "distribution"
        )
    if wanted.k > own.k:
        return f"has at most {own.k} entries a token, `{wanted.name}` is to have {wanted.k}"
    if getattr(wanted, "mass", 0.0) > getattr(own, "mass", 1.0):
        return f"has entries up to a mass of {own.mass:g}, not {wanted.mass:g}"
    lacking = [t for t in wanted.temperatures if t not in own.temperatures]
    if lacking:
        return f"holds temperatures {own.temperatures}, not {lacking[0]:g}"
    return None


class _Conversion:
    """Encodes what a cache decodes to; None for a codec: those columns are copied."""

    def __init__(
        self, cache: SignalCache, codec: Any, layer_codec: Any, device: torch.device
    ) -> None:
        self.cache, self.codec, self.layer_codec = cache, codec, layer_codec
        self.device = device
        self.vocabulary = vocabulary_of(cache.manifest)

    def learn(self) -> dict[str, Assets]:
        """What the new codecs learn from the first examples, and the rest as it was."""
        stored = self.cache.store.assets() or {}
        counts = counts_of(self.cache)
        learned = probe_among(stored, counts)
        for part, own in stored.items():
            codec = self.codec if part_of(part) is None else self.layer_codec
            kept = own if codec is None else maps_among(own)
            if part != "probe" and kept:
                learned[part] = kept
        sample = in_groups(sorted(counts), counts, LEARN_TOKENS)[0]
        signals = self.cache.signals(sample)
        if self.codec is not None and self.codec.learns:
            learned["distribution"] = self._learn_distribution(
                self._chunk(signals, sample), stored.get("distribution", {})
            )
        if self.layer_codec is not None and self.layer_codec.learns:
            for part in self.cache.config.hidden.parts:
                own = self.layer_codec.learn(signals.states(part))
                learned[part] = {**learned.get(part, {}), **own}
        return learned

    def _learn_distribution(self, chunk: HasLogits, stored: Assets) -> Assets:
        found: Assets = self.codec.learn(chunk)
        head = {name: stored[name] for name in found if name.startswith("head_")}
        return {**found, **head}  # as it is stored, whatever it was multiplied in here

    def rows(self, keys: list[str], assets: dict[str, Assets]) -> list[Columns]:
        """The new columns of some examples: distributions first, then hidden states."""
        signals, tokens = self.cache.signals(keys), [self.cache.tokens(key) for key in keys]
        copied = [self.cache.columns(key) for key in keys]
        old = [{n: c for n, c in row.items() if part_of(n) is None} for row in copied]
        old_layers = [{n: c for n, c in row.items() if part_of(n) is not None} for row in copied]
        new, new_layers = old, old_layers
        if self.codec is not None:
            new = split_columns(self._encode(signals, keys, assets.get("distribution", {})), tokens)
        if self.layer_codec is not None:
            new_layers = split_columns(self._encode_layers(signals, assets), tokens)
        return [{**one, **layers} for one, layers in zip(new, new_layers, strict=True)]

    def _encode(self, signals: Signals, keys: list[str], assets: Assets) -> Columns:
        own = self.cache.config.codec
        if own.tail == "none":
            chunk = self._chunk(signals, keys)
            size = rows_per_chunk(self.vocabulary, self.device)
            return encode_by_chunks(self.codec, chunk, assets, size)
        columns = {n: c for n, c in signals.columns.items() if part_of(n) is None}
        stored = self.cache.assets.get("distribution", {})
        largest = own.decode_largest(columns, signals.num_tokens, stored)
        found: Columns = self.codec.encode_largest(largest, self.vocabulary, assets)
        return found

    def _encode_layers(self, signals: Signals, assets: dict[str, Assets]) -> Columns:
        columns = {}
        for part in self.cache.config.hidden.parts:
            own = assets.get(part, {})
            for suffix, column in self.layer_codec.encode(signals.states(part), own).items():
                columns[f"{part}{suffix}"] = column
        return columns

    def _chunk(self, signals: Signals, keys: list[str]) -> HasLogits:
        seeds_N = np.concatenate([seeds_of(key, self.cache.tokens(key)) for key in keys])
        found = signals.distribution(a_temperature(self.cache.config.codec))
        if isinstance(found, DenseDistribution):
            return TeacherChunk(found.hidden_NH, found.head, seeds_N)
        assert not isinstance(found, KnownLogits), "refused before"
        return SparseChunk(found, self.vocabulary, seeds_N)


def a_temperature(codec: Any) -> float:
    """A temperature at which the codec can be read: 1 where it can."""
    temperatures: list[float] = getattr(codec, "temperatures", [1.0])
    return 1.0 if 1.0 in temperatures else temperatures[0]
