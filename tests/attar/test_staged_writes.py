"""Files and folders take their names when they are whole, and no link leads a write elsewhere."""

from pathlib import Path

import pytest

from attar.files import staged_file, staged_folder, write_text
from attar.storage_errors import storage_sentence


@pytest.fixture
def outside(tmp_path):
    """A folder with a file that no write may touch."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious").write_text("precious")
    yield folder
    assert [path.name for path in folder.iterdir()] == ["precious"]
    assert (folder / "precious").read_text() == "precious"


def test_a_link_in_the_place_of_a_partial_file_is_not_followed(tmp_path, outside):
    (tmp_path / "report.json.partial").symlink_to(outside / "precious")
    write_text(tmp_path / "report.json", "new")
    assert (tmp_path / "report.json").read_text() == "new"
    assert not (tmp_path / "report.json").is_symlink()


def test_files_of_a_staged_folder_may_be_read_by_whom_the_folder_may(tmp_path):
    """safetensors writes for the owner alone."""
    with staged_folder(tmp_path / "student") as aside:
        write_text(aside / "config.json", "{}")
        (aside / "model.safetensors").write_bytes(b"weights")
        (aside / "model.safetensors").chmod(0o600)
    rights = (tmp_path / "student").stat().st_mode & 0o666
    for file in (tmp_path / "student").iterdir():
        assert file.stat().st_mode & 0o666 == rights, file.name


@pytest.mark.parametrize("name", ["student.partial", "student.old"])
@pytest.mark.parametrize("target", [".", "precious", "missing"])
def test_links_in_the_place_of_staged_folders_are_not_followed(tmp_path, outside, name, target):
    for content in ("first", "second"):
        (tmp_path / name).symlink_to(outside / target)
        with staged_folder(tmp_path / "student") as aside:
            (aside / "weights").write_text(content)
        assert (tmp_path / "student" / "weights").read_text() == content
        assert not (tmp_path / name).is_symlink()


def test_folders_left_in_the_place_of_a_partial_file_are_no_hindrance(tmp_path):
    (tmp_path / "x.partial" / "y").mkdir(parents=True)
    write_text(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_content_and_nothing_else(tmp_path, error):
    def write(content, then=None):
        with staged_folder(tmp_path / "folder") as folder, staged_file(tmp_path / "file") as file:
            file.write_text(content)
            (folder / "a").write_text(content)
            if then is not None:
                raise then

    write("old")
    with pytest.raises(error):
        write("half", error)
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "a").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_stop_between_two_renames_puts_the_old_folder_back(tmp_path, monkeypatch):
    def write(content):
        with staged_folder(tmp_path / "folder") as aside:
            (aside / "a").write_text(content)

    write("old")
    replace = Path.replace

    def stop(self, target):
        if self.suffix == ".partial":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write("new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "a").read_text() == "old"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(FileExistsError) as told:
        write_text(tmp_path / "file" / "x", "new")
    assert f"{tmp_path / 'file'} cannot be read or written" in storage_sentence(told.value)
