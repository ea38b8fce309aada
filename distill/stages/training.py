"""One training of a run: the loop on one model, by a section of the recipe."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch

from attar.distributed import free_memory, process_state
from attar.errors import CacheError
from attar.models.loading import resolve_precision
from attar.models.peft_models import prepends
from attar.models.structure import unwrap
from distill.data.config import DataConfig
from distill.data.examples import Examples, first_examples, has_two_prompts
from distill.objective.chunked_head import tokens_per_chunk
from distill.objective.losses import LOSSES
from distill.objective.objective import Learner
from distill.objective.terms import rates_answers, reads_from, reads_rejected, terms_reading
from distill.run.context import Run
from distill.stages.cache import open_cache
from distill.stages.reference import Reference, Start, reference_cache
from distill.stages.rollouts import Training, round_batches
from distill.stages.unfinished_cache import SUBSET_FILE, cached_subset
from distill.training.batch_source import BatchSource, Plan, PlannedBatches
from distill.training.config import LoopConfig
from distill.training.job import Job, Result
from distill.training.loop import train as train_loop
from distill.training.packing_check import check_examples_stay_apart
from distill.training.round_batches import RoundBatches
from distill.training.teacher_signals import TeacherSignals
from students.dropout import set_dropout
from teachers.cache.reader import SignalCache
from teachers.load import load_teacher
from teachers.online import OnlineTeacher

log = logging.getLogger(__name__)


def run_training(
    run: Run,
    name: str,
    section: str,
    student: torch.nn.Module,
    config: LoopConfig,
    data: DataConfig,
    folder: Path,
    start: Start,
    subset: Path | None = None,
    *,
    gold: bool = False,
    seed: int | None = None,
    until: int | None = None,
) -> Result:
    """Train one model by the keys of a section of the recipe; checkpoints go to `folder`.

    A training that was stopped goes on from its checkpoint. name: the training's in logs.
    start: what the model is made of, by which the reference of its preferences is known.
    subset: the examples of an unfinished cache that trainings share. until: a step to pause after.
    gold: learn the data's own answers even where others were written. seed: if not the recipe's.
    """
    seed = run.recipe.seed if seed is None else seed
    torch.manual_seed(seed)  # projectors are drawn from it
    if config.model_dropout is not None:
        set_dropout(student, config.model_dropout)
    packing = _packs(run, name, data, student)
    learner = _learner(run, student, config)
    device = next(student.parameters()).device
    cached = open_cache(run, device) if reads_from(config, "cache") else None
    file = subset or folder / SUBSET_FILE if learns_from_unfinished(run, section) else None
    train, validation = _examples(run, config, data, cached, file, gold)
    if not (reads_rejected(config.objective) or learner.readout.rates):
        train, validation = (one.without_rejected() for one in (train, validation))
    plan = _plan(run, train, config, data.max_length, packing, seed)
    signals = TeacherSignals(cached, _online_teacher(run, config, packing))
    if reads_from(config, "reference"):
        reference = Reference(section, config, student, start, learner.dtype)
        signals = replace(signals, reference=_reference_cache(run, reference, plan, validation))
    training = Training(section, folder, start, config, data, packing, seed)
    source = _batch_source(run, training, plan, learner, signals, cached)
    job = Job(
        name=name,
        learner=learner,
        config=config,
        source=source,
        validation=validation,
        signals=signals,
        folder=folder,
        seed=seed,
        collate=run.task.batching.collate,
        unit=run.task.batching.unit,
        section=section,
        until=until,
    )
    result = train_loop(job)
    result.rounds = source.records if isinstance(source, RoundBatches) else []
    free_memory()
    return result


def _packs(run: Run, name: str, data: DataConfig, student: torch.nn.Module) -> bool:
    """Whether several examples share a row. Raises `ModelError` where they would not stay apart."""
    wanted = data.packing and run.task.packs
    packing = wanted and not prepends(student)
    if wanted and not packing:
        log.info("%s: nothing is packed, since each text follows learned positions", name)
    if packing:
        check_examples_stay_apart(student, run.vocabulary)
    return packing


def _batch_source(
    run: Run,
    training: Training,
    plan: Plan,
    learner: Learner,
    signals: TeacherSignals,
    cached: SignalCache | None,
) -> BatchSource:
    """The data's texts, or rounds of text that the student writes beside them."""
    if training.config.rollouts is None:
        return PlannedBatches(plan, learner, signals, process_state().process_index)
    return round_batches(run, training, plan, learner, signals, cached)


