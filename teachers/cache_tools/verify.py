"""Is a cache what it says it is? Files, counts, tokenizer; and, asked again, its teacher.

    files       every file's size and SHA-256, and what each was made for
    counts      examples, tokens and keys of the shards against the manifest; lacking shards
    content     every row decodes to finite numbers over ids that exist
    tokenizer   id -> string map, added tokens, chat template
    teacher     weights, and the signals of a few examples whose ids every build keeps

The teacher's numbers differ a little between machines and batches, so rows are compared by what
they mean: the mean total variation distance between stored and recomputed targets is at most
`FLOAT32_DISTANCE` (a teacher in float32) or `DISTANCE` (16 bits, quantised). Draws in the tail
change with the last bit of a probability, so of samples only the ids to which the teacher gives
`LIKELY` or more are looked at one by one, all others together. SmolLM2-135M in bfloat16 and in
float32 are 0.008 to 0.014 apart by codec; three steps of fine-tuning 0.05 to 0.07, one block of
thirty less 0.10 to 0.19. Hidden states have a mean cosine of `COSINE` or more, which is what a
coarse codec leaves of such differences.

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
from attar.models.tokenizers import tokenizer_identity
from teachers.cache.attention_inputs import attention_maps, maps_among
from teachers.cache.config import config_of
from teachers.cache.reader import SignalCache, Signals
from teachers.cache.store import SignalStore
from teachers.cache_tools.convert import a_temperature
from teachers.cache_tools.rewrite import counts_of, in_groups, vocabulary_of
from teachers.codecs.codec import TEXT_CODECS
from teachers.load import TeacherConfig, load_teacher, teacher_identity
from teachers.runners.build_cache import probe_requests
from teachers.runners.next_token import TeacherRunner, rows_per_chunk
from teachers.signals import Distribution, KnownLogits, SparseDistribution

logger = logging.getLogger(__name__)

LIKELY = 0.1
FLOAT32_DISTANCE = 0.01
DISTANCE = 0.03
COSINE = 0.99
TOKENIZER_PARTS = {
    "vocabulary": "another map from ids to strings",
    "chat_template": "another chat template",
    "tokenizer": "other added tokens or another chat template",
    "size": "another number of ids",
}


def verify(
    url: str,
    *,
    tokenizer: Any = None,
    teacher: TeacherConfig | None = None,
    on_tokens: Callable[[int], None] = lambda n: None,
) -> list[str]:
    """What is wrong with a cache, one sentence a fault; [] when all is well.

    With a loaded `tokenizer` or a `teacher` these are compared as well; the teacher's weights are
    loaded only if everything else is in order. Raises `CacheError` where there is no cache.
    """
    store = SignalStore(url)
    faults = store.faults()
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
    url: str, model: str | None = None, *, trust_remote_code: bool = False
) -> TeacherConfig:
    """The teacher that a cache's manifest names, or the same at another place: `model`.

    Raises `CacheError` for an ensemble, which no one model can answer for.
    """
    named = _manifest(SignalStore(url))["teacher"]
    if named.get("ensemble"):
        raise CacheError(
            f"The cache is of {len(named['ensemble'])} teachers together, and none of them gives "
            "its signals; verify the caches it was made from with `--teacher`."
        )
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
        differ = [name for name in differ if name != "tokenizer"]  # it follows from them
    return [
        f"tokenizer.{name}: the cache was made with {TOKENIZER_PARTS[name]} ({named[name]}, this "
        f"tokenizer has {found[name]})"
        for name in differ
    ]


def _count_faults(cache: SignalCache) -> list[str]:
    data, counts = cache.manifest["data"], counts_of(cache)
    faults = []
    numbers = cache.store.entries()
    lacking = [number for number in range(max(numbers, default=-1) + 1) if number not in numbers]
    if lacking:
        names = ", ".join(f"{number:05d}" for number in lacking[:5])
        faults.append(f"shards are lacking before the last one: {names}")
    if len(counts) != data.get("examples"):
        faults.append(
            f"{len(counts)} of {data.get('examples')} examples are there: the build was stopped, "
            "is still running, or shards are lost"
        )
        return faults
    found = {"tokens": sum(counts.values()), "fingerprint": fingerprint(sorted(counts))}
    return faults + [
        f"data.{name}: the manifest says {data[name]}, the shards have {value}"
        for name, value in found.items()
        if data.get(name, value) != value
    ]


def _content_faults(cache: SignalCache, on_tokens: Callable[[int], None]) -> list[str]:
    """The first example group of each shard that does not decode, in words."""
    faults = []
    counts = counts_of(cache)
    for number in cache.store.entries():
        keys = [row.key for row in cache.store.rows(number)]
        for group in in_groups(keys, counts):
            fault = _content_fault(cache, group)
            on_tokens(sum(counts[key] for key in group))
            if fault:
                faults.append(f"shard {number:05d}, from example {group[0]} on: {fault}")
                break
    return faults


def _content_fault(cache: SignalCache, keys: list[str]) -> str | None:
    try:
        signals = cache.signals(keys)
        found = signals.distribution(a_temperature(cache.config.codec))
        states = [signals.hidden(layer) for layer in cache.config.hidden.layers]
        for block in cache.config.hidden.attention:
            made = signals.attention(block)
            states += [made.queries_NC, made.keys_ND, made.values_ND]
    except CacheError as error:
        return str(error)
    if isinstance(found, SparseDistribution):
        numbers = [found.logprobs_NK] + ([] if found.tail_N is None else [found.tail_N])
        if any((one.isnan() | (one == torch.inf)).any() for one in numbers):
            return "a probability that is no number"
    else:
        states.append(found.logits_NV if isinstance(found, KnownLogits) else found.hidden_NH)
    if not all(one.isfinite().all() for one in states):
        return "a hidden state that is no number"
    return None


# The teacher -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Stored against recomputed signals of the probe: see the file's head. cosines: by part."""

    tokens: int
    distance: float
    cosines: dict[str, float]


