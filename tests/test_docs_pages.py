"""Nothing is only shown: recipes parse, commands exist, links lead somewhere, on every page."""

from __future__ import annotations

import ast
import copy
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import distill.commands.main as cli
from attar.errors import UserError
from distill.data.preference_rows import format_of_table
from distill.data.row_formats import RowOptions
from distill.data.row_list import RowList
from distill.recipe.parse import overridden, parse_yaml
from distill.recipe.schema import Recipe
from distill.run.load import check_recipe
from distill.tasks.registry import TASKS
from tests.test_docs import LEAST, PAGES, ROOT, shown, spans, text_of

DOCS = [page for page in PAGES if page.is_relative_to(ROOT / "docs")]
GUIDES = [page for page in DOCS if page.parent.name == "guides"]
WHOLE = {"data", "teacher", "student"}  # keys that a recipe cannot do without


def read(page: Path) -> str:
    return page.read_text(encoding="utf8")


def fences(text: str) -> Iterator[tuple[str, str]]:
    """(language, content) of each block between ```."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.M | re.S)


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def indented(text: str) -> list[str]:
    """Lines of code blocks that are made by indentation."""
    return re.findall(r"^ {4}(\S.*)$", without_fences(text), flags=re.M)


def shown_blocks(language: str) -> list[Any]:
    """Every block of a language on every page, as parameters of a test."""
    return [
        pytest.param(content, id=f"{shown(page)}-{i}")
        for page in PAGES
        for i, content in enumerate(c for kind, c in fences(read(page)) if kind == language)
    ]


# Links -----------------------------------------------------------------------------------------


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", without_fences(read(page)), flags=re.M)
    bare = (re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in headings)
    return {heading.replace(" ", "-") for heading in bare}


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """(file, anchor) of each link to a place in the repository."""
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", without_fences(read(page))):
        if "://" not in target:
            yield (page.parent / target).resolve() if target else page, anchor


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for target, anchor in links(page):
        if not target.exists():
            broken.append(str(target))
        elif anchor and anchor not in slugs(target):
            broken.append(f"{shown(target)}#{anchor}")
    assert broken == []


def test_every_page_is_reached_from_the_index() -> None:
    seen, todo = set(), [ROOT / "docs" / "index.md"]
    while todo:
        page = todo.pop()
        if page not in seen and page.suffix == ".md" and page.exists():
            seen.add(page)
            todo += [target for target, _ in links(page)]
    wanted = {*DOCS, *(ROOT / "benchmarks").glob("*.md")}
    assert {shown(page) for page in wanted - seen} == set()


def test_the_sites_navigation_names_every_page() -> None:
    named = set(re.findall(r'"([\w/]+\.md)"', text_of("zensical.toml")))
    own = {shown(page) for page in PAGES if "adr/0" not in shown(page)}
    assert own - named == set()
    assert [name for name in named if not (ROOT / name).exists()] == []


# Form ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [p for p in DOCS if "adr/0" not in shown(p)], ids=shown)
def test_a_page_begins_with_what_it_is_for(page: Path) -> None:
    title, blank, first = read(page).splitlines()[:3]
    assert title.startswith("# ")
    assert blank == ""
    assert re.match(r"\w", first), "a sentence stands before any heading, table or code"


@pytest.mark.parametrize("page", GUIDES, ids=shown)
def test_a_guide_shows_first_what_to_copy(page: Path) -> None:
    text = read(page)
    code = [found.start() for found in re.finditer(r"^(?:```| {4}\S)", text, flags=re.M)]
    table = text.find("\n|")
    assert code
    assert table == -1 or code[0] < table


# Commands --------------------------------------------------------------------------------------


def command_of(words: list[str]) -> tuple[click.Command, list[str], list[str]]:
    """The command that words name, its path, and the words that are left for it."""
    here: click.Command = cli.main
    path: list[str] = []
    while isinstance(here, click.Group):
        if not words or words[0] not in here.commands:
            raise click.UsageError(f"no command {' '.join([*path, *words[:1]])}")
        path.append(words[0])
        here, words = here.commands[words[0]], words[1:]
    return here, path, words


def shown_commands(text: str) -> set[str]:
    """Every `distill ...` that stands alone on a line of a code block."""
    lines = indented(text)
    for language, content in fences(text):
        if language in ("", "sh", "bash", "console"):
            lines += content.splitlines()
    bare = (re.sub(r"^(\$ |torchrun .*? -m )", "", line.strip()) for line in lines)
    return {line for line in bare if re.match(r"distill [a-z]", line)}


def test_commands_in_blocks_parse() -> None:
    """By click's own parser: the command, its options and its arguments; nothing is run."""
    commands = {command for page in PAGES for command in shown_commands(read(page))}
    assert len(commands) > 15
    faults = []
    for command in sorted(commands):
        try:
            here, path, words = command_of(shlex.split(command, comments=True)[1:])
            here.make_context(" ".join(path), words).close()
        except click.ClickException as error:
            faults.append(f"{command}: {error.format_message()}")
    assert faults == []


