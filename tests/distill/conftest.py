"""Fixtures that several tests of distill share."""

import json
from pathlib import Path

import pytest

from distill.pipeline import run_stages
from distill.run.context import Run
from distill.run.load import load_recipe


@pytest.fixture
def open_run(workshop):
    """`open_run(*changes)`: the workshop's run with some keys changed, its student built."""

    def make(*changes):
        run = Run(load_recipe("recipe.yaml", changes), Path("run"))
        run_stages(run, ["build"])
        return run

    return make


@pytest.fixture
def write_rows(tmp_path):
    """`write_rows(rows)`: a file of them."""

    def make(rows, name="rows.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return make