def _teacher_faults(cache: SignalCache, teacher: TeacherConfig) -> list[str]:
    if cache.config.codec.name in TEXT_CODECS:
        raise CacheError(
            f"The cache holds `{cache.config.codec.name}` of whole texts, of which the teacher is "
            "not asked again; leave `--teacher` out."
        )
    requests = [r for r in probe_requests(cache.store.assets() or {}) if r.key in cache]
    if not requests:
        return ["no example's ids are kept in this cache, so its teacher cannot be asked again"]
    named, found = cache.manifest["teacher"].get("weights"), teacher_identity(teacher)["weights"]
    if None not in (named, found) and named != found:
        return [f"teacher.weights: the cache was made with {named}, {teacher.model} has {found}"]
    model = load_teacher(teacher)
    try:
        compared = compare(cache, model)
    except RuntimeError as error:  # products of matrices that do not fit
        about = str(error).split("\n")[0]
        return [f"{teacher.model} is not of the shape of the cache's teacher ({about})"]
    logger.info(
        "Over %d tokens: distance %.4f; cosine of hidden states %s",
        compared.tokens,
        compared.distance,
        {part: round(cosine, 4) for part, cosine in compared.cosines.items()} or "none",
    )
    exact = teacher.dtype == "float32" and teacher.quantization == "none"
    allowed = FLOAT32_DISTANCE if exact else DISTANCE
    faults = []
    if not compared.distance <= allowed:
        faults.append(
            f"the teacher gives other probabilities: {compared.distance:.3f} of the mass lies "
            f"elsewhere, at most {allowed:g} is rounding"
        )
    for part, cosine in compared.cosines.items():
        if not cosine >= COSINE:
            faults.append(
                f"the teacher's {part.replace('_', ' ')} is another: mean cosine {cosine:.3f}, "
                f"rounding leaves {COSINE:g}"
            )
    return faults + _map_faults(cache, model)


def _map_faults(cache: SignalCache, model: Any) -> list[str]:
    """Blocks whose stored maps to queries, keys and values are not the teacher's."""
    faults = []
    for block in cache.config.hidden.attention:
        stored = maps_among(cache.assets.get(f"attention_{block}", {}))
        own = attention_maps(model, block)
        for name in sorted({*stored, *own}):
            if not _alike(stored.get(name), own.get(name)):
                faults.append(f"the teacher's attention {block} has another `{name}`")
    return faults


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two maps differ by no more than states of cosine `COSINE` do."""
    if one is None or other is None or one.shape != other.shape:
        return False
    apart = (one.double() - other.double()).norm()
    return bool(apart <= (2 * (1 - COSINE)) ** 0.5 * other.double().norm())


@torch.inference_mode()
def compare(cache: SignalCache, model: Any) -> Comparison:
    """Ask the teacher again for the examples that the cache keeps whole."""
    vocabulary, stored_assets = vocabulary_of(cache.manifest), cache.store.assets() or {}
    requests = [r for r in probe_requests(stored_assets) if r.key in cache]
    runner = TeacherRunner(model, vocabulary, config_of(cache.manifest))
    rows = runner.run(requests, stored_assets)
    columns = {n: np.concatenate([row[n].reshape(-1) for row in rows]) for n in rows[0]}
    old = cache.signals([request.key for request in requests])
    new = Signals(columns, old.num_tokens, cache.config, cache.assets)
    final_NH = runner.final_states(requests)
    temperature, distance = a_temperature(cache.config.codec), 0.0
    was, now = old.distribution(temperature), new.distribution(temperature)
    size = rows_per_chunk(vocabulary, torch.device("cpu"))
    least = LIKELY if cache.config.codec.tail == "sampled" else 0.0
    for start in range(0, old.num_tokens, size):
        rows_N = slice(start, start + size)
        logits_NV = runner.head.logits(final_NH[rows_N]) / temperature
        likely_NV = logits_NV.softmax(-1).cpu() >= least
        pair = [_outcomes(d.rows(start, start + size), vocabulary, likely_NV) for d in (was, now)]
        distance += 0.5 * float((pair[0] - pair[1]).abs().sum())
    cosines = {
        part: float(torch.cosine_similarity(old.states(part), new.states(part)).mean())
        for part in cache.config.hidden.parts
    }
    return Comparison(old.num_tokens, distance / old.num_tokens, cosines)


def _outcomes(decoded: Distribution, vocabulary: int, likely_NV: Tensor) -> Tensor:
    """Probabilities of the likely ids, 0 at others, and of all others together: (N, V + 1)."""
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
