"""Verify a cache: its files, counts, content and tokenizer, and its teacher by running it again.

    files       every file's size and SHA-256, and the manifest and assets each was made for
    counts      examples, tokens and keys of the shards against the manifest; missing shards
    content     every row decodes to finite numbers over ids that exist
    tokenizer   id -> string map, added tokens, chat template
    teacher     weights, and the signals of a few examples whose ids every build keeps

The teacher's numbers differ a little between machines and batches, so decoded targets are compared,
not bytes: the mean total variation distance between stored and recomputed targets must be at most
`MAX_FLOAT32_DISTANCE` (a teacher in float32) or `MAX_DISTANCE` (16 bits, quantised). Random draws
change with the last bit of a probability, so for sampled codecs only ids to which the teacher gives
`LIKELY_PROBABILITY` or more are compared one by one, and all others together. Measured distances:
SmolLM2-135M in bfloat16 and in float32 0.008 to 0.014, depending on the codec; after three steps of
fine-tuning 0.05 to 0.07; with one block of thirty removed 0.10 to 0.19. From labels, alone or
beside a codec, the distance is estimated (`label_distance`). Hidden states must have a mean cosine
of at least `MIN_COSINE`, which leaves room for such differences and a coarse codec.

Legend: N tokens counted, K entries, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.errors import CacheError
from attar.files import fingerprint
from attar.models.structure import Head, rows_per_chunk
from attar.models.tokenizers import tokenizer_identity
from teachers.cache.attention_inputs import projection_assets, projection_assets_among
from teachers.cache.config import config_of
from teachers.cache.reader import SignalCache, Signals
from teachers.cache.repair import faults_in
from teachers.cache.store import SignalStore
from teachers.cache_tools.convert import readable_temperature
from teachers.cache_tools.rewrite import group_keys, token_counts, vocabulary_of
from teachers.cache_tools.verify_server import served_teacher, server_faults
from teachers.codecs.codec import is_label_codec, is_text_codec
from teachers.codecs.label import label_distance
from teachers.codecs.unbiased_entries import is_sampled_codec
from teachers.load import TeacherConfig, load_teacher, teacher_identity
from teachers.runners.build_cache import probe_requests
from teachers.runners.next_token import TeacherRunner
from teachers.signals import Distribution, KnownLogits, SparseDistribution

logger = logging.getLogger(__name__)

LIKELY_PROBABILITY = 0.1
MAX_FLOAT32_DISTANCE = 0.01
MAX_DISTANCE = 0.03
MIN_COSINE = 0.99
MAX_LOGPROB = 1e-4  # float32 sums of exponentials may pass 1 by so much
TOKENIZER_DIFFERENCES = {
    "vocabulary": "a different map from ids to strings",
    "chat_template": "a different chat template",
    "tokenizer": "different added tokens, merges or normalisation",
    "size": "a different number of ids",
}


def verify(
    url: str,
    *,
    tokenizer: Any = None,
    teacher: TeacherConfig | None = None,
    on_tokens: Callable[[int], None] = lambda n: None,
) -> list[str]:
    """The faults of a cache, one sentence each; [] when there are none.

    A given `tokenizer` or `teacher` is compared as well; the teacher's weights are loaded only if
    everything else is in order. Raises `CacheError` where there is no cache.
    """
    store = SignalStore(url)
    faults = faults_in(store)
    if faults:
        return faults
    manifest = _manifest(store)
    if tokenizer is not None:
        faults += _tokenizer_faults(manifest, tokenizer)
    try:
        cache = SignalCache(url, unfinished=True)
        counted = _count_faults(cache)
        faults += counted + _content_faults(cache, on_tokens)
        if teacher is not None and not faults:
            faults += _teacher_faults(cache, teacher)
    except CacheError as error:
        faults.append(str(error))
    return faults


def _manifest(store: SignalStore) -> dict[str, Any]:
    found = store.manifest()
    if found is None:
        raise CacheError(f"There is no cache at {store.url}; run `distill cache build` first.")
    return found


def teacher_of(
    url: str,
    model: str | None = None,
    *,
    trust_remote_code: bool = False,
    server: str | None = None,
    key_env: str | None = None,
) -> TeacherConfig:
    """The teacher that a cache's manifest names; `model`: load it from there instead.

    server, key_env: where a served teacher is asked. A cache never says so itself: it may come
    from elsewhere, and a key must go only where its owner says. Raises `CacheError` for an
    ensemble, whose signals no single model gives, for one in ids that are not the teacher's, and
    for a served one without an address.
    """
    manifest = _manifest(SignalStore(url))
    named = manifest["teacher"]
    if "transported" in manifest:
        raise CacheError(
            f"The cache {url} was transported to the ids of another tokenizer, which its teacher "
            "cannot read; verify the teacher's own cache with `--teacher`."
        )
    if named.get("ensemble"):
        raise CacheError(
            f"The cache is an ensemble of {len(named['ensemble'])} teachers, and no one of them "
            "gives its signals; verify its members' caches with `--teacher`."
        )
    served = named.get("server")
    if served is None and server is not None:
        raise CacheError("The cache is of a teacher that ran in its process; leave --server out.")
    if served is not None:
        return served_teacher(named, model, trust_remote_code, server, key_env)
    try:
        return TeacherConfig(
            model=model or named["model"],
            dtype=named["dtype"],
            quantization=named["quantization"],
            trust_remote_code=trust_remote_code,
        )
    except (KeyError, ValueError):
        raise CacheError("The manifest does not say how the teacher was loaded.") from None


# Tokenizer, counts, content --------------------------------------------------------------------


def _tokenizer_faults(manifest: dict[str, Any], tokenizer: Any) -> list[str]:
    found, named = tokenizer_identity(tokenizer), manifest["tokenizer"]
    differ = [name for name, value in found.items() if named.get(name, value) != value]
    if "chat_template" in differ or "vocabulary" in differ:
        differ = [name for name in differ if name != "tokenizer"]  # a consequence of these
    return [
        f"tokenizer.{name}: the cache was made with {TOKENIZER_DIFFERENCES[name]} ({named[name]}, "
        f"this tokenizer has {found[name]})"
        for name in differ
    ]


def _count_faults(cache: SignalCache) -> list[str]:
    data, counts = cache.manifest["data"], token_counts(cache)
    faults = []
    numbers = cache.store.entries()
    missing = [number for number in range(max(numbers, default=-1) + 1) if number not in numbers]
    if missing:
        names = ", ".join(f"{number:05d}" for number in missing[:5])
        faults.append(f"shards before the last one are missing: {names}")
    if len(counts) != data.get("examples"):
        faults.append(
            f"the cache has {len(counts)} of {data.get('examples')} examples: the build was "
            "stopped, is still running, or shards are lost"
        )
        return faults
    found = {"tokens": sum(counts.values()), "fingerprint": fingerprint(sorted(counts))}
    return faults + [
        f"data.{name}: the manifest says {data[name]}, the shards have {value}"
        for name, value in found.items()
        if data.get(name, value) != value
    ]


def _content_faults(cache: SignalCache, on_tokens: Callable[[int], None]) -> list[str]:
    """For each shard, the first group of examples that does not decode, and why."""
    faults = []
    counts = token_counts(cache)
    for number in cache.store.entries():
        keys = [row.key for row in cache.store.rows(number)]
        for group in group_keys(keys, counts):
            fault = _content_fault(cache, group)
            on_tokens(sum(counts[key] for key in group))
            if fault:
                faults.append(f"shard {number:05d}, from example {group[0]} on: {fault}")
                break
    return faults


def _content_fault(cache: SignalCache, keys: list[str]) -> str | None:
    codec = cache.config.codec
    found: Distribution | None = None
    try:
        signals = cache.signals(keys)
        if cache.config.has_labels:
            logprobs_N = signals.stored_logprobs()
            if logprobs_N.isnan().any() or (logprobs_N > MAX_LOGPROB).any():
                return "a label's log-probability is NaN or above 0"
        if not is_label_codec(codec):
            found = signals.distribution(readable_temperature(codec))
        states = [signals.hidden(layer) for layer in cache.config.hidden.layers]
        for block in cache.config.hidden.attention:
            made = signals.attention(block)
            states += [made.queries_NC, made.keys_ND, made.values_ND]
    except CacheError as error:
        return str(error)
    if isinstance(found, SparseDistribution):
        numbers = [found.logprobs_NK] + ([] if found.tail_N is None else [found.tail_N])
        if any((one.isnan() | (one == torch.inf)).any() for one in numbers):
            return "a probability is NaN or infinite"
    elif found is not None:
        states.append(found.logits_NV if isinstance(found, KnownLogits) else found.hidden_NH)
    if not all(one.isfinite().all() for one in states):
        return "a hidden state is NaN or infinite"
    return None


# The teacher -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TeacherComparison:
    """Stored against recomputed signals of a few examples.

    distance: mean total variation distance of the targets. cosines: of hidden states, by part.
    label_distance: the distance as estimated from labels that stand beside the targets; None where
    there are none.
    """

    tokens: int
    distance: float
    cosines: dict[str, float]
    label_distance: float | None = None


def _teacher_faults(cache: SignalCache, teacher: TeacherConfig) -> list[str]:
    if is_text_codec(cache.config.codec):
        raise CacheError(
            f"The cache holds `{cache.config.codec.name}` of whole texts, for which the teacher "
            "cannot be run again; leave `--teacher` out."
        )
    requests = [r for r in probe_requests(cache.store.assets() or {}) if r.key in cache]
    if not requests:
        return ["this cache keeps no example's ids, so its teacher cannot be run again"]
    if teacher.server is not None:
        return server_faults(cache, teacher)
    named, found = cache.manifest["teacher"].get("weights"), teacher_identity(teacher)["weights"]
    if None not in (named, found) and named != found:
        return [f"teacher.weights: the cache was made with {named}, {teacher.model} has {found}"]
    model = load_teacher(teacher)
    try:
        compared = compare_with_teacher(cache, model)
    except RuntimeError as error:  # shapes of matrices that do not fit
        about = str(error).split("\n")[0]
        return [f"{teacher.model} does not have the shape of the cache's teacher ({about})"]
    logger.info(
        "Over %d tokens: distance %.4f; cosine of hidden states %s",
        compared.tokens,
        compared.distance,
        {part: round(cosine, 4) for part, cosine in compared.cosines.items()} or "none",
    )
    exact = teacher.dtype == "float32" and teacher.quantization == "none"
    allowed = MAX_FLOAT32_DISTANCE if exact else MAX_DISTANCE
    faults = []
    if not compared.distance <= allowed:
        faults.append(
            f"the teacher gives other probabilities: {compared.distance:.3f} of the mass differs, "
            f"at most {allowed:g} is rounding"
        )
    if compared.label_distance is not None and not compared.label_distance <= allowed:
        faults.append(
            "the teacher gives other probabilities of the text's own tokens: about "
            f"{compared.label_distance:.3f} of the mass differs, at most {allowed:g} is rounding"
        )
    for part, cosine in compared.cosines.items():
        if not cosine >= MIN_COSINE:
            faults.append(
                f"the teacher's {part.replace('_', ' ')} differs: mean cosine {cosine:.3f}, "
                f"at least {MIN_COSINE:g} is rounding"
            )
    return faults + _map_faults(cache, model)


def _map_faults(cache: SignalCache, model: Any) -> list[str]:
    """Blocks whose stored maps to queries, keys and values differ from the teacher's."""
    faults = []
    for block in cache.config.hidden.attention:
        stored = projection_assets_among(cache.assets.get(f"attention_{block}", {}))
        own = projection_assets(model, block)
        for name in sorted({*stored, *own}):
            if not _are_close(stored.get(name), own.get(name)):
                faults.append(f"the teacher's attention {block} has a different `{name}`")
    return faults


