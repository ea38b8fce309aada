"""`distill evaluate MODEL --data D`: measure any model folder, id or GGUF file, made here or not.

No recipe is needed. Classifiers are measured on labelled texts, and compared class by class even
where their classes are in another order. With a teacher, KL and agreement are measured too. Models
are measured on the ids of one tokenizer (the teacher's, else the first model's). A language model
that reads text as other ids is measured on the same text in its own ids, and compared by bytes and
by what it writes; any other model that does so is refused.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, ValidationError

from attar.config import Section
from attar.errors import DataError, ModelError, RecipeError, nearest
from attar.files import write_json
from attar.mistakes import words_of
from attar.models.head_check import check_head_form
from attar.models.loading import check_model, load_config
from attar.models.task_heads import (
    CAUSAL,
    MASKED,
    auto_class_of,
    check_single_label,
    class_names,
    is_reward_model,
    label_order,
)
from attar.models.tokenizers import load_tokenizer, vocabulary_size
from attar.models.weight_files import check_weights
from attar.storage_errors import naming
from distill.data.config import DataConfig, check_sources
from distill.data.examples import Examples
from distill.data.labelled_texts import LabelledTexts
from distill.data.prepare import prepare_whole
from distill.evaluation.across_tokenizers import inputs_across
from distill.evaluation.job import (
    AS_ITS_RUNTIME_SAYS,
    EvaluateConfig,
    MeasureJob,
    Numbers,
)
from distill.evaluation.measure import measure_in_fresh_process
from distill.evaluation.same_text import HeldOut
from distill.evaluation.text_bytes import known_byte_sizes
from distill.evaluation.tokenizer_check import make_probes, probes_of, reads_alike
from distill.runtimes.runtime import check_runtime, runtime_of
from distill.stages.made_files import check_made
from distill.tasks.registry import TASKS, task_of_model
from distill.tasks.task import Task


class GivenData(DataConfig):
    """Data of a command that reads no recipe: their keys are options."""

    section: ClassVar[str] = "--set data"


class ModelEvaluation(Section):
    """The keys that `--set` may override: a recipe's `data` and `evaluate`."""

    data: GivenData
    evaluate: EvaluateConfig = Field(default_factory=lambda: EvaluateConfig.model_validate({}))


def evaluation_config(data: tuple[str, ...], values: dict[str, Any]) -> ModelEvaluation:
    """The configuration from `--data` and the values of `--set`."""
    if not data:
        raise DataError("There is no text to read: add `--data FILE`.")
    if "baselines" in values.get("evaluate", {}):
        raise RecipeError(
            "`--set evaluate.baselines` has no effect on models without a recipe: baselines are "
            "made of a recipe's training texts; leave it out."
        )
    if "own_answers" in values.get("evaluate", {}):
        raise RecipeError(
            "`--set evaluate.own_answers` has no effect on models without a recipe; leave it out."
        )
    values = {**values, "data": {"train": list(data), **values.get("data", {})}}
    try:
        return ModelEvaluation.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise _unknown_key(path) from None
        raise RecipeError(f"`--set {path}`: {words_of(first)}.") from None


def _unknown_key(path: str) -> RecipeError:
    """The error for a key that a command without a recipe does not take."""
    sections: dict[str, type[Section]] = {"data": DataConfig, "evaluate": EvaluateConfig}
    keys = [f"{name}.{key}" for name, one in sections.items() for key in one.model_fields]
    return RecipeError(
        f"`--set {path}` is not a key of `data` or `evaluate`, and without a recipe there are no "
        f"others; leave it out.{nearest(path, keys)}"
    )


