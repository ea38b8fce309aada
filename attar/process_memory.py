"""Memory of this process, without importing torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

STATUS_FILE = Path("/proc/self/status")


def resident(name: str) -> int | None:
    """Bytes from a line such as `VmHWM:  1234 kB` of the status file; None without that line."""
    try:
        lines = STATUS_FILE.read_text().splitlines()
    except OSError:
        return None
    found = [line for line in lines if line.startswith(name + ":")]
    return int(found[0].split()[1]) * 1024 if found else None


def peak_since_start() -> int:
    """Peak resident bytes of this process since it started."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_in_use() -> int:
    """Bytes to show while work goes on: once torch uses a GPU, the most that it has allocated
    there; else the resident memory (its peak where /proc is missing).
    """
    torch: Any = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    if cuda is not None and cuda.is_initialized():
        return int(cuda.max_memory_allocated())
    return resident("VmRSS") or peak_since_start()
