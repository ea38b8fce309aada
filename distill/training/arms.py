"""Arms: the variants of a training that a comparison has, each by what it learns from.

An arm trains the same student on the same examples in the same order; one that learns the data's
own answers, where a model wrote others, on those. Registering one enrols it in
the recipe's schema (`train.arms`) and, where it is a control, in the comparison of the report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

from attar.errors import RecipeError
from attar.registry import Registry
from distill.objective.terms import TERM_MODELS
from distill.training.config import LoopConfig

Configure = Callable[[LoopConfig, str], LoopConfig]


@dataclass(frozen=True)
class Arm:
    """An arm: its name, one line about it, and the keys it trains by, from the recipe's and the
    name of the loss by which the task learns without a teacher.

    control: whether a recipe chooses it, to compare with; the arm `distill` is always trained.
    gold: whether it learns the data's own answers, even where a model wrote others.
    """

    name: str
    about: str
    configure: Configure
    control: bool
    gold: bool = False


ARMS: Registry[Arm] = Registry("arm")
DISTILL = "distill"  # the arm whose student goes on to specialising and export


def arm(
    name: str, about: str, *, control: bool = True, gold: bool = False
) -> Callable[[Configure], Configure]:
    """Decorator that enrols an arm by the function from the recipe's keys to the arm's own."""

    def enrol(configure: Configure) -> Configure:
        ARMS.add(name)(Arm(name, about, configure, control, gold))
        return configure

    return enrol


@arm(DISTILL, "learns by the recipe's objective", control=False)
def distill(config: LoopConfig, label_loss: str) -> LoopConfig:
    """Train by the recipe as it is written."""
    return config


@arm("finetune", "learns by the labels alone, without a teacher; all else is the same")
def finetune(config: LoopConfig, label_loss: str) -> LoopConfig:
    """Train without a teacher: the control that shows what distilling adds."""
    labels_alone = TERM_MODELS[label_loss].model_validate({})
    return config.model_copy(update={"objective": [labels_alone], "rollouts": None})


@arm("gold", "learns the data's own answers by the labels alone, beside written ones", gold=True)
def gold(config: LoopConfig, label_loss: str) -> LoopConfig:
    """Train without a teacher on the data's own answers: what written answers add shows by it."""
    return finetune(config, label_loss)


def check_arm(name: str) -> str:
    """The name of an arm. Raises `ValueError` where there is none of that name."""
    try:
        ARMS[name]
    except RecipeError as error:
        raise ValueError(str(error)) from None
    return name


def _check_control(name: str) -> str:
    if not ARMS[check_arm(name)].control:
        raise ValueError(f"the arm `{name}` is always trained; leave it out of `arms`")
    return name


_CONTROLS = [name for name, found in ARMS.items() if found.control]
ControlArm = Annotated[
    str, AfterValidator(_check_control), WithJsonSchema({"type": "string", "enum": _CONTROLS})
]
