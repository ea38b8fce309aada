"""The recipe: one YAML file that says everything about a run. Each section's model lives in the
module that consumes it; here they are put together, read, and their errors made plain.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from attar.errors import RecipeError, nearest
from attar.strict import Section
from distill.data import DataConfig
from distill.enrolled import TASKS
from distill.evaluate import EvaluateConfig
from distill.exporting import ExportConfig, check_possible
from distill.features import FeaturesConfig
from distill.loop import LoopConfig, TrainConfig
from distill.losses import LOSSES
from distill.specializing import SpecializeConfig
from distill.task import task_of, with_defaults
from distill.terms import AnyTerm, check_online, check_served, reads_from, source_of
from students.build import StudentConfig
from students.trainable import Reinitialized, Trainable
from teachers.cache import CacheConfig
from teachers.load import TeacherConfig


class AdaptConfig(LoopConfig):
    """Fine-tune the teacher on the task first, so that it has something to teach."""

    objective: list[AnyTerm] = Field(
        default_factory=lambda: [{"loss": "cross_entropy"}], min_length=1, validate_default=True
    )
    lr: float = Field(2e-5, gt=0)
    trainable: Trainable = "all"
    reinitialize: Reinitialized = Field(None, description="blocks or head that start afresh")

    @model_validator(mode="after")
    def _no_teacher(self) -> AdaptConfig:
        if reads_from(self, "cache") or reads_from(self, "online"):
            raise ValueError("the teacher cannot learn from itself; use `cross_entropy`")
        return self


class TeacherSection(TeacherConfig):
    """The teacher, and whether it is adapted to the data first."""

    adapt: AdaptConfig | None = None


if TYPE_CHECKING:
    TaskName = str
else:
    TaskName = Literal[tuple(TASKS)]


class Recipe(Section):
    """The whole recipe. `distill schema` prints it as JSON schema for editors."""

    task: TaskName = "causal-lm"
    seed: int = 0
    data: DataConfig
    teacher: TeacherSection
    cache: CacheConfig = Field(default_factory=CacheConfig)
    student: StudentConfig
    train: TrainConfig = Field(default_factory=lambda: TrainConfig.model_validate({}))
    specialize: SpecializeConfig = None
    features: FeaturesConfig | None = None
    export: ExportConfig = Field(default_factory=ExportConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_its_task(cls, values: Any) -> Any:
        return with_defaults(values)

    @model_validator(mode="after")
    def _serves_its_task(self) -> Recipe:
        task_of(self).check_recipe(self)
        return self

    @model_validator(mode="after")
    def _artifacts_can_be_made(self) -> Recipe:
        try:
            check_possible(self.export, self.specialize)
        except RecipeError as error:
            raise ValueError(str(error)) from None
        return self

    @model_validator(mode="after")
    def _signals_serve_objectives(self) -> Recipe:
        for name, section in self.learning().items():
            if section.source == "online" and not reads_from(section, "online"):
                raise ValueError(
                    f"`{name}.source: online` has no effect: no term reads it from there; leave it "
                    "out"
                )
            for i, term in enumerate(section.objective):
                reads = LOSSES[term.loss].reads
                online = source_of(term, section.source) == "online"
                if reads == "distribution":
                    try:
                        check_online(term) if online else check_served(term, self.cache.codec)
                    except RecipeError as error:
                        key = ".temperature" if "temperature" in str(error) else ""
                        raise ValueError(f"`{name}.objective[{i}]{key}`: {error}") from None
                elif reads in ("vector", "similarity"):
                    if self.cache.codec.name != "vectors":
                        raise ValueError(
                            f"`{name}.objective[{i}]`: {term.loss} compares vectors of texts, "
                            "which `task: embedding` has"
                        )
                elif reads != "labels" and not online:
                    self._check_cached(f"{name}.objective[{i}]", term, reads)
        return self

    def _check_cached(self, path: str, term: Any, reads: str) -> None:
        """Whether the cache keeps the layers or blocks that a term names."""
        key, what = ("attention", "block") if reads == "relation" else ("layers", "layer")
        kept = getattr(self.cache.hidden, key)
        for _, layer in term.layers if isinstance(term.layers, list) else ():
            if layer not in kept:
                raise ValueError(
                    f"`{path}.layers` reads teacher {what} {layer}, which is not in "
                    f"`cache.hidden.{key}` {kept}; add it there"
                )

    def learning(self) -> dict[str, LoopConfig]:
        """The sections that learn from the teacher's signals, by name."""
        found: dict[str, LoopConfig] = {"train": self.train}
        if self.specialize is not None:
            found["specialize"] = self.specialize
        if self.export.recover is not None:
            found["export.recover"] = self.export.recover
        return found


# Reading ---------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `1e-4` is a number (YAML 1.2) and no key stands twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"`{twice}` is written twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, where: str) -> Any:
    """Safe YAML; a `RecipeError` gives the line of what does not parse."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None


def load_recipe(path: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read, override and check a recipe. Every mistake is a `RecipeError` naming key and mend."""
    file = Path(path)
    if not file.is_file():
        raise RecipeError(f"There is no recipe {path}; `distill init {path}` writes a starter.")
    try:
        text = file.read_text(encoding="utf8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text ({error}); save it as UTF-8.") from None
    values = parse_yaml(text, path)
    if not isinstance(values, dict):
        raise RecipeError(f"{path} is not a recipe: it must map `data`, `teacher`, `student` ...")
    return check_recipe(overridden(values, overrides))


