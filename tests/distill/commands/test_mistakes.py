"""Every row of `tests/helpers/mistakes.yaml`: one sentence, the exit status, no traceback, no work.

What is printed is compared word by word: each sentence names the key or file and what to write.
"""

from pathlib import Path

import pytest

from tests.helpers.mistakes import outcome, rows, write_bench

ROWS = rows()


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A folder with a recipe that is right, models and data."""
    folder = tmp_path_factory.mktemp("mistakes")
    write_bench(folder)
    return folder


@pytest.fixture
def in_bench(bench, monkeypatch):
    monkeypatch.chdir(bench)


@pytest.mark.parametrize("row", ROWS, ids=[row["wrong"] for row in ROWS])
def test_a_mistake_is_answered_by_one_sentence_before_any_work(row, in_bench):
    status, output, bug = outcome(row)
    assert bug is None
    assert status == row["exit"]
    usage = ("Usage: ", "Try ")  # what click puts above its own sentence
    said = [line for line in output.splitlines() if line and not line.startswith(usage)]
    assert said == [row["says"]]
    assert not Path("out/records").exists()


def test_each_row_is_another_mistake():
    names = [row["wrong"] for row in ROWS]
    assert len(names) == len(set(names))
    assert len(ROWS) >= 80
