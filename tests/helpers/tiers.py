"""The tier of a test follows from the fixtures that it uses; nothing marks one by hand.

unit   on the CPU, offline, with tiny models made in memory: what a developer runs on every save
run    tiny whole runs, trainings, child processes, servers on this machine: the gate, with unit
slow   real models and data, twenty kills, several processes, full cross-products: before a release

A test is of the slowest tier of its fixtures. Where the fixtures that it needs do not show what it
does, it asks for one that says so and gives nothing, such as `child_process` in tests/conftest.py.
A unit test that does what `RULES` keeps from it fails.
"""

import contextlib
import sys
import tempfile
import threading
from pathlib import Path

SLOW = {
    "shared_data",  # models and data of ../shared
    "demo_teacher",  # the model that `make demo` fetches
    "several_processes",  # torchrun: each process imports everything again
    "twenty_kills",
    "full_product",  # every combination of what the gate takes in pairs
}
RUN = {
    "workshop", "classroom", "studio",  # folders with a teacher, data and a recipe; commands
    "whole_stages",  # the same, where a test fills its folder itself
    "training_loop",  # a student on disk that several trainings start from
    "shop",  # every tuning method: trained, saved, loaded by a fresh process
    "shelf",  # every kind of adapter, mixed in one batch
    "graph_export",  # torch.export takes its seconds whatever the size of the model
    "cache_of", "sound",  # caches on disk, for the tools that work on them and for damage
    "saved_models",  # models saved in deployable forms and loaded again by their users' ways
    "child_process",
    "builder",  # children that build caches and are killed
    "local_server", "start_s3", "remote",  # a server on this machine
}  # fmt: skip
RULES = {
    "process": "starts a process; ask for the fixture `child_process`",
    "server": "opens a socket; ask for the fixture `local_server`",
    "stage": "runs a stage of a run; ask for `workshop` or `whole_stages`",
    "model": "reads a model that it did not make; ask for `shared_data` or `demo_teacher`",
}
PROCESSES = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"}
SOCKETS = {"socket.bind", "socket.connect"}
MADE_HERE = Path(tempfile.gettempdir()).resolve()


def tier_of(fixtures):
    """`unit`, `run` or `slow`, by the names of all fixtures that a test uses."""
    names = set(fixtures)
    return "slow" if names & SLOW else "run" if names & RUN else "unit"


def broken_rule(event, arguments):
    """Which of the `RULES` an audited event of the interpreter breaks, or None."""
    if event in PROCESSES:
        return "process"
    if event in SOCKETS:
        return "server"
    if event == "open" and isinstance(arguments[0], str):
        path, mode = arguments[0], arguments[1] or "r"
        if "/records/" in path and ".json" in path and "r" not in mode:
            return "stage"
        if path.endswith("/config.json") and not Path(path).resolve().is_relative_to(MADE_HERE):
            return "model"
    return None


class Guard:
    """Fails a unit test that does what only larger tests may."""

    def __init__(self):
        self._test = None
        sys.addaudithook(self._audit)

    def _audit(self, event, arguments):
        if self._test is None or threading.current_thread() is not threading.main_thread():
            return  # a server's thread may outlive the test that started it
        if rule := broken_rule(event, arguments):
            raise AssertionError(f"{self._test} is a unit test and {RULES[rule]}")

    @contextlib.contextmanager
    def watching(self, test):
        """Watch a block that belongs to this unit test."""
        self._test = test
        try:
            yield
        finally:
            self._test = None
