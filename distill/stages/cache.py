"""Stage `cache`: run the teacher once and keep its signals; and how a run opens its cache.

A cache fits a run when teacher, tokenizer, window length, codec and layers agree and it holds every
example. It may hold more examples, so that one cache serves many recipes through `cache.dir`;
examples that it lacks are added to it. Both texts of a pair of answers are examples of their own;
the rejected one is there where some objective that reads the cache reads rejected answers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch

from attar.distributed import is_alone, is_first_process, process_state
from attar.errors import CacheError
from attar.models.tokenizers import tokenizer_identity
from attar.progress import progress
from distill.data.examples import Example
from distill.run.context import Run
from distill.run.folder import StageRecord, on_first_process
from distill.run.teacher_side import TeacherSide
from distill.stages.fingerprints import data_inputs, specializing_data_inputs, teacher_inputs
from distill.stages.stage import CACHE, work
from distill.stages.transport import TextTransport, TransportRunner, transport_of
from distill.stages.transport_fidelity import log_fidelity, validation_fidelity
from teachers.cache.config import CacheConfig, manifest_of
from teachers.cache.growing import check_can_grow, data_counts_of, held_tokens
from teachers.cache.reader import SignalCache
from teachers.cache.repair import repair_files
from teachers.cache.store import SignalStore
from teachers.codecs.label import LABEL_COLUMN, Label
from teachers.load import load_teacher, teacher_identity
from teachers.remote.remote_runner import RemoteRunner
from teachers.remote.same_teacher import check_same_teacher, record_served
from teachers.runners.build_cache import WriterProcess, build_cache, grow_cache
from teachers.runners.request import Request, Runner

log = logging.getLogger(__name__)
ANSWERS = "answers-"  # of a server, for the shard that a process fills; by the process's number
REJECTED = "rejected"  # note of the record: whether rejected answers were cached


def _inputs(run: Run) -> list[Any]:
    data = specializing_data_inputs(run) if run.specialize_reads_cache else data_inputs(run)
    return [data, teacher_inputs(run), run.recipe.cache.settings_of_signals()]


def _is_made(run: Run) -> bool:
    """Whether a cache is there, with rejected answers where they are read; of the run's own cache,
    whether all files are. It verifies the bytes when it is read.
    """
    if not run.makes_cache:
        return True
    record = run.folder.record(CACHE.name)  # of a run before such notes: all were cached
    if run.caches_rejected and record is not None and not record.notes.get(REJECTED, True):
        return False
    store = SignalStore(run.cache_url)
    elsewhere = run.recipe.cache.dir is not None and not run.transports_itself
    if elsewhere or not store.folder.exists("manifest.json"):
        return store.folder.exists("manifest.json")
    try:
        entries, manifest = store.entries(), store.manifest()
        store.check_files_exist(entries)
    except CacheError:
        return False  # building it names the file and the way to mend it
    held = sum(entry["rows"] for entry in entries.values())
    return manifest is not None and held == manifest["data"]["examples"]


@work(CACHE, inputs=_inputs, made=_is_made)
def cache(run: Run, inputs: str) -> StageRecord:
    """Run the teacher once over all examples, where some objective reads its signals.

    A cache of codec `label` is made in any case.
    """
    if not run.makes_cache:
        log.info("cache: no objective reads the teacher; nothing to do")
        return StageRecord(CACHE.name, notes={"tokens": 0, "bytes_per_token": 0.0})
    numbers = make_cache(run)
    tokens = int(numbers["tokens"])
    each = numbers["bytes"] / max(1, tokens)
    notes: dict[str, Any] = {**numbers, "bytes_per_token": each, REJECTED: run.caches_rejected}
    if run.transports_itself:
        notes["transport"] = _kept_by_transport(run)
    return StageRecord(CACHE.name, tokens=tokens, bytes=int(numbers["bytes"]), notes=notes)


def _kept_by_transport(run: Run) -> dict[str, Any]:
    """What the transport to the student's ids keeps, on the validation part."""
    (found,) = validation_fidelity(run, _transport(run))
    log_fidelity(found)
    return found.values()


