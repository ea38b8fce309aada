"""The machine that this process runs on: its processors, and who takes their time.

Linux counts the processor time of everything in /proc/stat, a line a core. What others take is that
sum less this process's own time: the load average would not do, as it holds one's own earlier work.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

STAT_FILE = Path("/proc/stat")
CPUINFO_FILE = Path("/proc/cpuinfo")
# Of a core's times: user, nice, system, and stolen by the host of a virtual machine.
TAKEN = (0, 1, 2, 7)


class ProcessorTime(NamedTuple):
    """Seconds of processor time so far on the usable cores: of all work, and of this process with
    its ended children.
    """

    everyone: float
    own: float


def processor_time() -> ProcessorTime | None:
    """What was taken so far of the usable cores; None where the system does not say."""
    everyone = _taken(usable_cores())
    if everyone is None:
        return None
    return ProcessorTime(everyone, sum(os.times()[:4]))


def usable_cores() -> list[int]:
    """Numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def processor_name() -> str:
    """The processor as its maker calls it; its architecture where the system does not say."""
    try:
        lines = CPUINFO_FILE.read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, named), "") or platform.machine()


def _taken(cores: Iterable[int]) -> float | None:
    """Seconds that all work took of these cores since the machine started."""
    try:
        rows = [line.split() for line in STAT_FILE.read_text().splitlines()]
        times = {row[0]: [int(value) for value in row[1:]] for row in rows if row[0][:3] == "cpu"}
        ticks = sum(times[f"cpu{core}"][place] for core in cores for place in TAKEN)
    except (OSError, KeyError, IndexError, ValueError):
        return None
    return ticks / os.sysconf("SC_CLK_TCK")