def check_recipe(values: dict[str, Any]) -> Recipe:
    """The recipe from plain values."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(_explain(error, values)) from None


def overridden(values: dict[str, Any], overrides: tuple[str, ...]) -> dict[str, Any]:
    """The values with every `a.b=c` applied, in place."""
    for override in overrides:
        _set(values, override)
    return values


def _set(values: dict[str, Any], override: str) -> None:
    """Apply one `a.b=c`; list items by number, as in `train.objective.0.weight=0.5`."""
    path, sign, text = override.partition("=")
    if not sign or not path:
        raise RecipeError(f"`--set {override}` must be KEY=VALUE, e.g. `--set train.lr=1e-4`.")
    *parents, last = path.split(".")
    here: Any = values
    for key in parents:
        if isinstance(here, list):
            here = _item(here, key, path)
            continue
        if not isinstance(here, dict):
            raise RecipeError(f"`--set {path}`: `{key}` stands below a single value.")
        if not isinstance(here.get(key), (dict, list)):
            here[key] = {}
        here = here[key]
    value = parse_yaml(text, f"--set {path}")
    if isinstance(here, list):
        _item(here, last, path)
        here[int(last)] = value
    elif isinstance(here, dict):
        here[last] = value
    else:
        raise RecipeError(f"`--set {path}`: `{last}` stands below a single value.")


def _item(values: list[Any], key: str, path: str) -> Any:
    if not key.isdigit() or int(key) >= len(values):
        raise RecipeError(f"`--set {path}`: `{key}` is not one of the {len(values)} items.")
    return values[int(key)]


# Errors ----------------------------------------------------------------------------------------


def _explain(error: ValidationError, values: Any) -> str:
    """The first mistake as one sentence; further ones are counted."""
    mistakes = error.errors()
    first = mistakes[0]
    path, model = _walk(first["loc"], values)
    more = f" ({len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    message = first["msg"].removeprefix("Value error, ").removesuffix(".")
    if first["type"] == "extra_forbidden":
        known = [field.alias or name for name, field in model.model_fields.items()]
        key = str(first["loc"][-1])
        elsewhere = "" if nearest(key, known) else _where_else(key)
        hint = nearest(key, known) or elsewhere or f" Known are {', '.join(known)}."
        return f"`{path}` is not a key of the recipe.{hint}{more}"
    if first["type"] == "missing":
        return f"`{path}` is missing from the recipe.{more}"
    if first["type"] == "union_tag_invalid":
        tags = [word.strip(" '") for word in first["ctx"]["expected_tags"].split(",")]
        tag = first["ctx"]["tag"]
        return f"`{path}`: there is no `{tag}`; known are {', '.join(tags)}.{nearest(tag, tags)}"
    if first["type"] == "union_tag_not_found":
        key = first["ctx"]["discriminator"].strip("'")
        return f"`{path}` lacks `{key}`, which says what the other keys mean.{more}"
    found = first["input"]
    shown = "" if isinstance(found, (dict, BaseModel)) else f" (found {found!r})"
    prefix = f"`{path}`: " if path else ""
    return f"{prefix}{message[:1].lower() if prefix else message[:1]}{message[1:]}{shown}.{more}"


def _walk(location: tuple[int | str, ...], values: Any) -> tuple[str, type[BaseModel]]:
    """(path as the user wrote it, model of the section that holds its last key).

    pydantic also names union members and tags in a location; those are not keys and are left out.
    """
    path, here = "", values
    models: list[type[BaseModel]] = [Recipe]
    holder: type[BaseModel] = Recipe
    for key in location:
        if isinstance(key, int):
            path += f"[{key}]"
            here = here[key] if isinstance(here, list) and key < len(here) else None
            continue
        tagged = [model for model in models if key in _tags(model)]
        if tagged:
            models = tagged
            continue
        fields = {f.alias or n: (m, f) for m in models for n, f in m.model_fields.items()}
        if key not in fields and not (isinstance(here, dict) and key in here):
            continue
        path += f".{key}" if path else key
        holder, found = fields.get(key, (models[0], None))
        models = (_models(found.annotation) if found is not None else []) or models
        here = here.get(key) if isinstance(here, dict) else None
    return path, holder


TAGS = ("loss", "name", "method", "kind")  # fields that tell members of a union apart


def _tags(model: type[BaseModel]) -> set[Any]:
    """Values of that field of a member."""
    tags = (model.model_fields.get(name) for name in TAGS)
    return {value for field in tags if field is not None for value in get_args(field.annotation)}


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The section models inside an annotation, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _where_else(key: str) -> str:
    """A hint where the key stands in another section."""
    homes: dict[str, str] = {}
    for name, field in Recipe.model_fields.items():
        for model in _models(field.annotation):
            for inner in model.model_fields:
                homes.setdefault(inner, f"{name}.{inner}")
    close = difflib.get_close_matches(key, homes, n=1, cutoff=0.7)
    return f" Did you mean `{homes[close[0]]}`?" if close else ""