def _transport(run: Run) -> TextTransport:
    """How the teacher's signals are carried to the student's ids; the teacher's cache is whole."""
    side = TeacherSide(run)
    return transport_of(side, open_cache(side))


def cache_manifest(run: Run) -> dict[str, Any]:
    """The manifest that a cache must have to fit this recipe."""
    return manifest_for(run, data_counts_of(_wanted(run), run.recipe.data.max_length))


def manifest_for(run: Run, data: dict[str, Any]) -> dict[str, Any]:
    """The same of other examples; data: the field that tells of them."""
    tokenizer = tokenizer_identity(run.tokenizer)
    teacher = {**teacher_identity(run.teacher), **run.task.signal_identity(run)}
    manifest = manifest_of(run.recipe.cache, teacher, tokenizer, data)
    if run.transports:
        manifest["transported"] = {"from": tokenizer_identity(run.teacher_tokenizer)}
    return manifest


def check_cache_there(run: Run) -> None:
    """Raise `CacheError` where a cache is there that was made otherwise than the recipe asks.

    Which examples it holds is not asked, so that the data need not be prepared.
    """
    store = SignalStore(run.cache_url)
    if store.manifest() is not None:
        _check_serves(store, manifest_for(run, {"max_length": run.recipe.data.max_length}))


def held_examples(run: Run, url: str) -> tuple[int, int]:
    """How many of the recipe's examples the cache at `url` holds, finished shards of a build or
    growth included; and how many the recipe has.

    The data are prepared. Raises `CacheError` where the cache can neither serve nor grow.
    """
    store, wanted = SignalStore(url), _wanted(run)
    _check_serves(store, cache_manifest(run))
    if run.recipe.cache.unfinished:
        return len(wanted), len(wanted)
    held = held_tokens(store.entries(growing=True))
    lacking = len(wanted.keys() - held.keys())
    if lacking:
        _check_transported(run)
        check_can_grow(store, wanted)
    return len(wanted) - lacking, len(wanted)


def _wanted(run: Run) -> dict[str, int]:
    """By key: how many tokens are cached of every text whose signals some objective reads."""
    sets = [examples.by_text() for examples in run.cached_examples()]
    return {
        key: int(count)
        for texts in sets
        for key, count in zip(texts.keys, run.task.cached_tokens(run, texts), strict=True)
    }


def open_cache(run: Run, device: torch.device | None = None, *, whole: bool = True) -> SignalCache:
    """Open the cache for reading. Raises `CacheError`, naming what does not fit this recipe.

    whole: whether it must hold every example, unless the recipe says that it is unfinished.
    """
    store = SignalStore(run.cache_url)
    _check_serves(store, cache_manifest(run))
    cache = SignalCache(run.cache_url, unfinished=run.recipe.cache.unfinished, device=device)
    lacking = [key for key in _wanted(run) if key not in cache] if whole else []
    if lacking and not run.recipe.cache.unfinished:
        raise CacheError(
            f"The cache {run.cache_url} lacks {len(lacking)} of this recipe's examples; run "
            "`distill cache build` on the recipe to add them, or choose another folder with "
            "`cache.dir`."
        )
    return cache


def _check_serves(store: SignalStore, wanted: dict[str, Any]) -> None:
    """`check_fits` for a reader: shard sizes may differ, and there may be further examples."""
    found = store.manifest()
    if found is not None:
        length = wanted["data"]["max_length"]
        wanted = {**wanted, "shard_tokens": found.get("shard_tokens")}
        wanted["data"] = {**found.get("data", {}), "max_length": length}
        members = found.get("teacher", {}).get("ensemble", [])
        names = list(wanted["teacher"])
        if wanted["teacher"] in [{name: one.get(name) for name in names} for one in members]:
            log.info("The cache %s is of %d teachers together", store.url, len(members))
            wanted["teacher"] = found["teacher"]
    store.check_fits(wanted)


