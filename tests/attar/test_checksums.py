"""Checksums and stamps of files depend on their content alone."""

import json
import os
import shutil
from pathlib import Path

import pytest

from attar import checksums
from attar.checksums import checksum, faults_of, known_checksum, record_files, stamp_of_files


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("one\ntwo\n")
    return file


def test_a_touched_or_copied_file_is_the_same(file):
    before = stamp_of_files([file])
    os.utime(file, (1, 1))
    assert stamp_of_files([file]) == before
    shutil.copy(file, file.with_name("aside"))
    file.with_name("aside").replace(file)
    assert stamp_of_files([file]) == before


def test_an_edited_file_is_noticed_whatever_its_size_and_time(file):
    os.utime(file, (1, 1))
    before = stamp_of_files([file])
    file.write_text("one\nTwo\n")
    os.utime(file, (1, 1))
    assert stamp_of_files([file]) != before


def test_a_file_that_stays_is_read_once(file, monkeypatch):
    monkeypatch.setattr(checksums, "TICK_NS", -1)
    first = known_checksum(file)
    monkeypatch.setattr(checksums, "checksum", lambda path: pytest.fail("it was read again"))
    assert known_checksum(file) == first


def test_a_file_that_was_just_written_is_read_again(file):
    known_checksum(file)
    stamp = file.stat()
    file.write_text("one\nTwo\n")  # it may be within the same tick of the clock
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert known_checksum(file) == checksum(file)


@pytest.fixture
def big(file, tmp_path, monkeypatch):
    """A file that other processes are told of."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checksums, "REMEMBERED_BYTES", 1)
    monkeypatch.setattr(checksums, "COARSE_TICK_NS", -1)
    monkeypatch.setattr(checksums, "TICK_NS", -1)
    return file


def test_big_files_are_remembered_for_other_processes(big, tmp_path, monkeypatch):
    first = known_checksum(big)
    assert (tmp_path / "cache/attar/checksums.json").is_file()
    monkeypatch.setattr(checksums, "_known", {})  # as in another process
    monkeypatch.setattr(checksums, "checksum", lambda path: pytest.fail("it was read again"))
    assert known_checksum(big) == first


@pytest.mark.parametrize("damage", ["{", "[]", '{"a": 1}', '{"a": [1]}', "\x00\xff" * 9, "null"])
def test_a_damaged_memory_does_no_harm(big, tmp_path, monkeypatch, damage):
    memory = tmp_path / "cache/attar/checksums.json"
    memory.parent.mkdir(parents=True)
    memory.write_text(damage, encoding="latin1")
    assert known_checksum(big) == checksum(big)


def test_a_memory_that_cannot_be_written_does_no_harm(big, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file in the place of the folder")
    assert known_checksum(big) == checksum(big)


def test_the_memory_is_bounded(big, tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "MOST_REMEMBERED", 3)
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text(f"{i}")
        known_checksum(tmp_path / f"{i}.txt")
    kept = json.loads((tmp_path / "cache/attar/checksums.json").read_text())
    assert [Path(name).name for name in kept] == ["2.txt", "3.txt", "4.txt"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: f.write_text("one\ntwO\n"), "was changed"),
        (lambda f: f.write_text("one"), "has 3 bytes instead of 8"),
        (lambda f: f.write_bytes(bytes(8)), "was changed"),
        (lambda f: f.unlink(), "is missing"),
        (lambda f: (f.unlink(), f.mkdir()), "bytes instead of 8"),
    ],
)
@pytest.mark.parametrize("every_byte", [False, True])
def test_damage_to_recorded_files_is_named(file, damage, says, every_byte):
    recorded = record_files([file.parent], file.parent)
    assert faults_of(recorded, file.parent, every_byte=every_byte) == {}
    damage(file)
    (found,) = faults_of(recorded, file.parent, every_byte=every_byte).items()
    assert found[0] == "texts.txt"
    assert says in found[1]


def test_a_check_of_every_byte_believes_no_time(file, monkeypatch):
    monkeypatch.setattr(checksums, "TICK_NS", -1)
    recorded = record_files([file], file.parent)
    monkeypatch.setattr(checksums, "_stamp", lambda path: checksums._known[str(path)][0])
    file.write_text("one\nTwo\n")
    assert faults_of(recorded, file.parent) == {}
    assert faults_of(recorded, file.parent, every_byte=True) == {"texts.txt": "was changed"}
