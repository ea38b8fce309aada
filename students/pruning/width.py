"""The recipe's `heads`, `feed_forward` and `hidden`: how many of each are kept, and which.

Legend: B rows, T tokens.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor, nn

from attar.config import Section, as_share
from attar.errors import ModelError, RecipeError
from students.pruning.architectures import (
    PrunableArchitecture,
    Sizes,
    prunable_architecture,
    sizes_of,
)
from students.pruning.depth import cut_config, keep_evenly
from students.pruning.importance import ImportanceScores, highest_scored, measure_importance
from students.pruning.prune import KeptParts, check_sizes, smaller_config
from students.pruning.rotation import can_rotate

SIZE_MULTIPLE = 32  # shares are rounded to a multiple of it where the teacher's size is one


def _number_or_share(value: Any) -> Any:
    value = as_share(value)
    if isinstance(value, str) and not value.strip().isdigit():
        raise ValueError("keep a number or a share (0.75, 75%)")
    return value


def _above_zero(keep: float) -> float:
    if keep <= 0 or (isinstance(keep, float) and keep > 1):
        raise ValueError("keep a number from 1 or a share between 0 and 1")
    return keep


Share = Annotated[
    int | float,
    BeforeValidator(_number_or_share, json_schema_input_type=int | float | str),
    AfterValidator(_above_zero),
]


class WidthConfig(Section):
    """How many parts of one kind the student keeps, and how they are chosen."""

    keep: Share = Field(description="how many, or which share (0.75, 75%)")
    by: Literal["activation", "even"] = Field(
        "activation",
        description="activation: importance on training text; even: evenly spaced",
    )


class HeadsConfig(WidthConfig):
    """Query heads that every block keeps; heads that share a key-value head stay together."""


class FeedForwardConfig(WidthConfig):
    """Neurons that every block's feed-forward keeps."""


class HiddenWidthConfig(Section):
    """Channels of the residual stream that the student keeps, the same in every layer."""

    keep: Share = Field(description="how many, or which share (0.75, 75%)")
    by: Literal["activation", "even", "pca"] = Field(
        "activation",
        description="activation: size of the norms' outputs on training text; even: evenly spaced; "
        "pca: rotate the model to its principal axes and keep the strongest",
    )


class Widths(Section):
    """Heads, neurons and channels to keep; an absent section keeps all."""

    heads: HeadsConfig | None = None
    feed_forward: FeedForwardConfig | None = None
    hidden: HiddenWidthConfig | None = None

    @property
    def given(self) -> dict[str, WidthConfig | HiddenWidthConfig]:
        """The sections that cut something, by their key."""
        found = {"heads": self.heads, "feed_forward": self.feed_forward, "hidden": self.hidden}
        return {key: section for key, section in found.items() if section is not None}

    @property
    def rotates(self) -> bool:
        """Whether the model is rotated before channels are cut."""
        return self.hidden is not None and self.hidden.by == "pca"

    def needs_text(self) -> bool:
        """Whether importance is measured on calibration text."""
        return any(section.by != "even" for section in self.given.values())


