"""What the fork server imports before it measures."""

import importlib
import subprocess
import sys

from distill.evaluation import measure
from distill.evaluation.fresh_process import PRELOADED_LIBRARIES, SILENCER, preloaded

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
