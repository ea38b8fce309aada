"""Which examples are in which step: a plan drawn from the seed, the same on every machine.

Legend: B rows, T tokens, N tokens counted, S texts.

A row holds one example or, packed, several. Padding is on the right and attention is causal, so no
counted token attends to padding and no mask is passed. Packed examples cannot attend to each other
because position ids start again at each (`transformers` builds the block mask from them). Whole
texts, which encoders read in both directions, are one a row, of similar length, with a mask.

A pair of answers is planned as one example, so both texts are in one micro-batch: in two rows where
the pair has a row to itself, else in one row, packed like all texts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.models.task_heads import padded_texts
from distill.data.counted import Counted, Texts
from distill.data.examples import ALONE, CHOSEN, JUDGED, REJECTED, WRITTEN, Example, Rollout
from distill.data.teacher_prompts import as_teacher_reads
from distill.data.tokenize import IGNORE

MicroBatch = list[list[int]]  # rows of example numbers
BATCHES_SORTED_TOGETHER = 16  # their texts are sorted by length


@dataclass(frozen=True)
class Batch:
    """One micro-batch. Counted positions, row by row, are the signals of `keys` concatenated.

    keys: of the S texts. counts: number of counted positions of each key. whole: every token of a
    text has signals, and `counts` are the texts' lengths. roles_S: int8, the role of each text
    (`distill.data.examples`), the rejected text of a pair right behind its chosen one; None where
    no text is judged; it stays on the CPU, where it is asked without waiting for a GPU. judged: how
    many examples are: pairs, and rated answers. margins_P: float32, by how much the chosen answer
    of each pair is better, of whole texts; None without pairs.
    mismatched: the texts of prompts with other prompts' answers, one of every judged text that has
    one; nothing of it is counted here. rollouts: of the texts that the student wrote, in order.
    of_teacher: the same texts as the teacher reads them, row by row, where it has prompts of its
    own; what counts in it, in its order, are the same predictions.
    """

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    labels_BT: Tensor
    keys: list[str]
    counts: list[int]
    mask_BT: Tensor | None = None
    token_types_BT: Tensor | None = None
    whole: bool = False
    roles_S: Tensor | None = None
    judged: int = 0
    margins_P: Tensor | None = None
    mismatched: Batch | None = None
    rollouts: tuple[Rollout, ...] = ()
    of_teacher: Batch | None = None

    @property
    def counted(self) -> Counted:
        """What its terms' sums are divided by where it is a whole step."""
        if self.roles_S is None:
            return Counted(self.num_counted)
        counts = [1] * len(self.keys) if self.whole else self.counts
        roles = self.roles_S.tolist()
        tokens = dict.fromkeys((REJECTED, WRITTEN), 0)
        for count, role in zip(counts, roles, strict=True):
            tokens[role] = tokens.get(role, 0) + count
        good, bad, written = (roles.count(role) for role in (CHOSEN, REJECTED, WRITTEN))
        return Counted(
            self.num_counted, tokens[REJECTED], self.judged, good, bad, tokens[WRITTEN], written
        )

    @property
    def roles(self) -> Tensor:
        """The role of each of the S texts, int8, on the CPU."""
        if self.roles_S is not None:
            return self.roles_S
        return torch.full((len(self.keys),), ALONE, dtype=torch.int8)

    @property
    def num_counted(self) -> int:
        """N: positions whose prediction counts."""
        return int((self.labels_BT != IGNORE).sum())

    def total(self, values_N: Tensor, texts: Texts = "all") -> Tensor:
        """Sum of values of the tokens that have signals, over some of the texts; a whole text
        counts as its mean.
        """
        mask_N = self.on(texts)
        values_N = values_N if mask_N is None else values_N * mask_N
        if not self.whole:
            return values_N.sum()
        lengths = torch.tensor(self.counts, device=values_N.device)
        return (values_N / lengths.repeat_interleave(lengths)).sum()

    @cached_property
    def text_of_token(self) -> Tensor:
        """Which of the S texts each counted token belongs to, (N,) int64; not of whole texts."""
        device = self.labels_BT.device
        counts_S = torch.tensor(self.counts, device=device)
        texts_S = torch.arange(len(self.counts), device=device)
        return texts_S.repeat_interleave(counts_S, output_size=sum(self.counts))

    def on(self, unit: Texts) -> Tensor | None:
        """1 at the counted tokens that belong to texts of a unit, else 0, (N,); None where all do.

        The units are those of `Counted.of`.
        """
        if unit == "all" or (self.roles_S is None and unit in ("chosen", "data")):
            return None
        if self.roles_S is None:
            return torch.zeros(sum(self.counts), device=self.labels_BT.device)
        in_unit_S = _in_unit(self.roles_S, unit)
        if bool(in_unit_S.all()):
            return None
        return in_unit_S.to(self.labels_BT.device)[self.text_of_token].float()

    @property
    def signals_BT(self) -> Tensor:
        """Whether the hidden state of each token is compared."""
        whole = self.mask_BT if self.whole else None
        return self.labels_BT != IGNORE if whole is None else whole.bool()

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor | Batch)
            and field.name != "roles_S"
        }
        return replace(self, **moved)

    def model_inputs(self) -> dict[str, Tensor | None]:
        """Inputs of the model's body; for whole texts, of the whole model."""
        if self.mask_BT is not None:
            return {
                "input_ids": self.input_ids_BT,
                "attention_mask": self.mask_BT,
                "token_type_ids": self.token_types_BT,
            }
        return {
            "input_ids": self.input_ids_BT,
            "position_ids": self.position_ids_BT,
            "attention_mask": None,
        }


