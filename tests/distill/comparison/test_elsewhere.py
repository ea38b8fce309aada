"""Rows of another source: matched by the names of classes, in the comparison's own columns."""

import pytest

from attar.errors import DataError
from distill.comparison.elsewhere import elsewhere_rows
from tests.helpers.classifying import write_rows
from tests.helpers.compared_folder import fill_folder, open_comparison, read_lines


@pytest.fixture
def found(tmp_path, monkeypatch):
    """`found(file)`: the file's rows, as a comparison reads them."""
    monkeypatch.chdir(tmp_path)
    fill_folder(tmp_path)

    def make(name="other.jsonl"):
        comparison = open_comparison(tmp_path)
        data, parts = comparison.recipe.data, comparison.parts
        return elsewhere_rows(data, str(tmp_path / name), 16, parts, labelled=True)

    return make


def test_rows_get_the_comparisons_columns(found):
    rows = found()
    assert len(rows) == 16
    assert {tuple(row) for row in rows} == {("text", "label")}
    assert {row["label"] for row in rows} == {"good", "bad"}


def test_rows_that_are_known_are_left_out(found, tmp_path):
    known = read_lines(tmp_path / "train.jsonl")[:5]
    write_rows(tmp_path / "some.jsonl", [*known, {"text": "music on water", "label": "good"}])
    assert [row["text"] for row in found("some.jsonl")] == ["music on water"]
    write_rows(tmp_path / "known.jsonl", known)
    with pytest.raises(DataError, match="no labelled row"):
        found("known.jsonl")


def test_other_classes_are_refused(found, tmp_path):
    write_rows(tmp_path / "odd.jsonl", [{"text": "a film", "label": "goood"}])
    with pytest.raises(DataError, match=r"of the class `goood`.*Did you mean `good`"):
        found("odd.jsonl")


def test_they_are_a_part_that_every_arm_is_measured_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill_folder(tmp_path)
    section = {"elsewhere": str(tmp_path / "other.jsonl")}
    comparison = open_comparison(tmp_path, compare=section)
    assert list(comparison.measured_parts) == ["selection", "test", "elsewhere"]
    rows = read_lines(comparison.measured_file())
    assert [row["text"] for row in rows] == [row["text"] for row in comparison.measured_rows]
