"""This process among those that run the same command (torchrun), as accelerate sees them."""

from __future__ import annotations

import atexit
import os
from datetime import timedelta
from typing import Any


def is_alone() -> bool:
    """Whether this command runs in one process; known without importing anything heavy."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


def is_first_process() -> bool:
    """Whether this process is alone or the first: the one that writes and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def free_memory() -> None:
    """Give back what is no longer used: cycles first, then the GPU memory that torch holds."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def process_state() -> Any:
    """accelerate's `PartialState`; on CPU it must be told so, or each rank trains alone.

    The time limit is long because some stages run on the first process while others wait.
    """
    import torch
    from accelerate import PartialState

    if is_alone():
        return PartialState(cpu=not torch.cuda.is_available())
    if not torch.distributed.is_initialized():
        atexit.register(_leave_group)
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=2))


def _leave_group() -> None:
    """Stop the group's threads before the interpreter goes; else it may abort as it leaves."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