def evaluate_models(
    models: tuple[str, ...],
    teacher: str | None,
    config: ModelEvaluation,
    trusted: Collection[str] = (),
) -> dict[str, Any]:
    """Numbers of each model, and of the teacher, as in report.json.

    trusted: those of them whose own code may run.
    """
    measured = models if teacher is None else (teacher, *models)
    _check_models(measured, models, trusted)
    check_sources(config.data)
    named = teacher or _checkpoint_of(models[0])
    trusts = (teacher or models[0]) in trusted
    tokenizer = load_tokenizer(named, trust_remote_code=trusts)
    with tempfile.TemporaryDirectory(prefix="attar-evaluate-") as name, naming(Path(name)):
        model_config = load_config(named, trust_remote_code=trusts)
        task: Task = TASKS[task_of_model(model_config)]()
        reader = task.reader(model_config, adapted=False, seed=0)
        folder = prepare_whole(config.data, tokenizer, 0, Path(name), reader)
        held_out = HeldOut(folder / "held_out.arrow", tokenizer, measured[0])
        inputs = _inputs(measured, held_out, task, config, trusted, has_teacher=teacher is not None)
        task_inputs = task.measure_inputs(tokenizer, config.data, config.evaluate, named, folder)
        found: dict[str, Any] = {
            "task": task_of_model(model_config), "data": config.data.train, "models": {}
        }  # fmt: skip
        columns = {}
        if isinstance(reader, LabelledTexts):
            columns = _columns(measured, reader.names, trusted)

        def measure(model: str, out: str, **more: Any) -> Numbers:
            own = {"columns": columns[model]} if columns else {}
            job = MeasureJob(
                more.pop("name", model), model, out=str(folder / out), metrics=task.metrics,
                task_inputs={**task_inputs, **own}, trust_remote_code=model in trusted,
                **{**inputs[model], **more},
            )  # fmt: skip
            return measure_in_fresh_process(job)

        if teacher is not None:
            numbers = measure(teacher, "teacher.json", name="teacher", is_teacher=True)
            found["teacher"] = {"model": teacher, **numbers}
        for i, model in enumerate(models):
            signals = None
            if teacher is not None and inputs[model]["held_out"] == inputs[teacher]["held_out"]:
                signals = str(folder / "teacher")
            numbers = measure(model, f"model-{i}.json", teacher_signals=signals)
            found["models"][model] = {"runtime": runtime_of(model), **numbers}
    return found


# Tokenizers --------------------------------------------------------------------------------------


def _inputs(
    measured: Sequence[str],
    held_out: HeldOut,
    task: Task,
    config: ModelEvaluation,
    trusted: Collection[str],
    *,
    has_teacher: bool,
) -> dict[str, dict[str, Any]]:
    """By model, the keys of its `MeasureJob` that depend on its tokenizer.

    held_out: by the tokenizer of the first model. Where others have tokenizers of their own, and
    the task can measure such side by side, the same documents are cut by each of these.
    """
    folder, examples = held_out.file.parent, Examples(held_out.file)
    probes = make_probes(held_out.tokenizer, examples.preferred())
    sizes = {}
    if task.metrics.by_byte:
        read_by = _tokenizers(measured, held_out.tokenizer, probes, trusted)
        versions = [held_out]
        for number, (name, tokenizer) in enumerate(_distinct(read_by, measured[0]).items()):
            own, documents = folder / f"tokenizer-{number}", set(examples.documents.tolist())
            try:
                prepare_whole(config.data, tokenizer, 0, own, documents=documents)
            except DataError as error:
                raise DataError(f"`{name}` has a tokenizer of its own. {error}") from None
            versions.append(HeldOut(own / "held_out.arrow", tokenizer, name))
        if len(versions) > 1:
            across = inputs_across(versions, config.evaluate, folder, has_teacher=has_teacher)
            for keys in across[1:]:  # a GGUF file also names rows of its head that are no tokens
                keys["vocabulary"] = AS_ITS_RUNTIME_SAYS
            by_name = {one.name: keys for one, keys in zip(versions, across, strict=True)}
            return {model: by_name[read_by[model][0]] for model in measured}
        sizes = known_byte_sizes(folder / "bytes.npy", held_out.tokenizer, held_out.name)
    write_json(folder / "probes.json", probes)
    shared = {
        "vocabulary": vocabulary_size(held_out.tokenizer),
        "held_out": str(held_out.file),
        "config": config.evaluate.model_dump(),
        "probes": str(folder / "probes.json"),
        **sizes,
    }
    return dict.fromkeys(measured, shared)


