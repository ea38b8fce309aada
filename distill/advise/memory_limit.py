"""How much memory there is: as a user writes it, or the machine's."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

import torch

from attar.device import default_device
from attar.errors import RecipeError

UNITS = {
    "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40,
}  # fmt: skip
WRITTEN = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]i?)?B?")
CONTROL_GROUP = Path("/sys/fs/cgroup/memory.max")  # the limit of a container


def memory_of(text: str) -> float:
    """Bytes of an amount as in `8GB` or `512MiB`. Raises `RecipeError` for anything else."""
    found = WRITTEN.fullmatch(text.strip())
    size = 0.0 if found is None else float(found[1]) * UNITS[_unit(found[2])]
    if size <= 0:
        raise RecipeError(
            f"`--memory {text}` is not an amount of memory; write one like `8GB` or `512MiB`."
        )
    return size


def _unit(name: str | None) -> str:
    return "" if name is None else name.replace("K", "k" if len(name) == 1 else "K")


def machine_memory() -> float | None:
    """Bytes of the device that trainings run on: of the GPU, else of the machine or of the
    container's limit, where that is lower; None where the system does not say.
    """
    device = default_device()
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    found: list[float] = []
    with suppress(ValueError, OSError, AttributeError):
        found.append(float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
    with suppress(ValueError, OSError):
        found.append(float(CONTROL_GROUP.read_text()))
    return min(found, default=None)
