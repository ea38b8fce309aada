"""What the fork server imports before it measures."""

import importlib

from distill.evaluation import measure
from distill.evaluation.fresh_process import PRELOADED_LIBRARIES, preloaded


def test_the_module_that_measures_is_imported_once_for_all_models():
    assert preloaded(measure._measure_to_file) == [measure.__name__, *PRELOADED_LIBRARIES]


def test_libraries_that_are_preloaded_exist():
    for name in PRELOADED_LIBRARIES:  # multiprocessing passes silently over one that does not
        assert importlib.import_module(name).__name__ == name
