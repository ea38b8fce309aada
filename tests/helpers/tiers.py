"""The tier of a test follows from the fixtures that it uses; nothing marks one by hand.

unit   on the CPU, offline, tiny models in memory: what a developer runs on every save
run    tiny whole runs, model folders, child processes, servers on this machine: the gate
slow   real models and data, twenty kills, several processes, full cross-products: before a release

A test is as slow as its slowest fixture. One that needs more than its fixtures say asks for one of
the `RULES` fixtures of tests/conftest.py, for a whole file by `pytestmark = usefixtures(...)`. A unit
test that writes a model folder, starts a process or opens a socket fails, with the rule it broke.
"""

import contextlib
import sys

SLOW = {
    "shared_data",  # models and data of ../shared
    "demo_teacher",  # the model that `make demo` fetches
    "several_processes",  # torchrun
    "twenty_kills",
    "full_product",  # every combination of what the gate takes in pairs
}
RUN = {
    "workshop", "classroom", "studio",  # folders with a teacher, data and a recipe; commands
    "open_run",
    "finding",  # of the doctor, on a run
    "shop",  # every tuning method, trained and saved
    "exported",  # graphs by torch.export
    "start_s3",
    "builder",  # children that build caches, to be killed
    "models_on_disk",
    "child_process",
    "graph_export",
}  # fmt: skip
RULES = {
    "process": "starts a process; ask for the fixture `child_process`",
    "folder": "writes a model folder; ask for the fixture `models_on_disk`",
    "socket": "opens a socket; ask for the fixture `start_s3`",
}
PROCESSES = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn"}


def tier_of(fixtures):
    """`unit`, `run` or `slow`, by the names of all fixtures that a test uses."""
    names = set(fixtures)
    return "slow" if names & SLOW else "run" if names & RUN else "unit"


def broken_rule(event, arguments):
    """Which of the `RULES` an audited event of the interpreter breaks, or None."""
    if event in PROCESSES:
        return "process"
    if event in ("socket.bind", "socket.connect"):
        return "socket"
    if event == "open":
        path, mode, _ = arguments
        written = isinstance(mode, str) and not mode.startswith("r")
        return "folder" if written and str(path).endswith("/config.json") else None
    return None


class Guard:
    """Fails a unit test that does what only larger tests may."""

    def __init__(self):
        self.test = None
        sys.addaudithook(self._audit)

    def _audit(self, event, arguments):
        if self.test is not None and (rule := broken_rule(event, arguments)):
            raise AssertionError(f"{self.test} is a unit test and {RULES[rule]}")

    @contextlib.contextmanager
    def watching(self, test):
        """Watch a block that belongs to this unit test."""
        self.test = test
        try:
            yield
        finally:
            self.test = None
