"""The measured peak memory of a block, nested blocks, and systems without /proc."""

import sys

import pytest
import torch

from attar import device, process_memory
from attar.device import held_bytes, peak_memory, peak_memory_bytes, reset_peak

MIB = 1 << 20
SLACK = 24 * MIB  # what the interpreter and libc take and give back meanwhile
linux = pytest.mark.skipif(sys.platform != "linux", reason="the mark is set back on Linux alone")


def hold(mebibytes):
    """A tensor that was written to, so that it is resident."""
    return torch.ones(mebibytes * MIB, dtype=torch.uint8)


@linux
def test_a_peak_is_of_its_block_and_not_of_what_came_before():
    big = hold(256)
    del big
    with peak_memory() as peak:
        small = hold(64)
        del small
    assert 64 * MIB - SLACK < peak.bytes - peak.before < 64 * MIB + SLACK


@linux
def test_an_inner_block_does_not_hide_a_peak_from_the_outer():
    with peak_memory() as outer:
        big = hold(200)
        del big
        with peak_memory() as inner:
            small = hold(40)
            del small
        held = hold(20)
        del held
    assert inner.bytes - inner.before < 40 * MIB + SLACK
    assert outer.bytes - outer.before > 200 * MIB - SLACK


@linux
def test_a_peak_is_known_after_an_error_too():
    def fails():
        big = hold(100)
        del big
        raise ZeroDivisionError

    with peak_memory() as outer, pytest.raises(ZeroDivisionError), peak_memory():
        fails()
    assert outer.bytes - outer.before > 100 * MIB - SLACK
    with peak_memory() as later:
        pass
    assert later.bytes - later.before < SLACK


@linux
def test_the_mark_is_at_least_what_is_held():
    reset_peak()
    held = hold(50)
    assert peak_memory_bytes() >= held_bytes() - MIB
    del held


def test_without_proc_the_peak_is_the_whole_process(monkeypatch, tmp_path):
    """As on macOS: there is no /proc to read or write."""
    monkeypatch.setattr(process_memory, "STATUS_FILE", tmp_path / "absent")
    monkeypatch.setattr(device, "CLEAR_REFS_FILE", tmp_path / "absent" / "too")
    with peak_memory() as peak:
        held = hold(10)
        del held
    assert peak.bytes >= 10 * MIB
    assert peak_memory_bytes() >= peak.bytes
