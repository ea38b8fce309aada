"""Files of rows: every kind is read, values are what they are, and rows keep their lines."""

import bz2
import gzip
import json
import logging
import lzma
import sys
from contextlib import suppress

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attar.errors import DataError
from distill.data.bad_rows import RowError
from distill.data.file_rows import FileRows
from distill.data.row_formats import RowOptions, content_text, pair_of, row_format_of
from distill.data.sources import load_rows

ROWS = [
    {"text": 'a, "b"\nc', "n": 1},
    {"text": "d;e", "n": None},
    {"text": "\u00fcber \u56db", "n": 3},
]


def rows_of(path):
    return list(load_rows(str(path), "train", None))


def as_table(separator):
    quoted = [f'"{row["text"]}"'.replace('"b"', '""b""') for row in ROWS]
    cells = [f"{text}{separator}{row['n'] or ''}" for text, row in zip(quoted, ROWS, strict=True)]
    return "\n".join([f"text{separator}n", *cells, ""])


JSON_LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
FILES = {
    "a.jsonl": JSON_LINES.encode(),
    "a.ndjson": JSON_LINES.encode(),
    "a.JSONL": JSON_LINES.replace("\n", "\r\n").encode(),
    "blank.jsonl": JSON_LINES.replace("\n", "\n\n").encode(),
    "bom.jsonl": b"\xef\xbb\xbf" + JSON_LINES.encode(),
    "utf16.jsonl": JSON_LINES.encode("utf-16"),
    "a.json": json.dumps(ROWS, indent=1).encode(),
    "columns.json": json.dumps({k: [r[k] for r in ROWS] for k in ("text", "n")}, indent=1).encode(),
    "my.inside.json": json.dumps({"data": ROWS}, indent=1).encode(),
    "a.jsonl.gz": gzip.compress(JSON_LINES.encode()),
    "a.jsonl.bz2": bz2.compress(JSON_LINES.encode()),
    "a.jsonl.xz": lzma.compress(JSON_LINES.encode()),
    "a.csv": as_table(",").encode(),
    "a.tsv": as_table("\t").encode(),
    "german.csv": as_table(";").encode(),
    "excel.csv": b"\xef\xbb\xbf" + as_table(",").encode(),
    "unicode.tsv": as_table("\t").encode("utf-16"),
    "a.csv.gz": gzip.compress(as_table(",").encode()),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    assert rows_of(tmp_path / name) == ROWS
    table = load_rows(str(tmp_path / name), "train", None)
    assert {name: kind.dtype for name, kind in table.features.items()} == {
        "text": "string", "n": "int64",
    }  # fmt: skip
    assert table.filled == {"text": 3, "n": 2}


def test_a_single_object_over_many_lines_is_one_row(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"text": "a", "tags": ["b"]}, indent=1))
    assert rows_of(tmp_path / "a.json") == [{"text": "a", "tags": ["b"]}]


def test_a_zst_file_without_its_package_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl.zst").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DataError, match="pip install zstandard"):
        rows_of(tmp_path / "a.jsonl.zst")


def test_a_truncated_archive_is_named(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(JSON_LINES.encode())[:-12])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz. cannot be read"):
        rows_of(tmp_path / "a.jsonl.gz")


def test_a_list_that_is_no_json_is_named_with_its_place(tmp_path):
    (tmp_path / "a.json").write_text('[\n {"text": "a"},\n {"text": \n]')
    with pytest.raises(DataError, match=r"a\.json is no JSON: .*line 4"):
        rows_of(tmp_path / "a.json")
    (tmp_path / "b.json").write_bytes('[\n {"text": "caf\u00e9"}\n]'.encode("latin-1"))
    with pytest.raises(DataError, match=r"Line 2 of .*b\.json is not UTF-8"):
        rows_of(tmp_path / "b.json")


