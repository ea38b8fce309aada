"""How far a student is from its teacher, on batches that no cut was judged on.

Legend: N tokens or texts, H width, V ids or classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PIECE = 256  # of N, whose logits are in memory at once

States = Callable[[Any, Any], Tensor]  # (N, H) of a model's batch
Logits = Callable[[Tensor], Tensor]  # float32 (N, V), by the head of a model


@dataclass(frozen=True)
class Reading:
    """How a task reads models: what its batches give, and how that becomes logits."""

    states: States
    logits_of: Callable[[Any], Logits]


class Yardstick:
    """Mean KL(teacher || student), nats, on `held` batches; `healing` batches to distil on first.

    Of the teacher only its states on all of them, and its head, are kept.
    """

    def __init__(
        self, teacher: Any, reading: Reading, held: Sequence[Any], healing: Sequence[Any] = ()
    ) -> None:
        self.reading, self.teacher = reading, reading.logits_of(teacher)
        with torch.no_grad():  # not inference: healing keeps them for its backward
            self.held = [(one, reading.states(teacher, one)) for one in held]
            self.healing = [(one, reading.states(teacher, one)) for one in healing]

    @torch.inference_mode()
    def harm(self, student: Any) -> float:
        """KL(teacher || student) of the student as it is."""
        total = sum(float(self._sum(student, *one)) for one in self.held)
        return total / sum(len(states_NH) for _, states_NH in self.held)

    def _sum(self, student: Any, batch: Any, theirs_NH: Tensor) -> Tensor:
        logits, ours_NH = self.reading.logits_of(student), self.reading.states(student, batch)
        total = ours_NH.new_zeros((), dtype=torch.float32)
        for ours, theirs in zip(ours_NH.split(PIECE), theirs_NH.split(PIECE), strict=True):
            wanted_NV = self.teacher(theirs).log_softmax(-1)
            found_NV = logits(ours).log_softmax(-1)
            total = total + (wanted_NV.exp() * (wanted_NV - found_NV)).sum()
        return total

    def healed(self, student: nn.Module, steps: int, lr: float = 2e-4) -> nn.Module:
        """A copy of the student after so many steps of distilling, a batch each."""
        student = copy.deepcopy(student).float().requires_grad_(True)
        optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.0)
        for step in range(steps):
            batch, states_NH = self.healing[step % len(self.healing)]
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1.0, (step + 1) / 4) * (1 - step / steps)
            optimizer.zero_grad()
            (self._sum(student, batch, states_NH) / len(states_NH)).backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
        return student.requires_grad_(False)
