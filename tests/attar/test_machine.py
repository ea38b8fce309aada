"""Who takes the processors' time."""

import os

import pytest

from attar import machine

STAT = """cpu  999 999 999 999 0 0 0 0 0 0
cpu0 100 20 30 5000 7 0 9 50 0 0
cpu1 200 0 0 5000 0 0 0 0 0 0
cpu2 999 0 0 5000 0 0 0 0 0 0
intr 1 2 3
"""


@pytest.fixture
def stat(tmp_path, monkeypatch):
    file = tmp_path / "stat"
    file.write_text(STAT)
    monkeypatch.setattr(machine, "STAT_FILE", file)
    monkeypatch.setattr(machine, "usable_cores", lambda: [0, 1])
    return file


def test_what_is_taken_is_of_the_usable_cores_without_idle_time(stat):
    found = machine.processor_time()
    assert found.everyone == pytest.approx(400 / os.sysconf("SC_CLK_TCK"))
    assert found.own > 0


@pytest.mark.parametrize("text", ["", "cpu 1 2\n", "cpu0 1 2 3\ncpu1 1 2 3\n", "cpu0 a\ncpu1 b\n"])
def test_a_file_that_does_not_say_gives_nothing(stat, text):
    stat.write_text(text)
    assert machine.processor_time() is None
    stat.unlink()
    assert machine.processor_time() is None


def test_a_processor_has_a_name_everywhere(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "CPUINFO_FILE", file)
    assert machine.processor_name()
    file.write_text("processor\t: 0\nmodel name\t: Fast 9000 @ 2.80GHz: new\n")
    assert machine.processor_name() == "Fast 9000 @ 2.80GHz: new"
