"""How a training uses accelerate: its devices, its processes and its trackers."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import RecipeError
from distill.training.config import LoopConfig


def check_trackers(path: str, names: Sequence[str]) -> None:
    """Raise `RecipeError` for a tracker that is not installed: accelerate drops it silently."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise RecipeError(
                f"`{path}` names {name}, which is not installed; `pip install {name}`."
            )


def make_accelerator(config: LoopConfig, folder: Path, some_unused: bool) -> Any:
    """Return accelerate's view of devices and processes.

    The learner autocasts itself, so accelerate's mixed precision stays off. some_unused: whether a
    parameter that learns may get no gradient in a step.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    trackers: Any = list(config.trackers) or None
    options = DistributedDataParallelKwargs(find_unused_parameters=some_unused)
    cpu = not torch.cuda.is_available()
    return Accelerator(
        cpu=cpu, log_with=trackers, project_dir=str(folder), kwargs_handlers=[options]
    )


def checkpoint_blocks(student: Any) -> None:
    """Keep only the inputs of blocks for the backward pass, which runs the blocks again."""
    old = student.gradient_checkpointing_enable  # its name before transformers 5.23
    getattr(student, "activation_checkpointing_enable", old)({"use_reentrant": False})
    # Enabling it makes the embeddings' output require a gradient, which only re-entrant
    # checkpointing needs: frozen blocks would run forward again, and backward, for no use.
    student.disable_input_require_grads()


class OneProcess:
    """What the loop uses of accelerate's `Accelerator`, for one process among several that trains
    by itself, on the device where its learner is.
    """

    process_index, num_processes, is_main_process = 0, 1, True

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def prepare(self, prepared: Any) -> Any:
        """Give back a learner or an optimiser as it is."""
        return prepared

    def no_sync(self, _model: Any) -> nullcontext[None]:
        """Do nothing: there is no exchange of gradients to leave out."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients."""
        loss.backward()

    def clip_grad_norm_(self, parameters: Iterable[nn.Parameter], most: float) -> Tensor:
        """Scale the gradients so that their norm is at most `most`; return the norm before."""
        return nn.utils.clip_grad_norm_(parameters, most)

    def reduce(self, value: Tensor, _how: str) -> Tensor:
        """Give back the value: it is the sum over one process."""
        return value
