"""The reference is the program's: losses, keys and defaults of the recipe, schema of the report."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_args

from pydantic import BaseModel, TypeAdapter

from attar.errors import RecipeError
from distill.objective.losses import LOSSES
from distill.objective.preference_forms import FORMS
from distill.objective.terms import TERM_MODELS
from distill.recipe.parse import parse_yaml
from distill.recipe.schema import Recipe
from distill.recipe.specialize import SpecializeLoop
from distill.run.load import check_recipe
from distill.stages.report import SCHEMA
from distill.training.config import LoopConfig
from distill.training.train_config import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
]
RECIPES = [*ROOT.glob("distill/tasks/*/starter.yaml"), *ROOT.glob("examples/*.yaml")]
LEAST = {"data": {"train": "x"}, "teacher": {"model": "x"}, "student": {}}


def shown(path: Any) -> str:
    return str(path.relative_to(ROOT)) if isinstance(path, Path) else str(path)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


def spans(text: str) -> list[str]:
    """What stands between backticks inside a line."""
    return re.findall(r"`([^`\n]+)`", text)


# README ----------------------------------------------------------------------------------------


def test_readme_holds_the_place_of_the_results() -> None:
    text = text_of("README.md")
    assert 0 < text.find("<!-- demo:begin -->") < text.find("<!-- demo:end -->")


# Losses ----------------------------------------------------------------------------------------


def make_losses() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_losses", ROOT / "docs/make_losses.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_losses_is_fresh() -> None:
    assert make_losses().page() == text_of("docs/reference/losses.md"), "run `make docs`"


# Recipes ---------------------------------------------------------------------------------------


def test_shipped_recipes_are_valid() -> None:
    assert len(RECIPES) > 4
    refused = []
    for path in RECIPES:
        try:
            check_recipe(parse_yaml(path.read_text(encoding="utf8"), shown(path)))
        except RecipeError as error:
            refused.append(f"{shown(path)}: {error}")
    assert refused == []


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """The section models inside an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_of(part)]


def fields_of(models: list[type[BaseModel]]) -> dict[str, Any]:
    return {f.alias or name: f for model in models for name, f in model.model_fields.items()}


def kind_of(model: type[BaseModel]) -> Any:
    field = model.model_fields.get("name") or model.model_fields.get("method")
    return field.default if field is not None else None


def models_at(path: str) -> list[type[BaseModel]]:
    """The models of a section by its path: `cache.hidden`."""
    models: list[type[BaseModel]] = [Recipe]
    for key in path.split("."):
        if key in fields_of(models):
            models = models_of(fields_of(models)[key].annotation)
        else:  # `cache.codec.topk`: one of several kinds, by its name
            models = [model for model in models if kind_of(model) == key]
    return models


def documented() -> dict[str, dict[str, str]]:
    """Default, as written, of each key of each table of docs/reference/recipe.md, by section."""
    tables: dict[str, dict[str, str]] = {}
    section = ""
    for line in text_of("docs/reference/recipe.md").splitlines():
        if line.startswith("#"):
            section = line.strip("# `") if "`" in line else ""
        elif row := re.match(r"\| `([\w.]+)` \| (required|`[^`]*`) \|", line):
            tables.setdefault(section, {})[row[1]] = row[2].strip("`")
    return tables


SECTIONS = [path for path in documented() if path not in ("", "train.objective")]


def rows() -> Iterator[tuple[str, str, str]]:
    for section, keys in documented().items():
        for key, default in keys.items():
            yield section, key, default


def checked(field: Any, value: Any) -> Any:
    """A value of a field as the recipe has it after checking."""
    kind = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    return TypeAdapter(kind).validate_python(value)


def default_of(field: Any) -> Any:
    """A field's default as the recipe has it after checking."""
    return checked(field, field.get_default(call_default_factory=True))


