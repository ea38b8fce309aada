"""Cut a model: make a smaller model from the parts that are kept.

The smaller model is made from a smaller config and filled through its state dict, so that layer
numbers, attention types per layer and tied weights are the same after a reload.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import ModelError
from attar.models.structure import unwrap
from students.pruning.architectures import (
    PrunableArchitecture,
    Sizes,
    axes_of,
    block_number,
    prunable_architecture,
    sizes_of,
)
from students.pruning.depth import cut_config


@dataclass(frozen=True)
class KeptParts:
    """The parts of the teacher that are kept, by their numbers from 0; None keeps the whole axis.

    A group is a key-value head with the query heads that share it. `groups` and `neurons` hold one
    list per kept block, in the order of `blocks`, all of equal length.
    """

    blocks: list[int]
    groups: list[list[int]] | None = None
    neurons: list[list[int]] | None = None
    channels: list[int] | None = None
    ids: list[int] | None = None

    def sizes(self, teacher: Sizes, family: PrunableArchitecture) -> Sizes:
        """Return the student's sizes; raise `ModelError` if no config of the family has them."""
        groups = len(self.groups[0]) if self.groups else teacher.groups
        channels = len(self.channels) if self.channels is not None else teacher.channels
        sizes = Sizes(
            blocks=len(self.blocks),
            heads=groups * teacher.heads_per_group,
            groups=groups,
            head_size=teacher.head_size,
            neurons=len(self.neurons[0]) if self.neurons else teacher.neurons,
            channels=channels,
            ids=len(self.ids) if self.ids is not None else teacher.ids,
        )
        check_sizes(sizes, teacher, family)
        return sizes


def check_sizes(sizes: Sizes, teacher: Sizes, family: PrunableArchitecture) -> None:
    """Raise `ModelError` for sizes out of range, or that no config of the family can have."""
    for what in ("blocks", "groups", "neurons", "channels", "ids"):
        number, most = getattr(sizes, what), getattr(teacher, what)
        if not 1 <= number <= most:
            raise ModelError(f"{number} {what} cannot be kept: the teacher has 1 to {most}.")
    if not family.head_size_key and sizes.channels != sizes.heads * sizes.head_size:
        raise ModelError(
            f"A {family.name} with {sizes.channels} channels and {sizes.heads} heads is not "
            f"possible: its width is its heads times {sizes.head_size} channels; keep "
            f"{sizes.heads * sizes.head_size} channels, or {sizes.channels / sizes.head_size:g} "
            "heads."
        )
    if family.width_in_heads and sizes.channels % sizes.heads:
        below = sizes.channels // sizes.heads * sizes.heads
        near = [str(n) for n in (below, below + sizes.heads) if 0 < n <= teacher.channels]
        raise ModelError(
            f"A {family.name} with {sizes.channels} channels and {sizes.heads} heads is not "
            f"possible: its width must be a multiple of its number of heads; keep "
            f"{' or '.join(near)} channels."
        )


def smaller_config(config: Any, kept: KeptParts) -> Any:
    """Return the `PretrainedConfig` of a model with only the kept parts."""
    family, teacher = prunable_architecture(config), sizes_of(config)
    sizes = kept.sizes(teacher, family)
    _check_blocks(kept.blocks, teacher.blocks)
    smaller = cut_config(config, kept.blocks)
    text = smaller.get_text_config()
    text.hidden_size = sizes.channels
    text.num_attention_heads = sizes.heads
    if hasattr(text, "num_key_value_heads"):
        text.num_key_value_heads = sizes.groups
    if family.head_size_key:
        text.head_dim = sizes.head_size
    setattr(text, family.neurons_key, sizes.neurons)
    if kept.ids is not None:
        renumber_special_ids(text, kept.ids)
    text.vocab_size = sizes.ids
    if sizes.channels < teacher.channels and family.norm_weight != "layer":
        text.rms_norm_eps = text.rms_norm_eps * teacher.channels / sizes.channels
    return smaller


def renumber_special_ids(config: Any, ids: list[int]) -> None:
    """Renumber the ids that a config or generation config names (`*_token_id`), in place.

    ids: the kept ids; the place in the list is the new number. An id that is not kept becomes None.
    """
    new = {old: number for number, old in enumerate(ids)}
    for name, value in list(vars(config).items()):
        if name.endswith("_token_id") and isinstance(value, int):
            setattr(config, name, new.get(value))
        elif name.endswith("_token_id") and isinstance(value, list):
            setattr(config, name, [new[one] for one in value if one in new] or None)


