"""An ensemble of teachers with one vocabulary: the weighted mixture of their probabilities.

    final_hidden      exact: the members' full distributions are averaged
    hybrid, sampled   the members' samples are averaged, so the mixture is unbiased as well
    label             the labels' probabilities are averaged, exactly
    topk, nucleus     the members' entries are averaged. If an id is an entry of only some members,
                      its probability in the others is unknown and stays in the tail, which holds
                      the weighted sum of the tails. So entries and tail sum to one, and an entry is
                      a lower bound of the mixture's probability.

Labels that stand beside the members' codecs are mixed as those of codec `label` where all members
have them, and left out where only some do. Hidden states of layers, and attention inputs, belong to
each teacher's own space and cannot be averaged: they are left out.

Legend: N tokens counted, E entries of all tokens, M members, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.errors import CacheError
from attar.models.structure import rows_per_chunk
from teachers.cache.reader import SignalCache
from teachers.cache_tools.convert import SparseChunk, readable_temperature
from teachers.cache_tools.rewrite import (
    CacheDraft,
    first_difference,
    group_keys,
    labels_in_all,
    manifest_like,
    token_counts,
    vocabulary_of,
)
from teachers.codecs.codec import (
    Assets,
    DistributionCodec,
    SignalCodec,
    SignalColumns,
    is_full_codec,
    is_label_codec,
    is_sparse_codec,
    split_columns,
)
from teachers.codecs.label import label_columns
from teachers.codecs.packed_entries import slots_of
from teachers.codecs.top_entries import TopEntries, is_bucket_codec, sort_entries
from teachers.codecs.unbiased_entries import encode_weights, is_sampled_codec
from teachers.runners.build_cache import LEARN_TOKENS
from teachers.runners.next_token import encode_by_chunks
from teachers.signals import DenseDistribution, HasLogits, SparseDistribution, seeds_of

logger = logging.getLogger(__name__)
KINDS = {
    "none": "full distributions",
    "bucket": "largest entries",
    "sampled": "samples",
    "label": "log-probabilities of labels",
}


def _kind(codec: SignalCodec) -> str:
    """What the mixture needs to know of a codec, a key of `KINDS`."""
    return "label" if is_label_codec(codec) else codec.tail


@dataclass(frozen=True)
class MixtureChunk:
    """Tokens whose distribution is the weighted mean of several full ones."""

    members: list[DenseDistribution]
    weights: list[float]
    seeds_N: np.ndarray

    def logits(self) -> Tensor:
        """Float32 log-probabilities (N, V) of the mixture."""
        mixed_NV = torch.tensor(-torch.inf)
        for member, weight in zip(self.members, self.weights, strict=True):
            own_NV = member.logprobs() + log(weight)
            mixed_NV = torch.logaddexp(mixed_NV.to(own_NV.device), own_NV)
        return mixed_NV

    def rows(self, start: int, stop: int) -> MixtureChunk:
        """Tokens start..stop."""
        members = [member.rows(start, stop) for member in self.members]
        return MixtureChunk(members, self.weights, self.seeds_N[start:stop])


def mixed(
    members: Sequence[tuple[str, float]],
    codec: DistributionCodec,
    *,
    common: bool = False,
    device: torch.device | None = None,
) -> CacheDraft:
    """Draft the mixture of caches (url, weight) in `codec`; weights are scaled to sum to one.

    The caches must hold the same examples; with `common`, only the examples that all of them hold
    are mixed. The manifest names the first teacher, and all of them under `teacher.ensemble`.
    Raises `CacheError` where vocabularies, examples or kinds of codecs do not agree.
    """
    if len(members) < 2:
        raise CacheError("One cache alone is no ensemble; name two or more.")
    total = sum(weight for _, weight in members)
    if min(weight for _, weight in members) <= 0 or not np.isfinite(total):
        raise CacheError("The weights of an ensemble must be numbers above 0.")
    caches = [SignalCache(url, device=device) for url, _ in members]
    weights = [weight / total for _, weight in members]
    _check_vocabularies(caches)
    _check_codec(codec, caches)
    counts = _common_counts(caches, common)
    labels = not is_label_codec(codec) and labels_in_all(caches)
    job = _Ensemble(caches, weights, codec, labels)
    for cache in caches:
        hidden, url = cache.config.hidden, cache.store.url
        for states, numbers in (
            ("Hidden states of layers", hidden.layers),
            ("Attention inputs of blocks", hidden.attention),
        ):
            if numbers:
                logger.warning("%s %s of %s are left out of the mixture", states, numbers, url)
    first = caches[0].manifest
    teachers = [
        {**cache.manifest["teacher"], "weight": weight}
        for cache, weight in zip(caches, weights, strict=True)
    ]
    return CacheDraft(
        sources=[url for url, _ in members],
        manifest=manifest_like(
            first,
            counts,
            teacher={**first["teacher"], "ensemble": teachers},
            codec=codec.model_dump(),
            hidden={"layers": [], "codec": first["hidden"]["codec"]},
            labels=labels or None,
            converted_from=[{"codec": cache.manifest["codec"]} for cache in caches],
        ),
        counts=counts,
        learn=lambda: job.learn(group_keys(sorted(counts), counts, LEARN_TOKENS)[0]),
        rows=job.rows,
        padding_mass=max(cache.store.totals()["padding_mass"] for cache in caches),
    )


def _check_vocabularies(caches: list[SignalCache]) -> None:
    first = caches[0]
    names = ("vocabulary", "size")
    wanted = {name: first.manifest["tokenizer"].get(name) for name in names}
    for cache in caches[1:]:
        found = {name: cache.manifest["tokenizer"].get(name) for name in names}
        difference = first_difference(wanted, found)
        if difference:
            field, here, there = difference
            raise CacheError(
                f"The caches {first.store.url} and {cache.store.url} differ in tokenizer.{field} "
                f"({here} and {there}); an ensemble needs teachers of one vocabulary."
            )


def _check_codec(codec: DistributionCodec, caches: list[SignalCache]) -> None:
    """Raise `CacheError` where a mixture of the members cannot be stored in the codec."""
    if is_label_codec(codec) and all(cache.config.has_labels for cache in caches):
        return
    kinds = {_kind(cache.config.codec): cache for cache in caches}
    if len(kinds) > 1:
        about = ", ".join(f"{one.store.url}: {KINDS[kind]}" for kind, one in kinds.items())
        raise CacheError(
            f"The members store different kinds of signals ({about}); convert the fuller ones "
            "first (`distill cache convert`), so that all are of one kind."
        )
    (kind,) = kinds
    names = " and ".join(sorted({f"`{cache.config.codec.name}`" for cache in caches}))
    if is_label_codec(codec):
        raise CacheError(
            f"A mixture of {names} cannot be stored as `label`: the caches do not say what the "
            "labels are; use members in `label` (`distill cache convert`, with `--data`)."
        )
    if is_full_codec(codec):
        raise CacheError(
            f"A mixture has no final hidden state, so it cannot be stored as `{codec.name}`; use "
            "`topk`, `nucleus`, `hybrid` or `sampled`."
        )
    if kind != "none" and codec.tail != kind:
        raise CacheError(
            f"A mixture of {names} ({KINDS[kind]}) cannot be stored as `{codec.name}` "
            f"({KINDS[codec.tail]}); use {names}, or members in `final_hidden`."
        )
    if is_bucket_codec(codec) and kind == "bucket":
        stored = [readable_temperature(cache.config.codec) for cache in caches]
        if codec.temperatures != [1.0] or stored != [1.0] * len(caches):
            raise CacheError(
                f"A mixture of {names} is known at temperature 1 only, and only where its members "
                "store it; leave `temperatures` out, or use members in `final_hidden`."
            )


def _common_counts(caches: list[SignalCache], common: bool) -> dict[str, int]:
    counts = token_counts(caches[0])
    shared = {key: n for key, n in counts.items() if all(key in cache for cache in caches)}
    lacking = max(len(cache.keys()) for cache in caches) - len(shared)
    if lacking and not common:
        raise CacheError(
            f"The members hold different examples ({len(shared)} are in all of them); build them "
            "from one recipe's data, or keep what they share with `--common`."
        )
    if not shared:
        raise CacheError("The members have no example in common.")
    return shared


class _Ensemble:
    """Decodes the members of an ensemble and encodes their mixture."""

    def __init__(
        self,
        caches: list[SignalCache],
        weights: list[float],
        codec: DistributionCodec,
        labels: bool,
    ) -> None:
        self.caches, self.weights, self.codec, self.labels = caches, weights, codec, labels
        self.vocabulary = vocabulary_of(caches[0].manifest)
        self.kind = _kind(caches[0].config.codec)

    def learn(self, sample: list[str]) -> dict[str, Assets]:
        """What the codec learns from the mixture of some examples."""
        if not self.codec.learns:
            return {}
        assert is_sparse_codec(self.codec)  # `_check_codec` refused others
        seeds_N, decoded = self._seeds(sample), self._decoded(sample)
        chunk: HasLogits
        if self.kind == "none":
            chunk = MixtureChunk(decoded, self.weights, seeds_N)
        else:
            tokens_E, ids_E, weights_E = self._entries(decoded)
            top = _padded(tokens_E, ids_E, weights_E, len(seeds_N), self._tail(decoded))
            sparse = SparseDistribution(top.ids_NK, top.logprobs_NK, top.tails.get(1.0))
            chunk = SparseChunk(sparse, self.vocabulary, seeds_N)
        return {"distribution": self.codec.learn(chunk)}

    def rows(self, keys: list[str], assets: dict[str, Assets]) -> list[SignalColumns]:
        """The columns of some examples."""
        columns = self._encode(keys, assets.get("distribution", {}))
        if self.labels:
            columns |= label_columns(self._mixed_labels(keys))
        return split_columns(columns, [self.caches[0].tokens(key) for key in keys])

    def _encode(self, keys: list[str], assets: Assets) -> SignalColumns:
        if is_label_codec(self.codec):
            return self.codec.columns(self._mixed_labels(keys))
        assert is_sparse_codec(self.codec)  # `_check_codec` refused others
        seeds_N, decoded = self._seeds(keys), self._decoded(keys)
        if self.kind == "none":
            chunk = MixtureChunk(decoded, self.weights, seeds_N)
            size = rows_per_chunk(self.vocabulary, decoded[0].hidden_NH.device)
            return encode_by_chunks(self.codec, chunk, assets, size)
        tokens_E, ids_E, weights_E = self._entries(decoded)
        if is_sampled_codec(self.codec):
            return encode_weights(self.codec, tokens_E, ids_E, weights_E, seeds_N, assets)
        assert is_bucket_codec(self.codec)  # `_check_codec` refused others
        top = _padded(tokens_E, ids_E, weights_E, len(seeds_N), self._tail(decoded))
        return self.codec.encode_top(top, self.vocabulary, assets)

    def _seeds(self, keys: list[str]) -> np.ndarray:
        return np.concatenate([seeds_of(key, self.caches[0].tokens(key)) for key in keys])

    def _decoded(self, keys: list[str]) -> list[Any]:
        return [cache.signals(keys).distribution(1.0) for cache in self.caches]

    def _mixed_labels(self, keys: list[str]) -> Tensor:
        """Log of the weighted mean of the members' probabilities of the labels, (N,) float32."""
        own_MN = [cache.signals(keys).stored_logprobs().double() for cache in self.caches]
        weighted = [own_N + log(w) for own_N, w in zip(own_MN, self.weights, strict=True)]
        return torch.stack(weighted).logsumexp(0).float()

    def _entries(
        self, decoded: list[SparseDistribution]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(token, id, weight) of the mixture's entries, by token and id; weights in float64."""
        positions, weights = [], []
        for member, weight in zip(decoded, self.weights, strict=True):
            used_NK = member.logprobs_NK > -torch.inf
            tokens_E = used_NK.nonzero(as_tuple=True)[0].numpy()
            positions.append(tokens_E * self.vocabulary + member.ids_NK[used_NK].numpy())
            weights.append(weight * member.logprobs_NK[used_NK].double().exp().numpy())
        position_E, where = np.unique(np.concatenate(positions), return_inverse=True)
        total_E = np.bincount(where, np.concatenate(weights), minlength=len(position_E))
        tokens_E, ids_E = np.divmod(position_E, self.vocabulary)
        return tokens_E, ids_E, total_E

    def _tail(self, decoded: list[SparseDistribution]) -> dict[float, Tensor]:
        """The weighted sum of the tails, as a log; {} for samples, which have none."""
        tails = [
            one.tail_N.double() + log(weight)
            for one, weight in zip(decoded, self.weights, strict=True)
            if one.tail_N is not None
        ]
        return {1.0: torch.stack(tails).logsumexp(0).float()} if tails else {}


def _padded(
    tokens_E: np.ndarray,
    ids_E: np.ndarray,
    weights_E: np.ndarray,
    num_tokens: int,
    tails: dict[float, Tensor],
) -> TopEntries:
    """Entries given token by token, as rows padded to one length; unused slots come last."""
    counts_N = np.bincount(tokens_E, minlength=num_tokens)
    ids_NK = torch.zeros(num_tokens, int(counts_N.max()), dtype=torch.int64)
    logprobs_NK = torch.full(ids_NK.shape, -torch.inf)
    where = torch.from_numpy(tokens_E), torch.from_numpy(slots_of(tokens_E))
    ids_NK[where] = torch.from_numpy(ids_E)
    logprobs_NK[where] = torch.from_numpy(np.log(weights_E)).float()
    return sort_entries(ids_NK, logprobs_NK, tails)
