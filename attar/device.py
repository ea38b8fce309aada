"""Peak memory of a piece of work: of the process on a CPU, of the allocator on a GPU.

On Linux the kernel keeps the most a process ever held (VmHWM of /proc/self/status) and sets it back
to what it holds now when 5 is written to /proc/self/clear_refs. Elsewhere, or where /proc may not
be written, the peak is that of the whole process since it began (getrusage).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from attar.distributed import free_memory, process_state

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """The most bytes held at once while a block ran, before it what was held as it began."""

    before: int
    bytes: int = 0

    def seen(self, highest: int) -> None:
        """Take note of another high-water mark inside the block."""
        self.bytes = max(self.bytes, highest)


_open: list[Peak] = []  # blocks that are being measured, the outermost first


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure a block: `bytes` of what is given holds its peak once the block has ended.

    Blocks may lie in each other: there is one mark for all, so an inner block that sets it back
    tells the outer ones first. To be used by one thread at a time.
    """
    _note_highest()
    reset_peak()
    peak = Peak(held_bytes())
    _open.append(peak)
    try:
        yield peak
    finally:
        _note_highest()
        _open.remove(peak)


def _note_highest() -> None:
    for peak in _open:
        peak.seen(peak_memory_bytes())


def reset_peak() -> None:
    """Set the high-water mark back to what is held now, after giving back what is held free."""
    free_memory()
    device = default_device()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError, AttributeError):  # another libc keeps what it keeps
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # not Linux, or not ours to write: the mark stays
        CLEAR.write_text("5")


def peak_memory_bytes(device: torch.device | None = None) -> int:
    """The most this process held since `reset_peak`: resident on a CPU, allocated on a GPU."""
    device = device or default_device()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _resident("VmHWM") or _highest_ever()


def held_bytes(device: torch.device | None = None) -> int:
    """Bytes held now: resident on a CPU, allocated on a GPU; where /proc is not, the peak."""
    device = device or default_device()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _resident("VmRSS") or _highest_ever()


def _resident(name: str) -> int | None:
    """Bytes of a line such as `VmHWM:  1234 kB`, or None where there is no such line."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    found = [line for line in lines if line.startswith(name + ":")]
    return int(found[0].split()[1]) * 1024 if found else None


def _highest_ever() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def default_device() -> torch.device:
    """The device of this process, as accelerate sees it (its rank's GPU, or the CPU)."""
    return torch.device(process_state().device)
