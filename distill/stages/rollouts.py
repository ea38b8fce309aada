"""The rounds of one training: which prompts its student answers, and whether the data have any."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from attar.distributed import process_state
from attar.errors import RecipeError
from attar.models.generation import stop_ids
from attar.models.sampling import check_can_write
from attar.models.structure import unwrap, usable_positions
from distill.data.config import DataConfig
from distill.data.examples import Examples
from distill.objective.chunked_head import tokens_per_chunk
from distill.objective.losses import LOSSES
from distill.objective.objective import Learner
from distill.objective.terms import TeacherSource, source_of
from distill.rollouts.config import RolloutsConfig
from distill.rollouts.plan import RolloutPlan, leaves_room, writable_examples
from distill.rollouts.rewards import check_verifier, judge_of
from distill.run.context import Run
from distill.stages.reference import Reference, Start
from distill.stages.round_signals import RoundSignals
from distill.training.batch_source import Plan
from distill.training.config import LoopConfig
from distill.training.round_batches import RoundBatches, Rows
from distill.training.round_writer import RoundWriter
from distill.training.teacher_signals import TeacherSignals
from teachers.cache.reader import SignalCache

log = logging.getLogger(__name__)
ROUNDS = "rollouts"  # folder of the rounds, in that of a training
LOOKED_AT = 1000  # examples in which a prompt is looked for before work


@dataclass(frozen=True)
class Training:
    """Which training writes: its section of the recipe, its folder, and what its model starts as.

    packing: whether rows hold several texts. seed: of what is drawn.
    """

    section: str
    folder: Path
    start: Start
    config: LoopConfig
    data: DataConfig
    packing: bool
    seed: int


def round_batches(
    run: Run,
    training: Training,
    plan: Plan,
    learner: Learner,
    signals: TeacherSignals,
    cached: SignalCache | None,
) -> RoundBatches:
    """Return the batches of a training whose student writes; cached: the teacher's, of the data."""
    config, rollouts = training.config, training.config.rollouts
    assert rollouts is not None, "the section has rollouts"
    student = learner.student
    check_can_write(student, run.vocabulary)
    positions = usable_positions(run.teacher_config)
    writable, long = writable_examples(
        plan.examples, plan.numbers, rollouts, training.data.max_length, positions
    )
    if long:
        log.info(
            "%s: %s prompts leave no room for `%s.rollouts.new_tokens` in `%s.max_length`, or "
            "with `teacher.prompt` in the teacher's positions: their answers stay the data's",
            training.section, f"{long:,}", training.section, training.data.section,
        )  # fmt: skip
    reward = rollouts.reward
    writer = RoundWriter(
        learner,
        plan.examples,
        rollouts,
        training.folder / ROUNDS,
        run.vocabulary,
        stop_ids(unwrap(student), run.tokenizer),
        training.seed,
        None if reward is None else judge_of(reward, run.tokenizer),
    )
    reference = None
    if reward is not None and reward.kl:
        reference = Reference(training.section, config, student, training.start, learner.dtype)
    of_rounds = RoundSignals(run, signals, writer.folder, rollouts.keep, cached, reference)
    device = next(student.parameters()).device
    return RoundBatches(
        plan,
        RolloutPlan(plan.steps, writable, rollouts, training.seed),
        writer,
        of_rounds.of_round,
        Rows(training.data.max_length, training.packing, config.batch_size),
        source=_source_of_distributions(config),
        section=training.section,
        rank=process_state().process_index,
        chunk=tokens_per_chunk(run.vocabulary, device),
    )


def _source_of_distributions(config: LoopConfig) -> TeacherSource | None:
    """Where the first term over distributions gets them; None without one."""
    for term in config.objective:
        if LOSSES[term.loss].reads == "distribution":
            found = source_of(term, config.source)
            return "online" if found == "online" else "cache"
    return None


def check_rollouts(run: Run) -> None:
    """Raise `RecipeError` where a student is to answer prompts that the data do not have, or that
    leave no room, or where no row has what a verifier looks for. The data are prepared.
    """
    for path, section in run.recipe.learning().items():
        if section.rollouts is None:
            continue
        data = run.recipe.data_of(path)
        train, _ = run.data(data)
        where = f"{path}.rollouts"
        positions = usable_positions(run.teacher_config)
        _check_prompts(train, section.rollouts, data, where, positions)
        _check_texts_of_the_data(train, path, section, data, positions)
        reward = section.rollouts.reward
        if reward is not None and reward.verifier is not None:
            check_verifier(reward.verifier, run.tokenizer, train, f"{where}.reward.verifier")


def _check_prompts(
    train: Examples,
    rollouts: RolloutsConfig,
    data: DataConfig,
    where: str,
    positions: int | None = None,
) -> None:
    """positions: of the teacher, for what it reads in place of the prompts; None: no limit."""
    some = range(min(len(train), LOOKED_AT))
    writable, long = writable_examples(train, some, rollouts, data.max_length, positions)
    if writable.any():
        return
    if long and writable_examples(train, some, rollouts, data.max_length)[0].any():
        raise RecipeError(
            f"`{where}.new_tokens: {rollouts.new_tokens}`: no `teacher.prompt` of "
            f"`{data.section}.train` leaves room for that in the teacher's {positions} positions; "
            "lower it, or shorten that."
        )
    if long:
        raise RecipeError(
            f"`{where}.new_tokens: {rollouts.new_tokens}`: no prompt of `{data.section}.train` "
            f"leaves room for that in `{data.section}.max_length: {data.max_length}`; "
            "lower the one or raise the other."
        )
    raise RecipeError(
        f"`{where}`: `{data.section}.train` has no prompts to answer; give rows with a prompt and "
        f"an answer, or say with `{where}.prompt_tokens` how many tokens of a text are continued."
    )


def _check_texts_of_the_data(
    train: Examples,
    path: str,
    section: LoopConfig,
    data: DataConfig,
    positions: int | None = None,
) -> None:
    """Raise `RecipeError` for a term on the data's texts where the student answers all of them."""
    rollouts = section.rollouts
    on_data = [i for i, one in enumerate(section.objective) if getattr(one, "on", "") == "data"]
    if rollouts is None or rollouts.share < 1 or not on_data:
        return
    for i in range(len(train)):  # up to the first that keeps its text
        if not leaves_room(train[i], rollouts, data.max_length, positions):
            return
    raise RecipeError(
        f"`{path}.objective[{on_data[0]}].on: data` has no effect with `{path}.rollouts.share: 1`: "
        f"the student's answer replaces every text of `{data.section}.train`; lower `share`, or "
        "leave the term out."
    )