def _in_unit(roles_S: Tensor, unit: Texts) -> Tensor:
    """Whether each text belongs to a unit, by its role."""
    if unit == "data":
        return (roles_S != REJECTED) & (roles_S != WRITTEN)
    if unit == "rollouts":
        return roles_S == WRITTEN
    return (roles_S == REJECTED) == (unit == "rejected")


def pack_rows(order: Sequence[int], lengths: Sequence[int], max_length: int) -> MicroBatch:
    """Best-fit packing into rows of `max_length`, in the given order, with at most 64 open rows.

    What is longer than `max_length`, as a pair of two long texts may be, has a row to itself.
    """
    rows: MicroBatch = []
    open_rows: list[tuple[int, int]] = []  # (room left, row)
    for i in order:
        fitting = [(room, row) for room, row in open_rows if room >= lengths[i]]
        if fitting:
            room, row = min(fitting)
            open_rows.remove((room, row))
        else:
            room, row = max_length, len(rows)
            rows.append([])
        rows[row].append(i)
        if room > lengths[i]:
            open_rows.append((room - int(lengths[i]), row))
        if len(open_rows) > 64:
            open_rows.remove(min(open_rows))
    return rows


def plan_epoch(
    lengths: Sequence[int], *, batch_size: int, max_length: int, packing: bool, seed: int
) -> list[MicroBatch]:
    """All examples once, in an order drawn from the seed, as micro-batches of `batch_size` rows."""
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    rows = pack_rows(order, lengths, max_length) if packing else [[i] for i in order]
    return [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]


def plan_epoch_by_length(
    lengths: Sequence[int], *, batch_size: int, max_length: int, packing: bool, seed: int
) -> list[MicroBatch]:
    """All examples once, one a row, with texts of similar length together to pad little.

    Texts are drawn in a random order and sorted by length within every `BATCHES_SORTED_TOGETHER`
    batches; the order of the batches is drawn too.
    """
    dice = random.Random(seed)
    order = list(range(len(lengths)))
    dice.shuffle(order)
    size = BATCHES_SORTED_TOGETHER * batch_size
    batches = []
    for start in range(0, len(order), size):
        pool = sorted(order[start : start + size], key=lambda i: lengths[i])
        batches += [
            [[i] for i in pool[s : s + batch_size]] for s in range(0, len(pool), batch_size)
        ]
    dice.shuffle(batches)
    return batches


