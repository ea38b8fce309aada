"""Classical classifiers on frozen features: which there are, and what a recipe says of them.

A classifier is a function under `@classifier(...)` from a seed and options to an estimator of
scikit-learn's kind; enrolling it puts it into the recipe. It is saved by skops, which loads plain
data and known classes and runs no code of a file, as a pickle does.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import AfterValidator, Field, WithJsonSchema

from attar.config import Section
from attar.errors import ModelError, RecipeError, nearest
from attar.models.pooling import Mode
from attar.registry import Registry
from distill.data.config import DataConfig
from teachers.cache_tools.feature_cache import Layer

log = logging.getLogger(__name__)

BuildEstimator = Callable[[int, dict[str, Any]], Any]


@dataclass(frozen=True)
class ClassifierType:
    """An enrolled classifier: how it is built, which package it needs, and the classes in its file
    that skops does not know to be harmless.
    """

    build: BuildEstimator
    package: str
    holds: tuple[str, ...] = ()


CLASSIFIERS: Registry[ClassifierType] = Registry("classifier")


def classifier(
    name: str, *, package: str = "sklearn", holds: tuple[str, ...] = ()
) -> Callable[[BuildEstimator], BuildEstimator]:
    """Decorator that enrols a classifier."""

    def enrol(build: BuildEstimator) -> BuildEstimator:
        CLASSIFIERS.add(name)(ClassifierType(build, package, holds))
        return build

    return enrol


@classifier("logistic_regression")
def logistic_regression(seed: int, options: dict[str, Any]) -> Any:
    """Multinomial logistic regression on features of mean 0 and deviation 1."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    given = {"max_iter": 1000, "random_state": seed, **options}
    return make_pipeline(StandardScaler(), LogisticRegression(**given))


@classifier("random_forest", holds=("sklearn.tree._tree.Tree",))
def random_forest(seed: int, options: dict[str, Any]) -> Any:
    """300 trees, each on a draw of the texts."""
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(**{"n_estimators": 300, "random_state": seed, **options})


@classifier(
    "xgboost",
    package="xgboost",
    holds=("xgboost.core.Booster", "xgboost.sklearn.XGBClassifier"),
)
def xgboost(seed: int, options: dict[str, Any]) -> Any:
    """Gradient-boosted trees by XGBoost."""
    from xgboost import XGBClassifier

    return XGBClassifier(**{"random_state": seed, **options})


@classifier(
    "lightgbm",
    package="lightgbm",
    holds=("lightgbm.basic.Booster", "lightgbm.sklearn.LGBMClassifier", "collections.OrderedDict"),
)
def lightgbm(seed: int, options: dict[str, Any]) -> Any:
    """Gradient-boosted trees by LightGBM."""
    from lightgbm import LGBMClassifier

    return LGBMClassifier(**{"random_state": seed, "verbosity": -1, **options})


# The recipe --------------------------------------------------------------------------------------


def _enrolled(name: str) -> str:
    try:
        CLASSIFIERS[name]
    except RecipeError as error:
        raise ValueError(str(error)) from None
    return name


Name = Annotated[
    str, AfterValidator(_enrolled), WithJsonSchema({"type": "string", "enum": list(CLASSIFIERS)})
]


class FeaturesData(DataConfig):
    """Data of the section `features`."""

    section: ClassVar[str] = "features.data"


class FeaturesConfig(Section):
    """Frozen features of labelled texts, and a classical classifier on them."""

    model: str = Field("teacher", description="teacher, student, or a hub id or folder")
    layer: Layer = Field("last", description="0: embeddings, l: block l, last: after the last norm")
    pool: Mode = Field("mean", description="of a text's tokens: their mean, the last, or CLS")
    classifier: Name = "logistic_regression"
    options: dict[str, Any] = Field(default_factory=dict, description="the classifier's own")
    data: FeaturesData | None = Field(None, description="the run's data when absent")


def check_classifier(config: FeaturesConfig, seed: int) -> None:
    """Raise `RecipeError` for a package that is missing, or options that the classifier refuses:
    it is tried on a few made-up points.
    """
    kind = CLASSIFIERS[config.classifier]
    for package in ("sklearn", "skops", kind.package):
        if importlib.util.find_spec(package) is None:
            name = "scikit-learn" if package == "sklearn" else package
            extra = "boost" if package == kind.package != "sklearn" else "classify"
            raise RecipeError(
                f"`features.classifier: {config.classifier}` needs {name}, which is not installed; "
                f'`pip install "attar[{extra}]"`.'
            )
    known = _option_names(kind.build(seed, {}))
    for name in config.options:
        if name not in known:
            raise RecipeError(
                f"`features.options.{name}` is no option of {config.classifier}; it has "
                f"{', '.join(known)}.{nearest(name, known)}"
            )
    points_FH = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.build(seed, config.options).fit(points_FH, np.arange(40) % 2)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(
            f"`features.options`: {config.classifier} refuses them: {reason}"
        ) from None
    except Exception as error:  # the boosters have errors of their own
        if not type(error).__module__.startswith((kind.package, "sklearn")):
            raise
        reason = " ".join(str(error).split())[:300]
        raise RecipeError(
            f"`features.options`: {config.classifier} refuses them: {reason}"
        ) from None


def _option_names(estimator: Any) -> list[str]:
    last = estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator
    return sorted(last.get_params(deep=False))


# Fitting, keeping --------------------------------------------------------------------------------


def fit(config: FeaturesConfig, seed: int, features_FH: np.ndarray, classes_F: np.ndarray) -> Any:
    """The classifier, fitted; classes are numbers from 0 without a gap. Says what it warns of."""
    made = CLASSIFIERS[config.classifier].build(seed, config.options)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        made.fit(features_FH, classes_F)
    for text in dict.fromkeys(" ".join(str(one.message).split()) for one in told):
        log.warning("features: %s says: %s", config.classifier, text[:300])
    return made


def save(estimator: Any, file: Path) -> None:
    """The fitted classifier as a .skops file, aside and then renamed."""
    from skops.io import dump

    aside = file.with_suffix(".partial")
    dump(estimator, aside)
    aside.replace(file)


def load(file: Path) -> Any:
    """A fitted classifier. Raises `ModelError` for a file with other classes than those of the
    enrolled classifiers: nothing of it is run.
    """
    from skops.io import get_untrusted_types
    from skops.io import load as load_plain

    named = get_untrusted_types(file=file)
    known = {held for name in CLASSIFIERS for held in CLASSIFIERS[name].holds}
    strange = [name for name in named if name not in known]
    if strange:
        raise ModelError(f"{file} holds {', '.join(strange)}, which no classifier of ours has.")
    return load_plain(file, trusted=named)
