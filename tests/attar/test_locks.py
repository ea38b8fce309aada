"""One writer at a time, however the previous one ended."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from attar.errors import RunError
from attar.files import write_text
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
        assert (found["host"], found["pid"]) == (socket.gethostname(), os.getpid())
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
    taken = pytest.raises(RunError, match="taken over by process 1 on elsewhere")
    with taken, hold(LockFile(tmp_path / "lock")):
        (tmp_path / "lock").write_text(theirs)
    assert (tmp_path / "lock").read_text() == theirs


def test_place_without_a_right_to_write_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    lock = LockFile(tmp_path / "file" / "lock")
    with pytest.raises(RunError, match="file/lock cannot be written"), hold(lock):
        pass


# Holders that cannot be seen ---------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Locks whose holders show life, and are given up, within a second."""
    for name, seconds in (("BEAT", 0.05), ("LEASE", 0.5), ("SETTLE", 0.05)):
        monkeypatch.setattr(f"attar.locks.{name}_SECONDS", seconds)


def write_lock(folder, **changes):
    """A lock as a holder elsewhere leaves it."""
    owner = {"host": "elsewhere", "pid": os.getpid(), "machine": "another", "token": "theirs"}
    (folder / "lock").write_text(json.dumps({**owner, **changes}))


def test_lock_of_a_vanished_container_is_taken_over_without_a_hand(tmp_path, quick, caplog):
    write_lock(tmp_path)
    with hold(LockFile(tmp_path / "lock")):
        assert json.loads((tmp_path / "lock").read_text())["token"] != "theirs"
    assert f"process {os.getpid()} on elsewhere, which cannot be seen" in caplog.text


def test_container_of_the_same_name_whose_process_id_is_in_use_here_is_not_us(tmp_path, quick):
    """`docker run --hostname`: the first process of each container has the same id."""
    write_lock(tmp_path, host=socket.gethostname())
    with hold(LockFile(tmp_path / "lock")):
        pass


def test_lock_that_is_refreshed_elsewhere_is_respected_whatever_its_clock_says(tmp_path, quick):
    write_lock(tmp_path)
    timer = threading.Timer(0.2, lambda: os.utime(tmp_path / "lock", (7.0, 7.0)))
    timer.start()
    with pytest.raises(RunError, match="on elsewhere"), hold(LockFile(tmp_path / "lock")):
        pass
    timer.join()


def test_a_holder_shows_life(tmp_path, quick):
    lock = LockFile(tmp_path / "lock")
    with hold(lock):
        seen = {lock.sign() for _ in range(20) if time.sleep(0.02) is None}
    assert len(seen) > 3


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="the system does not tell")
def test_process_id_that_another_process_uses_now_does_not_hold_the_lock(tmp_path, child_process):
    first = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with hold(LockFile(tmp_path / "lock")):
        mine = json.loads((tmp_path / "lock").read_text())
    write_lock(tmp_path, **{**mine, "pid": first.pid, "started": "1"})
    with hold(LockFile(tmp_path / "lock")):
        pass
    first.communicate(b"\n")


def test_who_sleeps_and_loses_the_lock_writes_nothing_more(tmp_path, quick):
    lost = pytest.raises(RunError, match="taken over by process 1 on elsewhere")
    with lost, hold(LockFile(tmp_path / "lock")):
        write_lock(tmp_path, pid=1)
        time.sleep(0.3)
        write_text(tmp_path / "late", "late")
    assert not (tmp_path / "late").exists()
    assert json.loads((tmp_path / "lock").read_text())["token"] == "theirs"
    write_text(tmp_path / "later", "another lock's time")


def test_lock_that_was_deleted_by_hand_is_put_back(tmp_path, quick):
    with hold(LockFile(tmp_path / "lock")):
        (tmp_path / "lock").unlink()
        time.sleep(0.3)
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


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
