"""What the terms of an objective read of a forward, and what each kind of term has.

Legend: B rows, T tokens, N tokens with signals, H width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from distill.data.batching import Batch
from distill.data.counted import Unit
from distill.objective.terms import Source
from teachers.signals import GivesSignals


@dataclass(frozen=True)
class OfMismatched:
    """The key of the signals that a source gives of a batch's mismatched texts."""

    source: Source


# A batch's signals, by where they come from.
SignalSources = dict[Source | OfMismatched, GivesSignals]


@dataclass(frozen=True)
class TermKey:
    """Which term of an objective: its place in the recipe's list, from 0, and its loss.

    unit: what it counts, whose number in a step its sum is divided by.
    """

    index: int
    loss: str
    unit: Unit = "chosen"

    def __str__(self) -> str:
        """Return the key as the history and the logs show it: `0:forward_kl`."""
        return f"{self.index}:{self.loss}"


@dataclass(frozen=True)
class Needs:
    """Inner states of the student that a term reads: layers from 0, attention blocks from 1."""

    layers: frozenset[int] = frozenset()
    blocks: frozenset[int] = frozenset()


@dataclass(frozen=True)
class StudentOutputs:
    """What one forward of the student left for the terms.

    final: what the readout gives. labels_N: the labels of the counted tokens. layers: hidden states
    (B, T, H). blocks: queries, keys and values, each (B, T, ...).
    """

    batch: Batch
    final: Tensor
    labels_N: Tensor
    layers: Mapping[int, Tensor]
    blocks: Mapping[int, tuple[Tensor, Tensor, Tensor]]

    def hidden(self, layer: int) -> Tensor:
        """Return a layer's float32 hidden states (N, H) of the tokens that have signals."""
        return self._with_signals(self.layers[layer]).float()

    def attention(self, block: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return a block's queries, keys and values, each (N, ...), of the same tokens."""
        query, key, value = (self._with_signals(states) for states in self.blocks[block])
        return query, key, value

    def _with_signals(self, states_BTH: Tensor) -> Tensor:
        # Learned positions (prompt tuning) stand before the text and have no signals.
        text = slice(-self.batch.labels_BT.shape[1], None)
        return states_BTH[:, text][self.batch.signals_BT]


class BoundTerm(Protocol):
    """What every kind of bound term has. `term` is the recipe's term with its values of a step."""

    @property
    def key(self) -> TermKey:
        """Return which term of the objective this is."""

    @property
    def source(self) -> Source | None:
        """Return where its signals come from; None where it reads labels alone."""

    @property
    def needs(self) -> Needs:
        """Return the inner states that it reads."""

    def decode(self, term: Any, signals: GivesSignals) -> None:
        """Decode the signals that it will read, so that a later call finds them ready."""


class StateTerm(BoundTerm, Protocol):
    """A term that gives its own value: all kinds but terms over outcomes."""

    def value(self, term: Any, outputs: StudentOutputs, sources: SignalSources) -> Tensor:
        """Return its sum over a batch, before its weight; differentiable."""
