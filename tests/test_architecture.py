"""The house rules of ARCHITECTURE.md, read from the source: rooms, sizes, names, docstrings.

python tests/test_architecture.py      prints rooms with their lines, and what breaks a rule
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Lowest first. A file may import from its own room and from the rooms before it; imports for type
# checkers count. `students` and `teachers` do not know each other.
ROOMS = [
    "attar",
    "attar/models",
    "teachers/signals",
    "teachers/codecs",
    "teachers/cache",
    "teachers",
    "teachers/runners",
    "teachers/remote",
    "teachers/writing",
    "teachers/cache_tools",
    "teachers/transport",
    "students/layer_inputs",
    "students/dropout",
    "students/quantization",
    "students/tuning",
    "students/pruning",
    "students",
    "students/artifacts",
    "distill/progress_display",
    "distill/console",
    "distill/data",
    "distill/answers",
    "distill/classifiers",
    "distill/objective",
    "distill/rollouts",
    "distill/training",
    "distill/runtimes",
    "distill/evaluation",
    "distill/prompting",
    "distill/report",
    "distill/recipe",
    "distill/tasks",
    "distill/run",
    "distill/stages",
    "distill/pipeline",
    "distill/planning",
    "distill/trials",
    "distill/tune",
    "distill/sweep",
    "distill/doctor",
    "distill/cache_audit",
    "distill/features",
    "distill/prompt_search",
    "distill/fit_vocabulary",
    "distill/evaluate_models",
    "distill/transport_cache",
    "distill/comparison",
    "distill/advise",
    "distill/chat",
    "distill/push",
    "distill/api",
    "distill/commands",
    "distill",
    "cli",
]
PACKAGES = ("attar", "teachers", "students", "distill")
WRITTEN = (*PACKAGES, "tests", "examples", "benchmarks", "docs")
NAMELESS = {"utils.py", "util.py", "common.py", "helpers.py", "base.py", "misc.py"}
# Files that stand in distill/ itself; everything else has a room.
LONE_FILES = {
    "__init__", "__main__", "api", "classifiers", "console", "evaluate_models", "features",
    "fit_vocabulary", "pipeline", "progress_display", "prompt_search", "push", "transport_cache",
}  # fmt: skip
# Words that a reader of the field would have to learn for this project alone.
BANNED = {
    "Patient", "Gauge", "Account", "Yardstick", "yardstick", "harm", "mended", "Finalist", "Pace",
    "what_is_there", "meet", "_spread", "_in_turns", "_told", "parted", "places_of", "order_of",
    "nameless", "page_again", "keep_rows_readable", "reads_torn_blocks", "without_remarks", "Seen",
    "Given", "Found", "_Ways", "_Bench", "EIGHTS", "ALIKE", "MISSES", "LITTLE", "PIECE", "surgery",
    "told", "account", "gauge", "patient", "afresh", "whatever",
}  # fmt: skip


def sources(*folders: str) -> list[Path]:
    """Python files of the named folders, and cli.py."""
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [*found, ROOT / "cli.py"]


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    dotted = shown(path).removesuffix(".py").replace("/", ".")
    return dotted.removesuffix(".__init__")


MODULES = {module_of(path): path for path in sources(*PACKAGES)}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf8"))


def room_of(module: str) -> str:
    """The room of a module: the longest entry of the list that it stands in."""
    path = module.replace(".", "/")
    return max((r for r in ROOMS if path == r or path.startswith(f"{r}/")), key=len)


@cache
def imports_of(path: Path) -> frozenset[str]:
    """Our modules that a file imports, anywhere in it, for type checkers included."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{shown(path)}: imports are written in full"
            module = str(node.module)
            names = {f"{module}.{alias.name}" for alias in node.names}
            found |= names & MODULES.keys() or {module}
    return frozenset(found & MODULES.keys())


def wrong_imports() -> list[str]:
    """Imports against the order of rooms."""
    wrong = []
    for module, path in MODULES.items():
        for other in imports_of(path):
            upwards = ROOMS.index(room_of(other)) > ROOMS.index(room_of(module))
            strangers = {module.split(".")[0], other.split(".")[0]} == {"teachers", "students"}
            if upwards or strangers:
                wrong.append(f"{module} imports {other}")
    return wrong


def circles() -> list[str]:
    """Modules that import themselves through others."""
    graph = {module: imports_of(path) - {module} for module, path in MODULES.items()}
    while free := {module for module, needs in graph.items() if not needs & graph.keys()}:
        graph = {module: needs for module, needs in graph.items() if module not in free}
    return sorted(graph)


def functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def long_files() -> list[str]:
    lengths = {
        path: len(path.read_text(encoding="utf8").splitlines()) for path in sources(*WRITTEN)
    }
    limits = {path: 200 if path.name == "cli.py" else 400 for path in lengths}
    return [f"{shown(path)}: {n} lines" for path, n in lengths.items() if n >= limits[path]]


def long_functions() -> list[str]:
    return [
        f"{shown(path)}: {f.name}, {(f.end_lineno or 0) - f.lineno + 1} lines"
        for path in sources(*WRITTEN)
        for f in functions(tree_of(path))
        if (f.end_lineno or 0) - f.lineno + 1 >= 60
    ]


