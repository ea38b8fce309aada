"""Convert a cache to another codec from its stored signals, without running the teacher.

    final_hidden      -> any codec        the full distribution is known; to `label` with the labels
    label             -> no other codec   the probabilities of other ids are unknown
    labels beside any -> kept, or `label` with nothing else; added to `final_hidden` with the labels
    topk, nucleus     -> topk, nucleus    with at most as many entries; the others join the tail
    hybrid, sampled   -> no other codec   the ids that were not drawn, and their mass, are unknown
    hidden states     -> any codec        of layers, and attention inputs: decoded and encoded
                                          again; rounding errors remain

Legend: N tokens counted, H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attar.errors import CacheError
from attar.models.structure import rows_per_chunk
from teachers.cache.attention_inputs import projection_assets_among
from teachers.cache.config import CacheConfig
from teachers.cache.reader import LABELS, SignalCache, Signals, part_of
from teachers.cache_tools.rewrite import (
    CacheDraft,
    group_keys,
    manifest_like,
    probe_among,
    token_counts,
    vocabulary_of,
)
from teachers.codecs.codec import (
    Assets,
    DistributionCodec,
    LayerCodec,
    SignalCodec,
    SignalColumns,
    is_full_codec,
    is_label_codec,
    is_sparse_codec,
    is_text_codec,
    split_columns,
)
from teachers.codecs.label import Label
from teachers.codecs.top_entries import is_bucket_codec
from teachers.runners.build_cache import LEARN_TOKENS
from teachers.runners.next_token import encode_by_chunks
from teachers.signals import (
    DenseDistribution,
    SparseDistribution,
    TeacherChunk,
    seeds_of,
)

REBUILD_ADVICE = "build it again with that codec, or with `final_hidden`, which converts to any"


LabelsOf = Callable[[list[str]], list[np.ndarray | None]]  # of examples by key; None: not known


@dataclass(frozen=True)
class SparseChunk:
    """Tokens of which some entries are known, for codecs to learn from; the rest is uniform."""

    sparse: SparseDistribution
    vocabulary: int
    seeds_N: np.ndarray

    def logits(self) -> Tensor:
        """Float32 logits (N, V); ids without any mass get -1e4."""
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
        """Tokens start..stop."""
        part = self.sparse.rows(start, stop)
        return SparseChunk(part, self.vocabulary, self.seeds_N[start:stop])


def converted(
    url: str,
    *,
    codec: DistributionCodec | None = None,
    layer_codec: LayerCodec | None = None,
    device: torch.device | None = None,
    labels: LabelsOf | None = None,
    add_labels: bool = False,
) -> CacheDraft:
    """Draft the cache with its distributions in `codec` and its layers in `layer_codec`.

    None keeps the stored columns, bit for bit, and so are labels' log-probabilities kept; with
    `add_labels` they are made. labels: gives the labels of examples, which no cache holds, to make
    log-probabilities. Raises `CacheError` where the cache does not hold the information that the
    new cache needs.
    """
    cache = SignalCache(url, device=device)
    config = cache.config
    codec = None if codec is None else _with_temperatures(codec, config.codec)
    codec = None if codec == config.codec else codec
    layer_codec = None if layer_codec == config.hidden.codec else layer_codec
    if layer_codec is not None and not config.hidden.parts:
        raise CacheError(f"The cache {url} has no hidden states of layers to convert.")
    if codec is None and layer_codec is None and not add_labels:
        raise CacheError(f"The cache {url} is in that codec already; there is nothing to convert.")
    if codec is not None:
        if is_text_codec(config.codec):
            raise CacheError(
                f"The cache {url} holds `{config.codec.name}` of texts, which have no other codec: "
                "leave `--codec` out."
            )
        if not (config.labels and is_label_codec(codec)):
            check_convertible(config.codec, codec, url)
    _check_labels(url, config, codec, labels, add_labels)
    if codec is not None and not is_label_codec(codec) and not add_labels:
        labels = None  # nothing reads them
    job = _Conversion(cache, codec, layer_codec, device or torch.device("cpu"), labels)
    counts = token_counts(cache)
    new_codec, new_layer_codec = codec or config.codec, layer_codec or config.hidden.codec
    hidden = {**cache.manifest["hidden"], "codec": new_layer_codec.model_dump()}
    was = {"codec": cache.manifest["codec"], "hidden": cache.manifest["hidden"]}
    beside = add_labels or (config.labels and not is_label_codec(new_codec))
    return CacheDraft(
        sources=[url],
        manifest=manifest_like(
            cache.manifest,
            counts,
            codec=new_codec.model_dump(),
            hidden=hidden,
            labels=beside or None,
            converted_from=was,
        ),
        counts=counts,
        learn=job.learn,
        rows=job.rows,
        padding_mass=cache.store.totals()["padding_mass"],
    )


def _with_temperatures(wanted: DistributionCodec, own: SignalCodec) -> DistributionCodec:
    """The wanted codec with the stored temperatures, unless it names temperatures itself."""
    if not is_bucket_codec(wanted) or not is_bucket_codec(own):
        return wanted
    if "temperatures" in wanted.model_fields_set:
        return wanted
    return wanted.model_copy(update={"temperatures": own.temperatures})


def _check_labels(
    url: str,
    config: CacheConfig,
    codec: DistributionCodec | None,
    labels: LabelsOf | None,
    add_labels: bool,
) -> None:
    """Raise `CacheError` where labels' log-probabilities cannot be made, or need not be."""
    to_label = codec is not None and is_label_codec(codec)
    fault = None
    if add_labels and is_text_codec(config.codec):
        fault = f"holds `{config.codec.name}` of texts, which have no next token"
    elif config.has_labels and (add_labels or labels is not None):
        fault = "has the log-probabilities of the text's own tokens already"
    elif add_labels and to_label:
        fault = "is to be stored in `label`, which is these alone"
    if fault is not None:
        option = "--labels" if add_labels else "--data"
        raise CacheError(f"The cache {url} {fault}; leave `{option}` out.")
    if add_labels and not is_full_codec(config.codec):
        raise CacheError(
            f"The cache {url} holds `{config.codec.name}`, from which the log-probability of every "
            "token is not known; build it again with `cache.labels: true`."
        )
    if labels is None and (add_labels or (to_label and not config.labels)):
        raise CacheError(
            f"The cache {url} does not hold the text's own tokens, whose probabilities are to be "
            "stored; name the recipe or run that has them with `--data`."
        )


