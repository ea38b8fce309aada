"""The signals of text that the student wrote: the teacher runs over each round's new texts.

Where signals come from the cache, a round has a small cache of its own beside the data's, with the
same settings and assets, and the teacher is in memory only while it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from attar.distributed import free_memory
from attar.files import clear
from distill.data.examples import Example
from distill.run.context import Run
from distill.run.folder import on_first_process
from distill.stages.cache import fill_store
from distill.stages.reference import CODEC, InPrecision, Reference, reference_manifest
from distill.training.teacher_signals import TeacherSignals
from students.tuning.trainable import prepare_learning
from teachers.cache.growing import data_counts_of
from teachers.cache.joined import JoinedCaches
from teachers.cache.reader import SignalCache
from teachers.cache.store import SignalStore
from teachers.codecs.codec import Assets, SignalColumns
from teachers.load import TeacherConfig, load_teacher
from teachers.runners.request import Request, Runner

CHANGING = ("pissa", "olora")  # ways to start an adapter that change the weights below it


@dataclass
class RoundSignals:
    """Gives the signals of each round's steps: those of the data, and of the texts written.

    signals: of the data. folder: of the rounds. keep: how many rounds are learned from at once.
    cached: the teacher's cache of the data, where terms read it. reference: the model to which a
    reward's KL is taken; None where it has none.
    """

    run: Run
    signals: TeacherSignals
    folder: Path
    keep: int
    cached: SignalCache | None
    reference: Reference | None = None
    _rounds: dict[int, SignalCache] = field(default_factory=dict)
    _loaded: Runner | None = None

    def of_round(self, number: int, texts: Sequence[Example]) -> TeacherSignals:
        """The signals of a round's steps, from its new texts."""
        signals = self.signals
        self._forget(number - self.keep)
        requests = list({one.key: self.run.task.request(self.run, one) for one in texts}.values())
        if self.cached is not None:
            if requests:
                self._rounds[number] = self._teacher_cache(self.cached, number, requests)
            signals = replace(signals, cache=JoinedCaches([self.cached, *self._rounds.values()]))
        if self.reference is not None and requests:
            own = {one.key: replace(one, teacher_prompt=None) for one in texts}
            plain = [self.run.task.request(self.run, one) for one in own.values()]
            signals = replace(signals, of_written=self._reference_cache(number, plain))
        return signals

    def _forget(self, number: int) -> None:
        """Delete what was made for a round that is no longer learned from."""
        self._rounds.pop(number, None)
        with on_first_process() as first:
            for what in ("signals", "reference"):
                if first and number >= 0:
                    clear(self._url(number, what))

    def _url(self, number: int, what: str) -> Path:
        return self.folder / f"{number:05d}.{what}"

    def _teacher_cache(
        self, data: SignalCache, number: int, requests: list[Request]
    ) -> SignalCache:
        """A round's cache, with the settings and the assets of the data's."""
        store = SignalStore(str(self._url(number, "signals")))
        manifest = {**data.manifest, "data": self._counts(requests)}
        for name in ("format", "grown_from"):
            manifest.pop(name, None)
        with on_first_process() as first:
            if first:
                if store.manifest() is not None and not _is_of(store, manifest):
                    clear(Path(store.url))
                store.begin(manifest)
                assets = data.store.assets()
                if store.assets() is None and assets is not None:
                    store.write_assets(assets, manifest)
        self._fill(store, manifest, requests, lambda: self.run.task.runner(self.run), number)
        return SignalCache(store.url, device=_device_of(data))

    def _reference_cache(self, number: int, requests: list[Request]) -> SignalCache:
        """The reference's log-probabilities of a round's texts."""
        assert self.reference is not None
        store = SignalStore(str(self._url(number, "reference")))
        manifest = reference_manifest(self.run, self.reference, self._counts(requests))
        with on_first_process() as first:
            if first and store.manifest() is not None and not _is_of(store, manifest):
                clear(Path(store.url))
        self._fill(store, manifest, requests, self._reference_runner, number)
        return SignalCache(store.url)

    def _counts(self, requests: Sequence[Request]) -> dict[str, Any]:
        counts = {request.key: len(request.counted) for request in requests}
        return data_counts_of(counts, self.run.recipe.data.max_length)

    def _fill(
        self,
        store: SignalStore,
        manifest: dict[str, Any],
        requests: list[Request],
        make_runner: Callable[[], Runner],
        number: int,
    ) -> None:
        fill_store(self.run, store, requests, manifest, make_runner, f"round {number + 1}: signals")
        free_memory()

    def _reference_runner(self) -> Runner:
        """The model that the recipe names, as preferences read it; or the student as it started, in
        the precision that answers are written in: without its adapter, where it has one that can be
        put off and left the base as it was, else loaded again. What is loaded stays in memory.
        """
        assert self.reference is not None
        named, student = self.reference.config.reference, self.reference.student
        kept = self.reference.start.settings.get("init", "default") not in CHANGING
        if named is None and kept and hasattr(student, "disable_adapter"):
            # In another precision, an answer would differ from itself before anything is learned.
            return InPrecision(_WithoutAdapter(self.run, student), self.reference.dtype)
        if self._loaded is None:
            self._loaded = self.reference.runner(self.run) if named else self._start_again()
        return self._loaded

    def _start_again(self) -> Runner:
        """The student's start, loaded as the student was: masters of float32."""
        assert self.reference is not None
        start, trusted = self.reference.start, self.run.trusts_student
        model: Any = load_teacher(
            TeacherConfig(model=start.source, dtype="float32", trust_remote_code=trusted)
        )
        if start.settings.get("reinitialize") is not None:
            prepare_learning(model, "all", start.settings["reinitialize"], start.settings["seed"])
            model.requires_grad_(False)
        runner = self.run.task.runner_of(self.run, model, CODEC)
        return InPrecision(runner, self.reference.dtype)


class _WithoutAdapter:
    """A runner of a student whose adapter is put off while it runs."""

    def __init__(self, run: Run, student: Any) -> None:
        self._run, self._student = run, student
        self.padding_mass: float | None = None

    def run(
        self,
        requests: Sequence[Request],
        assets: dict[str, Assets],
        on_done: Callable[[Sequence[Request]], None] = lambda done: None,
    ) -> list[SignalColumns]:
        """Return the columns of each request, in order."""
        training = self._student.training
        with self._student.disable_adapter():
            runner = self._run.task.runner_of(self._run, self._student.eval(), CODEC)
            found: list[SignalColumns] = runner.run(requests, assets, on_done)
        self._student.train(training)
        self.padding_mass = runner.padding_mass
        return found

    def learn(self, requests: Sequence[Request]) -> dict[str, Assets]:
        """Return what the cache stores once: nothing."""
        return {}


def _is_of(store: SignalStore, manifest: dict[str, Any]) -> bool:
    """Whether a round's cache, or what a stop left of it, is of these texts."""
    found = store.manifest() or {}
    return all(found.get(name) == manifest.get(name) for name in ("labels", *manifest))


def _device_of(cache: SignalCache) -> torch.device:
    for own in cache.assets.values():
        for tensor in own.values():
            return tensor.device
    return torch.device("cpu")
