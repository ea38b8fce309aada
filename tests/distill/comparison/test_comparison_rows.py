"""The rows of a comparison: no text in two parts, nested subsets, every class early."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attar.errors import DataError
from distill.comparison.cells import Cell
from distill.comparison.rows import LABEL, learning_order, row_parts, sizes_of
from distill.data.config import DataConfig
from tests.helpers.classifying import write_rows
from tests.helpers.compared_folder import fill_folder, open_comparison

SIZES = {"test": 10, "selection": 8, "validation": 6}


def labelled(number, classes=2):
    return [{"text": f"text {i}", "label": f"class {i % classes}"} for i in range(number)]


def parts_of(folder, rows, **data):
    write_rows(folder / "rows.jsonl", rows)
    config = DataConfig.model_validate({"train": str(folder / "rows.jsonl"), **data})
    return row_parts(config, True, SIZES)


def texts(rows):
    return {row["text"] for row in rows}


def test_no_text_is_in_two_parts(tmp_path):
    parts = parts_of(tmp_path, [*labelled(60), *labelled(20)])
    counts = {name: len(getattr(parts, name)) for name in SIZES}
    assert counts == SIZES
    assert len(parts.train) == 60 - sum(SIZES.values())
    assert len(set().union(*map(texts, parts.all))) == sum(map(len, parts.all))


def test_parts_with_sources_of_their_own_come_from_there(tmp_path):
    others = [{"text": f"other {i}", "label": "class 0"} for i in range(30)]
    write_rows(tmp_path / "other.jsonl", others)
    parts = parts_of(tmp_path, labelled(20), held_out=str(tmp_path / "other.jsonl"))
    assert texts(parts.test) <= texts(others)
    assert len(parts.test) == 10
    assert len(parts.train) + len(parts.selection) + len(parts.validation) == 20


def test_a_part_takes_no_more_than_a_quarter_of_the_training_rows(tmp_path):
    parts = parts_of(tmp_path, labelled(16))
    assert [len(getattr(parts, name)) for name in SIZES] == [4, 4, 4]


def test_one_class_and_too_few_rows_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"have one class \(class 0\)"):
        parts_of(tmp_path, labelled(40, classes=1))
    with pytest.raises(DataError, match="3 rows that can be used, too few"):
        parts_of(tmp_path, labelled(3))


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=60), st.integers(0, 5))
def test_each_class_comes_once_before_any_comes_twice(labels, seed):
    rows = [{"text": str(i), LABEL: label} for i, label in enumerate(labels)]
    ordered = learning_order(rows, seed)
    assert sorted(row["text"] for row in ordered) == sorted(row["text"] for row in rows)
    classes = len(set(labels))
    assert len({row[LABEL] for row in ordered[:classes]}) == classes


def test_beginnings_have_the_classes_in_proportion():
    rows = [{"text": str(i), LABEL: "rare" if i % 10 == 0 else "usual"} for i in range(200)]
    first = learning_order(rows, 0)[:100]
    assert sum(row[LABEL] == "rare" for row in first) == 10


def test_subsets_are_nested_and_drawn_by_the_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill_folder(tmp_path)
    comparison = open_comparison(tmp_path, compare={"labels": [4, 16], "seeds": [0, 1]})
    few, many = (texts(comparison.training_rows(Cell(n, 0))) for n in (4, 16))
    assert few < many
    assert texts(comparison.training_rows(Cell(16, 1))) != many


def test_the_order_of_held_out_documents_is_that_of_prepared_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill_folder(tmp_path)
    comparison = open_comparison(tmp_path)
    run = comparison.open(
        comparison.base_values(Cell(8, 3), "sequence-classification"), tmp_path / "run"
    )
    run.prepare_data()
    from distill.data.examples import Examples

    examples = Examples(run.folder.data() / "held_out.arrow")
    order, rows = comparison.row_order(3), comparison.measured_rows
    for example, document in zip(examples, examples.documents, strict=True):
        name = rows[order[document]][LABEL]
        assert comparison.parts.classes[int(example.labels[0])] == name
        wanted = run.tokenizer(rows[order[document]]["text"])["input_ids"]
        assert example.input_ids.tolist() == wanted[: len(example.input_ids)]


def test_sizes():
    assert sizes_of(None, 640) == [40, 160, 640]
    assert sizes_of([16, "all"], 100) == [16, 100]
    with pytest.raises(DataError, match=r"`compare.labels` asks for 200 rows, and 100 are left"):
        sizes_of([16, 200], 100)
