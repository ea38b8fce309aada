"""Tiers follow from fixtures, and a unit test cannot do what only larger tests may."""

import ast
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.tiers import MADE_HERE, RULES, RUN, SLOW, tier_of

TESTS = Path(__file__).parent
SOURCES = {path: path.read_text(encoding="utf8") for path in sorted(TESTS.rglob("*.py"))}


def test_a_test_is_of_the_slowest_tier_of_its_fixtures():
    assert tier_of(["make_model", "tmp_path"]) == "unit"
    assert tier_of(["make_model", "workshop"]) == "run"
    assert tier_of(["workshop", "twenty_kills"]) == "slow"


def test_this_test_and_its_neighbour_have_the_tier_that_their_fixtures_say(request):
    assert not {"run", "slow"} & {mark.name for mark in request.node.iter_markers()}


def test_a_run_test_is_marked_as_one(request, child_process):
    assert "run" in {mark.name for mark in request.node.iter_markers()}
    assert subprocess.run([sys.executable, "-c", ""], check=False).returncode == 0


def test_every_fixture_with_a_tier_is_defined():
    named = set()
    for text in SOURCES.values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                named |= (
                    {node.name}
                    if "fixture" in "".join(map(ast.unparse, node.decorator_list))
                    else set()
                )
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "_says_what_it_does":
                named.add(node.args[0].value)
    assert (RUN | SLOW) - named == set()


def test_no_tier_is_marked_by_hand():
    marked = [
        str(path.relative_to(TESTS))
        for path, text in SOURCES.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and node.attr in ("run", "slow", "unit")
        if ast.unparse(node.value).endswith("mark")
    ]
    assert marked == []


def refused(rule):
    return pytest.raises(AssertionError, match=f"is a unit test and {RULES[rule][:20]}")


def test_a_unit_test_starts_no_process():
    with refused("process"):
        subprocess.run([sys.executable, "-c", ""], check=False)
    with refused("process"):
        os.fork()


def test_a_unit_test_opens_no_socket():
    with socket.socket() as opened, refused("server"):
        opened.bind(("127.0.0.1", 0))


def test_a_unit_test_runs_no_stage(tmp_path):
    (tmp_path / "records").mkdir()
    with refused("stage"):
        (tmp_path / "records" / "train.json.partial").write_text("{}")


def test_a_unit_test_reads_no_model_but_its_own(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert (tmp_path / "config.json").read_text() == "{}"
    with refused("model"):
        (MADE_HERE.parent / "a model" / "config.json").read_text()
