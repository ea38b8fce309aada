import json

import pytest

from attar.errors import DataError
from distill.data.conversations import conversation_of
from distill.data.row_formats import RowOptions, row_format_of
from distill.data.sources import load_rows


def test_a_plain_file_has_no_splits(tmp_path):
    """Held-out text asked for by `split:NAME` must never be the training file itself."""
    file = tmp_path / "x.jsonl"
    file.write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match="no splits"):
        load_rows(str(file), "validation", None)
    assert len(load_rows(str(file), "train", None)) == 1


def test_a_saved_folder_of_one_data_set_has_no_splits(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match="no splits"):
        load_rows(str(tmp_path / "saved"), "validation", None)


@pytest.mark.parametrize("context", ["input", "context"])
def test_what_an_instruction_is_about_stays_with_it(context):
    row = {"instruction": "Translate.", context: "Guten Tag", "output": "Good day"}
    layout = row_format_of(row, "rows", RowOptions())
    asked, answered = conversation_of(row, layout).messages
    assert asked == {"role": "user", "content": "Translate.\n\nGuten Tag"}
    assert answered == {"role": "assistant", "content": "Good day"}
    assert conversation_of({**row, context: ""}, layout).messages[0]["content"] == "Translate."


def test_a_message_without_content_is_named(tmp_path):
    row = {"messages": [{"role": "user"}]}
    with pytest.raises(DataError, match="content"):
        conversation_of(row, row_format_of(row, "rows", RowOptions()))


def test_rows_that_are_no_json_are_told(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps({"text": "a"}) + "\n{broken\n")
    with pytest.raises(DataError, match=r"[Ll]ine 2 of .*x\.jsonl.*no JSON"):
        list(load_rows(str(file), "train", None))