def make_cache(run: Run) -> dict[str, float]:
    """Make what the cache lacks, and first the teacher's own cache where the student has another
    tokenizer; return its totals.
    """
    if run.transports_itself:
        side = TeacherSide(run)
        log.info(
            "cache: the student has another tokenizer: the teacher's signals are made in its ids "
            "(%s), then transported",
            side.cache_url,
        )
        side.prepare_data()
        fill_cache(side)
    return fill_cache(run)


def fill_cache(run: Run) -> dict[str, float]:
    """Make what one cache lacks; return its totals. A cache that fits already stays unchanged.

    One that is of fewer examples grows by the others, and keeps those that it has.
    Raises `CacheError` where a file of a finished shard is missing or not of its size.
    """
    manifest, store = cache_manifest(run), SignalStore(run.cache_url)
    found = store.manifest()
    if run.recipe.cache.unfinished:
        _check_serves(store, manifest)
        log.info("cache: %s is used as it is (`cache.unfinished`)", run.cache_url)
        return store.totals()
    entries = store.entries()
    store.check_files_exist(entries)  # no finished shard was lost since
    grows = found is not None and _is_grown(store, found, manifest)
    if found is not None and grows:
        _check_serves(store, manifest)
        held, wanted = held_tokens(entries), _wanted(run)
        if wanted.keys() <= held.keys() and len(held) == found["data"].get("examples"):
            log.info("cache: %s holds this recipe's examples, and others", run.cache_url)
            return store.totals()
        _check_transported(run)
        check_can_grow(store, wanted)
        there = len(wanted.keys() & held_tokens(store.entries(growing=True)).keys())
        log.info(
            "cache: %s holds %s of %s examples: the teacher runs over %s",
            run.cache_url, f"{there:,}", f"{len(wanted):,}", f"{len(wanted) - there:,}",
        )  # fmt: skip
    requests = cached_requests(run)
    make_runner = partial(_runner, run, store, requests)
    fill_store(run, store, requests, None if grows else manifest, make_runner)
    _forget_answers(run)
    numbers = store.totals()
    if numbers["padding_mass"] > 0:
        mass = numbers["padding_mass"]
        log.info("cache: %.2g of the teacher's probability is on ids without a token, cut", mass)
    return numbers


def cached_requests(run: Run) -> list[Request]:
    """What the teacher is asked of every text whose signals some objective reads, each once."""
    found = (
        run.task.request(run, text)
        for examples in run.cached_examples()
        for example in examples
        for text in example.texts
    )
    return list({request.key: request for request in found}.values())


def _runner(run: Run, store: SignalStore, requests: Sequence[Request]) -> Runner:
    """The teacher, to fill this cache. One on a server must still give what finished shards hold,
    and take every text; what its probe found is kept beside them.
    """
    _check_transported(run)
    if run.transports:
        return TransportRunner(_transport(run), run.vocabulary, run.recipe.cache.labels)
    runner = run.task.runner(run)
    if isinstance(runner, RemoteRunner):
        runner.check_room(requests)
        check_same_teacher(store.url, runner)
        if is_first_process():
            record_served(store, runner)
        rank = 0 if is_alone() else process_state().process_index
        runner.log_answers(run.folder.path / f"{ANSWERS}{rank}")
    return runner


def _check_transported(run: Run) -> None:
    """Raise `CacheError` where what is lacking is in a cache that was transported by itself."""
    if run.transports and not run.transports_itself:
        raise CacheError(
            f"The cache {run.cache_url} was transported, and lacks examples of this recipe: make "
            "it again with `distill cache transport`, or name the teacher's own in `cache.dir`."
        )


def _forget_answers(run: Run) -> None:
    """Remove the answers of a server that were kept for a shard in flight: all are written."""
    if is_first_process():
        for path in run.folder.path.glob(f"{ANSWERS}*"):
            path.unlink(missing_ok=True)


