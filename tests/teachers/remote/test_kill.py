"""Kill -9 of the build loses at most the shard in flight, and of the server nothing."""

import os
import random
import signal
import socket
import time
from pathlib import Path

import pytest

from teachers.cache.repair import faults_in
from teachers.cache.store import SignalStore


class Served:
    """A server in a process of its own, and builds that ask it."""

    def __init__(self, builder, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.builder, self.folder = builder, folder
        self.config = {"url": f"http://127.0.0.1:{self.port}", "kind": "vllm", "model": "tiny"}
        self.start()

    def start(self):
        """Serve, and wait until it does."""
        self.pid = self.builder(serve=self.port)
        for _ in range(600):
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("the server does not start")

    def kill(self):
        """Kill it as the system does."""
        os.kill(self.pid, signal.SIGKILL)
        assert self.builder(wait=self.pid) == -signal.SIGKILL

    def build(self, name, timeout=60.0):
        """Start a build; its process."""
        server = {**self.config, "concurrency": 4, "timeout": timeout}
        out = self.folder / f"{name}.txt"
        return self.builder(url=str(self.folder / name), out=str(out), server=server)

    def whole(self, name):
        """The files of a cache that is built to its end."""
        assert self.builder(wait=self.build(name)) == 0
        assert (self.folder / f"{name}.txt").read_text() == "built"
        return self.contents(name)

    def contents(self, name):
        files = [path for path in (self.folder / name).rglob("*") if path.is_file()]
        leftovers = "writer.lock."
        return {p.name: p.read_bytes() for p in files if not p.name.startswith(leftovers)}

    def shards(self, name):
        return len(list(Path(self.folder, name, "shards").glob("*.json")))


@pytest.fixture
def served(builder, tmp_path, local_server):
    made = Served(builder, tmp_path)
    yield made
    made.kill()


def kill_builds(served, moments):
    start = time.monotonic()
    whole = served.whole("whole")
    seconds = time.monotonic() - start
    assert sum(name.endswith(".arrow") for name in whole) == 12
    dice, found = random.Random(0), []
    for i in range(moments):
        name = f"cut-{i}"
        pid = served.build(name)
        time.sleep(seconds * (i + dice.random()) / moments)
        os.kill(pid, signal.SIGKILL)
        served.builder(wait=pid)
        store = SignalStore(str(served.folder / name))
        assert faults_in(store) == []
        found.append(served.shards(name))
        assert served.whole(name) == whole
    assert len(set(found)) > moments // 4, f"killed at shards {found}: not spread out"


def test_a_build_that_is_killed_goes_on_and_leaves_the_same_bytes(served):
    kill_builds(served, 4)


def test_a_build_that_is_killed_at_twenty_moments_leaves_the_same_bytes(twenty_kills, served):
    kill_builds(served, twenty_kills)


def test_a_server_that_is_killed_and_comes_back_changes_nothing(served):
    whole = served.whole("whole")
    pid = served.build("cut")
    while served.shards("cut") < 3:
        time.sleep(0.005)
    served.kill()
    time.sleep(0.2)
    served.start()
    assert served.builder(wait=pid) == 0
    assert (served.folder / "cut.txt").read_text() == "built"
    assert served.contents("cut") == whole


def test_a_server_that_stays_away_ends_the_build_and_leaves_its_shards(served):
    pid = served.build("cut", timeout=0.5)
    while served.shards("cut") < 3:
        time.sleep(0.005)
    served.kill()
    assert served.builder(wait=pid) == 0
    said = (served.folder / "cut.txt").read_text()
    assert said.startswith("ServerError: The teacher's server http://127.0.0.1:")
    assert "cannot be reached: Connection refused" in said
    assert served.shards("cut") >= 3
    assert faults_in(SignalStore(str(served.folder / "cut"))) == []
    served.start()
    served.whole("cut")
