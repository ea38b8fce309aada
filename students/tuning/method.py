"""Tuning methods for specialising a student: one small registered class per method.

A method is a section of the recipe that holds its settings. `attach` prepares a student: only the
parameters that the method adds or chooses keep `requires_grad`, in float32. The training loop
(`distill/training/loop.py`) then trains every method alike, and `students/tuning/adapters.py`
saves, loads and merges adapters.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol

from torch import nn

from attar.models.loading import Quantization
from attar.registry import Registry

Leaves = Literal["adapter", "weights"]


class TuningMethod(Protocol):
    """The interface of a tuning method, which is also a section of the recipe."""

    @property
    def method(self) -> str:
        """The name of the method in a recipe."""

    leaves: ClassVar[Leaves]  # the result on disk: an adapter for its base, or a whole student
    merges: ClassVar[bool]  # whether the result can be merged into plain weights
    prepends: ClassVar[bool]  # whether it adds positions before the text, which forbids packing

    @property
    def base(self) -> Quantization:
        """The quantisation of the frozen weights."""

    def attach(self, model: Any, seed: int) -> nn.Module:
        """Add trainable parameters, drawn from the seed, to the model in place; return the student.

        Raises `ModelError` for a model that does not fit the method.
        """

    def check(self, config: Any) -> None:
        """Raise `RecipeError` if a student with this `PretrainedConfig` does not fit the method."""


METHODS: Registry[type[TuningMethod]] = Registry("method")