def add_signals(run: Run, examples: Sequence[Example], make_runner: Callable[[], Runner]) -> None:
    """Put signals of some examples, which are known from elsewhere, into the run's cache.

    What the recipe needs beside them, `make_cache` adds. A cache that is there keeps what it has.
    """
    if not examples:
        return  # a codec could learn nothing
    max_length = run.recipe.data.max_length
    requests = [run.task.request(run, example) for example in examples]
    counts = {request.key: len(request.counted) for request in requests}
    manifest = manifest_for(run, data_counts_of(counts, max_length))
    store = SignalStore(run.cache_url)
    found = store.manifest()
    grows = found is not None and _is_grown(store, found, manifest)
    if grows:
        _check_serves(store, manifest)
        held = held_tokens(store.entries(growing=True))
        if counts.keys() <= held.keys():
            return
        check_can_grow(store, _wanted(run))
        others = (run.task.request(run, one) for one in run.validation_examples())
        requests += [request for request in others if request.key in held]  # it is of these data
    shown = "signals of written answers"
    fill_store(run, store, requests, None if grows else manifest, make_runner, shown)


def label_logprobs_under_teacher(run: Run, examples: Sequence[Example]) -> list[np.ndarray]:
    """The teacher's log-probabilities (N,) of the counted tokens of examples, in their order."""
    teacher = load_teacher(run.teacher)
    config = CacheConfig(codec=Label(), batch_tokens=run.recipe.cache.batch_tokens)
    requests = [run.task.request(run, example) for example in examples]
    rows = run.task.runner_of(run, teacher, config).run(requests, {})
    return [columns[LABEL_COLUMN] for columns in rows]


def fill_store(
    run: Run,
    store: SignalStore,
    requests: list[Request],
    manifest: dict[str, Any] | None,
    make_runner: Callable[[], Runner],
    shown: str = "teacher's signals",
) -> None:
    """Write the shards that a cache lacks, in all processes. manifest: None of one that grows.

    shown: what the progress line calls it.
    """
    state = None if is_alone() else process_state()
    rank, world = (state.process_index, state.num_processes) if state else (0, 1)

    def barrier() -> None:
        if state is not None:
            state.wait_for_everyone()

    unit = run.task.batching.unit

    def amount(done: Sequence[Request]) -> int:
        return sum(len(request.input_ids) for request in done) if unit == "tokens" else len(done)

    writing = store.writing() if rank == 0 else nullcontext()
    with progress(shown, amount(requests), unit) as work, writing:
        process = WriterProcess(
            rank,
            world,
            barrier,
            on_done=lambda done: work.advance(world * amount(done)),  # the others do as much
            on_skip=lambda done: work.skip(amount(done)),
        )
        if manifest is not None and rank == 0:
            store.begin(manifest)
        barrier()  # the other processes have decided, and then find a cache that was begun
        if manifest is not None:
            build_cache(store, manifest, requests, make_runner, process)
        else:
            grow_cache(store, requests, make_runner, process)
        barrier()


def _is_grown(store: SignalStore, found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a cache is of other examples than wanted, or its shards are not those of one build:
    what it lacks is then added under free numbers.
    """
    other = found.get("data") != wanted["data"]
    return other or "grown_from" in found or store.growing() is not None


def repair_cache(run: Run) -> list[str]:
    """Remove damaged shards, so that the next build makes them again; return what was wrong."""
    faults: list[str] = []
    sides = [TeacherSide(run), run] if run.transports_itself else [run]
    for side in sides:
        side.prepare_data()
    with on_first_process() as first:
        if first:
            with run.folder.owned():
                for side in sides:
                    store = SignalStore(side.cache_url)
                    with store.writing():
                        faults += repair_files(store, cache_manifest(side))
                run.folder.forget_record(CACHE.name)
    return faults
