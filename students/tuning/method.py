"""Ways to specialise a student: one small class a method, enrolled by registering it.

A method is a section of the recipe (its parameters). It says what it leaves, and `attach` makes a
student learn by it: only what it adds, or chooses, has `requires_grad`, in float32. Whatever it is,
`distill/training/loop.py` trains it, and `students/tuning/adapters.py` saves, loads and merges what it leaves.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol

from torch import nn

from attar.models.loading import Quantization
from attar.registry import Registry

Leaves = Literal["adapter", "weights"]


class TuningMethod(Protocol):
    """What every method offers."""

    method: str
    leaves: ClassVar[Leaves]  # on disk: an adapter for its base, or a whole student
    merges: ClassVar[bool]  # whether it can be folded into plain weights
    prepends: ClassVar[bool]  # whether it puts something before the text: then nothing is packed
    base: Quantization  # of the frozen weights; a ClassVar where there is no choice

    def attach(self, model: Any, seed: int) -> nn.Module:
        """The student with what learns, drawn from the seed; the model is changed in place.

        Raises `ModelError` where the model has no place for it.
        """

    def check(self, config: Any) -> None:
        """Raise `RecipeError` where a student of this `PretrainedConfig` cannot learn so."""


METHODS: Registry[type[Any]] = Registry("method")  # of pydantic models that are TuningMethods
