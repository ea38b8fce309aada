"""Search the keys of each arm: optuna proposes, trials pause at rungs, the weak ones stop there.

Every arm gets as many trials. optuna's journal and the run folders of the trials are all that is
kept, so a search that was stopped or killed goes on by the same command. What a trial is worth is
the mean of the task's own number (`nll`, mostly) on the validation part, which compares trials with
different objectives too; the held-out part is never read.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attar.distributed import is_alone
from attar.errors import RecipeError, RunError, UserError
from attar.files import fingerprint, write_json
from attar.locks import LockFile, hold_lock
from attar.progress import progress
from distill.console import log_to_file
from distill.recipe.schema import Recipe
from distill.recipe.tune import Range, TuneConfig
from distill.run.context import Run
from distill.run.load import check_recipe
from distill.stages.preflight import check_before_work
from distill.training.arms import DISTILL
from distill.training.checkpoint import drop_checkpoints
from distill.trials.advance import advance, total_steps
from distill.trials.shared import shared_base
from distill.tune.outcome import outcome_of
from distill.tune.trial_runs import base_values, ends_of, named, share_student, trial_recipe

log = logging.getLogger(__name__)
FINISHED = ("COMPLETE", "PRUNED", "FAIL")


def tune(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Search in a folder, or go on with it; leave tune.json and return its content.

    Raises a `UserError` for a recipe that cannot be tuned, before any work.
    """
    config, arms = check_tune(recipe, folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = LockFile(folder / "tune.lock")
    with hold_lock(lock, f"The folder {folder}", RunError), log_to_file(folder / "tune.log"):
        search = Search(recipe, config, folder)
        studies = {arm: search.run(arm) for arm in arms}
        found = outcome_of(recipe, config, studies)
        write_json(folder / "tune.json", found)
        return found


def check_tune(recipe: Recipe, folder: Path) -> tuple[TuneConfig, list[str]]:
    """(the section, the arms that are tuned). Raises a `UserError` where trials could not run."""
    config = recipe.tune
    if config is None:
        raise RecipeError(
            "`distill tune` needs the section `tune`; write for example "
            "`tune: {over: {train.lr: {low: 1e-5, high: 1e-3, log: true}}}`."
        )
    load_optuna()
    if not is_alone():
        raise RunError("`distill tune` trains in one process; start it without torchrun.")
    if recipe.data.answers is not None:
        raise RecipeError(
            "`data.answers` would be written again in every trial of `tune`; write them in a run "
            "of its own, and learn from them as data."
        )
    arms: list[str] = [DISTILL] if config.arms is None else list(config.arms)
    if config.arms is None and "finetune" in recipe.train.controls and config.over_of("finetune"):
        arms.append("finetune")
    base = base_values(recipe, {})
    for arm in arms:
        for over in ends_of(config.over_of(arm)):
            trial = trial_recipe(recipe, base, arm, over)
            check_before_work(Run(trial, named(folder, arm, 0)))
    return config, arms


def load_optuna() -> Any:
    """The module `optuna`, quiet. Raises `RecipeError` where it is not installed."""
    try:
        found = importlib.import_module("optuna")
    except ImportError:
        raise RecipeError(
            '`distill tune` needs optuna, which is not installed: pip install "attar[tune]".'
        ) from None
    found.logging.set_verbosity(found.logging.WARNING)
    return found


class Search:
    """A search under way: its recipe, its folder, and what its trials share."""

    def __init__(self, recipe: Recipe, config: TuneConfig, folder: Path) -> None:
        self.recipe, self.config, self.folder = recipe, config, folder
        self.optuna = load_optuna()
        self.base = base_values(recipe, shared_base(recipe, folder / "base"))
        self.built = Run(check_recipe(self.base), folder / "base")
        journal = self.optuna.storages.journal.JournalFileBackend(str(folder / "tune.journal"))
        self.storage = self.optuna.storages.JournalStorage(journal)

    def run(self, arm: str) -> Any:
        """Do the trials of an arm that are lacking, and return its study.

        Raises `RunError` where the folder holds a search over other keys, and where every trial
        failed.
        """
        study = self._study(arm)
        done = [one for one in study.get_trials(deepcopy=False) if one.state.name in FINISHED]
        with progress(arm, self.config.trials, "trials") as work:
            work.skip(len(done))
            for number in range(len(done), self.config.trials):
                trial = self._trial(study, number)
                work.report(f"trial {number + 1}")
                self._work(study, trial, arm)
                work.advance()
        trials = study.get_trials(deepcopy=False)
        if not any(one.state.name == "COMPLETE" for one in trials):
            reason = trials[0].user_attrs.get("failed", "no trial was trained to the end")
            raise RunError(f"Every trial of `{arm}` failed; the first: {reason}")
        return study

    def _study(self, arm: str) -> Any:
        over = {p: repr(one) for p, one in self.config.over_of(arm).items()}
        made = fingerprint([over, self.base, self.config.rungs, self.config.halve])
        study = self.optuna.create_study(
            storage=self.storage,
            study_name=arm,
            direction="minimize",
            pruner=self.optuna.pruners.SuccessiveHalvingPruner(
                min_resource=1, reduction_factor=self.config.halve
            ),
            load_if_exists=True,
        )
        before = study.user_attrs.get("made")
        if before not in (None, made):
            raise RunError(
                f"{self.folder} holds a search by another recipe; choose another folder with "
                "--run-dir, or delete this one."
            )
        if before is None:
            study.set_user_attr("made", made)
        return study

    def _trial(self, study: Any, number: int) -> Any:
        """The trial that was stopped before, or the next one.

        The sampler is made for each trial, from the recipe's seed and the trial's number: a search
        that goes on proposes what it would have proposed.
        """
        study.sampler = self.optuna.samplers.TPESampler(
            seed=(self.recipe.seed + number) % 2**32, n_startup_trials=5
        )
        states = (self.optuna.trial.TrialState.RUNNING,)
        for left in study.get_trials(deepcopy=False, states=states):
            return self.optuna.trial.Trial(study, left._trial_id)
        return study.ask()

    def _work(self, study: Any, trial: Any, arm: str) -> None:
        """Train a trial from rung to rung, as far as it is among the best."""
        state = self.optuna.trial.TrialState
        keys = self.config.over_of(arm)
        over = {path: _suggested(trial, path, choices) for path, choices in keys.items()}
        log.info("tune: %s, trial %d: %s", arm, trial.number, _words(over))
        try:
            run = Run(
                trial_recipe(self.recipe, self.base, arm, over),
                named(self.folder, arm, trial.number),
            )
            value, is_pruned = self._climb(trial, run)
        except UserError as error:  # such as a loss that is not finite
            trial.set_user_attr("failed", str(error))
            log.warning("tune: %s, trial %d failed: %s", arm, trial.number, error)
            study.tell(trial, state=state.PRUNED)
            return
        if is_pruned:
            drop_checkpoints(run.folder.arm(DISTILL))
        study.tell(trial, None if is_pruned else value, state.PRUNED if is_pruned else None)

    def _climb(self, trial: Any, run: Run) -> tuple[float, bool]:
        """(what it is worth on the validation part, whether it stopped before the end)."""
        share_student(self.built, run)
        total, value = total_steps(run), math.inf
        for number, share in enumerate(self.config.rungs):
            values = advance(run, max(1, round(share * total)))
            value = values.mean
            trial.set_user_attr(f"step {values.step}", value)
            log.info("tune: step %d of %d: %s %.4f", values.step, total, values.name, value)
            if share < 1:
                trial.report(value, self.config.halve**number)
                if trial.should_prune():
                    return value, True
        return value, False


def _suggested(trial: Any, path: str, choices: Range | list[Any]) -> Any:
    if isinstance(choices, list):
        return trial.suggest_categorical(path, choices)
    return trial.suggest_float(path, choices.low, choices.high, log=choices.log)


def _words(over: Mapping[str, Any]) -> str:
    shown = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in over.values())
    return ", ".join(f"{path} {value}" for path, value in zip(over, shown, strict=True))