def plan_in_order(lengths: Sequence[int], batch_size: int) -> list[MicroBatch]:
    """All examples once, longest first, one a row: for evaluation."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [[[i] for i in order[s : s + batch_size]] for s in range(0, len(order), batch_size)]


Collate = Callable[[Sequence[Sequence[Example]]], Batch]  # rows of examples to tensors


def rows_of_texts(rows: Sequence[Sequence[Example]]) -> list[list[Example]]:
    """The texts of each row; the two of a pair that has a row to itself get a row each."""
    found: list[list[Example]] = []
    for row in rows:
        texts = [text for example in row for text in example.texts]
        found += [[text] for text in texts] if len(row) == 1 else [texts]
    return found


def collate(rows: Sequence[Sequence[Example]]) -> Batch:
    """Rows of examples as tensors, padded on the right."""
    mismatched = _mismatched_rows(rows)
    judged = sum(example.role in JUDGED for row in rows for example in row)
    rows = rows_of_texts(rows)
    longest = max(sum(len(text.input_ids) for text in row) for row in rows)
    ids = np.zeros((len(rows), longest), np.int64)
    labels = np.full((len(rows), longest), IGNORE, np.int64)
    positions = np.zeros((len(rows), longest), np.int64)
    for b, row in enumerate(rows):
        start = 0
        for text in row:
            stop = start + len(text.input_ids)
            ids[b, start:stop] = text.input_ids
            labels[b, start:stop] = text.labels
            positions[b, start:stop] = np.arange(stop - start)
            start = stop
        # Padding counts on from the last example: nothing counted comes after it.
        last = positions[b, start - 1] if start else -1
        positions[b, start:] = last + 1 + np.arange(longest - start)
    counted = [(text, len(text.counted)) for row in rows for text in row]
    counted = [(text, count) for text, count in counted if count]
    tensors = (torch.from_numpy(array) for array in (ids, positions, labels))
    ids_BT, positions_BT, labels_BT = tensors
    roles = [text.role for text, _ in counted]
    return Batch(
        ids_BT,
        positions_BT,
        labels_BT,
        [text.key for text, _ in counted],
        [count for _, count in counted],
        roles_S=torch.tensor(roles, dtype=torch.int8) if any(r != ALONE for r in roles) else None,
        judged=judged,
        mismatched=collate(mismatched) if mismatched else None,
        rollouts=tuple(text.rollout for text, _ in counted if text.rollout is not None),
        of_teacher=_of_teacher(rows),
    )


def _of_teacher(rows: Sequence[Sequence[Example]]) -> Batch | None:
    """Rows of texts as the teacher reads them; None where it reads what the student does."""
    if all(text.teacher_prompt is None for row in rows for text in row):
        return None
    return collate([[as_teacher_reads(text) for text in row] for row in rows])


def _mismatched_rows(rows: Sequence[Sequence[Example]]) -> list[list[Example]]:
    """Rows of the mismatched texts of examples: one a row, or packed where the examples are, into
    rows of at most the examples' length; no rows where there are none.
    """
    texts = [
        text.mismatched
        for row in rows
        for example in row
        for text in example.texts
        if text.mismatched is not None
    ]
    if all(len(row) == 1 for row in rows):
        return [[text] for text in texts]
    lengths = [len(text.input_ids) for text in texts]
    longest = max(sum(len(text.input_ids) for text in row) for row in rows_of_texts(rows))
    order = sorted(range(len(texts)), key=lambda i: -lengths[i])
    return [[texts[i] for i in row] for row in pack_rows(order, lengths, longest)]


def collate_texts(rows: Sequence[Sequence[Example]]) -> Batch:
    """Whole texts, one a row, as tensors with a mask, padded on the right; of a pair two rows."""
    examples = [example for row in rows for example in row]
    assert len(examples) == len(rows), "whole texts are not packed"
    texts = [text for example in examples for text in example.texts]
    pairs = [example for example in examples if example.rejected is not None]
    judged = sum(example.role != ALONE for example in examples)
    types = [text.token_types for text in texts]
    inputs = padded_texts([text.input_ids for text in texts], types)
    ids_BT, mask_BT = inputs["input_ids"], inputs["attention_mask"]
    assert ids_BT is not None and mask_BT is not None  # noqa: PT018
    labels_BT = torch.full_like(ids_BT, IGNORE)
    for b, text in enumerate(texts):
        labels_BT[b, : len(text.labels)] = torch.from_numpy(text.labels)
    positions_BT = torch.arange(ids_BT.shape[1]).expand_as(ids_BT)
    keys, counts = [text.key for text in texts], [len(text.input_ids) for text in texts]
    types_BT = inputs["token_type_ids"]
    roles = torch.tensor([text.role for text in texts], dtype=torch.int8) if judged else None
    margins = torch.tensor([pair.margin for pair in pairs], dtype=torch.float32) if pairs else None
    return Batch(
        ids_BT, positions_BT, labels_BT, keys, counts, mask_BT, types_BT,
        whole=True, roles_S=roles, judged=judged, margins_P=margins,
    )  # fmt: skip


def collate_masked(rows: Sequence[Sequence[Example]]) -> Batch:
    """Texts with masked tokens, one a row, with a mask; signals are at counted tokens."""
    counts = [len(example.counted) for row in rows for example in row]
    return replace(collate_texts(rows), counts=counts, whole=False)


@dataclass(frozen=True)
class Batching:
    """Which examples are in which rows of an epoch, and how rows become tensors.

    unit: what one counted position of an example stands for, in the plural.
    """

    plan: Callable[..., list[MicroBatch]]
    collate: Collate
    unit: str

    def steps(
        self,
        lengths: Sequence[int] | np.ndarray,
        config: Any,
        *,
        max_length: int,
        packing: bool,
        seed: int,
        world: int,
    ) -> list[list[MicroBatch]]:
        """Micro-batches of every step of a training, for `world` processes together.

        config: the training's section of the recipe.
        """
        steps: list[list[MicroBatch]] = []
        size = config.accumulate * world
        for epoch in range(config.epochs):
            micro = self.plan(
                [int(n) for n in lengths],
                batch_size=config.batch_size,
                max_length=max_length,
                packing=packing,
                seed=seed * 1_000_003 + epoch,
            )
            steps += [micro[i : i + size] for i in range(0, len(micro), size)]
        return steps[: config.max_steps]


TOKEN_BATCHING = Batching(plan_epoch, collate, "tokens")
TEXT_BATCHING = Batching(plan_epoch_by_length, collate_texts, "texts")
MASKED_BATCHING = Batching(plan_epoch_by_length, collate_masked, "tokens")
