"""Peak memory of a piece of work: of the process on a CPU (Linux), of the allocator on CUDA.

On Linux the kernel keeps the most a process ever held (VmHWM) and sets it back to what it holds
now when 5 is written to /proc/self/clear_refs. What Python and libc hold free is given back first,
so that new allocations show.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress
from pathlib import Path

import torch

MIB = 1 << 20
M_MMAP_THRESHOLD = -3  # of malloc.h


def return_at_once() -> None:
    """From here on, glibc gives every freed tensor back, so that peaks are those of live tensors.

    Otherwise it keeps free up to 64 MiB, more or less of it by what was allocated before. It costs
    time: for processes that measure memory alone.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MIB)


def held() -> int:
    """Bytes held now: resident in the process, or allocated on the GPU."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else _status("VmRSS")


def start() -> int:
    """Set the peak back to what is held now; returns that, in bytes."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return held()
    with suppress(OSError, AttributeError):  # another libc keeps what it keeps
        ctypes.CDLL(None).malloc_trim(0)
    if sys.platform != "linux":
        sys.exit("Peak memory of a CPU is read from /proc: this benchmark runs on Linux or CUDA.")
    Path("/proc/self/clear_refs").write_text("5")
    return held()


def highest() -> int:
    """The most bytes held at once since `start`."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def available() -> int:
    """Bytes that may still be taken."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return _kibibytes(Path("/proc/meminfo"), "MemAvailable")


def _status(name: str) -> int:
    return _kibibytes(Path("/proc/self/status"), name)


def _kibibytes(file: Path, name: str) -> int:
    """Bytes of a line such as `VmRSS:  1234 kB`."""
    line = next(line for line in file.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024
