"""The objective: a weighted list of terms, masked and averaged once, over one optimiser step.

Legend: B rows, T tokens, N tokens counted, V vocabulary, H width, L layers.

The value of a step is  sum_terms weight x (sum over counted tokens) / (number of counted tokens of
the whole step, over micro-batches and processes).  Splitting a batch therefore changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, create_model
from torch import Tensor, nn

from attar.anatomy import capture_layers, head_of, num_layers, run_body, width
from attar.errors import RecipeError
from attar.strict import Section
from distill.batches import Batch
from distill.data import IGNORE
from distill.head import HeadTerm, head_losses
from distill.losses import LOSSES, Loss
from teachers.cache import Signals


class Term(Section):
    """One term: which loss, how much of it, and the loss's own parameters."""

    loss: str
    weight: float = Field(1.0, ge=0)

    def own(self) -> dict[str, Any]:
        """The loss's own parameters."""
        return {name: getattr(self, name) for name in LOSSES[self.loss].parameters()}


def _term_model(found: Loss) -> type[Term]:
    """The recipe's model of one loss's term, from the function's signature."""
    fields: dict[str, Any] = {"loss": (Literal[found.name], found.name), **found.parameters()}
    if found.reads == "distribution":
        fields["temperature"] = (float, Field(1.0, gt=0, description="T; the value is times T^2"))
    if found.reads == "hidden":
        pairs = list[tuple[int, int]]
        about = "[student layer, teacher layer] pairs; every cached layer, mapped, when absent"
        fields["layers"] = (pairs | None, Field(None, description=about))
    made: type[Term] = create_model(f"{found.name}_term", __base__=Term, **fields)
    return made


TERM_MODELS = {name: _term_model(found) for name, found in LOSSES.items()}
if TYPE_CHECKING:
    AnyTerm = Any  # one of TERM_MODELS
else:
    AnyTerm = Annotated[reduce(or_, TERM_MODELS.values()), Field(discriminator="loss")]


def reads(terms: list[Any], what: str) -> bool:
    """Whether any term reads `distribution`, `labels` or `hidden`."""
    return any(LOSSES[term.loss].reads == what for term in terms)


def needs_teacher(terms: list[Any]) -> bool:
    """Whether the cache is needed at all."""
    return reads(terms, "distribution") or reads(terms, "hidden")


@dataclass
class Sums:
    """Sums over counted tokens, in nats, by term; `tokens` is how many."""

    terms: dict[str, Tensor]
    tokens: int


class Learner(nn.Module):
    """A student, its objective and its projectors: a batch and its signals in, a loss out.

    It is what data-parallel wrappers wrap. Projectors (teacher and student of different width)
    are linear, orthogonal at first, and never part of the student's checkpoint.
    """

    def __init__(
        self,
        student: nn.Module,
        terms: list[Any],
        *,
        vocabulary: int,
        dtype: torch.dtype,
        chunk: int,
        layer_pairs: list[tuple[int, int]] | None = None,
        teacher_width: int | None = None,
    ) -> None:
        super().__init__()
        self.student, self.terms = student, terms
        self.vocabulary, self.dtype, self.chunk = vocabulary, dtype, chunk
        self.pairs = {
            i: getattr(term, "layers", None) or (layer_pairs or [])
            for i, term in enumerate(terms)
            if LOSSES[term.loss].reads == "hidden"
        }
        depth = num_layers(student)
        for i, pairs in self.pairs.items():
            if not pairs:
                raise RecipeError(
                    f"`objective[{i}]` ({terms[i].loss}) has no layers; name teacher layers in "
                    "`cache.hidden.layers`."
                )
            for layer, _ in pairs:
                if not 0 <= layer <= depth:
                    raise RecipeError(
                        f"`objective[{i}].layers` names student layer {layer}; it has 0 to {depth}."
                    )
        used = sorted({pair for pairs in self.pairs.values() for pair in pairs})
        self.layers = sorted({student_layer for student_layer, _ in used})
        self.projectors = nn.ModuleDict()
        if used and teacher_width is not None and teacher_width != width(student):
            for s, t in used:
                projector = nn.Linear(width(student), teacher_width, bias=False)
                nn.init.orthogonal_(projector.weight)
                self.projectors[f"{s}_{t}"] = projector

    def decode(self, signals: Signals) -> None:
        """Decode what the terms will ask for: done ahead, by another thread."""
        for term in self.terms:
            if LOSSES[term.loss].reads == "distribution":
                signals.distribution(term.temperature)
        for layer in {t for pairs in self.pairs.values() for _, t in pairs}:
            signals.hidden(layer)

    def forward(self, batch: Batch, signals: Signals | None, scale: float) -> tuple[Tensor, Sums]:
        """(scaled loss, sums). `scale` is processes / counted tokens of the whole step."""
        device = batch.labels_BT.device
        enabled = self.dtype != torch.float32
        with (
            torch.autocast(device.type, self.dtype, enabled=enabled),
            capture_layers(self.student, self.layers) as captured,
        ):
            hidden_BTH = run_body(self.student, batch.model_inputs())
        where = batch.labels_BT != IGNORE
        labels_N = batch.labels_BT[where]
        sums: dict[str, Tensor] = {}
        total = self._head_terms(hidden_BTH[where], labels_N, signals, sums)
        for i, pairs in self.pairs.items():
            value = self._hidden_term(self.terms[i], pairs, captured.layers, where, signals)
            sums[f"{i}:{self.terms[i].loss}"] = value.detach()
            total = total + self.terms[i].weight * value
        return total * scale, Sums(sums, len(labels_N))

    def _head_terms(
        self, hidden_NH: Tensor, labels_N: Tensor, signals: Signals | None, sums: dict[str, Tensor]
    ) -> Tensor:
        """All terms over the vocabulary in one pass; nll rides along wherever it is not a term."""
        terms, names = [], []
        for i, term in enumerate(self.terms):
            found = LOSSES[term.loss]
            if found.reads == "hidden":
                continue
            names.append(f"{i}:{term.loss}")
            if found.reads == "labels":
                terms.append(HeadTerm(found, term.weight, parameters=term.own()))
                continue
            assert signals is not None
            target = signals.distribution(term.temperature).to(hidden_NH.device)
            scale = term.weight * term.temperature**2
            terms.append(HeadTerm(found, scale, term.temperature, term.own(), target))
        if not any(term.loss.name == "cross_entropy" for term in terms):
            names.append("nll")
            terms.append(HeadTerm(LOSSES["cross_entropy"], 0.0))
        head = head_of(self.student, self.vocabulary)
        total, values = head_losses(
            hidden_NH, head, labels_N, terms, chunk=self.chunk, dtype=self.dtype
        )
        for name, term, value in zip(names, terms, values, strict=True):
            sums[name] = value * (term.temperature**2)
            if term.loss.name == "cross_entropy":
                sums["nll"] = value
        return total

    def _hidden_term(
        self,
        term: Any,
        pairs: list[tuple[int, int]],
        captured: dict[int, Tensor],
        where: Tensor,
        signals: Signals | None,
    ) -> Tensor:
        """Mean over layer pairs of the sum over tokens."""
        assert signals is not None
        total = torch.zeros((), device=where.device)
        for s, t in pairs:
            student_NH = captured[s][where].float()
            if f"{s}_{t}" in self.projectors:
                student_NH = self.projectors[f"{s}_{t}"](student_NH)
            teacher_NH = signals.hidden(t).to(where.device)
            values_N = LOSSES[term.loss].function(student_NH, teacher_NH, **term.own())
            total = total + values_N.sum() / len(pairs)
        return total
