"""Everything that can be known to be wrong before any long work starts, as one ordered list.

A section of the recipe checks what it alone can know. What needs files, models, installed packages
or several sections together is asked here: `check_before_work` before anything else, and
`check_student` again once a search has found the student's shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attar.device import default_device
from attar.errors import ModelError, RecipeError
from attar.models.attention import check_blocks
from attar.models.head_check import check_head_form
from attar.models.loading import skeleton
from attar.models.structure import check_layers, transforms_states, usable_positions
from attar.models.task_heads import CAUSAL, MASKED
from attar.models.tokenizers import brings_code
from distill.data.config import DataConfig, check_sources
from distill.evaluation.downstream.questions import check_tasks
from distill.objective.attention_relations import check_relations
from distill.objective.terms import reads_from
from distill.recipe.schema import Recipe
from distill.recipe.specialize import without_start
from distill.run.context import Run
from distill.run.teacher_side import TeacherSide
from distill.runtimes.runtime import check_runtime
from distill.stages.answer_writers import check_writer
from distill.stages.artifact_checks import (
    check_forms,
    check_gguf,
    check_int8_packing,
    check_teacher_form,
)
from distill.stages.cache import check_cache_there
from distill.stages.made_files import check_made
from distill.stages.model_checks import (
    check_language_model,
    check_models,
    check_reward_models,
)
from distill.stages.status import is_current, is_shaped
from distill.stages.training_steps import training_steps
from distill.stages.transport_checks import check_transport
from distill.training.accelerator import check_trackers
from distill.training.config import LoopConfig
from distill.training.layerwise_lr import check_rates, lowest_learning
from distill.training.optimizers import check_optimizer
from students.artifacts.artifact import ARTIFACTS, check_family, check_installed
from students.fresh import check_fresh
from students.pruning.block_numbers import check_block_numbers
from students.pruning.depth import cut_config
from students.quantization.gptq import roundable_linears
from students.tuning.trainable import prepare_learning


def check_before_work(run: Run) -> None:
    """Raise a `UserError` for the first thing that is known to be wrong."""
    for check in (
        check_data_files,
        check_models_of_runs,
        check_training_tools,
        check_models,
        check_task,
        check_fresh_student,
        check_heads,
        check_block_cut,
        check_cached_layers,
        check_positions,
        check_student_vocabulary,
        check_references,
        check_reward_models,
        check_writer,
        check_artifact_packages,
        check_gguf,
        check_artifact_families,
        check_teacher_form,
        check_int8_packing,
        check_recover,
        check_downstream_tasks,
        check_own_answers,
        check_existing_cache,
    ):
        check(run)
    check_student(run, shaped=is_shaped(run))


def check_student(run: Run, shaped: bool = True) -> None:
    """Raise a `UserError` where the student cannot learn as the recipe says.

    shaped: whether its shape is known. Before a search, only what no student of that model could
    do is refused.
    """
    if shaped:
        check_forms(run)
    check_layer_terms(run, shaped)
    check_learning(run, shaped)
    check_method(run, shaped)


def _trainings(recipe: Recipe) -> dict[str, LoopConfig]:
    """The sections that train something, by their path in the recipe."""
    sections = {"teacher.adapt": recipe.teacher.adapt, **recipe.learning()}
    return {path: config for path, config in sections.items() if config is not None}


# Files, packages, models -----------------------------------------------------------------------


def check_data_files(run: Run) -> None:
    """Local data files are there."""
    check_sources(run.recipe.data)
    special = run.recipe.specialize
    if special is not None and special.data is not None:
        check_sources(special.data)


def check_models_of_runs(run: Run) -> None:
    """Models that other runs made are as those left them."""
    for source in (run.recipe.teacher.model, run.recipe.student.from_):
        if isinstance(source, str):
            check_made(source)


def check_training_tools(run: Run) -> None:
    """Trackers and optimisers are installed and work on this device."""
    for path, config in _trainings(run.recipe).items():
        check_trackers(f"{path}.trackers", config.trackers)
        check_optimizer(f"{path}.optimizer", config.optimizer, default_device())
    for path, optimizer in run.recipe.train.own_optimizers.items():
        check_optimizer(path, optimizer, default_device())


def check_task(run: Run) -> None:
    """Models serve the task."""
    run.task.check(run)


def check_heads(run: Run) -> None:
    """Heads over the vocabulary give the models' own logits where they are applied by themselves.

    A student whose form does not show it is loaded; the teacher is loaded first of all anyway.
    """
    if run.task.auto not in (CAUSAL, MASKED):
        return
    check_head_form(run.teacher_config, run.task.auto, run.recipe.teacher.model)
    student = run.recipe.student
    if student.from_ == "teacher":
        return
    source = student.from_ if isinstance(student.from_, str) else "student.from"
    seen = check_head_form(run.uncut_config, run.task.auto, source)
    if not seen and isinstance(student.from_, str):
        run.task.load(run, source, student.trust_remote_code)


def check_fresh_student(run: Run) -> None:
    """A student with random weights has sizes that fit each other, and a row for every id."""
    if isinstance(run.recipe.student.from_, dict):
        check_fresh(run.uncut_config, run.task.auto)
        rows = getattr(run.uncut_config.get_text_config(), "vocab_size", None)
        if isinstance(rows, int) and rows < run.vocabulary:
            raise RecipeError(
                f"`student.from.vocab_size` is {rows:,}, and its tokenizer has {run.vocabulary:,} "
                "ids; write at least as many, or leave it out."
            )


def check_block_cut(run: Run) -> None:
    """The blocks that the student keeps compute what they do in the model they are cut out of."""
    student, config = run.recipe.student, run.uncut_config
    depth, keep = int(config.get_text_config().num_hidden_layers), None
    if student.layers is not None:
        keep = student.layers.keep
    elif student.target is not None and "layers" in student.target.axes:
        keep = max(1, depth // 2)
    if keep is not None and run.student_depth < depth:
        check_block_numbers(config, run.task.auto, keep)


def check_cached_layers(run: Run) -> None:
    """The teacher has the layers and blocks that the cache is to keep."""
    hidden = run.recipe.cache.hidden
    key = "layers"
    try:
        check_layers(hidden.layers, run.teacher_depth)
        key = "attention"
        check_blocks(hidden.attention, run.teacher_depth)
    except ModelError as error:
        raise RecipeError(f"`cache.hidden.{key}`: {error}") from None


def check_positions(run: Run) -> None:
    """Teacher and student have a position for every token of the longest text they are given."""
    special = run.recipe.specialize
    both = [("teacher", run.teacher_config), ("student", run.student_config)]
    read: dict[str, tuple[DataConfig, list[tuple[str, Any]]]] = {"data": (run.recipe.data, both)}
    if special is not None and special.data is not None:
        asks_teacher = any(reads_from(special, source) for source in ("cache", "online"))
        read["specialize.data"] = special.data, both if asks_teacher else both[1:]
    for key, (data, readers) in read.items():
        for side, config in readers:
            positions = usable_positions(config)
            if positions is not None and data.max_length > positions:
                raise RecipeError(
                    f"`{key}.max_length` is {data.max_length}; the {side} has {positions} "
                    "positions for a text; lower it."
                )


def check_student_vocabulary(run: Run) -> None:
    """A student of another vocabulary can learn from what is transported to its ids; code that
    comes with a tokenizer that the student keeps is trusted.
    """
    if run.transports:
        check_transport(run)
    student = run.recipe.student
    named = isinstance(student.from_, str) and student.from_ != "teacher"
    if named and brings_code(run.tokenizer) and not run.trusts_student:
        raise RecipeError(
            f"The tokenizer of `teacher.model` ({run.recipe.teacher.model}) is code of its own, "
            "which the student keeps, and `student.trust_remote_code` is not set; set it, if the "
            f"code of {student.from_} is trusted, or cut the student from the teacher."
        )


def check_references(run: Run) -> None:
    """A model that preferences are compared with is a language model of the same vocabulary."""
    for path, config in _trainings(run.recipe).items():
        name = config.reference
        if name is None:
            continue
        check_language_model(
            run,
            f"{path}.reference",
            name,
            run.recipe.data_of(path),
            shown=f"`{path}.reference`",
            beside="student",
            remedy="name a model of the same tokenizer, or leave it out: the student's own start "
            "is the reference then.",
        )


def check_artifact_packages(run: Run) -> None:
    """The packages that artifacts need are installed."""
    for name in run.artifacts:
        check_installed(name)
        check_runtime(ARTIFACTS[name].runtime)


def check_artifact_families(run: Run) -> None:
    """Artifacts can hold the student's family and sizes."""
    for name in run.artifacts:
        check_family(name, run.student_config)


