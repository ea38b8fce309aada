"""The rows that are shipped: as the benchmarks found them, the nearest first."""

import importlib
from pathlib import Path

import pytest

from attar.files import read_json
from distill.advise.measured import FILE, nearest_measured, shown_size
from distill.comparison.registry import known_arms

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


def test_the_file_is_what_the_benchmarks_found(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    table = importlib.import_module("advise_table")
    rows = table.measured_rows()
    assert read_json(FILE)["rows"] == rows
    page = table.GUIDE.read_text(encoding="utf8")
    assert table.with_block(page, rows) == page


def test_every_row_is_of_an_arm_and_has_its_source():
    for row in read_json(FILE)["rows"]:
        assert row["arm"] in known_arms()
        assert (BENCHMARKS.parent / row["source"]).is_file()
        assert row["interval"] is None or row["interval"][0] <= row["quality"] <= row["interval"][1]


@pytest.mark.parametrize("kind", ["classes", "exact", "text", "pairs"])
def test_the_nearest_come_first_with_their_distance(kind):
    found = nearest_measured(kind, 20e6, 1000)
    assert 1 <= len(found) <= 2
    assert [one.distance for one in found] == sorted(one.distance for one in found)
    assert len({one.data for one in found}) == len(found)
    assert "yours has 20.0 M and 1,000 rows" in found[0].describe(20e6, 1000)


def test_the_same_size_is_no_distance():
    row = next(r for r in read_json(FILE)["rows"] if r["kind"] == "classes" and r["arm"] == "full")
    (found, *_) = nearest_measured("classes", row["parameters"], row["rows"])
    assert found.distance == 0
    assert {one["arm"] for one in found.rows} == {"teacher", "full", "distill"}


def test_sizes_in_words():
    assert [shown_size(n) for n in (850_000, 17.4e6, 134.5e6, 1.7e9)] == [
        "0.8 M", "17.4 M", "134 M", "1.7 B",
    ]  # fmt: skip
