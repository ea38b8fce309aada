"""Which layers of the student learn from which of the teacher's.

Layers are numbered as in the residual stream (0: the embeddings' output, l: the output of block l),
blocks from 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from attar.errors import RecipeError
from distill.objective.losses import LOSSES
from distill.objective.terms import TeacherSource, terms_reading
from students.pruning.depth import layer_map

Pair = tuple[int, int]


@dataclass(frozen=True)
class LayerMap:
    """Depths of student and teacher, what the cache holds, and how the student was cut.

    layers, attention: the teacher's layers and blocks that the cache holds. kept: the teacher's
    blocks (from 0) that the student was cut from; None for any other student.
    """

    student_depth: int
    teacher_depth: int
    layers: list[int] = field(default_factory=list)
    attention: list[int] = field(default_factory=list)
    kept: list[int] | None = None

    def pairs(
        self, terms: list[Any], default: TeacherSource, section: str = "train"
    ) -> dict[int, list[Pair]]:
        """Return the (student, teacher) pairs of every term on layers or blocks, by its index.

        Raises `RecipeError`, naming the term in the recipe's section, where a term has no pair or
        names a layer that does not exist.
        """
        online = {id(term) for term in terms_reading(terms, "online", default)}
        found = {}
        for i, term in enumerate(terms):
            reads = LOSSES[term.loss].reads
            if reads in ("hidden", "relation"):
                path = f"{section}.objective[{i}]"
                pairs = self._of(term, path, reads == "relation", id(term) in online)
                self._check(term, path, pairs, 1 if reads == "relation" else 0)
                found[i] = pairs
        return found

    def _of(self, term: Any, path: str, blocks: bool, online: bool) -> list[Pair]:
        if isinstance(term.layers, list):
            return [(s, t) for s, t in term.layers]
        cached = self.attention if blocks else self.layers
        if not cached and online:
            cached = [self.teacher_depth]
        if not cached:
            key = "attention" if blocks else "layers"
            raise RecipeError(
                f"`{path}` ({term.loss}) has no layers; name the teacher's in `cache.hidden.{key}`."
            )
        how = term.layers or ("cut" if self.kept is not None else "even")
        if how == "cut" and self.kept is None:
            raise RecipeError(
                f"`{path}.layers: cut` needs a student cut from the teacher; write `even`, "
                "`last` or pairs."
            )
        least = 1 if blocks else 0
        pairs = [(max(least, self._partner(layer, how)), layer) for layer in cached]
        pairs = [(s, t) for s, t in pairs if how != "last" or t > self.lost]
        if not pairs:
            raise RecipeError(
                f"`{path}.layers: last`: the cached layers {cached} are below the last "
                f"{self.student_depth}; cache later ones, or write `even` or pairs."
            )
        return pairs

    @property
    def lost(self) -> int:
        """Return how many blocks fewer than the teacher the student has."""
        return self.teacher_depth - self.student_depth

    def _partner(self, layer: int, how: str) -> int:
        if how == "last":
            return layer - self.lost
        if how == "even":
            return round(layer * self.student_depth / self.teacher_depth)
        assert self.kept is not None
        return layer_map(self.kept, layer)

    def _check(self, term: Any, path: str, pairs: list[Pair], least: int) -> None:
        what = "block" if least else "layer"
        for s, t in pairs:
            sides = (("student", s, self.student_depth), ("teacher", t, self.teacher_depth))
            for name, layer, depth in sides:
                if not least <= layer <= depth:
                    raise RecipeError(
                        f"`{path}.layers` ({term.loss}) names {name} {what} {layer}; it "
                        f"has {least} to {depth}."
                    )
