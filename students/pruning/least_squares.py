"""Output maps fitted anew, by least squares, so that a cut student's stream is near its teacher's.

Block after block, from what the student's blocks before it give by now: first the map behind
attention, then the one behind the feed-forward, each moved by the smallest change (a ridge) that
brings the residual stream behind it nearest to the teacher's there - behind a block whose
followers were removed, to the teacher's behind those. Tokens weigh by the inverse square of their
size, since norms divide by it. No gradient; one pass of the teacher, and of the student one to fit
each map, that behind attention a short one, and one to go on.

Where norms stand around a block's maps (Gemma 2), or behind its sums (BERT), maps are fitted to
what the same block's map gives in the teacher; removed blocks are not made up for.

Legend: B rows, T tokens, N tokens together, L student's blocks, H student's channels, I inputs of
a map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from students.layer_inputs import BlockwiseForward, StopForward
from students.pruning.architectures import block_number, modules_with, prunable_architecture
from students.pruning.prune import KeptParts

RIDGE_SHARE = 1.0  # of the mean of the inputs' moments

ChannelProjection = Callable[[Tensor], Tensor]


def to_channels(kept: KeptParts) -> ChannelProjection:
    """From the teacher's residual stream to the student's."""
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
    on_block: Callable[[int, int], None] = lambda done, blocks: None,
) -> None:
    """Fit the student's output maps, in place, on calibration ids.

    `project`: the teacher's stream as the student has it, by default its kept channels. `on_block`
    is told how many blocks of how many are done.
    """
    summed = prunable_architecture(teacher).norms == "before"  # a block adds to the stream, and nothing else
    ours, theirs = _ModelPass(student, input_ids_BT), _ModelPass(teacher, input_ids_BT)
    project = project or to_channels(kept)
    for number, block in enumerate(kept.blocks):
        if number + 1 < _first_cut(kept):
            continue  # nothing is missing yet
        ours.advance_to(number)
        theirs.advance_to(block)
        middle, behind = theirs.pass_through(summed)
        if summed:
            theirs.advance_to((*kept.blocks, len(theirs.stream.blocks))[number + 1])
            behind = theirs.stream.hidden
        ours.fit(number, "attention", [project(one) for one in middle], summed)
        ours.fit(number, "feed_forward", [project(one) for one in behind], summed)
        ours.advance_to(number + 1)
        on_block(number + 1, len(kept.blocks))


def _first_cut(kept: KeptParts) -> int:
    """The first of the student's blocks that is not, with its number, the teacher's."""
    if kept.groups or kept.neurons or kept.channels:
        return 0
    return next((new for new, old in enumerate(kept.blocks) if new != old), len(kept.blocks))


class _ModelPass:
    """A model and the calibration text on its way through it: `at` is the block it enters next."""

    def __init__(self, model: nn.Module, input_ids_BT: Tensor) -> None:
        self.stream, self.at = BlockwiseForward(model, input_ids_BT), 0
        family = prunable_architecture(model)
        self.maps = {
            kind: {
                block: module
                for name, module in modules_with(model, family, axes).items()
                if (block := block_number(name)) is not None
            }
            for kind, axes in (("attention", "HQ"), ("feed_forward", "HI"))
        }

    def advance_to(self, block: int) -> None:
        """Let the text run up to a block."""
        while self.at < block:
            self.stream.advance(self.stream.blocks[self.at], self.at)
            self.at += 1

    def pass_through(self, summed: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Behind attention and feed-forward of the next block: the stream, or what the map gives.

        The text is behind the block then.
        """
        middle, behind = [], []
        for i, hidden_BTH in enumerate(self.stream.hidden):
            ((_, attended), (_, fed)), self.stream.hidden[i] = self._run(self.at, hidden_BTH)
            middle.append(hidden_BTH + attended if summed else attended)
            behind.append(self.stream.hidden[i] if summed else fed)
        self.at += 1
        return middle, behind

    def fit(self, block: int, kind: str, wanted: list[Tensor], summed: bool) -> None:
        """Move a block's map so that what is behind it is near what is wanted there."""
        module: Any = self.maps[kind][block]
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
        """What each map reads and gives, for one batch of hidden states, and the batch behind.

        `until`: no further than the map of that kind; the batch is then as it was.
        """
        kinds = ["attention"] if until == "attention" else ["attention", "feed_forward"]
        modules = [self.maps[kind][block] for kind in kinds]
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
    """The change D (H, I) that makes D x nearest to what is missing, smallest where it may be."""
    ridge = RIDGE_SHARE * moments_II.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    damped_II = moments_II + ridge * torch.eye(len(moments_II), device=moments_II.device)
    return torch.cholesky_solve(products_HI.T, torch.linalg.cholesky(damped_II)).T