def row_fault(section: str, key: str, default: str) -> str | None:
    """What is wrong with a documented key of a section and its default."""
    models = models_at(section) if section else [Recipe]
    if section == "train.objective":
        models = [model for model in models if key in fields_of([model])]
    if section == "specialize":  # what stands there without a method is one of these
        models = [model for model in models if kind_of(model) == "qlora"]
    fields = fields_of(models)
    if key not in fields:
        return "is not a key"
    required = fields[key].is_required() or key == "loss"
    if required or default == "required":
        return None if required and default == "required" else f"is not {default}"
    written = checked(fields[key], parse_yaml(default, key))
    return None if written == default_of(fields[key]) else f"has not the default {default}"


def test_documented_keys_exist_with_that_default() -> None:
    found = list(rows())
    assert len(found) > 150
    faults = [(f"{s}.{key}", row_fault(s, key, default)) for s, key, default in found]
    assert [one for one in faults if one[1] is not None] == []


def undocumented(section: str) -> set[str]:
    """Keys of a section that its table lacks."""
    models = models_at(section) if section else [Recipe]
    known = fields_of(models)
    named = dict(documented()[section])
    if issubclass(models[0], SpecializeLoop):
        known = {k: f for k, f in known.items() if all(k in m.model_fields for m in models)}
        named |= documented()["specialize"]
    shared: dict[str, Any] = {}
    if issubclass(models[0], LoopConfig) and models[0] is not TrainConfig:
        train = fields_of([TrainConfig])
        shared = {
            name: field
            for name, field in known.items()
            if name in train and default_of(field) == default_of(train[name])
        }
    return set(known) - set(shared) - set(named)


def test_every_key_is_documented() -> None:
    missing = {section: undocumented(section) for section in ["", *SECTIONS]}
    assert {section: keys for section, keys in missing.items() if keys} == {}


def test_every_key_of_a_term_is_documented() -> None:
    keys = {name for model in TERM_MODELS.values() for name in model.model_fields}
    registries = (LOSSES, FORMS)  # whose own keys are in losses.md
    own = {name for found in registries for _, one in found.items() for name in one.parameters()}
    assert keys - own == set(documented()["train.objective"])


def unknown_paths(page: Path) -> Iterator[str]:
    """Spans of a page that look like the path of a recipe's key and are not."""
    for span in spans(page.read_text(encoding="utf8")):
        match = re.fullmatch(r"([a-z_]+(?:\.[a-z_]+)+)", span)
        if match is None or span.split(".")[0] not in Recipe.model_fields or "/" in span:
            continue
        if page.name == "cache.md" and span.split(".")[0] in MANIFEST_KEYS and _in_manifest(span):
            continue
        if span.split(".")[-1] in ("md", "py", "json", "html"):
            continue
        parent, _, key = span.rpartition(".")
        models = models_at(parent)
        kinds = {kind_of(model) for model in models if len(models) > 1}
        if key not in {*fields_of(models), *kinds}:
            yield f"{shown(page)}: {span}"


def test_paths_of_keys_in_prose_exist() -> None:
    assert [span for page in PAGES for span in unknown_paths(page)] == []


# The cache -------------------------------------------------------------------------------------


MANIFEST_KEYS = ("teacher", "tokenizer", "data", "hidden", "codec")
IDENTITY: dict[str, dict[str, Any]] = {
    "teacher": {"model": "m", "weights": None, "dtype": "float32", "quantization": "none"},
    "tokenizer": {"vocabulary": "v", "chat_template": "c", "tokenizer": "t", "size": 100},
    "data": {"fingerprint": "f", "examples": 4, "tokens": 22, "max_length": 10},
}


def _in_manifest(span: str) -> bool:
    room, key = span.split(".", 1)
    return span == "teacher.ensemble" or key in IDENTITY.get(room, {})


# The report ------------------------------------------------------------------------------------


def test_the_schema_of_the_report_is_the_documented_one() -> None:
    assert f"| `schema` | {SCHEMA} |" in text_of("docs/reference/report.md")
