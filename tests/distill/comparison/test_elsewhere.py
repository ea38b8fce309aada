"""Rows of another source: matched by the names of classes, in the comparison's own columns."""

import pytest

from attar.errors import DataError
from distill.comparison.compare import compare
from distill.comparison.outcome import read_rows_of_quality
from tests.helpers.classifying import write_rows
from tests.helpers.compared_folder import fill_folder, open_comparison, read_lines


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """`opened(file)`: a comparison that is measured on the file's rows, too."""
    monkeypatch.chdir(tmp_path)
    fill_folder(tmp_path)

    def make(name="other.jsonl", **changes):
        section = {"elsewhere": str(tmp_path / name), "selection": 8, **changes}
        return open_comparison(tmp_path, compare=section)

    return make


def test_rows_get_the_comparisons_columns(opened):
    rows = opened().measured_parts["elsewhere"]
    assert len(rows) == 16
    assert {tuple(row) for row in rows} == {("text", "label")}
    assert {row["label"] for row in rows} == {"good", "bad"}


def test_rows_that_are_known_are_left_out(opened, tmp_path):
    known = read_lines(tmp_path / "train.jsonl")[:5]
    write_rows(tmp_path / "some.jsonl", [*known, {"text": "music on water", "label": "good"}])
    found = opened("some.jsonl").measured_parts["elsewhere"]
    assert [row["text"] for row in found] == ["music on water"]
    write_rows(tmp_path / "known.jsonl", known)
    with pytest.raises(DataError, match="no labelled row"):
        _ = opened("known.jsonl").measured_parts


def test_other_classes_are_refused(opened, tmp_path):
    write_rows(tmp_path / "odd.jsonl", [{"text": "a film", "label": "goood"}])
    with pytest.raises(DataError, match=r"of the class `goood`.*Did you mean `good`"):
        _ = opened("odd.jsonl").measured_parts


def test_without_a_source_there_is_no_such_part(tmp_path):
    fill_folder(tmp_path)
    assert set(open_comparison(tmp_path).measured_parts) == {"selection", "test"}


@pytest.mark.usefixtures("whole_stages", "child_process")
def test_every_arm_is_measured_on_the_same_rows(opened, tmp_path):
    forget = {"text": str(tmp_path / "general.jsonl"), "tokens": 200}
    arms = ["majority", "zero-shot", "head", "lora"]
    comparison = opened(arms=arms, forget=forget, least_steps=2)
    point = compare(comparison)["points"]["8"]["arms"]
    for arm in arms:
        folder = comparison.cell_folder(comparison.cells[0], arm)
        rows = read_rows_of_quality(folder, "elsewhere")
        assert len(rows["document"]) == 16
        accuracy = point[arm]["more"]["elsewhere"]["accuracy"]
        assert accuracy == pytest.approx(rows["quality"].mean())
    assert point["head"]["forgets"]["nll_difference"]["difference"] == pytest.approx(0, abs=1e-4)
    assert point["lora"]["forgets"]["nll_difference"]["difference"] != 0