def check_recover(run: Run) -> None:
    """`export.recover` has a rounded artifact to recover."""
    if run.recipe.export.recover is None or any(ARTIFACTS[name].rounds for name in run.artifacts):
        return
    able = [name for name, found in ARTIFACTS.items() if found.rounds]
    raise RecipeError(
        "`export.recover` has no effect: none of `export.artifacts` is rounded by attar; leave it "
        f"out, or add one of {', '.join(able)}."
    )


def check_downstream_tasks(run: Run) -> None:
    """Files of the downstream tasks can be read as questions."""
    check_tasks(run.recipe.evaluate.tasks, run.tokenizer.chat_template is not None)


def check_own_answers(run: Run) -> None:
    """Teacher and student have positions for a prompt and their own answer to it."""
    own = run.recipe.own_answers()
    if own is None:
        return
    for side, config in (("teacher", run.teacher_config), ("student", run.student_config)):
        positions = usable_positions(config)
        if positions is not None and own.new_tokens >= positions:
            raise RecipeError(
                f"`evaluate.own_answers.new_tokens` is {own.new_tokens}; the {side} has "
                f"{positions} positions for a prompt and its answer; lower it."
            )


def check_existing_cache(run: Run) -> None:
    """A cache that is there was made as the recipe asks, as far as that is known before work."""
    adapts = run.recipe.teacher.adapt is not None and not is_current(run, "adapt-teacher")
    if run.makes_cache and not adapts and not is_current(run, "cache"):
        if run.transports_itself:
            check_cache_there(TeacherSide(run))
        check_cache_there(run)


