"""ULD's and GOLD's losses between tokenizers, by their formulas, on the teacher's cached entries.

Both compare *groups*: runs of tokens of either side that end at the same byte. Of a group of tokens
x_1 .. x_m a side's values are  p(. | x_1 .. x_{m-1}) p(x_1) .. p(x_{m-1}),  so they need not sum to
one. `observed`, GOLD's default, takes the first token's distribution and reads the others' one
position late; what stands here is its other strategy, `bayesian`.

ULD (2402.12030):  sum_i |s_(i) - t_(i)|,  both sides sorted by falling value, the shorter one
padded with zeros. GOLD (trl 1.16, hybrid):  w JSD(t, s)  over the M ids of equal bytes, with
beta = 0.5 and values of at least 1e-8,  + (1 - w) ULD of all others;  w = M / V of the teacher by
default. A loss is a mean over a text's groups, and then over texts.

The teacher's mass outside its K entries is spread evenly over its other ids, so that V is whole.

Legend: N counted tokens of a batch, G groups, K entries, V student's vocabulary, M matched ids,
R rows of the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from attar.models.structure import head_of
from attar.models.token_bytes import TokenBytes
from distill.data.batching import Batch
from distill.data.counted import Unit, every_unit
from distill.data.paired_texts import Passage, Passages
from distill.objective.loss_sums import LossSums
from distill.objective.objective import Learner
from distill.run.teacher_side import TeacherSide
from distill.stages.cache import open_cache
from teachers.codecs.label import LABEL_COLUMN
from teachers.codecs.top_entries import is_bucket_codec

LEAST = 1e-8  # of a probability


@dataclass(frozen=True)
class Groups:
    """Where both sides end in some texts.

    group_N: of each counted token, its group, -1 of one in none. last_G: the counted token that
    ends each. row_G: the teacher's row that predicts its last token of the group. log_before_G: log
    of the probability of its earlier tokens of the group. share_G: the group's part in the mean.
    """

    group_N: Tensor
    last_G: Tensor
    row_G: Tensor
    log_before_G: Tensor
    share_G: Tensor


class Texts:
    """The groups of a run's texts, and the teacher's entries at its own tokens.

    ids_RK: int32. logprobs_RK: float32. tail_R: float32, log of the mass outside the entries.
    """

    def __init__(self, side: TeacherSide) -> None:
        cache = open_cache(side)
        codec = cache.config.codec
        assert is_bucket_codec(codec)
        self._starts: dict[str, int] = {}
        ids, logprobs, tails, labels, rows = [], [], [], [], 0
        for key in list(cache.keys()):
            count = cache.tokens(key)
            found = cache.assembled([cache.columns(key)], count)
            top = codec.decode_top(found.columns, count, cache.assets.get("distribution", {}))
            self._starts[key], rows = rows, rows + count
            ids.append(top.ids_NK.int())
            logprobs.append(top.logprobs_NK)
            tails.append(top.tails[1.0])
            labels.append(np.asarray(found.columns[LABEL_COLUMN], np.float64))
        self.ids_RK, self.logprobs_RK = torch.cat(ids), torch.cat(logprobs)
        self.tail_R, self._labels_R = torch.cat(tails), np.concatenate(labels)
        self._passages = [Passages(one.passages) for one in side.texts()]
        self._found: dict[str, tuple[np.ndarray, ...]] = {}

    def groups(self, keys: Sequence[str], counts: Sequence[int]) -> Groups:
        """The groups of a batch's texts."""
        parts: list[list[np.ndarray]] = [[], [], [], [], []]
        tokens = groups = 0
        for key, count in zip(keys, counts, strict=True):
            if key not in self._found:
                self._found[key] = self._groups_of(key, count)
            group_N, last_G, row_G, log_G = self._found[key]
            share_G = np.full(len(last_G), 1 / max(1, len(last_G)) / len(keys))
            moved = np.where(group_N >= 0, group_N + groups, -1), last_G + tokens
            for part, column in zip(parts, (*moved, row_G, log_G, share_G), strict=True):
                part.append(column)
            tokens, groups = tokens + count, groups + len(last_G)
        columns = [torch.from_numpy(np.concatenate(part)) for part in parts]
        return Groups(*columns[:3], *(one.float() for one in columns[3:]))

    def _groups_of(self, key: str, count: int) -> tuple[np.ndarray, ...]:
        """(group_N, last_G, row_G, log_before_G) of one text."""
        group_N, found = np.full(count, -1), []
        for passages in self._passages:
            for passage, number in passages.of(key):
                for places, rows in self._runs(passage, number):
                    group_N[places] = len(found)
                    before = np.maximum(self._labels_R[rows[:-1]], np.log(LEAST)).sum()
                    found.append((places[-1], rows[-1], before))
        last, row, before = (np.array(one) for one in zip(*found, strict=True)) if found else (
            np.zeros(0, int), np.zeros(0, int), np.zeros(0),
        )  # fmt: skip
        return group_N, last, row, before

    def _runs(self, passage: Passage, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(places of the student's tokens, rows of the teacher's) of each group of an example."""
        own, its = passage.student, passage.teacher
        mine = np.flatnonzero((own.examples == number) & (own.places >= 0))
        bounds = np.concatenate([own.starts[mine[:1]], own.ends[mine]])
        both = bounds[np.isin(bounds, np.concatenate([its.starts[:1], its.ends]))]
        starts = [self._starts.get(passage.teacher_keys[i], -1) for i in its.examples]
        rows = np.where((its.examples >= 0) & (np.array(starts) >= 0), starts + its.places, -1)
        found = []
        for begin, end in pairwise(both.tolist()):
            one = np.arange(*np.searchsorted(own.ends, [begin, end], "right"))
            other = np.arange(*np.searchsorted(its.ends, [begin, end], "right"))
            if (rows[other] >= 0).all() and len(other) and len(one):
                found.append((own.places[one], rows[other]))
        return found


class AlignedLoss(Protocol):
    """A loss between the two sides' values of each group."""

    def __call__(self, student_GV: Tensor, texts: Texts, groups: Groups) -> Tensor:
        """The loss of each group (G,)."""


def student_values(logits_NV: Tensor, labels_N: Tensor, groups: Groups) -> Tensor:
    """The student's values of each group (G, V)."""
    logprobs_NV = logits_NV.log_softmax(-1)
    own_N = logprobs_NV.gather(-1, labels_N[:, None]).squeeze(-1).clamp(min=np.log(LEAST))
    earlier_N = groups.group_N >= 0
    earlier_N[groups.last_G] = False
    before_G = torch.zeros(len(groups.last_G)).index_add(
        0, groups.group_N[earlier_N], own_N[earlier_N]
    )
    return (logprobs_NV[groups.last_G] + before_G[:, None]).exp()


@dataclass(frozen=True)
class UldLoss:
    """ULD. teacher_size: V of the teacher."""

    teacher_size: int

    def __call__(self, student_GV: Tensor, texts: Texts, groups: Groups) -> Tensor:
        """The loss of each group (G,)."""
        entries_GK, rate_G = teacher_values(texts, groups, self.teacher_size)
        return sorted_distance(student_GV, entries_GK, rate_G, self.teacher_size)


class GoldLoss:
    """GOLD's hybrid. weights: of matched ids and of the others; None: by the share of ids."""

    def __init__(
        self, teacher: Any, student: Any, weights: tuple[float, float] | None = None
    ) -> None:
        its, own = _ids_by_bytes(teacher), _ids_by_bytes(student)
        both = sorted(set(its) & set(own))
        self.teacher_size, self.matched = len(teacher), len(both)
        self.student_M = torch.tensor([own[one] for one in both])
        self.other_U = torch.tensor(sorted(set(range(len(student))) - set(self.student_M.tolist())))
        self.number_V = torch.full((len(teacher),), -1)
        self.number_V[torch.tensor([its[one] for one in both])] = torch.arange(len(both))
        share = len(both) / len(teacher)
        self.weights = weights or (share, 1 - share)

    def __call__(self, student_GV: Tensor, texts: Texts, groups: Groups) -> Tensor:
        """The loss of each group (G,)."""
        entries_GK, rate_G = teacher_values(texts, groups, self.teacher_size)
        number_GK = self.number_V[texts.ids_RK[groups.row_G].long()]
        teacher_GM = rate_G[:, None].repeat(1, self.matched + 1)  # the last one takes the others
        teacher_GM.scatter_(1, number_GK % (self.matched + 1), entries_GK)
        alike = _divergence(student_GV[:, self.student_M], teacher_GM[:, :-1])
        others_GK = torch.where(number_GK < 0, entries_GK, rate_G[:, None])
        rest = sorted_distance(
            student_GV[:, self.other_U], others_GK, rate_G, self.teacher_size - self.matched
        )
        return self.weights[0] * alike + self.weights[1] * rest


def _ids_by_bytes(tokenizer: Any) -> dict[bytes, int]:
    """Ids by what they stand for: ▁ and Ġ are one space."""
    found = TokenBytes(tokenizer, "a model").bytes_of
    return {one: i for i, one in reversed(list(enumerate(found))) if one}


def teacher_values(texts: Texts, groups: Groups, size: int) -> tuple[Tensor, Tensor]:
    """(values of the entries (G, K), value of each other id (G,)) of the teacher."""
    logprobs_GK = texts.logprobs_RK[groups.row_G] + groups.log_before_G[:, None]
    rest_G = (texts.tail_R[groups.row_G] + groups.log_before_G).exp()
    return logprobs_GK.exp(), rest_G / max(1, size - logprobs_GK.shape[1])


def sorted_distance(student_GV: Tensor, entries_GK: Tensor, rate_G: Tensor, size: int) -> Tensor:
    """Sum of differences by rank (G,). size: of the teacher's ids; those beyond K have `rate`."""
    wide = max(student_GV.shape[1], entries_GK.shape[1])
    student = student_GV.sort(-1, descending=True).values
    student = pad(student, (0, wide - student.shape[1]))
    teacher = rate_G[:, None].repeat(1, wide)
    teacher[:, : entries_GK.shape[1]] = entries_GK.sort(-1, descending=True).values
    return (student - teacher).abs().sum(-1) + (size - wide) * rate_G


def _divergence(student_GM: Tensor, teacher_GM: Tensor) -> Tensor:
    """JSD with beta = 0.5 of values that need not sum to one (G,)."""
    student, teacher = (one.clamp(min=LEAST).log() for one in (student_GM, teacher_GM))
    mixture = torch.logaddexp(student, teacher) - np.log(2)
    parts = (one.exp() * (one - mixture) for one in (student, teacher))
    return 0.5 * sum(parts).sum(-1)


class AlignedLearner(Learner):
    """A student that learns from labels and by a loss of groups, in the package's loop."""

    def __init__(self, *args: Any, loss: AlignedLoss, weight: float, texts: Texts, **keys: Any):
        super().__init__(*args, **keys)
        self.loss, self.weight, self.texts = loss, weight, texts

    def forward(
        self,
        batch: Batch,
        sources: Any,
        scale: float | Mapping[Unit, float],
        terms: list[Any] | None = None,
    ) -> tuple[Tensor, LossSums]:
        """Return (loss, sums); one micro-batch is a whole step."""
        scales = scale if isinstance(scale, Mapping) else every_unit(scale)
        outputs = self._run_student(batch)
        logits_NV = head_of(self.student, self.readout.vocabulary).logits(outputs.final).float()
        groups = self.texts.groups(batch.keys, batch.counts)
        loss_G = self.loss(student_values(logits_NV, outputs.labels_N, groups), self.texts, groups)
        nll = cross_entropy(logits_NV, outputs.labels_N, reduction="sum")
        (bound,) = self.bound_terms
        total = self.weight * (loss_G * groups.share_G).sum()
        total = total + scales[bound.key.unit] * self.terms[0].weight * nll
        return total, LossSums({bound.key: nll.detach()}, nll.detach(), len(outputs.labels_N))