def check_convertible(own: SignalCodec, wanted: DistributionCodec, url: str) -> None:
    """Raise `CacheError` where the `wanted` codec needs what `own` has not stored."""
    reason = _why_not_convertible(own, wanted)
    if reason:
        raise CacheError(f"The cache {url} {reason}; {REBUILD_ADVICE}.")


def _why_not_convertible(own: SignalCodec, wanted: DistributionCodec) -> str | None:
    if not is_bucket_codec(own):
        if is_label_codec(own):
            return (
                f"holds the probabilities of the text's own tokens alone (`{own.name}`), and "
                f"`{wanted.name}` needs those of other ids"
            )
        if is_full_codec(own):
            return None
        return (
            f"holds samples (`{own.name}`): the ids that were not drawn are unknown, so they "
            f"cannot become `{wanted.name}`"
        )
    if not is_bucket_codec(wanted):
        return (
            f"holds the largest entries only (`{own.name}`), and `{wanted.name}` needs the full "
            "distribution"
        )
    if wanted.k > own.k:
        return f"has at most {own.k} entries a token, `{wanted.name}` is to have {wanted.k}"
    wanted_mass, own_mass = getattr(wanted, "mass", 0.0), getattr(own, "mass", 1.0)
    if wanted_mass > own_mass:
        return f"has entries up to a mass of {own_mass:g}, not {wanted_mass:g}"
    lacking = [t for t in wanted.temperatures if t not in own.temperatures]
    if lacking:
        return f"holds temperatures {own.temperatures}, not {lacking[0]:g}"
    return None


