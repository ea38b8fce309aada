"""A full disk or a missing right is one sentence with file and reason, whoever met it."""

import errno
import os
import resource
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from attar.storage_errors import naming, storage_error, storage_sentence
from distill.commands.group import Group

MEGABYTE = torch.zeros(1 << 18)


def write_plainly(file):
    with file.open("wb") as opened:
        opened.write(bytes(1 << 20))


def write_arrow(file):
    with pa.OSFile(str(file), "wb") as opened:
        opened.write(bytes(1 << 20))


WRITERS = {
    "python": write_plainly,
    "safetensors": lambda file: save_file({"x": MEGABYTE}, str(file)),
    "torch": lambda file: torch.save(MEGABYTE, file),
    "tokenizers": lambda file: Tokenizer(models.BPE({f"{i}": i for i in range(999)}, [])).save(
        str(file)
    ),
    "numpy": lambda file: np.zeros(1 << 18).tofile(file),
    "arrow": write_arrow,
}


@pytest.mark.parametrize("library", WRITERS)
def test_every_library_s_word_for_no_more_room_is_understood(library, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=r"Errno (27|28)") as told, naming(tmp_path / "file"):
            WRITERS[library](tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    sentence = storage_sentence(told.value)
    assert sentence.startswith(f"The disk is full: {tmp_path / 'file'} cannot be written (")


@pytest.mark.parametrize(
    "text",
    [
        "[enforce fail at inline_container.cc:664] . unexpected pos 5211648 vs 5211536",
        "PytorchStreamWriter failed writing file data/3: file write failed",
        "basic_ios::clear: iostream error",
    ],
)
def test_an_archive_that_torch_could_not_finish_is_a_full_disk(text):
    assert storage_error(RuntimeError(text)).errno == errno.ENOSPC


def test_the_reason_below_an_archive_s_error_is_the_one_that_counts():
    error = RuntimeError("unexpected pos 64 vs 0")
    error.__context__ = OSError(errno.EROFS, os.strerror(errno.EROFS), "model.bin")
    assert storage_error(error).errno == errno.EROFS
    assert "model.bin cannot be read or written (Read-only" in storage_sentence(
        storage_error(error)
    )


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), FileNotFoundError(errno.ENOENT, "No such file", "x"), OSError("can't load")],
)
def test_other_errors_stay_what_they_are(error):
    assert storage_error(error) is None
    with pytest.raises(type(error)), naming(Path("y")):
        raise error


def test_an_error_on_the_way_of_another_is_not_taken_for_it():
    """A bug after a handled error must show its traceback."""
    bug = KeyError("bug")
    bug.__context__ = PermissionError(errno.EACCES, "Permission denied", "x")
    assert storage_error(bug) is None


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "Error: The disk is full: run/x cannot be written (No space left"),
        (errno.EDQUOT, "Error: The disk is full: run/x cannot be written ("),
        (errno.EACCES, "Error: run/x cannot be read or written (Permission denied); change"),
        (errno.EROFS, "Error: run/x cannot be read or written (Read-only file system); change"),
        (errno.EIO, "Error: run/x cannot be read or written (Input/output error); mend"),
        (errno.ENOTDIR, "Error: run/x cannot be read or written (Not a directory); mend"),
    ],
)
def test_a_command_ends_with_one_line_and_exit_1(number, said):
    @click.group(cls=Group)
    def group():
        pass

    @group.command()
    def work():
        raise OSError(number, os.strerror(number), "run/x")

    result = CliRunner().invoke(group, ["work"])
    assert result.exit_code == 1
    assert result.output.startswith(said)
    assert result.output.count("\n") == 1
