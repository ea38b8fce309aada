"""Finished requests: none is lost by a kill, none counts twice, none is believed that is torn."""

import os

import numpy as np
import pytest

from teachers.writing.request import Failed, Written, request_key
from teachers.writing.store import RequestStore, StoreWriter

SIGNALS = {"ids": np.arange(6, dtype=np.uint16).reshape(3, 2), "tail": np.ones(3, np.float16)}


def written(number, signals=None):
    ids = np.arange(number, number + 3)
    return Written(ids, number % 2 == 0, np.linspace(-1, 0, 3).astype(np.float32), signals, 0.5)


def fill(folder, keys, **how):
    with StoreWriter(folder, **how) as storing:
        for key in keys:
            storing.add(f"{key}", written(key))


def keys(folder):
    return [key for key, _ in RequestStore(folder).read()]


def test_what_was_written_is_read_as_it_was(tmp_path):
    with StoreWriter(tmp_path, codec="topk") as storing:
        storing.add("a", written(4, SIGNALS))
        storing.add("b", written(5))
        storing.add("c", Failed("HTTP 400", again=False))
    store = RequestStore(tmp_path)
    found = dict(store.read())
    assert list(found) == ["a", "b", "c"]
    assert found["a"].ids.tolist() == [4, 5, 6]
    assert (found["a"].ended, found["b"].ended) == (True, False)
    np.testing.assert_array_equal(found["a"].logprobs, written(4).logprobs)
    assert found["c"] == Failed("HTTP 400", again=False)
    line = store.index()["a"]
    for name, column in store.signals(line, "topk").items():
        np.testing.assert_array_equal(column, SIGNALS[name])
        assert column.dtype == SIGNALS[name].dtype
    assert store.signals(line, "another") is None
    assert store.has_signals("topk") == {"a"}


def test_a_kill_at_any_byte_loses_only_the_line_in_flight(tmp_path):
    fill(tmp_path / "whole", range(3))
    data = (tmp_path / "whole" / "00000.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    for cut in range(0, len(data), 7):
        folder = tmp_path / f"{cut}"
        folder.mkdir()
        (folder / "00000.jsonl").write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends)
        assert keys(folder) == [f"{i}" for i in range(whole)]
        fill(folder, [whole, 7])  # going on does not join the torn line
        assert keys(folder) == [f"{i}" for i in [*range(whole), whole, 7]]


def test_a_process_that_dies_after_adding_loses_nothing(tmp_path):
    storing = StoreWriter(tmp_path)
    storing.add("1", written(1))
    os.close(storing._file)  # as the system does when the process is killed: nothing is flushed
    assert keys(tmp_path) == ["1"]


def test_a_line_is_written_whole_where_the_system_takes_it_in_parts(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, bytes(data)[:5]))
    fill(tmp_path, range(3))
    assert keys(tmp_path) == ["0", "1", "2"]


def test_an_answer_that_comes_twice_counts_once_whichever_process_wrote_it(tmp_path):
    fill(tmp_path, [1, 2])
    fill(tmp_path, [2, 3], rank=1)
    assert keys(tmp_path) == ["1", "2", "3"]
    with StoreWriter(tmp_path) as storing:
        storing.add("1", written(9))
    assert dict(RequestStore(tmp_path).read())["1"].ids.tolist() == [1, 2, 3]


def test_a_changed_line_is_not_believed(tmp_path):
    fill(tmp_path, [1, 2])
    file = tmp_path / "00000.jsonl"
    first, second = file.read_text().splitlines(keepends=True)
    file.write_text(first.replace('"ended": false', '"ended": true') + second)
    assert keys(tmp_path) == ["2"]


@pytest.mark.parametrize(
    "changed",
    [{"prompt": [1, 2]}, {"sample": 1}, {"limit": 7}, {"writer": {"seed": 1}}],
)
def test_a_key_changes_with_all_that_an_answer_depends_on(changed):
    values = {"writer": {"seed": 0}, "prompt": [1, 2, 3], "sample": 0, "limit": 8}
    one, other = (
        request_key(v["writer"], np.asarray(v["prompt"]), v["sample"], v["limit"])
        for v in (values, {**values, **changed})
    )
    assert one != other
    assert one == request_key({"seed": 0}, np.asarray([1, 2, 3], np.int32), 0, 8)
