"""Cut blocks out of a model: choose which to keep, and make the smaller model.

Legend: B sequences, T tokens, H width, V vocabulary.

`greedy` removes blocks one at a time: always the block whose removal raises a loss on calibration
text least, ranked again after every removal because blocks depend on each other. `influence`
removes at once the blocks that change the residual stream least (highest mean cosine of a block's
input and output; the block influence of ShortGPT, arXiv 2403.03853). Greedy costs about five half
passes over the calibration text per removal and is much better when many blocks are removed.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import ModelError
from attar.models.structure import (
    blocks_of,
    body_of,
    capture_layers,
    head_of,
    num_layers,
    run_body,
    unwrap,
)
from attar.models.task_heads import text_inputs
from attar.progress import progress, tracked

# Keys of configs with numbers of blocks, and with how many blocks at the start are of one kind.
LISTS_OF_NUMBERS = ("mlp_only_layers", "moe_layers", "attn_layer_indices")
FIRST_BLOCKS = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
SAME = {torch.float32: 1e-3}  # of the largest output, between a cut model and one that skips blocks
LATER_TRIALS = 3  # about how many a greedy removal takes once each block was tried (demo: 3.1)
COARSELY_SAME = 0.05  # where products are rounded to 16 bits

TextBatch = dict[str, Tensor | None]  # as `text_inputs` takes it
LossOf = Callable[[Any], float]  # loss of a model; runs the same forwards at every call


class SkippedBlock(nn.Module):
    """Replaces a removed block: returns its input, so that other blocks keep their places.

    parts: length of the tuple that a block returns; None if it returns the hidden states alone.
    block: the removed one, whose plain attributes some models read (its kind of attention).
    """

    def __init__(self, parts: int | None, block: nn.Module) -> None:
        super().__init__()
        for name, value in vars(block).items():
            if isinstance(value, (bool, int, str)):
                setattr(self, name, value)
        self.parts = parts
        self.instead: Iterator[Tensor] | None = None  # returned instead of the input

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        """Return the input (B, T, H) unchanged."""
        if self.instead is not None:
            hidden_states = next(self.instead)
        return hidden_states if self.parts is None else (hidden_states, *[None] * (self.parts - 1))


def keep_evenly(depth: int, keep: int) -> list[int]:
    """Return `keep` of `depth` blocks, evenly spaced, with the first and the last."""
    if keep == 1:
        return [0]
    return [round(i * (depth - 1) / (keep - 1)) for i in range(keep)]


@torch.inference_mode()
def block_cosines(model: nn.Module, batches: Sequence[TextBatch]) -> list[float]:
    """Return the mean cosine of each block's input and output over tokens; 1 means no change."""
    depth, number = num_layers(model), 0
    totals = torch.zeros(depth)
    for texts in tracked(batches, "influence of blocks", "batches"):
        with capture_layers(model, list(range(depth + 1))) as captured:
            run_body(model, dict(text_inputs(model, texts)))
        mask_BT = texts["attention_mask"]
        assert mask_BT is not None
        states = [captured.layers[layer][mask_BT.bool()].float() for layer in range(depth + 1)]
        for i in range(depth):
            totals[i] += torch.cosine_similarity(states[i], states[i + 1], dim=-1).sum().cpu()
        number += len(states[0])
    return (totals / number).tolist()


def keep_by_influence(model: nn.Module, batches: Sequence[TextBatch], keep: int) -> list[int]:
    """Return the `keep` blocks that change the direction of the residual stream most."""
    cosines = block_cosines(model, batches)
    return sorted(sorted(range(len(cosines)), key=lambda i: cosines[i])[:keep])


@torch.inference_mode()
def keep_greedily(
    model: nn.Module,
    loss_of: LossOf,
    keep: int,
    on_removal: Callable[[int, float], None] = lambda block, loss: None,
) -> list[int]:
    """Return the blocks left after removing, one at a time, the block whose removal costs least.

    The search is lazy (Minoux 1978): costs only grow as other blocks go, so a block is tried again
    only while its last known cost could still be the lowest. A trial starts from the stored input
    of its block and runs only the blocks behind it. `on_removal` is called with the removed block
    and the loss after it.
    """
    depth = num_layers(model)
    with progress("blocks to remove", expected_trials(depth, depth - keep), "trials") as work:
        trial = _BlockRemoval(model, loss_of)
        costs = dict.fromkeys(trial.kept, 0.0)
        try:
            while len(trial.kept) > keep:
                losses: dict[int, float] = {}
                for block in sorted(trial.kept, key=lambda block: costs[block]):
                    if losses and trial.loss + costs[block] >= min(losses.values()):
                        break
                    losses[block] = trial.loss_without(block)
                    costs[block] = losses[block] - trial.loss
                    work.advance()
                cheapest = min(losses, key=lambda block: losses[block])
                trial.remove(cheapest)
                on_removal(cheapest, trial.loss)
                removed, left = depth - len(trial.kept), len(trial.kept) - keep
                expected = work.done + LATER_TRIALS * left
                work.report(f"{removed} of {depth - keep} blocks removed", expected)
        finally:
            trial.restore()
    return trial.kept


