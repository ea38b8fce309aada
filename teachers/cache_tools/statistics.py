"""Statistics of a cache: examples, tokens, bytes a token by column, histograms of the targets.

Bytes of a column are those of its compressed buffers in the shards; together with Arrow's overhead
(schema, headers, footer) they sum to the size of the files.

Legend: N tokens counted, K entries, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import groupby
from math import ceil, exp, inf, log
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.models.structure import rows_per_chunk
from teachers.cache.reader import SignalCache
from teachers.cache_tools.convert import readable_temperature
from teachers.cache_tools.rewrite import vocabulary_of
from teachers.codecs.codec import is_label_codec
from teachers.signals import DenseDistribution, Distribution, KnownLogits, SparseDistribution

DENSE_TOKENS = 16384  # measured of full distributions: each costs a product with the head
NLL_EDGES = [0.0, 0.1, 0.25, 0.5, *map(float, range(1, 11)), 12.0, 15.0, 20.0]
MASS_EDGES = [0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0]


@dataclass
class Histogram:
    """How many tokens have a value in each bin: counts[i] in [edges[i], edges[i + 1]).

    whole: the values are whole numbers.
    """

    edges: list[float]
    counts: list[int]
    whole: bool = False
    tokens: int = 0
    mean: float = 0.0

    def add(self, values: Tensor) -> None:
        """Count some tokens' values; values beyond the edges count in the outermost bins."""
        if not len(values):
            return
        numbers = values.double().cpu().numpy()
        inner = np.array(self.edges[1:-1])
        found = np.bincount(np.digitize(numbers, inner), minlength=len(self.counts))
        self.counts = [int(a + b) for a, b in zip(self.counts, found, strict=True)]
        self.tokens += len(numbers)
        self.mean += (float(numbers.mean()) - self.mean) * len(numbers) / self.tokens


def _empty_histogram(edges: list[float], whole: bool = False) -> Histogram:
    return Histogram(edges, [0] * (len(edges) - 1), whole)


@dataclass
class Statistics:
    """Statistics of one cache. Bytes are on disk; `columns` and `overhead` sum to `shard_bytes`.

    entropy: of the decoded targets at `temperature`, in nats. A tail counts as one outcome, so it
    is a lower bound; for samples it is the entropy of the drawn entries. kept: mass of the entries
    (for samples: the sum of their weights, 1 on average). entries: entries of a token. The last
    two are None where the full distribution is stored. nll: where labels' log-probabilities are
    stored, which of codec `label` is all: minus these, in nats. impossible: tokens to whose label
    the teacher gives no probability at all; they are not in `nll`.
    """

    examples: int
    wanted_examples: int | None
    tokens: int
    shards: int
    codec: str
    layers: list[int]
    attention: list[int]
    temperature: float
    shard_bytes: int
    columns: dict[str, int]
    overhead: int
    assets: dict[str, int]
    entropy: Histogram | None
    kept: Histogram | None
    entries: Histogram | None
    nll: Histogram | None
    impossible: int = 0

    @property
    def bytes_per_token(self) -> float:
        """Bytes of the shards a counted token; assets are not included."""
        return self.shard_bytes / max(1, self.tokens)

    @property
    def perplexity(self) -> float | None:
        """The teacher's perplexity on the text, or None where the labels are not stored."""
        return None if self.nll is None or not self.nll.tokens else exp(self.nll.mean)

    def values(self) -> dict[str, Any]:
        """The values for JSON; an open end of a histogram is null."""
        sizes = {"bytes_per_token": self.bytes_per_token, "perplexity": self.perplexity}
        found = {**asdict(self), **sizes}
        for name in ("entropy", "kept", "entries", "nll"):
            if found[name] is not None:
                found[name]["edges"] = [None if e == inf else e for e in found[name]["edges"]]
        return found


