"""The reference of preferences: log-probabilities of answers under the student's own start.

Terms on preferences compare a student with a reference. By default that is the student as its
training begins, adapter and quantised base included; its log-probabilities are cached once (codec
`label`) in the run folder, so that no second model is in memory, and every arm, epoch and `beta`
reads the same numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from attar.device import default_device
from attar.files import clear
from attar.libraries import library_versions
from attar.models.peft_models import prepends
from attar.models.tokenizers import tokenizer_identity
from distill.data.examples import Example, Examples
from distill.run.context import Run
from distill.run.folder import on_first_process
from distill.stages.cache import fill_store
from distill.training.config import LoopConfig
from teachers.cache.config import CacheConfig, manifest_of
from teachers.cache.growing import data_counts_of, held_tokens
from teachers.cache.reader import SignalCache
from teachers.cache.store import SignalStore
from teachers.codecs.codec import Assets, SignalColumns
from teachers.load import TeacherConfig, load_teacher, teacher_identity
from teachers.runners.request import Request, Runner

log = logging.getLogger(__name__)
CODEC = CacheConfig.model_validate({"codec": {"name": "label"}})


@dataclass(frozen=True)
class Start:
    """What a student is made of as its training begins.

    source: the model whose weights it has. settings: what else it depends on, as plain values.
    """

    source: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """A section's reference: another model where the recipe names one, else the student itself.

    student: as its training begins, made of `start`. dtype: that its forward computes in.
    """

    section: str
    config: LoopConfig
    student: nn.Module
    start: Start
    dtype: torch.dtype

    @property
    def identity(self) -> dict[str, Any]:
        """Return what the reference is, as its cache's manifest names it, and what computes it: a
        training begins where its reference is only if both compute alike.
        """
        computed_by = {"libraries": library_versions("torch", "transformers")}
        if self.config.reference is not None:
            return {**teacher_identity(TeacherConfig(model=self.config.reference)), **computed_by}
        dtype = str(self.dtype).removeprefix("torch.")
        found = teacher_identity(TeacherConfig(model=self.start.source))
        more = {"model": Path(self.start.source).name, "dtype": dtype, "start": self.start.settings}
        return {**found, **more, **computed_by}

    def runner(self, run: Run) -> Runner:
        """Return the reference as a runner of the task."""
        if self.config.reference is not None:
            model: Any = load_teacher(TeacherConfig(model=self.config.reference))
            return run.task.runner_of(run, model, CODEC)
        model = self.student
        if prepends(model):
            model = model.get_base_model()  # without the learned positions
        return InPrecision(run.task.runner_of(run, model.eval(), CODEC), self.dtype)


class InPrecision:
    """A runner whose forwards compute as the training's do, so that both start from one value."""

    def __init__(self, runner: Runner, dtype: torch.dtype) -> None:
        self._runner, self._dtype = runner, dtype
        self._device = default_device().type
        self.padding_mass: float | None = None  # as the runner's

    def run(
        self,
        requests: Sequence[Request],
        assets: dict[str, Assets],
        on_done: Callable[[Sequence[Request]], None] = lambda done: None,
    ) -> list[SignalColumns]:
        """Return the columns of each request, in order."""
        enabled = self._dtype != torch.float32
        with torch.autocast(self._device, self._dtype, enabled=enabled):
            found = self._runner.run(requests, assets, on_done)
        self.padding_mass = self._runner.padding_mass
        return found

    def learn(self, requests: Sequence[Request]) -> dict[str, Assets]:
        """Return what the cache stores once."""
        return self._runner.learn(requests)


def reference_cache(run: Run, reference: Reference, examples: Sequence[Examples]) -> SignalCache:
    """Return the reference's log-probabilities of the judged texts of some examples, and of their
    mismatched texts in a view that has them; make those that are lacking.
    """
    url = run.folder.reference(reference.section)
    _fill(run, reference, SignalStore(str(url)), examples)
    return SignalCache(str(url), device=next(reference.student.parameters()).device)


def reference_manifest(run: Run, reference: Reference, data: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a cache of a reference's log-probabilities; data: what `data_counts_of` gives
    of its texts.
    """
    return manifest_of(CODEC, reference.identity, tokenizer_identity(run.tokenizer), data)


def _compared(examples: Examples) -> Iterator[Example]:
    """The texts that are read under the reference; what is not judged is compared with nothing."""
    for example in examples.numbered(np.flatnonzero(examples.judged)):
        for text in example.texts:
            yield text
            if text.mismatched is not None:
                yield text.mismatched


def _counts(examples: Examples) -> dict[str, int]:
    """Counted tokens of these texts, by key; no row is read unless there are mismatched texts."""
    if examples.has_mismatched:
        return {text.key: len(text.counted) for text in _compared(examples)}
    return examples.numbered(np.flatnonzero(examples.judged)).text_counts()


def _fill(run: Run, reference: Reference, store: SignalStore, examples: Sequence[Examples]) -> None:
    """Make what the reference's cache lacks; one of another reference, or of other texts alone, is
    made again.
    """
    counts = {key: count for some in examples for key, count in _counts(some).items()}
    manifest = reference_manifest(
        run, reference, data_counts_of(counts, run.recipe.data.max_length)
    )
    with on_first_process() as first:
        if first and not _can_go_on(store, manifest, counts):
            clear(Path(store.url))
    found = store.manifest()
    if found is not None and counts.keys() <= held_tokens(store.entries()).keys():
        return
    by = reference.config.reference or "the student as it starts"
    log.info("reference: log-probabilities of %s texts, by %s", f"{len(counts):,}", by)
    grows = found is not None and found != manifest
    texts = {text.key: text for some in examples for text in _compared(some)}
    fill_store(
        run,
        store,
        [run.task.request(run, text) for text in texts.values()],
        None if grows else manifest,
        lambda: reference.runner(run),
        "reference's log-probabilities",
    )


def _can_go_on(store: SignalStore, wanted: dict[str, Any], counts: dict[str, int]) -> bool:
    """Whether a cache is of the same reference, and its build can go on or it can grow.

    A build that was stopped goes on with the same texts; what grows holds some of the texts.
    """
    found = store.manifest()
    if found is None or found == wanted:
        return True
    if any(found.get(name) != wanted[name] for name in wanted if name != "data"):
        return False
    held = held_tokens(store.entries())
    return len(held) == int(found["data"]["examples"]) and bool(held.keys() & counts.keys())
