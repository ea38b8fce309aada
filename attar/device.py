"""The default device, and the peak memory of a piece of work on it.

On a CPU memory is that of the process, on a GPU that of torch's allocator. On Linux the kernel
keeps the peak of a process (VmHWM in /proc/self/status) and resets it to the current value when 5
is written to /proc/self/clear_refs. Elsewhere, or where /proc cannot be written, the peak is that
of the whole process since it started (getrusage).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from attar.distributed import free_memory, process_state
from attar.process_memory import peak_since_start, resident

CLEAR_REFS_FILE = Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """Peak memory of a block in bytes; before: bytes held when the block began."""

    before: int
    bytes: int = 0

    def note(self, highest: int) -> None:
        """Take a high-water mark from inside the block into account."""
        self.bytes = max(self.bytes, highest)


_running: list[Peak] = []  # blocks that are being measured, the outermost first


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure a block: once it has ended, `bytes` of the yielded object is its peak.

    Blocks may be nested. They share one high-water mark, so an inner block notes it for the outer
    ones before resetting it. Only one thread may use this at a time.
    """
    _note_highest()
    reset_peak()
    peak = Peak(held_bytes())
    _running.append(peak)
    try:
        yield peak
    finally:
        _note_highest()
        _running.remove(peak)


def _note_highest() -> None:
    for peak in _running:
        peak.note(peak_memory_bytes())


def reset_peak() -> None:
    """Release unused memory, then reset the high-water mark to the memory held now."""
    free_memory()
    device = default_device()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError, AttributeError):  # a libc without malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # not Linux, or not writable: the mark stays
        CLEAR_REFS_FILE.write_text("5")


def peak_memory_bytes(device: torch.device | None = None) -> int:
    """Peak bytes of this process since `reset_peak`: resident on a CPU, allocated on a GPU."""
    device = device or default_device()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resident("VmHWM") or peak_since_start()


def held_bytes(device: torch.device | None = None) -> int:
    """Bytes held now: resident on a CPU (the peak where /proc is missing), allocated on a GPU."""
    device = device or default_device()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return resident("VmRSS") or peak_since_start()


def default_device() -> torch.device:
    """The device of this process, as accelerate sees it (its rank's GPU, or the CPU)."""
    return torch.device(process_state().device)