def _examples(
    run: Run,
    config: LoopConfig,
    data: DataConfig,
    cached: SignalCache | None,
    file: Path | None,
    gold: bool,
) -> tuple[Examples, Examples]:
    """(train, validation) examples; of an unfinished cache those that it holds, named in `file`."""
    train, validation = run.data(data, gold=gold)
    if file is not None:
        known, rejected = cached or open_cache(run), run.caches_rejected
        train, validation = cached_subset(known, file, train, validation, rejected=rejected)
        _check_prompts(run, config, train, validation)
    if rates_answers(config.objective):
        train, validation = (one.with_mismatched(data.max_length) for one in (train, validation))
    return train, validation


def _check_prompts(run: Run, config: LoopConfig, *parts: Examples) -> None:
    """Raise `CacheError` where an unfinished cache holds too little for a form that rates answers
    against those to other prompts.
    """
    if rates_answers(config.objective) and not all(map(has_two_prompts, parts)):
        raise CacheError(
            f"The unfinished cache {run.cache_url} holds judged answers to fewer than two prompts "
            "of one of the sets, and a term of the objective compares answers with those to other "
            "prompts; wait for more of it, or leave `cache.unfinished` out."
        )


def _plan(
    run: Run, train: Examples, config: LoopConfig, max_length: int, packing: bool, seed: int
) -> Plan:
    """Which examples are in which micro-batch of every step."""
    return Plan(
        train,
        config,
        max_length=max_length,
        packing=packing,
        seed=seed,
        world=process_state().num_processes,
        batching=run.task.batching,
    )


def _reference_cache(
    run: Run, reference: Reference, plan: Plan, validation: Examples
) -> SignalCache:
    """The reference's log-probabilities of all that a training learns from and is measured on."""
    measured = first_examples(validation, reference.config.evaluate_tokens)
    sets = plan.examples.numbered(plan.numbers), validation.numbered(measured)
    return reference_cache(run, reference, sets)


def learns_from_unfinished(run: Run, section: str) -> bool:
    """Whether a section's trainings, all arms of it, learn from what an unfinished cache holds."""
    reader = run.recipe.learning().get(section)
    return run.recipe.cache.unfinished and reader is not None and reads_from(reader, "cache")


def _learner(run: Run, student: torch.nn.Module, config: LoopConfig) -> Learner:
    """The student with the objective of a section."""
    pairs = run.layer_map().pairs(config.objective, config.source)
    device = next(student.parameters()).device
    return Learner(
        student,
        config.objective,
        vocabulary=run.vocabulary,
        dtype=resolve_precision(config.precision, unwrap(student).config),
        chunk=config.chunk or tokens_per_chunk(run.vocabulary, device),
        pairs=pairs,
        teacher_width=run.teacher_width,
        channel_map=run.channel_map(),
        source=config.source,
        readout=run.task.model_outputs(run),
    )


def _online_teacher(run: Run, config: LoopConfig, packing: bool) -> OnlineTeacher | None:
    """The teacher itself, where some term learns from it without the cache."""
    online = terms_reading(config.objective, "online", config.source)
    if not online:
        return None
    pairs = run.layer_map().pairs(config.objective, config.source)
    used: dict[str, set[int]] = {"hidden": set(), "relation": set()}
    for i, found in pairs.items():
        term = config.objective[i]
        if term in online:
            used[LOSSES[term.loss].reads] |= {t for _, t in found}
    layers, blocks = sorted(used["hidden"]), sorted(used["relation"])
    log.info("the teacher runs in every step: %s", ", ".join(term.loss for term in online))
    teacher = load_teacher(run.teacher)
    if packing:
        check_examples_stay_apart(teacher, run.vocabulary)
    return OnlineTeacher(teacher, run.vocabulary, layers, blocks)