@given(st.binary(max_size=60), st.sampled_from([".json", ".jsonl", ".csv", ".tsv", ".txt"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_whatever_bytes_a_file_has_it_is_read_or_refused_in_a_line(tmp_path, content, suffix):
    (tmp_path / f"a{suffix}").write_bytes(content)
    with suppress(DataError):
        table = load_rows(str(tmp_path / f"a{suffix}"), "train", None)
        for i in range(len(table)):
            with suppress(RowError):
                assert set(table[i]) == set(table.features)
            assert str(tmp_path) in table.place(i)


def test_values_are_what_they_are(tmp_path):
    """Rows do not share one schema: nothing is made of what is not there, dates stay text."""
    rows = [
        {"text": "2020-01-01", "calls": {"city": "Rome"}, "n": 1},
        {"text": 7, "calls": {"days": None, "at": [1, "x", {}]}, "n": 2.5},
        {"calls": "none", "n": 1 << 70},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert rows_of(tmp_path / "a.jsonl") == [rows[0], rows[1], {"text": None, **rows[2]}]


def test_numbers_of_a_table_are_numbers_only_where_all_are_written_so(tmp_path):
    (tmp_path / "a.csv").write_text("zip,n,share\n00123,4,1.0\n45678,,2.0\n")
    rows = rows_of(tmp_path / "a.csv")
    assert rows[0] == {"zip": "00123", "n": 4, "share": 1.0}
    assert rows[1] == {"zip": "45678", "n": None, "share": 2.0}


def test_a_row_of_a_table_with_other_cells_is_one_bad_row(tmp_path):
    (tmp_path / "a.csv").write_text('text,n\n"a\nb",1\nc\nd,2\n')
    table = FileRows([(tmp_path / "a.csv", "csv")])
    assert [table[0]["text"], table[2]["text"]] == ["a\nb", "d"]
    with pytest.raises(RowError, match="another number of cells"):
        table[1]
    assert table.place(1) == f"line 4 of {tmp_path / 'a.csv'}"


def test_a_large_file_is_not_kept_in_memory(tmp_path):
    (tmp_path / "a.jsonl").write_text(JSON_LINES * 1000)
    table = FileRows([(tmp_path / "a.jsonl", "json")])
    assert len(table) == 3000
    assert table[2999] == ROWS[2]
    with pytest.raises(IndexError):
        table[3000]


# Folders -----------------------------------------------------------------------------------------


def test_files_of_another_kind_in_a_folder_are_named_once(tmp_path, caplog):
    for name in ("b.pdf", "c.docx", "README.md", ".hidden"):
        (tmp_path / name).write_text("x")
    (tmp_path / "a.jsonl").write_text(JSON_LINES)
    with caplog.at_level(logging.WARNING):
        assert rows_of(tmp_path) == ROWS
    assert "2 files in" in caplog.text
    assert "are of another kind and not read, the first is b.pdf" in caplog.text


def test_a_folder_of_two_kinds_that_could_be_read_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text(JSON_LINES)
    (tmp_path / "b.csv").write_text(as_table(","))
    with pytest.raises(DataError, match=r"several kinds \(csv, json\).*\*\.jsonl"):
        rows_of(tmp_path)


def test_a_folder_has_splits_by_the_names_of_its_files(tmp_path):
    (tmp_path / "train.csv").write_text(as_table(","))
    (tmp_path / "test.csv").write_text("text,n\nx,1\n")
    assert rows_of(tmp_path) == ROWS
    assert list(load_rows(str(tmp_path), "test", None)) == [{"text": "x", "n": 1}]
    with pytest.raises(DataError, match="no split `dev`; it has train, test"):
        load_rows(str(tmp_path), "dev", None)


# Cells as text -----------------------------------------------------------------------------------


CELLS = {
    "object": ({"a": 1, "b": "\u00e9"}, '{"a": 1, "b": "\u00e9"}'),
    "list": (["x", 2], '["x", 2]'),
    "one of a list": (["x"], '["x"]'),
    "parts": ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
    "parts without types": ([{"text": "a"}, {"text": "b"}], "ab"),
    "parts of another name": ([{"type": "output_text", "text": "a"}], "a"),
    "number": (4, "4"),
    "nothing": (None, ""),
    "not a number": (float("nan"), ""),
}


@pytest.mark.parametrize(("cell", "text"), CELLS.values(), ids=CELLS.keys())
def test_an_answer_may_be_any_value(cell, text):
    row = {"prompt": "x", "completion": cell}
    assert pair_of(row, row_format_of(row, "rows", RowOptions())) == ("x", text)
    assert content_text(cell) == text


def test_a_conversation_of_a_parquet_file_is_that_of_its_rows(tmp_path):
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    table = datasets.Dataset.from_dict(
        {"messages": [{"role": ["user", "assistant"], "content": ["a", "b"]}]}
    )
    table.to_parquet(str(tmp_path / "a.parquet"))
    from distill.data.conversations import conversation_of

    (row,) = rows_of(tmp_path / "a.parquet")
    layout = row_format_of(row, "rows", RowOptions())
    assert conversation_of(row, layout).messages == talk