def student_sizes(teacher_config: Any, blocks: int, widths: Widths) -> Sizes:
    """Return the sizes that a recipe asks for.

    Raises `RecipeError`, naming the key, for sizes that the teacher's family cannot have.
    """
    family, teacher = prunable_architecture(teacher_config), sizes_of(teacher_config)
    groups = _kept_groups(widths.heads, teacher)
    neurons = _kept_number(widths.feed_forward, "feed_forward", teacher.neurons)
    step = channel_step(family, teacher, groups * teacher.heads_per_group)
    channels = _kept_number(widths.hidden, "hidden", teacher.channels, step)
    if not family.head_size_key and widths.heads is None:
        groups = max(1, channels // teacher.head_size)  # the width is heads times their size
    heads = groups * teacher.heads_per_group
    sizes = Sizes(blocks, heads, groups, teacher.head_size, neurons, channels, teacher.ids)
    try:
        check_sizes(sizes, teacher, family)
    except ModelError as error:
        key = "hidden" if widths.hidden is not None else "heads"
        raise RecipeError(f"`student.{key}.keep`: {error}") from None
    return sizes


def _kept_groups(section: WidthConfig | None, teacher: Sizes) -> int:
    """Return how many key-value heads are kept, from a number or a share of query heads."""
    if section is None:
        return teacher.groups
    each = teacher.heads_per_group
    if isinstance(section.keep, float):
        return max(1, round(section.keep * teacher.groups))
    if section.keep % each or not 1 <= section.keep <= teacher.heads:
        possible = ", ".join(str(each * (i + 1)) for i in range(teacher.groups))
        shared = f", {each} to a key-value head" if each > 1 else ""
        raise RecipeError(
            f"`student.heads.keep` is {section.keep}; the teacher has {teacher.heads} heads"
            f"{shared}, so keep one of {possible}."
        )
    return section.keep // each


def neuron_step(whole: int) -> int:
    """Return the step between numbers of neurons, or of channels without another constraint."""
    return SIZE_MULTIPLE if whole % SIZE_MULTIPLE == 0 else 1


def channel_step(family: PrunableArchitecture, teacher: Sizes, heads: int) -> int:
    """Return the number that channels must be a multiple of in a student with this many heads."""
    if not family.head_size_key:
        return teacher.head_size
    if family.width_in_heads:
        return heads
    return neuron_step(teacher.channels)


def _kept_number(
    section: WidthConfig | HiddenWidthConfig | None, key: str, whole: int, step: int | None = None
) -> int:
    """Return how many of `whole` are kept; a share is rounded to a multiple of `step`."""
    if section is None:
        return whole
    if isinstance(section.keep, float):
        step = step or neuron_step(whole)
        return min(whole, max(step, round(section.keep * whole / step) * step))
    if section.keep > whole:
        raise RecipeError(f"`student.{key}.keep` is {section.keep}; the teacher has {whole}.")
    return section.keep


def sized_config(teacher_config: Any, blocks: list[int], widths: Widths) -> Any:
    """Return the config of the student that a recipe asks for, known before the cut.

    Raises `RecipeError`, naming the key, for sizes that are not possible, and `ModelError` for a
    family that can be cut by blocks only.
    """
    if not widths.given:
        return cut_config(teacher_config, blocks)
    sizes, teacher = student_sizes(teacher_config, len(blocks), widths), sizes_of(teacher_config)
    kept = KeptParts(
        blocks,
        [list(range(sizes.groups))] * len(blocks) if sizes.groups < teacher.groups else None,
        [list(range(sizes.neurons))] * len(blocks) if sizes.neurons < teacher.neurons else None,
        list(range(sizes.channels)) if sizes.channels < teacher.channels else None,
    )
    smaller = smaller_config(teacher_config, kept)
    if widths.rotates:
        family = prunable_architecture(teacher_config)
        if not can_rotate(family):
            raise RecipeError(
                f"`student.hidden.by: pca` cannot rotate a {family.name}: its norms stand "
                f"{family.norms} its linear layers or subtract a mean; write `activation`."
            )
        smaller.get_text_config().tie_word_embeddings = smaller.tie_word_embeddings = False
    return smaller


def _importance_scores(
    teacher: nn.Module, widths: Widths, input_ids_BT: Tensor | None
) -> ImportanceScores | None:
    """Return the scores that a recipe asks for; `pca` needs text but no scores."""
    if input_ids_BT is None or not input_ids_BT.numel():
        key, by = next((k, one.by) for k, one in widths.given.items() if one.by != "even")
        raise RecipeError(
            f"`student.{key}.by: {by}` needs training text, and there is none; write `by: even`."
        )
    if all(section.by != "activation" for section in widths.given.values()):
        return None
    return measure_importance(teacher, input_ids_BT)


def choose_parts(
    teacher: nn.Module,
    blocks: list[int],
    widths: Widths,
    input_ids_BT: Tensor | None,
    scores: ImportanceScores | None = None,
) -> tuple[KeptParts, ImportanceScores | None]:
    """Return the parts to keep in the kept blocks, and the scores they were chosen by, if any.

    input_ids_BT: calibration ids, for parts chosen `by: activation`. scores: their scores, if
    already measured. Raises `RecipeError` where both are missing.
    """
    if not widths.given:
        return KeptParts(blocks), None
    config: Any = teacher.config
    sizes, whole = student_sizes(config, len(blocks), widths), sizes_of(config)
    if widths.needs_text() and scores is None:
        scores = _importance_scores(teacher, widths, input_ids_BT)
    heads = widths.heads or widths.hidden  # in encoders heads are cut with the width

    def chosen(
        section: WidthConfig | HiddenWidthConfig | None, values: Tensor | None, of: int, keep: int
    ) -> list[int]:
        if isinstance(section, HiddenWidthConfig) and section.by == "pca":
            return list(range(keep))  # the rotation sorts channels by strength
        if section is None or section.by == "even" or values is None:
            return keep_evenly(of, keep)
        return highest_scored(values, keep)

    groups, neurons, channels = None, None, None
    if sizes.groups < whole.groups:
        values_LG = scores.groups_LG if scores else [None] * whole.blocks
        groups = [chosen(heads, values_LG[b], whole.groups, sizes.groups) for b in blocks]
    if sizes.neurons < whole.neurons:
        values_LI = scores.neurons_LI if scores else [None] * whole.blocks
        neurons = [
            chosen(widths.feed_forward, values_LI[b], whole.neurons, sizes.neurons) for b in blocks
        ]
    if sizes.channels < whole.channels:
        values_H = scores.channels_H if scores else None
        channels = chosen(widths.hidden, values_H, whole.channels, sizes.channels)
    return KeptParts(blocks, groups, neurons, channels), scores
