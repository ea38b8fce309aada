"""One writer at a time, however the previous one ended."""

import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from attar.errors import RunError
from attar.locks import LockFile, hold_lock


def hold(lock):
    return hold_lock(lock, "The folder", RunError)


@pytest.fixture
def dead(child_process):
    """A process of this host that is no more, as a lock names it."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return json.dumps({"host": socket.gethostname(), "pid": process.pid}).encode()


def test_lock_names_its_holder_and_leaves_nothing(tmp_path):
    with hold(LockFile(tmp_path / "lock")):
        found = json.loads((tmp_path / "lock").read_text())
        assert found == {"host": socket.gethostname(), "pid": os.getpid()}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "[]", "3", "{}", '{"host": "x", "pid": "y"}', "\x00"])
def test_lock_that_names_nobody_is_taken_over(tmp_path, content):
    """A lock file as a power cut may leave it."""
    (tmp_path / "lock").write_text(content)
    with hold(LockFile(tmp_path / "lock")):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_lock_of_a_killed_process_that_nobody_waited_for_is_taken_over(tmp_path, child_process):
    """It stays in the table of processes, as it does in many containers."""
    killed = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = {"host": socket.gethostname(), "pid": killed.pid}
    (tmp_path / "lock").write_text(json.dumps(owner))
    with pytest.raises(RunError, match=f"process {killed.pid} "), hold(LockFile(tmp_path / "lock")):
        pass
    killed.kill()
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)  # ended, and not asked for yet
    with hold(LockFile(tmp_path / "lock")):
        pass
    killed.communicate()


def test_lock_that_another_took_meanwhile_stays(tmp_path):
    """Our lock was deleted and another build took it: we must not release its lock."""
    theirs = json.dumps({"host": "elsewhere", "pid": 1})
    with hold(LockFile(tmp_path / "lock")):
        (tmp_path / "lock").write_text(theirs)
    assert (tmp_path / "lock").read_text() == theirs


def test_place_without_a_right_to_write_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    lock = LockFile(tmp_path / "file" / "lock")
    with pytest.raises(RunError, match="file/lock cannot be written"), hold(lock):
        pass


class ReadTogether(LockFile):
    """Two processes have both read the dead lock before either continues."""

    def __init__(self, path, barrier):
        super().__init__(path)
        self._barrier = barrier

    def read(self):
        found = super().read()
        if self._barrier is not None:
            barrier, self._barrier = self._barrier, None
            barrier.wait(timeout=30)
        return found


def test_two_who_find_a_dead_lock_do_not_both_get_it(tmp_path, dead):
    for _ in range(20):
        (tmp_path / "lock").write_bytes(dead)
        barrier, over = threading.Barrier(2), threading.Event()
        inside, refused = [], []

        def take(name, barrier=barrier, over=over, inside=inside, refused=refused):
            try:
                with hold(ReadTogether(tmp_path / "lock", barrier)):
                    inside.append(name)
                    over.wait(timeout=30)
            except RunError as error:
                refused.append(str(error))
                over.set()

        threads = [threading.Thread(target=take, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(inside) == 1
        assert f"in use by process {os.getpid()}" in refused[0]
        assert list(tmp_path.iterdir()) == []