def _distinct(read_by: Mapping[str, tuple[str, Any]], first: str) -> dict[str, Any]:
    """The tokenizers of other models than the first, by the name of the first that has each."""
    return {name: tokenizer for name, tokenizer in read_by.values() if name != first}


def _tokenizers(
    measured: Sequence[str], tokenizer: Any, probes: dict[str, Any], trusted: Collection[str]
) -> dict[str, tuple[str, Any]]:
    """By model, (the first model that reads text as it does, the tokenizer of that one)."""
    known = [(measured[0], tokenizer, probes)]
    found: dict[str, tuple[str, Any]] = {measured[0]: (measured[0], tokenizer)}
    for model in measured:
        own = None if model in found else _tokenizer_of(model, trusted)
        if own is None or _reads_as_first(model, own, tokenizer, probes):
            found.setdefault(model, (measured[0], tokenizer))
            continue
        alike = (one for one in known[1:] if reads_alike(own, one[2]))
        first = next(alike, None)
        if first is None:
            first = (model, own, probes_of(own, [one["text"] for one in probes["texts"]]))
            known.append(first)
        found[model] = first[0], first[1]
    return found


def _reads_as_first(model: str, own: Any, tokenizer: Any, probes: dict[str, Any]) -> bool:
    """Whether a model reads text as the first one does. A GGUF file is read by llama.cpp, which its
    probes ask later: here it is enough that it has the first one's vocabulary, and fillers.
    """
    if (
        runtime_of(model) == "llama.cpp"
        and tokenizer.get_vocab().items() <= own.get_vocab().items()
    ):
        return True
    return reads_alike(own, probes)


def _tokenizer_of(model: str, trusted: Collection[str]) -> Any | None:
    """A model's own tokenizer; None where its files do not have one that can be loaded."""
    where, files = _checkpoint_of(model), sorted(Path(model).glob("*.gguf"))
    if runtime_of(model) == "llama.cpp" and len(files) == 1:
        where = str(files[0])
    try:
        return load_tokenizer(where, trust_remote_code=model in trusted)
    except ModelError:
        return None


# Checks ------------------------------------------------------------------------------------------


def _check_models(
    all_models: Sequence[str], models: Sequence[str], trusted: Collection[str]
) -> None:
    """Raise `ModelError` for a model whose files show that it cannot be measured, and `RecipeError`
    where one is trusted that is not measured.
    """
    for name in trusted:
        if name not in all_models:
            raise RecipeError(
                f"`--trust-remote-code {name}`: there is no `{name}` among the models to measure."
            )
    for model in models:
        check_runtime(runtime_of(model))
    for model in all_models:
        check_made(model)
        where, trust = _checkpoint_of(model), model in trusted
        if where.endswith(".gguf"):
            check_weights(where)
        elif runtime_of(model) == "transformers":
            config = load_config(where, trust_remote_code=trust)
            auto = auto_class_of(config)
            check_model(where, auto, trust_remote_code=trust)
            if not is_reward_model(config):
                check_single_label(config, where)
            if auto in (CAUSAL, MASKED):
                check_head_form(config, auto, model)


def _columns(
    models: Iterable[str], names: list[str], trusted: Collection[str]
) -> dict[str, list[int]]:
    """The place of each class in the logits of each model.

    Raises `ModelError` for a model with other classes.
    """
    found = {}
    for model in models:
        config = load_config(_checkpoint_of(model), trust_remote_code=model in trusted)
        order = label_order(config, names)
        if order is None:
            own = ", ".join(class_names(config) or ["none"])
            raise ModelError(
                f"The classes of {model} are {own}, and the data has "
                f"{', '.join(names)}; only classifiers of the same classes can be compared."
            )
        found[model] = order
    return found


def _checkpoint_of(model: str) -> str:
    """The folder or id with a model's tokenizer and configuration.

    An artifact that is an adapter on its base has them in the base.
    """
    base = Path(model) / "base"
    return str(base) if (base / "tokenizer_config.json").is_file() else model
