"""The house rules of ARCHITECTURE.md, read from the source: imports, sizes, names, docstrings."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("attar", "teachers", "students", "distill", "cli")
MAY_IMPORT = {
    "attar": {"attar"},
    "teachers": {"attar", "teachers"},
    "students": {"attar", "students"},
    "distill": {"attar", "teachers", "students", "distill"},
    "cli": {"attar", "distill"},
}
# Inside distill: what a module must not reach, directly or through others.
SPINE = {"stages", "pipeline", "plan", "chat"}
RUN = {"run", "recipe", "inputs", "report"} | SPINE
MUST_NOT_REACH = {
    "objective": {"loop", "evaluate"} | RUN,
    "terms": {"head", "objective", "loop", "evaluate"} | RUN,
    "layers": {"head", "objective", "loop", "evaluate"} | RUN,
    "data": {"losses", "head", "objective", "loop", "evaluate"} | RUN,
    "batches": {"losses", "head", "objective", "loop", "evaluate"} | RUN,
    "loop": {"evaluate"} | RUN,
    "evaluate": {"objective", "loop"} | RUN,
    "recipe": RUN - {"recipe"},
    "run": SPINE | {"inputs", "report"},
    "stages": {"pipeline", "plan", "chat"},
}
NAMELESS = {"utils.py", "util.py", "common.py", "helpers.py", "base.py", "misc.py"}
WRITTEN = ("attar", "teachers", "students", "distill", "tests", "examples", "benchmarks", "docs")


def sources(*folders: str) -> list[Path]:
    """Python files of the named folders, and cli.py."""
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [*found, ROOT / "cli.py"]


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf8"))


def modules_imported(node: ast.AST, names: set[str]) -> None:
    """Dotted names that the code below a node imports, not those for type checkers alone."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    if isinstance(node, ast.Import):
        names.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are written in full"
        names.update(f"{node.module}.{alias.name}" for alias in node.names)
    for child in ast.iter_child_nodes(node):
        modules_imported(child, names)


@cache
def imports_of(path: Path) -> frozenset[str]:
    names: set[str] = set()
    modules_imported(tree_of(path), names)
    return frozenset(names)


def top_level_imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in tree_of(path).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules_imported(node, names)
    return names


def inside_distill(names: set[str] | frozenset[str]) -> set[str]:
    """Modules of distill among imported names: `distill.run.context.Run` is `run`."""
    split = (name.split(".") for name in names)
    return {parts[1] for parts in split if parts[0] == "distill" and len(parts) > 1}


def module_file(module: str) -> Path:
    return ROOT / "distill" / f"{module}.py"


def reach(module: str) -> set[str]:
    """Every module of distill that one imports, directly or through others."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        file = module_file(waiting.pop())
        new = inside_distill(imports_of(file)) - seen if file.exists() else set()
        seen |= new
        waiting += new
    return seen


def functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def public_definitions(tree: ast.Module) -> list[ast.ClassDef | ast.FunctionDef]:
    """Public functions and classes of a module, and the public methods of those classes."""
    found: list[ast.ClassDef | ast.FunctionDef] = []
    waiting: list[ast.Module | ast.ClassDef] = [tree]
    while waiting:
        for node in waiting.pop().body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name[0] != "_":
                found.append(node)
                if isinstance(node, ast.ClassDef):
                    waiting.append(node)
    return found


# Imports ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sources(*ROOMS), ids=shown)
def test_rooms_are_imported_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    imported = {name.split(".")[0] for name in imports_of(path)} & set(ROOMS)
    wrong = imported - MAY_IMPORT[room]
    assert not wrong, f"{shown(path)} imports {wrong}; {room} may import {MAY_IMPORT[room]}"


def test_losses_know_nothing_of_distill() -> None:
    assert reach("losses") == set()


def test_the_head_knows_only_losses() -> None:
    assert reach("head") == {"losses", "closed_form"}


@pytest.mark.parametrize("module", ["schedule", "relations", "closed_form"])
def test_what_computes_alone_knows_losses_at_most(module: str) -> None:
    assert reach(module) <= {"losses"}


@pytest.mark.parametrize("module", MUST_NOT_REACH)
def test_modules_of_distill_reach_only_downwards(module: str) -> None:
    assert module_file(module).exists(), f"{module} is gone: mend MUST_NOT_REACH"
    assert not reach(module) & MUST_NOT_REACH[module]


def test_no_module_of_distill_imports_itself_through_others() -> None:
    files = {path.stem: path for path in (ROOT / "distill").glob("*.py")}
    graph = {name: inside_distill(top_level_imports(path)) for name, path in files.items()}
    while free := {name for name, needs in graph.items() if not needs & graph.keys()}:
        graph = {name: needs for name, needs in graph.items() if name not in free}
    assert not graph, f"a circle of imports: {sorted(graph)}"


# Sizes and names -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sources(*WRITTEN), ids=shown)
def test_files_stay_small(path: Path) -> None:
    limit = 200 if path.name == "cli.py" else 400
    assert len(path.read_text(encoding="utf8").splitlines()) < limit


@pytest.mark.parametrize("path", sources(*WRITTEN), ids=shown)
def test_functions_stay_small(path: Path) -> None:
    lines = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions(tree_of(path))}
    assert not {name: count for name, count in lines.items() if count >= 60}


def test_no_file_is_named_after_nothing() -> None:
    assert not {shown(path) for path in sources(*WRITTEN) if path.name in NAMELESS}


# Docstrings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sources(*ROOMS[:-1]), ids=shown)
def test_everything_public_has_a_docstring(path: Path) -> None:
    tree = tree_of(path)
    assert ast.get_docstring(tree), f"{shown(path)} does not say what it is"
    assert not [node.name for node in public_definitions(tree) if not ast.get_docstring(node)]