def _are_close(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two maps differ by no more than states with a cosine of `MIN_COSINE` do."""
    if one is None or other is None or one.shape != other.shape:
        return False
    difference = (one.double() - other.double()).norm()
    return bool(difference <= (2 * (1 - MIN_COSINE)) ** 0.5 * other.double().norm())


@torch.inference_mode()
def compare_with_teacher(cache: SignalCache, model: Any) -> TeacherComparison:
    """Run the teacher again on the examples whose ids the cache keeps."""
    vocabulary, stored_assets = vocabulary_of(cache.manifest), cache.store.assets() or {}
    requests = [r for r in probe_requests(stored_assets) if r.key in cache]
    runner = TeacherRunner(model, vocabulary, config_of(cache.manifest))
    rows = runner.run(requests, stored_assets)
    columns = {n: np.concatenate([row[n].reshape(-1) for row in rows]) for n in rows[0]}
    old = cache.signals([request.key for request in requests])
    new = Signals(columns, old.num_tokens, cache.config, cache.assets)
    of_labels = None
    if cache.config.has_labels:
        of_labels = label_distance(old.stored_logprobs(), new.stored_logprobs())
    if is_label_codec(cache.config.codec):
        assert of_labels is not None
        distance, of_labels = of_labels, None
    else:
        distance = _distance(old, new, runner.head, runner.final_states(requests))
    cosines = {
        part: float(torch.cosine_similarity(old.states(part), new.states(part)).mean())
        for part in cache.config.hidden.parts
    }
    return TeacherComparison(old.num_tokens, distance, cosines, of_labels)


def _distance(old: Signals, new: Signals, head: Head, final_NH: Tensor) -> float:
    """The mean total variation distance of decoded targets."""
    codec, vocabulary = old.config.codec, len(head.weight_VH)
    temperature, distance = readable_temperature(codec), 0.0
    was, now = old.distribution(temperature), new.distribution(temperature)
    size = rows_per_chunk(vocabulary, torch.device("cpu"))
    least = LIKELY_PROBABILITY if is_sampled_codec(codec) else 0.0
    for start in range(0, old.num_tokens, size):
        rows_N = slice(start, start + size)
        logits_NV = head.logits(final_NH[rows_N]) / temperature
        likely_NV = logits_NV.softmax(-1).cpu() >= least
        pair = [_outcomes(d.rows(start, start + size), vocabulary, likely_NV) for d in (was, now)]
        distance += 0.5 * float((pair[0] - pair[1]).abs().sum())
    return distance / old.num_tokens


def _outcomes(decoded: Distribution, vocabulary: int, likely_NV: Tensor) -> Tensor:
    """Probabilities (N, V + 1): of likely ids, 0 at other ids, and last of all others together."""
    if isinstance(decoded, SparseDistribution):
        empty_NV = torch.zeros(len(decoded.ids_NK), vocabulary)
        p_NV = empty_NV.scatter_add_(-1, decoded.ids_NK, decoded.logprobs_NK.exp())
        tail_N = torch.zeros(len(p_NV)) if decoded.tail_N is None else decoded.tail_N.exp()
    else:
        p_NV = decoded.logprobs().exp().cpu()
        tail_N = torch.zeros(len(p_NV))
    likely = p_NV * likely_NV
    rest_N1 = (p_NV * ~likely_NV).sum(-1, keepdim=True) + tail_N[:, None]
    return torch.cat([likely, rest_N1], -1)