# The student -----------------------------------------------------------------------------------


def check_layer_terms(run: Run, shaped: bool) -> None:
    """Terms on layers and blocks: both models have them, and heads fit."""
    config = run.student_config if shaped else run.uncut_config
    known = run.layer_map(config.get_text_config().num_hidden_layers)
    for name, section in run.recipe.learning().items():
        known.pairs(section.objective, section.source, name)
        if shaped:
            check_relations(f"{name}.objective", section.objective, config, run.teacher_config)


def check_method(run: Run, shaped: bool) -> None:
    """The student can learn by the method of `specialize`."""
    special = run.recipe.specialize
    if special is None:
        return
    config = run.student_config if shaped else run.uncut_config
    length = (special.data or run.recipe.data).max_length
    positions = usable_positions(config)
    special.check(cut_config(config, list(range(config.get_text_config().num_hidden_layers))))
    if special.prepends:
        student = skeleton(config, run.task.auto)
        if student is not None and transforms_states(student):
            raise RecipeError(
                f"`specialize.method: {special.method}` learns positions before the text, which "
                f"does not work for a {type(student).__name__} with layers before its output map; "
                "choose another method."
            )
    if special.prepends and positions is not None and special.virtual_tokens + length > positions:
        raise RecipeError(
            f"`specialize.virtual_tokens` is {special.virtual_tokens} before texts of up to "
            f"{length} tokens (`max_length`); the student has {positions} positions."
        )


def check_learning(run: Run, shaped: bool = True) -> None:
    """Parts that are to learn exist, learning rates by layer have an effect, and no term reads
    only layers below everything that learns.
    """
    for path, config, model in _learners(run, shaped):
        check_rates(model, config, f"{path}.")
        _check_terms(run, path, config, model)


def check_steps(run: Run, shaped: bool = True) -> None:
    """No block would begin to learn after the last step. Asked once the data are prepared, since
    they give the number of steps.
    """
    if not any(config.unfreeze for config in _trainings(run.recipe).values()):
        return
    for path, config, model in _learners(run, shaped):
        if config.unfreeze is not None:
            check_rates(model, config, f"{path}.", training_steps(run, config))


def _learners(run: Run, shaped: bool) -> Iterator[tuple[str, LoopConfig, Any]]:
    """(section, its keys, the model that learns by them, without weights) of every training.

    Left out are methods whose parameters stand before the text, which have no depth, and, before
    the student's shape is known (`shaped`), the student, of which only the parts are looked up.
    """
    recipe = run.recipe
    adapt, train, special = recipe.teacher.adapt, recipe.train, recipe.specialize
    if adapt is not None and (teacher := skeleton(run.teacher_config, run.task.auto)) is not None:
        prepare_learning(teacher, adapt.trainable, adapt.reinitialize, 0, "teacher.adapt.")
        yield "teacher.adapt", adapt, teacher
    config = run.student_config if shaped else run.uncut_config
    if (student := skeleton(config, run.task.auto)) is None:
        return
    prepare_learning(student, train.trainable, train.reinitialize, 0, "train.")
    if not shaped:
        return
    if train.learns:
        yield "train", train, student
    if special is not None and not special.prepends:
        student = skeleton(run.student_config, run.task.auto)
        yield "specialize", special, without_start(special).attach(student, 0)
    if recipe.export.recover is not None:
        student = skeleton(run.student_config, run.task.auto)
        for parameter in student.parameters():
            parameter.requires_grad_(parameter.ndim == 1)
        for module in roundable_linears(student).values():
            module.weight.requires_grad_(True)  # stands for its scales
        yield "export.recover", recipe.export.recover, student


def _check_terms(run: Run, path: str, config: LoopConfig, model: Any) -> None:
    if path not in run.recipe.learning():
        return
    lowest = lowest_learning(model)
    pairs = run.layer_map().pairs(config.objective, config.source, path)
    for i, mine in pairs.items():
        if mine and max(s for s, _ in mine) < lowest:
            above = lowest > run.student_depth
            where = "above the blocks" if above else f"layer {lowest} (block {lowest - 1})"
            raise RecipeError(
                f"`{path}.objective[{i}]` has no effect: {config.objective[i].loss} reads student "
                f"layer {max(s for s, _ in mine)}, and nothing up to it learns; the lowest that "
                f"learns is {where}."
            )
