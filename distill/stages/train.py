"""Stage `train`: the distilled student, and control arms on the same tokens in the same order."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attar import __version__
from attar.checksums import faults_of, record_files
from attar.errors import RunError
from attar.files import fingerprint, read_json, read_json_object, write_json
from attar.libraries import library_versions
from attar.models.task_heads import load_as_saved
from distill.run.context import Run
from distill.run.folder import StageRecord, on_first_process
from distill.stages.fingerprints import discard_other, reference_inputs
from distill.stages.reference import Start
from distill.stages.stage import TRAIN, WORK, work
from distill.stages.training import learns_from_unfinished, run_training
from distill.stages.unfinished_cache import SUBSET_FILE
from distill.training.arms import ARMS, DISTILL
from distill.training.checkpoint import drop_checkpoints
from distill.training.config import WITHOUT_EFFECT, spent
from distill.training.job import Result
from distill.training.layerwise_lr import how_much_learns
from distill.training.train_config import ArmTraining, of_seed
from students.pruning.record import copy_pruning
from students.save import save_student
from students.tuning.trainable import prepare_learning

log = logging.getLogger(__name__)
NOTED = ("steps", "tokens", "seconds", "best_step", "peak_memory_bytes")


def trainings_of(run: Run) -> list[ArmTraining]:
    """The trainings of all arms, the distilled one's first."""
    return run.recipe.train.trainings(run.recipe.seed)


def arms_of(run: Run) -> list[str]:
    """Names of the arms that are trained, the distilled one first."""
    return [DISTILL, *run.recipe.train.controls]


def students_of(run: Run, arm: str) -> dict[str, Path]:
    """By name as a measured model, the student of each seed of an arm's chosen candidate."""
    seeds, chosen = run.recipe.train.seeds_from(run.recipe.seed), run.folder.chosen_of(arm)
    return {
        of_seed(arm, seed, seeds): run.folder.arm(of_seed(chosen, seed, seeds)) / "student"
        for seed in seeds
    }


def seeds_of(run: Run) -> dict[str, list[str]]:
    """By arm, the names of the measured models of its seeds; none where there is one seed."""
    seeds = run.recipe.train.seeds_from(run.recipe.seed)
    if len(seeds) == 1:
        return {}
    return {arm: [of_seed(arm, seed, seeds) for seed in seeds] for arm in arms_of(run)}


def _has_candidates(run: Run) -> bool:
    return any(list(run.recipe.train.candidates(arm)) != [arm] for arm in arms_of(run))


def _outputs(run: Run) -> list[Path]:
    folders = [run.folder.arm(one.name) for one in trainings_of(run)]
    chosen = [run.folder.chosen] if _has_candidates(run) else []
    return [*chosen, *(path for one in folders for path in (one / "student", one / "result.json"))]


def _spent(run: Run) -> list[Path]:
    folders = [run.folder.arm(one.name) for one in trainings_of(run)]
    return spent(run.recipe.train, *folders)


def _learned_by(run: Run) -> list[Any]:
    """What all trainings depend on beside their own keys and seeds."""
    own = WITHOUT_EFFECT | {"arms", "seeds"}
    return [
        run.recipe.train.model_dump(exclude=own),
        library_versions("accelerate"),
        *reference_inputs(run, run.recipe.train),
    ]


def _own_inputs(training: ArmTraining) -> list[Any]:
    """What a training depends on beside what all of them do."""
    candidate = training.candidate
    return [training.name, training.arm, training.seed, {} if candidate is None else candidate.keys]


def _before(run: Run) -> str:
    """Fingerprint of all that a training depends on but its own keys and seed, so that those that
    are finished stay when the recipe gets others beside them.
    """
    records = [None if WORK[need].skipped(run) else run.folder.record(need) for need in TRAIN.needs]
    digests = [None if one is None else one.digest for one in records]
    upstream = [run.fingerprints[need] for need in TRAIN.needs]
    return fingerprint([__version__, upstream, digests, _learned_by(run)])


@work(
    TRAIN,
    inputs=lambda run: [*_learned_by(run), [_own_inputs(one) for one in trainings_of(run)]],
    outputs=_outputs,
    spent=_spent,
)
def train(run: Run, inputs: str) -> StageRecord:
    """Train every arm that is not finished; delete its checkpoints before the next one's come."""
    tokens, notes = 0, {}
    for one in trainings_of(run):
        wanted = _inputs_of(run, one)
        folder = run.folder.arm(one.name)
        found = _finished_arm(run, one.name, wanted)
        if found is None:
            _train_arm(run, one, wanted)
            found = read_json(folder / "result.json")
            with on_first_process() as first:  # the others have read the best weights by now
                if first and folder in _spent(run):
                    drop_checkpoints(folder)
        tokens += found["tokens"]
        notes[one.name] = {key: found[key] for key in NOTED}
    with on_first_process() as first:
        if first:
            _choose(run)
    return StageRecord(TRAIN.name, tokens=tokens, notes=notes)


def _inputs_of(run: Run, training: ArmTraining) -> str:
    """Fingerprint of all that a training depends on."""
    return fingerprint([_before(run), _own_inputs(training), *_subset(run, training)])


