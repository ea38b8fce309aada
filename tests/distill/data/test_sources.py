import gzip
import json
import os
from pathlib import Path

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


def write_plain(path, text):
    path.write_text(text)


def write_compressed(path, text):
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.jsonl", write_plain),
        ("rows.txt", write_plain),
        ("rows.jsonl.gz", write_compressed),
        ("folder/rows.jsonl", write_plain),
    ],
)
def test_a_file_that_changes_within_its_time_is_read_again(tmp_path, name, write):
    """The library keeps what it read, and tells files apart by their time alone."""
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    source = str(file.parent if "/" in name else file)
    found = []
    for word in ("one", "two"):
        write(file, json.dumps({"text": word}) + "\n")
        os.utime(file, (1, 1))
        found += [row["text"].strip() for row in load_rows(source, "train", None)]
    assert [word in text for word, text in zip(("one", "two"), found, strict=True)] == [True, True]


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


@pytest.mark.parametrize("source", ["rowss", "data/rowss", "my rowss"])
def test_data_that_are_nowhere_are_told_with_the_nearest_folder(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("rows", "data/rows", "my rows"):
        Path(name).mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        load_rows(source, "train", None)
    said = str(caught.value)
    assert said.startswith(f"There is no file or folder {source}")
    assert "Did you mean" in said


def test_columns_of_other_names_say_what_to_name_or_rename():
    from datasets import List, Value

    text, talk = Value("string"), List({"speaker": Value("string"), "text": Value("string")})
    for features, mend in (
        ({"id": text, "dialog": talk}, r"rename `dialog`, .* to `messages` .* `conversations`"),
        ({"asked": text, "reply": text}, r"`data\.prompt` .*and `data\.label_column`\.$"),
        ({"body": text, "number": Value("int64")}, r"name the text with `data\.text_column`\.$"),
    ):
        with pytest.raises(DataError, match=mend):
            row_format_of(features, "rows.jsonl", RowOptions())