def test_commands_in_sentences_exist() -> None:
    """Those may leave out arguments; their options exist."""
    found = {s for page in PAGES for s in spans(read(page)) if s.startswith("distill ")}
    assert found
    faults = []
    for command in sorted(found):
        try:
            here, _, words = command_of(command.split()[1:])
        except click.UsageError as error:
            faults.append(f"{command}: {error.message}")
            continue
        known = {name for parameter in here.params for name in parameter.opts} | {"--help"}
        unknown = {word for word in words if word.startswith("-")} - known
        faults += [f"{command} has no {sorted(unknown)}"] if unknown else []
    assert faults == []


def test_the_page_of_commands_names_every_command() -> None:
    rows = re.findall(r"^\| `distill ([\w -]+)` \|", text_of("docs/reference/commands.md"), re.M)
    there = set()
    for name, command in cli.main.commands.items():
        inner = command.commands if isinstance(command, click.Group) else {"": None}
        there |= {f"{name} {sub}".strip() for sub in inner}
    assert set(rows) == there


@pytest.mark.parametrize("page", [*PAGES, ROOT / ".ci" / "run"], ids=shown)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), flags=re.M))
    lines = re.findall(r"(?:^ *|`)(?:\w+=\S+ )*make ([a-z -]+?)(?:`| *#|$)", read(page), re.M)
    assert {word for line in lines for word in line.split()} <= targets


# Recipes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", shown_blocks("yaml"))
def test_recipes_are_valid(content: str) -> None:
    """A block is a whole recipe, or a part that the least of a recipe completes."""
    parsed = parse_yaml(content, "the page")
    check_recipe(parsed if set(parsed) >= WHOLE else {**LEAST, **parsed})


def settings(page: Path) -> Iterator[str]:
    """`train.lr: 1e-4` and `export: {artifacts: [bf16]}` of a page, as `--set` takes them."""
    sections = "|".join(Recipe.model_fields)
    for span in spans(without_fences(read(page))):
        if re.fullmatch(rf"(?:{sections})(?:\.\w+)+: .*|(?:{sections}): \{{.*\}}", span):
            if "..." not in span:
                yield "=".join(span.split(": ", 1))


def setting_fault(setting: str) -> str | None:
    """What is wrong with a setting in the least recipe of every task; None where one takes it."""
    fault = None
    for task in TASKS:
        base = {**copy.deepcopy(LEAST), "student": {"layers": {"keep": 1}}, "task": task}
        try:
            check_recipe(overridden(base, (setting,)))
        except UserError as error:
            fault = fault or f"{setting}: {error}"
        else:
            return None
    return fault


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_settings_in_sentences_are_valid(page: Path) -> None:
    assert [fault for one in settings(page) if (fault := setting_fault(one))] == []


# Programs and rows -----------------------------------------------------------------------------


@pytest.mark.parametrize("content", shown_blocks("python"))
def test_programs_parse_and_their_imports_exist(content: str) -> None:
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            module = importlib.import_module(node.module)
            assert [one.name for one in node.names if not hasattr(module, one.name)] == []


@pytest.mark.parametrize("content", shown_blocks("json"))
def test_rows_have_columns_that_are_recognised(content: str) -> None:
    found = [json.loads(line) for line in content.splitlines()]
    for row in found:
        a_class = "label" in row and not isinstance(row["label"], bool)
        named = RowOptions.model_validate({"label_column": "label"} if a_class else {})
        format_of_table(RowList([row]), "the page", named)