class _Conversion:
    """Encodes the decoded signals of a cache; where a codec is None, its columns are copied."""

    def __init__(
        self,
        cache: SignalCache,
        codec: DistributionCodec | None,
        layer_codec: LayerCodec | None,
        device: torch.device,
        labels: LabelsOf | None,
    ) -> None:
        self.cache, self.codec, self.layer_codec = cache, codec, layer_codec
        self.device, self.labels = device, labels
        self.vocabulary = vocabulary_of(cache.manifest)

    def learn(self) -> dict[str, Assets]:
        """Assets of the new cache: learned from the first examples, or copied."""
        stored = self.cache.store.assets() or {}
        counts = token_counts(self.cache)
        learned = probe_among(stored, counts)
        if self.labels is not None:
            learned = self._with_labels(learned)
        for part, own in stored.items():
            changes = (self.codec if part_of(part) is None else self.layer_codec) is not None
            kept = projection_assets_among(own) if changes else own
            if part != "probe" and kept:
                learned[part] = kept
        sample = group_keys(sorted(counts), counts, LEARN_TOKENS)[0]
        signals = self.cache.signals(sample)
        if self.codec is not None and self.codec.learns:
            found = self._learn(self.codec, signals, sample)
            # The head is copied as stored: in memory it may have been widened to float32.
            own = stored.get("distribution", {})
            head = {name: own[name] for name in found if name.startswith("head_")}
            learned["distribution"] = {**found, **head}
        if self.layer_codec is not None and self.layer_codec.learns:
            for part in self.cache.config.hidden.parts:
                learned[part] = {
                    **learned.get(part, {}),
                    **self.layer_codec.learn(signals.states(part)),
                }
        return learned

    def rows(self, keys: list[str], assets: dict[str, Assets]) -> list[SignalColumns]:
        """The new columns of some examples: distributions, labels, hidden states."""
        signals, tokens = self.cache.signals(keys), [self.cache.tokens(key) for key in keys]
        copied = [self.cache.columns(key) for key in keys]
        new = [{n: c for n, c in row.items() if part_of(n) is None} for row in copied]
        labels = [{n: c for n, c in row.items() if part_of(n) == LABELS} for row in copied]
        layers = [
            {n: c for n, c in row.items() if part_of(n) not in (None, LABELS)} for row in copied
        ]
        if self.codec is not None:
            new = [{} for _ in keys]
            if not is_label_codec(self.codec):
                own = assets.get("distribution", {})
                new = split_columns(self._encode(self.codec, signals, keys, own), tokens)
        if self.labels is not None:
            found = self._encode(Label(), signals, keys, {})
            labels = split_columns(found, tokens)
        if self.layer_codec is not None:
            states = self._encode_layers(self.layer_codec, signals, assets)
            layers = split_columns(states, tokens)
        return [{**one, **own, **s} for one, own, s in zip(new, labels, layers, strict=True)]

    def _encode(
        self, codec: DistributionCodec, signals: Signals, keys: list[str], assets: Assets
    ) -> SignalColumns:
        own = self.cache.config.codec
        if not is_bucket_codec(own):
            chunk = self._full_chunk(signals, keys)
            size = rows_per_chunk(self.vocabulary, self.device)
            return encode_by_chunks(codec, chunk, assets, size)
        assert is_bucket_codec(codec)  # `check_convertible` refused others
        columns = {n: c for n, c in signals.columns.items() if part_of(n) is None}
        stored = self.cache.assets.get("distribution", {})
        entries = own.decode_top(columns, signals.num_tokens, stored)
        return codec.encode_top(entries, self.vocabulary, assets)

    def _encode_layers(
        self, codec: LayerCodec, signals: Signals, assets: dict[str, Assets]
    ) -> SignalColumns:
        columns = {}
        for part in self.cache.config.hidden.parts:
            own = assets.get(part, {})
            for suffix, column in codec.encode(signals.states(part), own).items():
                columns[f"{part}{suffix}"] = column
        return columns

    def _learn(self, codec: DistributionCodec, signals: Signals, keys: list[str]) -> Assets:
        own = self.cache.config.codec
        if not is_bucket_codec(own):
            return codec.learn(self._full_chunk(signals, keys))
        assert is_sparse_codec(codec)  # `check_convertible` refused others
        sparse = signals.distribution(readable_temperature(own))
        assert isinstance(sparse, SparseDistribution)
        return codec.learn(SparseChunk(sparse, self.vocabulary, self._seeds(keys)))

    def _full_chunk(self, signals: Signals, keys: list[str]) -> TeacherChunk:
        found = signals.distribution(1.0)
        assert isinstance(found, DenseDistribution)  # `check_convertible` refused others
        labels_N = None if self.labels is None else self._labels(keys)
        seeds_N = self._seeds(keys)
        return TeacherChunk(found.hidden_NH, found.head, seeds_N, labels_N=labels_N)

    def _labels(self, keys: list[str]) -> Tensor:
        """Labels (N,) of examples. Raises `CacheError` where they do not fit the cache."""
        assert self.labels is not None, "`converted` refused a conversion without"
        found = []
        for key, labels in zip(keys, self.labels(keys), strict=True):
            if labels is None or len(labels) != self.cache.tokens(key):
                raise CacheError(
                    f"The data of `--data` do not hold example {key} of the cache "
                    f"{self.cache.store.url}; name the recipe or run that the cache was made of."
                )
            found.append(labels)
        return torch.from_numpy(np.concatenate(found))

    def _with_labels(self, learned: dict[str, Assets]) -> dict[str, Assets]:
        """The probe's assets with the labels of its examples, as a build keeps them."""
        probe = learned.get("probe", {})
        keys = [name.removesuffix(".counted") for name in probe if name.endswith(".counted")]
        labels = {f"{key}.labels": self._labels([key]) for key in keys}
        return {**learned, "probe": {**probe, **labels}} if keys else learned

    def _seeds(self, keys: list[str]) -> np.ndarray:
        return np.concatenate([seeds_of(key, self.cache.tokens(key)) for key in keys])


def readable_temperature(codec: SignalCodec) -> float:
    """A temperature at which the codec can be read: 1 if possible."""
    temperatures = codec.temperatures if is_bucket_codec(codec) else [1.0]
    return 1.0 if 1.0 in temperatures else temperatures[0]
