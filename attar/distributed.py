"""This process as one of those that run the same command (torchrun), as accelerate sees them."""

from __future__ import annotations

import atexit
import os
import re
from datetime import timedelta
from typing import Any

_LOST_PEER = re.compile(r"gloo/transport|Connection (closed|reset|refused)|Broken pipe|NCCL", re.I)


def is_alone() -> bool:
    """Whether this command runs in one process, without importing torch."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


def is_first_process() -> bool:
    """Whether this process is the only or the first one: the one that writes files and prints."""
    return int(os.environ.get("RANK", "0")) == 0


def free_memory() -> None:
    """Release unused memory: collect reference cycles, then empty torch's GPU cache."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def process_state() -> Any:
    """accelerate's `PartialState`. On CPU it needs `cpu=True`, or every rank would train alone.

    The time limit is long because some stages run on the first process while the others wait.
    """
    import torch
    from accelerate import PartialState

    if is_alone():
        return PartialState(cpu=not torch.cuda.is_available())
    if not torch.distributed.is_initialized():
        atexit.register(_leave_group)
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=2))


def lost_process(error: Exception) -> str | None:
    """A sentence for an error that shows that another process of this command ended; else None."""
    if is_alone() or not isinstance(error, RuntimeError):
        return None
    from torch.distributed import DistError

    if not (isinstance(error, DistError) or _LOST_PEER.search(str(error))):
        return None
    reason = " ".join(str(error).split()).partition(". ")[0][:200]
    return (
        f"Another process of this command has ended or cannot be reached ({reason}); run the same "
        "command again on as many processes: trainings go on from their last checkpoint."
    )


def _leave_group() -> None:
    """Stop the group's threads before the interpreter exits; otherwise the exit may abort."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