def _check_blocks(blocks: list[int], depth: int) -> None:
    wrong = [block for block in blocks if not 0 <= block < depth]
    if wrong:
        raise ModelError(
            f"Block {wrong[0]} cannot be kept: the teacher has blocks 0 to {depth - 1}."
        )


@torch.no_grad()
def cut_model(model: Any, kept: KeptParts) -> nn.Module:
    """Return a new model with only the kept parts, in eval mode, on the model's device and dtype.

    Norms take their mean square over fewer channels after a cut of channels. Their weights are
    rescaled to compensate, so that cutting channels that are always 0 changes nothing. Raises
    `ModelError` for an unknown family, for parts that do not exist and for sizes that no config of
    the family can have.
    """
    model = unwrap(model)
    family = prunable_architecture(model)
    teacher = sizes_of(model.config)
    config = smaller_config(model.config, kept)
    first = next(model.parameters())
    student = type(model)._from_config(config, dtype=first.dtype).to(first.device)
    weights = {
        name: _kept_slice(tensor, name, kept, teacher, family)
        for old, tensor in model.state_dict().items()
        if (name := _renamed(old, kept.blocks)) is not None
    }
    if kept.channels is not None:
        _rescale_norms(weights, student, family, teacher.channels, len(kept.channels))
    student.load_state_dict(weights, strict=True)
    student.tie_weights()
    if getattr(model, "generation_config", None) is not None:
        student.generation_config = copy.deepcopy(model.generation_config)
        if kept.ids is not None:
            renumber_special_ids(student.generation_config, kept.ids)
    return student.eval()  # type: ignore[no-any-return]


def _renamed(name: str, blocks: list[int]) -> str | None:
    """Return the student's name of a teacher's parameter; None if its block is removed."""
    block = block_number(name)
    if block is None:
        return name
    if block not in blocks:
        return None
    head, _, tail = name.partition(f".{block}.")
    return f"{head}.{blocks.index(block)}.{tail}"


def _kept_slice(
    tensor: Tensor, name: str, kept: KeptParts, teacher: Sizes, family: PrunableArchitecture
) -> Tensor:
    """Return the kept slice of a parameter; `name` is its name in the student."""
    block = block_number(name)
    for dim, axis in enumerate(axes_of(family, name)):
        index = axis_index(axis, block, kept, teacher)
        if index is not None:
            tensor = tensor.index_select(dim, torch.tensor(index, device=tensor.device))
    return tensor


def axis_index(axis: str, block: int | None, kept: KeptParts, teacher: Sizes) -> list[int] | None:
    """Return the indices kept along an axis, in a block of the student; None keeps all."""
    if axis == "V":
        return kept.ids
    if axis == "H":
        return kept.channels
    if block is None:
        return None
    if axis == "I":
        return kept.neurons[block] if kept.neurons else None
    if axis in "QK" and kept.groups:
        width = teacher.head_size * (teacher.heads_per_group if axis == "Q" else 1)
        return [g * width + i for g in kept.groups[block] for i in range(width)]
    return None


def _rescale_norms(
    weights: dict[str, Tensor], student: Any, family: PrunableArchitecture, before: int, after: int
) -> None:
    """Rescale norms and embeddings as if means were still taken over all channels."""
    scale = math.sqrt(before / after)
    if family.norm_weight != "layer":
        one = 1.0 if family.norm_weight == "weight+1" else 0.0
        for name, tensor in weights.items():
            if axes_of(family, name) == "H" and name.endswith("norm.weight"):
                weights[name] = (tensor + one) * scale - one
    if family.scales_embedding:
        _rescale_embedding(weights, student, family, scale)


def _rescale_embedding(
    weights: dict[str, Tensor], student: Any, family: PrunableArchitecture, scale: float
) -> None:
    """Undo the smaller scale of the embedding; a tied head is corrected in the last norm."""
    names = [name for name in weights if axes_of(family, name) == "VH"]
    tied = bool(student.config.get_text_config().tie_word_embeddings)
    for name in names:
        if tied or not name.endswith("lm_head.weight"):
            weights[name] = weights[name] * scale
    if tied and student.get_output_embeddings() is not None:
        last = next(n for n in weights if n.endswith("norm.weight") and block_number(n) is None)
        weights[last] = (weights[last] + 1.0) / scale - 1.0