def expected_trials(depth: int, removals: int) -> int:
    """About how many trials a greedy removal takes: all blocks once, then a few a removal.

    Plans and the progress of a removal say this number.
    """
    return depth + LATER_TRIALS * (removals - 1) if removals else 0


class _BlockRemoval:
    """A model whose blocks are being removed: blocks left, their inputs, and the current loss."""

    def __init__(self, model: nn.Module, loss_of: LossOf) -> None:
        self.model, self.loss_of = model, loss_of
        self.blocks = blocks_of(model)
        self.originals = list(self.blocks)
        self.kept = list(range(len(self.originals)))
        self.parts: int | None = None  # see `SkippedBlock`
        self._record_inputs()

    def _record_inputs(self) -> None:
        self.inputs: list[list[Tensor]] = [[] for _ in self.originals]  # one tensor a forward

        def enter(number: int, args: Any, kwargs: Any) -> None:
            self.inputs[number].append(args[0] if args else kwargs["hidden_states"])

        def leave(output: Any) -> None:
            self.parts = _parts_of(output)

        handles = [self.blocks[0].register_forward_hook(lambda _m, _i, output: leave(output))]
        for number, block in enumerate(self.blocks):
            handles.append(
                block.register_forward_pre_hook(
                    lambda _m, args, kwargs, number=number: enter(number, args, kwargs),
                    with_kwargs=True,
                )
            )
        try:
            self.loss = self.loss_of(self.model)
        finally:
            for handle in handles:
                handle.remove()

    def _skip_all_but(self, present: set[int]) -> None:
        for i, block in enumerate(self.originals):
            self.blocks[i] = block if i in present else SkippedBlock(self.parts, block)

    def loss_without(self, block: int) -> float:
        """Return the loss with one more block removed, run from that block on."""
        self._skip_all_but({other for other in self.kept if other > block})
        start = self.blocks[block]
        assert isinstance(start, SkippedBlock)
        start.instead = iter(self.inputs[block])
        return self.loss_of(self.model)

    def remove(self, block: int) -> None:
        """Remove a block, then record the inputs and the loss again."""
        self.kept.remove(block)
        self._skip_all_but(set(self.kept))
        self._record_inputs()

    def restore(self) -> None:
        """Put every block back into the caller's model."""
        self._skip_all_but(set(range(len(self.originals))))


def next_token_loss(input_ids_BT: Tensor) -> LossOf:
    """Return a function that gives the mean next-token cross-entropy on rows, in nats per token."""

    def loss_of(model: Any) -> float:
        hidden_BTH = run_body(model, {"input_ids": input_ids_BT, "attention_mask": None})
        return calibration_loss(model, hidden_BTH, input_ids_BT)

    return loss_of


def rows_as_texts(input_ids_BT: Tensor) -> list[TextBatch]:
    """Return rows of equal length as one batch of texts without padding."""
    return [{"input_ids": input_ids_BT, "attention_mask": torch.ones_like(input_ids_BT)}]


def calibration_loss(model: nn.Module, hidden_BTH: Tensor, input_ids_BT: Tensor) -> float:
    """Return the mean next-token cross-entropy of final hidden states, in nats per token."""
    head = head_of(model, unwrap(model).get_output_embeddings().weight.shape[0])
    hidden_NH = hidden_BTH[:, :-1].reshape(-1, hidden_BTH.shape[-1])
    labels_N = input_ids_BT[:, 1:].reshape(-1)
    total = 0.0
    for piece_NH, piece_N in zip(hidden_NH.split(256), labels_N.split(256), strict=True):
        loss = nn.functional.cross_entropy(head.logits(piece_NH), piece_N, reduction="sum")
        total += float(loss)
    return total / len(labels_N)


