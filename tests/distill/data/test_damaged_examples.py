"""Examples are as they were written, or made again."""

import pytest

from distill.data.prepare import data_faults
from tests.helpers.preparing import texts

EXAMPLE_FILES = ("train.arrow", "validation.arrow", "held_out.arrow", "stats.json", "files.json")


@pytest.mark.parametrize("name", EXAMPLE_FILES)
@pytest.mark.parametrize("damage", ["flipped", "truncated", "deleted"])
def test_damaged_examples_are_named_and_made_again(prepared, tmp_path, caplog, name, damage):
    prepared([{"text": text} for text in texts(20)])
    folder = tmp_path / "data"
    before = {one: (folder / one).read_bytes() for one in EXAMPLE_FILES}
    assert data_faults(folder) == {}
    data = bytearray(before[name])
    data[len(data) // 2] ^= 1
    if damage == "deleted":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(data if damage == "flipped" else data[: len(data) // 2])
    assert list(data_faults(folder)) == [name]
    prepared([{"text": text} for text in texts(20)])
    assert f"{folder / name}" in caplog.text
    assert "made again" in caplog.text
    assert {one: (folder / one).read_bytes() for one in EXAMPLE_FILES} == before


def test_examples_of_another_version_of_a_library_are_made_again(prepared, tmp_path, monkeypatch):
    prepared([{"text": text} for text in texts(20)])
    stamp = (tmp_path / "data/train.arrow").stat().st_mtime_ns
    prepared([{"text": text} for text in texts(20)])
    assert (tmp_path / "data/train.arrow").stat().st_mtime_ns == stamp
    monkeypatch.setattr("attar.libraries.version", lambda name: "99.1.0")
    prepared([{"text": text} for text in texts(20)])
    assert (tmp_path / "data/train.arrow").stat().st_mtime_ns != stamp