def takes_a_run(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function has a parameter that is a whole run."""
    arguments = [*function.args.args, *function.args.kwonlyargs]
    return any(a.annotation is not None and ast.unparse(a.annotation) == "Run" for a in arguments)


def functions_on_runs() -> Counter[str]:
    """How many functions take a whole run, by room."""
    found: Counter[str] = Counter()
    for module, path in MODULES.items():
        found[room_of(module)] += sum(takes_a_run(f) for f in functions(tree_of(path)))
    return +found


def _is_overload(node: ast.ClassDef | ast.FunctionDef) -> bool:
    return any(ast.unparse(one).endswith("overload") for one in node.decorator_list)


def public_definitions(tree: ast.Module) -> list[ast.ClassDef | ast.FunctionDef]:
    """Public functions and classes of a module, and the public methods of those classes."""
    found: list[ast.ClassDef | ast.FunctionDef] = []
    waiting: list[ast.Module | ast.ClassDef] = [tree]
    while waiting:
        for node in waiting.pop().body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name[0] != "_":
                found += [] if _is_overload(node) else [node]
                if isinstance(node, ast.ClassDef):
                    waiting.append(node)
    return found


# Rooms -----------------------------------------------------------------------------------------


def test_rooms_are_imported_one_way() -> None:
    assert not wrong_imports()


def test_no_module_imports_itself_through_others() -> None:
    assert not circles()


def test_every_room_is_there_and_distill_has_no_other_files() -> None:
    gone = [r for r in ROOMS if not (ROOT / r).is_dir() and not (ROOT / f"{r}.py").is_file()]
    assert not gone, f"rooms that are gone: {gone}"
    assert {path.stem for path in (ROOT / "distill").glob("*.py")} == LONE_FILES


def test_the_wheel_installs_these_packages_and_no_module() -> None:
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11 and later
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))
    found = project["tool"]["setuptools"]
    assert "py-modules" not in found, "a top-level `cli` would clash with a user's own"
    assert found["packages"]["find"]["include"] == [f"{name}*" for name in PACKAGES]
    assert project["project"]["scripts"] == {"distill": "distill.commands.main:main"}


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for path in sources(*PACKAGES)} - {ROOT}
    assert not [shown(folder) for folder in folders if not (folder / "__init__.py").is_file()]


def test_no_string_names_a_module() -> None:
    """A module that is moved must not leave its old path behind where no tool finds it."""
    named = [
        f"{shown(path)}: {node.value}"
        for path in sources(*PACKAGES)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(rf"({'|'.join(PACKAGES)})(\.[a-z_]+)+", node.value)
        and node.value in MODULES
    ]
    assert not named


# Sizes and names -------------------------------------------------------------------------------


def test_files_stay_small() -> None:
    assert not long_files()


def test_functions_stay_small() -> None:
    assert not long_functions()


def test_no_file_is_named_after_nothing() -> None:
    assert not {shown(path) for path in sources(*WRITTEN) if path.name in NAMELESS}


def test_no_name_is_a_private_word() -> None:
    found = set()
    for path in sources(*PACKAGES):
        for node in ast.walk(tree_of(path)):
            names = [
                getattr(node, "id", None) if isinstance(node, ast.Name) else None,
                node.arg if isinstance(node, ast.arg) else None,
                node.name if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else None,
                node.attr if isinstance(node, ast.Attribute) else None,
            ]
            found |= {f"{shown(path)}: {name}" for name in names if name in BANNED}
    assert not sorted(found)


# Docstrings ------------------------------------------------------------------------------------


def test_everything_public_has_a_docstring() -> None:
    silent = []
    for path in sources(*PACKAGES):
        tree = tree_of(path)
        silent += [] if ast.get_docstring(tree) else [f"{shown(path)} does not say what it is"]
        silent += [
            f"{shown(path)}: {node.name}"
            for node in public_definitions(tree)
            if not ast.get_docstring(node)
        ]
    assert not silent


def report() -> None:
    """Print the rooms with their lines, the largest file and function, and what breaks a rule."""
    lines: Counter[str] = Counter()
    for module, path in MODULES.items():
        lines[room_of(module)] += len(path.read_text(encoding="utf8").splitlines())
    runs = functions_on_runs()
    for room in ROOMS:
        print(f"{room:28} {lines[room]:6,} lines{f', {runs[room]} on runs' * bool(runs[room])}")
    sizes = {shown(p): len(p.read_text(encoding="utf8").splitlines()) for p in MODULES.values()}
    print("largest file:", *max(sizes.items(), key=lambda one: one[1]))
    lengths = {
        f"{shown(path)}:{f.name}": (f.end_lineno or 0) - f.lineno + 1
        for path in MODULES.values()
        for f in functions(tree_of(path))
    }
    print("largest function:", *max(lengths.items(), key=lambda one: one[1]))
    print("functions that take a whole run:", sum(runs.values()))
    print("imports against the order:", len(wrong_imports()))
    print("modules in circles:", len(circles()))


if __name__ == "__main__":
    report()
