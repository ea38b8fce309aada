"""Rows of another source: matched by the names of classes, in the comparison's own columns."""

from types import SimpleNamespace

import numpy as np
import pytest

from attar.errors import DataError
from distill.comparison import elsewhere
from distill.comparison.arms import ArmWork
from distill.comparison.cells import Cell
from distill.comparison.elsewhere import (
    elsewhere_rows,
    measure_class_elsewhere,
    measure_elsewhere,
    measure_elsewhere_in_words,
)
from distill.comparison.measuring import job_of
from distill.comparison.outcome import read_rows_of_quality
from distill.comparison.starts import values_from_start
from distill.pipeline import run_stages
from distill.runtimes.runtime import ModelSource
from tests.helpers.classifying import write_rows
from tests.helpers.compared_folder import fill_folder, open_comparison, read_lines


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """`opened(file)`: a comparison that is measured on the file's rows, too."""
    monkeypatch.chdir(tmp_path)
    fill_folder(tmp_path)

    def make(name="other.jsonl", **changes):
        section = {"elsewhere": str(tmp_path / name), **changes}
        return open_comparison(tmp_path, compare=section)

    return make


def work_of(comparison, arm="full"):
    work = ArmWork(comparison, Cell(8, 0), arm)
    work.folder.mkdir(parents=True)
    return work


def test_rows_get_the_comparisons_columns(opened):
    comparison = opened()
    rows = elsewhere_rows(comparison)
    assert len(rows) == 16
    assert {tuple(row) for row in rows} == {("text", "label")}
    assert {row["label"] for row in rows} == {"good", "bad"}


def test_rows_that_are_known_are_left_out(opened, tmp_path):
    known = read_lines(tmp_path / "train.jsonl")[:5]
    write_rows(tmp_path / "some.jsonl", [*known, {"text": "music on water", "label": "good"}])
    assert [row["text"] for row in elsewhere_rows(opened("some.jsonl"))] == ["music on water"]
    write_rows(tmp_path / "known.jsonl", known)
    with pytest.raises(DataError, match="no labelled row"):
        elsewhere_rows(opened("known.jsonl"))


def test_other_classes_are_refused(opened, tmp_path):
    write_rows(tmp_path / "odd.jsonl", [{"text": "a film", "label": "goood"}])
    with pytest.raises(DataError, match=r"of the class `goood`.*Did you mean `good`"):
        elsewhere_rows(opened("odd.jsonl"))


def test_one_class_for_all_is_right_as_often_as_the_class_is_there(opened):
    comparison = opened()
    work, outcome = work_of(comparison, "majority"), work_of(comparison, "other").outcome()
    measure_class_elsewhere(work, "good", outcome)
    right = [row["label"] == "good" for row in elsewhere_rows(comparison)]
    found = read_rows_of_quality(work.folder, "elsewhere")
    assert outcome.parts["elsewhere"]["accuracy"] == np.mean(right)
    assert found["quality"].tolist() == [float(one) for one in right]


def test_without_rows_nothing_is_measured(tmp_path):
    fill_folder(tmp_path)
    work = work_of(open_comparison(tmp_path))
    outcome = work.outcome()
    measure_class_elsewhere(work, "good", outcome)
    assert outcome.parts == {}


@pytest.mark.usefixtures("whole_stages", "child_process")
def test_classifiers_and_prompts_are_measured_on_the_same_rows(opened):
    comparison = opened()
    work = work_of(comparison)
    values = values_from_start(comparison, work.cell, "sequence-classification")
    run = comparison.open(values, work.folder / "run")
    run_stages(run, ["build", "train"])
    outcome = work.outcome()
    measure_elsewhere(work, run, job_of(run, "init"), outcome)
    found = read_rows_of_quality(work.folder, "elsewhere")
    assert found["document"].tolist() == list(range(16))
    assert outcome.parts["elsewhere"]["accuracy"] == found["quality"].mean()
    rows = [row["label"] for row in read_lines(comparison.folder / "data" / "elsewhere.jsonl")]
    asked = work_of(comparison, "zero-shot")
    measure_elsewhere_in_words(asked, ModelSource("model"), outcome, {"shots": [0]})
    by_row = read_rows_of_quality(asked.folder, "elsewhere")
    assert len(by_row["quality"]) == len(rows)
    assert outcome.parts["elsewhere"]["accuracy"] == by_row["quality"].mean()


def test_a_search_is_made_again_with_the_arms_keys(opened, monkeypatch):
    comparison = opened()
    work = work_of(comparison, "prompt")
    seen = {}

    def measure(run, config, source, folder, *, search):
        folder.mkdir(parents=True)
        seen.update(shots=config.shots, search=search)
        np.savez(folder / "held_out.npz", document=np.arange(16), quality=np.ones(16))
        return {"accuracy": 1.0, "prompt": "text"}

    class Prepared:
        recipe = comparison.recipe
        teacher_tokenizer = SimpleNamespace(chat_template=None)

    monkeypatch.setattr(elsewhere, "measure_prompt", measure)
    monkeypatch.setattr(elsewhere, "run_elsewhere", lambda *_: Prepared())
    outcome = work.outcome()
    measure_elsewhere_in_words(work, ModelSource("m"), outcome, {"shots": [0, 2]}, search=True)
    assert seen == {"shots": [0, 2], "search": True}
    assert outcome.parts["elsewhere"] == {"accuracy": 1.0}
