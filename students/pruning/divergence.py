"""How far a student is from its teacher, on batches that no importance was measured on.

Legend: N tokens or texts, H width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

ReadOutputs = Callable[[Any, Any], Tensor]  # outputs (N, H) of a model on a batch; differentiable
DivergenceSum = Callable[
    [Any, Tensor, Tensor], Tensor
]  # of (student, teacher's outputs, its own): the sum


class PruningObjective:
    """The mean divergence of students on `held` batches, after distilling on `healing` batches.

    read: returns the outputs that are compared, N rows a batch. apart: returns the divergence of a
    student, summed over rows. name: what the divergence is called in tables. Only the teacher's
    outputs are kept, not the teacher.
    """

    def __init__(
        self,
        teacher: Any,
        read: ReadOutputs,
        apart: DivergenceSum,
        held: Sequence[Any],
        healing: Sequence[Any] = (),
        name: str = "KL",
    ) -> None:
        self.read, self.apart, self.name = read, apart, name
        with torch.no_grad():  # not inference_mode: healing needs them in its backward
            self.held = [(one, read(teacher, one)) for one in held]
            self.healing = [(one, read(teacher, one)) for one in healing]

    @torch.inference_mode()
    def divergence(self, student: Any) -> float:
        """Return the mean divergence of a student over rows."""
        total = sum(float(self._sum(student, *one)) for one in self.held)
        return total / sum(len(theirs) for _, theirs in self.held)

    def _sum(self, student: Any, batch: Any, theirs_NH: Tensor) -> Tensor:
        return self.apart(student, theirs_NH, self.read(student, batch))

    def healed(self, student: nn.Module, steps: int, lr: float = 2e-4) -> nn.Module:
        """Return a copy of the student after this many steps of distilling, one batch each."""
        student = copy.deepcopy(student).float().requires_grad_(True)
        optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.0)
        for step in range(steps):
            batch, theirs_NH = self.healing[step % len(self.healing)]
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1.0, (step + 1) / 4) * (1 - step / steps)
            optimizer.zero_grad()
            (self._sum(student, batch, theirs_NH) / len(theirs_NH)).backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
        return student.requires_grad_(False)
