"""What the fork server imports before it measures, and how its children end."""

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from distill.evaluation import measure
from distill.evaluation.fresh_process import (
    PRELOADED_LIBRARIES,
    SILENCER,
    preloaded,
    run_in_fresh_process,
)

FRESH = "from distill.evaluation.fresh_process import run_in_fresh_process as run; run(print, 'hi')"


def test_the_module_that_measures_is_imported_once_for_all_models():
    assert preloaded(measure._measure_to_file) == [
        SILENCER, measure.__name__, *PRELOADED_LIBRARIES,
    ]  # fmt: skip


def test_libraries_that_are_preloaded_exist():
    for name in (
        SILENCER,
        *PRELOADED_LIBRARIES,
    ):  # multiprocessing passes silently over one that does not
        assert importlib.import_module(name).__name__ == name


def test_what_is_preloaded_says_nothing_on_the_screen(child_process):
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("hi\n", "")


def test_an_error_of_the_disk_in_the_child_is_the_parent_s_error(child_process):
    with pytest.raises(NotADirectoryError, match="/dev/null/x"):
        run_in_fresh_process(os.mkdir, "/dev/null/x")


def test_what_went_well_and_what_exited_is_told_by_the_status(child_process):
    assert run_in_fresh_process(time.sleep, 0) == 0
    assert run_in_fresh_process(os._exit, 3) == 3


def test_ctrl_c_ends_the_child_without_a_word(child_process, capfd):
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run_in_fresh_process(time.sleep, 600)
    assert multiprocessing.active_children() == []
    assert "Traceback" not in capfd.readouterr().err


def test_a_child_ends_with_a_parent_that_is_killed(child_process, tmp_path):
    """Else it would go on to write into the folder that the next run works on."""
    code = (
        "from distill.evaluation import fresh_process as fresh\n"
        "from tests.helpers.counting import count_for_ever\n"
        "fresh.PRELOADED_LIBRARIES = ()\n"
        f"fresh.run_in_fresh_process(count_for_ever, {str(tmp_path / 'count')!r})\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "count").exists():
        assert parent.poll() is None
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    time.sleep(1)
    before = (tmp_path / "count").read_text()
    time.sleep(1)
    assert (tmp_path / "count").read_text() == before
