"""File stamps depend on content."""

import os
import shutil

import pytest

from attar.files import stamp_of_files


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