@torch.inference_mode()
def statistics(
    url: str,
    *,
    dense_tokens: int = DENSE_TOKENS,
    device: torch.device | None = None,
    on_tokens: Callable[[int], None] = lambda n: None,
) -> Statistics:
    """Read a whole cache once, finished or not, and measure it.

    For full distributions, the histograms cover about the first `dense_tokens` tokens. Raises
    `CacheError` for damaged files.
    """
    cache = SignalCache(url, unfinished=True, device=device)
    found = _empty(cache)
    for number, entry in cache.store.entries().items():
        found.shard_bytes += entry["bytes"]
        reader = cache.store.open_shard(number, entry)
        for batch, rows in groupby(cache.store.rows(number), lambda row: row.batch):
            keys = [row.key for row in rows]
            for name, size in reader.column_bytes(batch).items():
                found.columns[name] = found.columns.get(name, 0) + size
            signals = cache.signals(keys)
            if found.nll is not None:
                _add_labels(found, signals.stored_logprobs())
            entropy = found.entropy
            if entropy is not None and (found.kept is not None or entropy.tokens < dense_tokens):
                decoded = signals.distribution(found.temperature)
                _add(found, decoded, vocabulary_of(cache.manifest))
            found.examples += len(keys)
            found.tokens += signals.num_tokens
            on_tokens(signals.num_tokens)
    found.overhead = found.shard_bytes - sum(found.columns.values())
    return found


def _empty(cache: SignalCache) -> Statistics:
    codec, vocabulary = cache.config.codec, vocabulary_of(cache.manifest)
    halves = ceil(2 * log(vocabulary)) if vocabulary > 1 else 1
    powers = [float(2**i) for i in range(ceil(log(max(2, vocabulary), 2)) + 1)]
    labels, dense = is_label_codec(codec), codec.tail == "none"
    assets = cache.store.assets() or {}
    return Statistics(
        examples=0,
        wanted_examples=cache.manifest["data"].get("examples"),
        tokens=0,
        shards=len(cache.store.entries()),
        codec=codec.name,
        layers=cache.config.hidden.layers,
        attention=cache.config.hidden.attention,
        temperature=readable_temperature(codec),
        shard_bytes=0,
        columns={},
        overhead=0,
        assets={
            part: sum(tensor.numel() * tensor.element_size() for tensor in own.values())
            for part, own in assets.items()
        },
        entropy=None if labels else _empty_histogram([i / 2 for i in range(halves + 1)]),
        kept=None if dense else _empty_histogram([*MASS_EDGES, inf]),
        entries=None if dense else _empty_histogram([0.0, *powers, inf], whole=True),
        nll=_empty_histogram([*NLL_EDGES, inf]) if cache.config.has_labels else None,
    )


# Histograms ------------------------------------------------------------------------------------


def _add_labels(found: Statistics, logprobs_N: Tensor) -> None:
    assert found.nll is not None, "a cache of labels"
    possible_N = logprobs_N > -torch.inf
    found.nll.add(-logprobs_N[possible_N])
    found.impossible += int((~possible_N).sum())


def _add(found: Statistics, decoded: Distribution, vocabulary: int) -> None:
    assert found.entropy is not None, "a codec of distributions"
    if isinstance(decoded, KnownLogits):
        found.entropy.add(entropy_of(decoded))
        return
    if isinstance(decoded, DenseDistribution):
        size = rows_per_chunk(vocabulary, decoded.hidden_NH.device)
        for start in range(0, len(decoded.hidden_NH), size):
            found.entropy.add(entropy_of(decoded.rows(start, start + size)))
        return
    assert found.kept is not None and found.entries is not None  # noqa: PT018
    used_NK = decoded.logprobs_NK > -torch.inf
    weights_N = decoded.logprobs_NK.double().exp().sum(-1)
    if decoded.tail_N is not None:
        weights_N = 1 - decoded.tail_N.double().exp()
    found.entropy.add(entropy_of(decoded))
    found.kept.add(weights_N)
    found.entries.add(used_NK.sum(-1))


def entropy_of(decoded: Distribution) -> Tensor:
    """Entropy (N,) in nats of decoded targets; a tail is one outcome, samples are normalised."""
    if not isinstance(decoded, SparseDistribution):
        logprobs_NV = decoded.logprobs()
        return -(logprobs_NV.exp() * logprobs_NV).sum(-1)
    outcomes = decoded.logprobs_NK
    if decoded.tail_N is not None:
        outcomes = torch.cat([outcomes, decoded.tail_N[:, None]], -1)
    logprobs_NK = outcomes.log_softmax(-1)
    return -(logprobs_NK.exp() * logprobs_NK.clamp(min=-1e4)).sum(-1)