def cut_config(config: Any, keep: list[int]) -> Any:
    """Return the `PretrainedConfig` of a model with only the blocks `keep`.

    What a config says of each block, or of blocks by their number, is carried over. Whether that
    was all is asked in students/pruning/block_numbers.py.
    """
    config = copy.deepcopy(config)
    text = config.get_text_config()
    depth, text.num_hidden_layers = text.num_hidden_layers, len(keep)
    for name, value in list(vars(text).items()):
        if not isinstance(value, (list, tuple)) or "token" in name:
            continue
        if name in LISTS_OF_NUMBERS:
            setattr(text, name, [new for new, old in enumerate(keep) if old in value])
        elif len(value) == depth:  # e.g. layer_types and patterns per layer
            setattr(text, name, [value[block] for block in keep])
    for name in FIRST_BLOCKS:
        if isinstance(value := getattr(text, name, None), int):
            setattr(text, name, sum(block < value for block in keep))
    if (step := getattr(text, "decoder_sparse_step", 1)) != 1:  # experts in every step-th block
        sparse = [(old + 1) % step == 0 for old in keep]
        text.mlp_only_layers = [
            new for new, one in enumerate(sparse) if not one or new in text.mlp_only_layers
        ]
        text.decoder_sparse_step = 1
    if getattr(text, "model_type", None) == "minicpm3":  # divided by the root of the depth
        text.scale_depth *= (len(keep) / depth) ** 0.5
    return config


def cut_depth(model: Any, keep: list[int]) -> nn.Module:
    """Return a new model with only the blocks `keep` (numbers from 0), on the model's device.

    The new model is made from a smaller config and filled through its state dict, so that layer
    numbers, attention types per layer and tied weights are the same after a reload. Raises
    `ModelError` for blocks that do not exist and for a model that cannot be filled so.
    """
    depth = num_layers(model)
    wrong = [block for block in keep if not 0 <= block < depth]
    if wrong or not keep:
        raise ModelError(
            f"Block {wrong[0] if wrong else '(none)'} cannot be kept: the teacher has blocks 0 to "
            f"{depth - 1} and at least one must stay."
        )
    config = cut_config(model.config, keep)
    first = next(model.parameters())
    student = type(model)._from_config(config, dtype=first.dtype).to(first.device)
    prefix = _blocks_prefix(model)
    weights = model.state_dict()
    renamed = {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}
    for new, old in enumerate(keep):
        for name, tensor in weights.items():
            if match := re.match(rf"{re.escape(prefix)}{old}\.(.*)", name):
                renamed[f"{prefix}{new}.{match[1]}"] = tensor
    try:
        student.load_state_dict(renamed, strict=True)
    except RuntimeError as error:
        raise ModelError(
            f"{type(model).__name__} cannot be cut by blocks yet: {str(error)[:200]}"
        ) from None
    student.tie_weights()
    if hasattr(model, "generation_config"):  # classifiers have none
        student.generation_config = copy.deepcopy(model.generation_config)
    _check_cut(model, student.eval(), keep)
    return student  # type: ignore[no-any-return]


@torch.inference_mode()
def _check_cut(model: Any, student: Any, keep: list[int]) -> None:
    """Raise `ModelError` unless a cut model computes what the whole one does without the others.

    Where the whole one cannot run without a block, nothing is compared.
    """
    blocks, device = blocks_of(model), next(model.parameters()).device
    if device.type == "meta":
        return
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids_BT = (5 + 7 * torch.arange(16, device=device)).unsqueeze(0) % vocabulary
    parts: list[int | None] = []
    handle = blocks[keep[0]].register_forward_hook(
        lambda _m, _i, output: parts.append(_parts_of(output))
    )
    originals, was_training = list(blocks), model.training
    model.eval()
    try:
        model(input_ids=ids_BT)
        for number, block in enumerate(originals):
            if number not in keep:
                blocks[number] = SkippedBlock(parts[0], block)
        whole = model(input_ids=ids_BT)[0].float()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError):
        return
    finally:
        handle.remove()
        for number, block in enumerate(originals):
            blocks[number] = block
        model.train(was_training)
    cut = student(input_ids=ids_BT)[0].float()
    off = float((cut - whole).abs().max() / whole.abs().max().clamp_min(1e-30))
    if off > SAME.get(next(model.parameters()).dtype, COARSELY_SAME):
        raise ModelError(
            f"The blocks of a {type(model).__name__} compute something else when others are "
            f"removed: its output differs by {off:.2g} of the largest; keep the first blocks."
        )


def _parts_of(output: Any) -> int | None:
    return len(output) if isinstance(output, (tuple, list)) else None


def _blocks_prefix(model: nn.Module) -> str:
    blocks, body = blocks_of(model), body_of(model)
    name = next(name for name, module in body.named_modules() if module is blocks)
    outer = next(name for name, module in model.named_modules() if module is body)
    return f"{outer}.{name}." if outer else f"{name}."


def layer_map(keep: list[int], teacher_layer: int) -> int:
    """Return the student's layer that corresponds to a teacher's: the kept blocks before it."""
    return sum(block < teacher_layer for block in keep)
