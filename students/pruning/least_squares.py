"""Refit the output projections of a cut student by ridge regression.

The refit goes block by block, on the outputs of the blocks refitted before. In each block it
changes the output projection of attention, then that of the feed-forward, so that the residual
stream behind it comes as near as possible to the teacher's; a ridge penalty keeps the change small.
Where the blocks that followed were removed, the target is the teacher's stream behind those. Tokens
are weighted by the inverse square of their size, since norms divide by it. There is no gradient. It
takes one pass of the teacher and three passes of the student, one of them partial.

Where norms stand around a block's layers (Gemma 2) or behind its sums (BERT), a projection is
fitted to the output of the same projection in the teacher, which does not make up for removed
blocks.

Legend: B rows, T tokens of a row, N tokens of all rows, L student's blocks, H student's channels,
I inputs of a projection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attar.progress import tracked
from students.layer_inputs import BlockwiseForward, StopForward
from students.pruning.architectures import block_number, modules_with, prunable_architecture
from students.pruning.prune import KeptParts

RIDGE_SHARE = 1.0  # ridge, relative to the mean second moment of the inputs

ChannelProjection = Callable[[Tensor], Tensor]


def to_channels(kept: KeptParts) -> ChannelProjection:
    """Return the function from the teacher's residual stream to the student's channels."""
    if kept.channels is None:
        return lambda hidden: hidden
    index = torch.tensor(kept.channels)
    return lambda hidden: hidden.index_select(-1, index.to(hidden.device))


@torch.inference_mode()
def refit(
    student: nn.Module,
    teacher: nn.Module,
    kept: KeptParts,
    input_ids_BT: Tensor,
    project: ChannelProjection | None = None,
) -> None:
    """Refit the student's output projections on calibration ids, in place.

    project: from the teacher's residual stream to the student's; by default it selects the kept
    channels.
    """
    summed = prunable_architecture(teacher).norms == "before"  # each block only adds to the stream
    ours, theirs = _ModelPass(student, input_ids_BT), _ModelPass(teacher, input_ids_BT)
    project = project or to_channels(kept)
    numbered = list(enumerate(kept.blocks))
    for number, block in tracked(numbered, "refitted maps", "blocks"):
        if number + 1 < _first_cut(kept):
            continue  # the student still equals the teacher here
        ours.advance_to(number)
        theirs.advance_to(block)
        middle, behind = theirs.pass_through(summed)
        if summed:
            theirs.advance_to((*kept.blocks, len(theirs.stream.blocks))[number + 1])
            behind = theirs.stream.hidden
        ours.fit(number, "attention", [project(one) for one in middle], summed)
        ours.fit(number, "feed_forward", [project(one) for one in behind], summed)
        ours.advance_to(number + 1)


def _first_cut(kept: KeptParts) -> int:
    """Return the first of the student's blocks that differs from the teacher's block there."""
    if kept.groups or kept.neurons or kept.channels:
        return 0
    return next((new for new, old in enumerate(kept.blocks) if new != old), len(kept.blocks))


class _ModelPass:
    """A model and the calibration text running through it; `at` is the next block."""

    def __init__(self, model: nn.Module, input_ids_BT: Tensor) -> None:
        self.stream, self.at = BlockwiseForward(model, input_ids_BT), 0
        family = prunable_architecture(model)
        self.projections = {
            kind: {
                block: module
                for name, module in modules_with(model, family, axes).items()
                if (block := block_number(name)) is not None
            }
            for kind, axes in (("attention", "HQ"), ("feed_forward", "HI"))
        }

    def advance_to(self, block: int) -> None:
        """Run the text up to the input of a block."""
        while self.at < block:
            self.stream.advance(self.stream.blocks[self.at], self.at)
            self.at += 1

    def pass_through(self, summed: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Run the next block; return the states behind its attention and behind its feed-forward.

        summed: return the residual stream there, else the outputs of the projections.
        """
        middle, behind = [], []
        for i, hidden_BTH in enumerate(self.stream.hidden):
            ((_, attended), (_, fed)), self.stream.hidden[i] = self._run(self.at, hidden_BTH)
            middle.append(hidden_BTH + attended if summed else attended)
            behind.append(self.stream.hidden[i] if summed else fed)
        self.at += 1
        return middle, behind

    def fit(self, block: int, kind: str, wanted: list[Tensor], summed: bool) -> None:
        """Change a block's projection so that the states behind it come near the wanted ones."""
        module: Any = self.projections[kind][block]
        device, (outputs, inputs) = module.weight.device, module.weight.shape
        moments_II = torch.zeros(inputs, inputs, device=device)
        products_HI = torch.zeros(outputs, inputs, device=device)
        for hidden_BTH, wanted_BTH in zip(self.stream.hidden, wanted, strict=True):
            (*before, (read, given)), _ = self._run(block, hidden_BTH, until=kind)
            if summed:
                given = given + hidden_BTH + sum(attended for _, attended in before)
            weight_N1 = torch.ones(1, 1, device=device)
            if summed:
                weight_N1 = wanted_BTH.flatten(0, -2).float().square().mean(-1, True).rsqrt()
            read_NI = weight_N1 * read.flatten(0, -2).float()
            missing_NH = weight_N1 * (wanted_BTH - given).flatten(0, -2).float()
            moments_II += read_NI.T @ read_NI
            products_HI += missing_NH.T @ read_NI
        module.weight.add_(_ridge_solution(moments_II, products_HI).to(module.weight.dtype))

    def _run(
        self, block: int, hidden_BTH: Tensor, until: str | None = None
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Run a block; return (input, output) of each projection, and the batch behind the block.

        until: stop at the projection of that kind, and return the batch unchanged.
        """
        kinds = ["attention"] if until == "attention" else ["attention", "feed_forward"]
        modules = [self.projections[kind][block] for kind in kinds]
        seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

        def note(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            seen[module] = (args[0], output)
            if until is not None and len(seen) == len(modules):
                raise StopForward

        handles = [module.register_forward_hook(note) for module in modules]
        try:
            hidden_BTH = self.stream.run(self.stream.blocks[block], block, hidden_BTH)
        except StopForward:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return [seen[module] for module in modules], hidden_BTH


def _ridge_solution(moments_II: Tensor, products_HI: Tensor) -> Tensor:
    """Return the ridge regression D (H, I), with D x near what is missing and D small."""
    ridge = RIDGE_SHARE * moments_II.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    damped_II = moments_II + ridge * torch.eye(len(moments_II), device=moments_II.device)
    return torch.cholesky_solve(products_HI.T, torch.linalg.cholesky(damped_II)).T
