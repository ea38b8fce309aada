"""What is known before work about the forms that a run quantises: artifacts, and bases of adapters.

Most of it would fail in the last stages otherwise, after all training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attar.errors import ModelError, RecipeError
from attar.models.bitsandbytes_check import WEIGHTS_PER_BLOCK, check_4bit_widths
from attar.models.loading import Quantization, skeleton
from attar.models.quantizable import check_takes_body
from distill.objective.terms import reads_from
from distill.run.context import Run
from students.artifacts.artifact import ARTIFACTS, check_family, check_layers_taken
from students.artifacts.checkpoint import LINEAR_LAYERS

FOUR_BITS = ("nf4", "fp4")


def check_forms(run: Run) -> None:
    """The student's layers can be quantised as artifacts and the base of `specialize` are named,
    and this processor reads them.
    """
    student = skeleton(run.student_config, run.task.auto)
    if student is None:
        return
    special = run.recipe.specialize
    if special is not None and special.base != "none":
        _check_base(run, student, f"`specialize.base: {special.base}`", special.base)
    for name in run.artifacts:
        check_layers_taken(name, student)
        if name.endswith(FOUR_BITS):
            check_4bit_widths(
                student, f"`export.artifacts: {name}`", "int8, a gguf artifact", _narrower(run)
            )


def check_teacher_form(run: Run) -> None:
    """This processor reads a teacher of 4 bits."""
    teacher = run.recipe.teacher
    if teacher.quantization in FOUR_BITS:
        model = skeleton(run.teacher_config, run.task.auto)
        if model is not None:
            check_4bit_widths(model, f"`teacher.quantization: {teacher.quantization}`", "int8")


def _check_base(run: Run, student: Any, what: str, quantization: Quantization) -> None:
    remedy = "use `method: lora`"
    check_takes_body(student, LINEAR_LAYERS, what, "bitsandbytes", remedy)
    if quantization in FOUR_BITS:
        check_4bit_widths(student, what, "`method: lora`", _narrower(run))


def _narrower(run: Run) -> Callable[[int], str]:
    """What gives the student rows that 4 bits are read of, by the length of those it has."""
    sizes = run.student_config.get_text_config()
    axes = {
        getattr(sizes, "intermediate_size", None): "feed_forward",
        getattr(sizes, "hidden_size", None): "hidden",
    }

    def choice(inputs: int) -> str:
        whole = inputs // WEIGHTS_PER_BLOCK * WEIGHTS_PER_BLOCK
        if not whole or inputs not in axes or isinstance(run.recipe.student.from_, dict):
            return ""
        return f"`student.{axes[inputs]}: {{keep: {whole}}}`, "

    return choice


def check_int8_packing(run: Run) -> None:
    """No int8 model reads packed rows: LLM.int8() computes a feature that is large anywhere in a
    row apart from the others everywhere in it, so that an example changes with its neighbours.
    """
    recipe = run.recipe
    if not run.task.packs:
        return
    special = recipe.specialize
    own = {"train": recipe.data, "specialize": recipe.data}
    if special is not None and special.data is not None:
        own["specialize"] = special.data
    for path, config in recipe.learning().items():
        data = own.get(path, recipe.data)
        if not data.packing:
            continue
        key = "specialize.data" if data is not recipe.data else "data"
        if recipe.teacher.quantization == "int8" and reads_from(config, "online"):
            raise _packed("teacher.quantization: int8", key)
        if path == "specialize" and special is not None and not special.prepends:
            if special.base == "int8":
                raise _packed("specialize.base: int8", key)


def _packed(what: str, key: str) -> RecipeError:
    return RecipeError(
        f"`{what}` does not keep packed examples apart (large features of one change the rounding "
        f"of its neighbours); set `{key}.packing: false`, or use nf4."
    )


def check_gguf(run: Run) -> None:
    """llama.cpp knows the student's family, and gives the tokenizer's ids, of texts and of
    conversations: what no other GGUF could mend.
    """
    names = [name for name in run.artifacts if ARTIFACTS[name].runtime == "llama.cpp"]
    if names:
        from students.artifacts.gguf.tokenizer import check_tokenizer

        check_family("gguf-f16", run.student_config)
        try:
            check_tokenizer(run.tokenizer)
        except ModelError as error:
            raise ModelError(f"`export.artifacts: {names[0]}`: {error}") from None