def _finished_arm(run: Run, arm: str, inputs: str) -> dict[str, Any] | None:
    """What an arm left, where it was made from these inputs and its student is as it was left."""
    file = run.folder.arm(arm) / "result.json"
    if not file.exists():
        return None
    try:
        found = read_json_object(file, "inputs", "files", "history", *NOTED)
    except RunError:
        log.warning("train: %s was changed; it is made again", file)
        return None
    if found["inputs"] != inputs:
        return None
    faults = faults_of(found["files"], run.folder.path)
    for name, fault in faults.items():
        log.warning("train: %s %s; it is made again", name, fault)
    return None if faults else found


def _subset_file(run: Run) -> Path:
    """The examples of an unfinished cache that the distilled arm, the first one, learns from."""
    return run.folder.arm(DISTILL) / SUBSET_FILE


def _subset(run: Run, training: ArmTraining) -> list[str]:
    """What another training's result depends on beside the stage's inputs: it learns from the same
    examples as the first one.
    """
    shared = learns_from_unfinished(run, "train") and training.name != DISTILL
    return [fingerprint(read_json(_subset_file(run)))] if shared else []


def train_to_step(run: Run, name: str, step: int, into: Path) -> Result:
    """Train one arm, by the name of its training, to a step of its schedule, where it pauses; save
    the student of that step into a folder. The same arm goes on from there.

    Raises `RunError` for a training that is beyond this step.
    """
    training = next(one for one in trainings_of(run) if one.name == name)
    wanted = _inputs_of(run, training)
    if _finished_arm(run, name, wanted) is not None:
        raise RunError(
            f"`{name}` in {run.folder} is trained to the end and cannot pause at step {step}; "
            f"delete {run.folder.arm(name)} to train it again."
        )
    student, result = _learn(run, training, wanted, until=step)
    with on_first_process() as first:
        if first:
            save_student(student, run.tokenizer, into)
            run.task.write_extra_files(run, into)
    return result


def _train_arm(run: Run, training: ArmTraining, inputs: str) -> None:
    """Train one arm from the untrained student, and keep its student and result."""
    student, result = _learn(run, training, inputs)
    folder = run.folder.arm(training.name)
    with on_first_process() as first:
        if first:
            trained = folder / "student"
            save_student(student, run.tokenizer, trained)
            copy_pruning(run.folder.student, trained)
            run.task.write_extra_files(run, trained)
            files = record_files([trained], run.folder.path)
            write_json(folder / "result.json", {"inputs": inputs, "files": files, **asdict(result)})


def _learn(
    run: Run, training: ArmTraining, inputs: str, until: int | None = None
) -> tuple[nn.Module, Result]:
    """(student, result) of one arm's training, from the untrained student or its checkpoint; a
    student that is to learn nothing stays as it was built.
    """
    config, folder, name = run.recipe.train, run.folder.arm(training.name), training.name
    with on_first_process() as first:
        if first:
            discard_other(folder, inputs)
    student = load_as_saved(
        str(run.folder.student), dtype=torch.float32, trust_remote_code=run.trusts_student
    )
    if not config.learns:
        log.info("%s: no steps (`train.max_steps: 0`), the student stays as it was built", name)
        return student, Result(steps=0, tokens=0, seconds=0.0, best_step=0)
    prepare_learning(student, config.trainable, config.reinitialize, training.seed)
    log.info("%s: %s", name, how_much_learns(student))
    # What a seed does not change is one start, whose reference is made once.
    start_seed = run.recipe.seed if config.reinitialize is None else training.seed
    start = Start(
        str(run.folder.student), {"reinitialize": config.reinitialize, "seed": start_seed}
    )
    result = run_training(
        run, name, "train", student, training.config(config, run.task.label_loss),
        run.recipe.data, folder, start, _subset_file(run),
        gold=ARMS[training.arm].gold, seed=training.seed, until=until,
    )  # fmt: skip
    return student, result


# Candidates --------------------------------------------------------------------------------------


def validation_of(run: Run, name: str) -> float | None:
    """The objective on the validation part of the weights that a training kept; None where it was
    never evaluated.
    """
    history = read_json(run.folder.arm(name) / "result.json")["history"]
    values = [one["validation"] for one in history if "validation" in one]
    if not values:
        return None
    return min(values) if run.recipe.train.keep == "best" else float(values[-1])


def validations(run: Run, arm: str) -> dict[str, float | None]:
    """By name, the mean of that over the seeds of each candidate of an arm."""
    seeds, found = run.recipe.train.seeds_from(run.recipe.seed), dict[str, float | None]()
    for name in run.recipe.train.candidates(arm):
        values = [validation_of(run, of_seed(name, seed, seeds)) for seed in seeds]
        known = [value for value in values if value is not None]
        found[name] = sum(known) / len(seeds) if len(known) == len(seeds) else None
    return found


def _choose(run: Run) -> None:
    """Write which candidate of each arm has the lowest objective on the validation part, of equals
    the first; no file where arms have none but themselves.
    """
    if not _has_candidates(run):
        run.folder.chosen.unlink(missing_ok=True)
        return
    chosen = {}
    for arm in arms_of(run):
        found = {n: math.inf if v is None else v for n, v in validations(run, arm).items()}
        chosen[arm] = min(found, key=lambda name: found[name])
        if len(found) > 1:
            log.info(
                "%s: `%s` is the best of %d on the validation part", arm, chosen[arm], len(found)
            )
    write_json(run.folder.chosen, chosen)
