"""Classical classifiers on frozen features, and the section of the recipe that chooses one.

A classifier is a function under `@classifier(...)` that makes a scikit-learn estimator from a seed
and options; registering it adds it to the recipe. Estimators are saved by skops, which loads plain
data and known types only; unlike pickle, it runs no code from the file.
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
from attar.files import staged_file
from attar.models.pooling import PoolingMode
from attar.registry import Registry
from distill.data.config import DataConfig
from teachers.cache_tools.feature_cache import FeatureLayer

log = logging.getLogger(__name__)

BuildEstimator = Callable[[int, dict[str, Any]], Any]


@dataclass(frozen=True)
class ClassifierType:
    """A registered classifier.

    build: makes the estimator. package: must be installed. holds: types in its saved file that
    skops does not know to be safe.
    """

    build: BuildEstimator
    package: str
    holds: tuple[str, ...] = ()


CLASSIFIERS: Registry[ClassifierType] = Registry("classifier")


def classifier(
    name: str, *, package: str = "sklearn", holds: tuple[str, ...] = ()
) -> Callable[[BuildEstimator], BuildEstimator]:
    """Decorator that registers a classifier."""

    def register(build: BuildEstimator) -> BuildEstimator:
        CLASSIFIERS.add(name)(ClassifierType(build, package, holds))
        return build

    return register


@classifier("logistic_regression")
def logistic_regression(seed: int, options: dict[str, Any]) -> Any:
    """Multinomial logistic regression on standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    given = {"max_iter": 1000, "random_state": seed, **options}
    return make_pipeline(StandardScaler(), LogisticRegression(**given))


@classifier("random_forest", holds=("sklearn.tree._tree.Tree",))
def random_forest(seed: int, options: dict[str, Any]) -> Any:
    """300 trees, each on a bootstrap sample of the texts."""
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


def _registered(name: str) -> str:
    try:
        CLASSIFIERS[name]
    except RecipeError as error:
        raise ValueError(str(error)) from None
    return name


Name = Annotated[
    str, AfterValidator(_registered), WithJsonSchema({"type": "string", "enum": list(CLASSIFIERS)})
]


class FeaturesData(DataConfig):
    """Data of the section `features`."""

    section: ClassVar[str] = "features.data"


class FeaturesConfig(Section):
    """Frozen features of labelled texts, and a classical classifier on them."""

    model: str = Field("teacher", description="teacher, student, or a hub id or folder")
    trust_remote_code: bool = Field(
        False, description="run code that comes with a `model` named here"
    )
    layer: FeatureLayer = Field(
        "last", description="0: embeddings, l: block l, last: after the last norm"
    )
    pool: PoolingMode = Field("mean", description="how a text's vector is made of its tokens")
    classifier: Name = "logistic_regression"
    options: dict[str, Any] = Field(default_factory=dict, description="options of the classifier")
    data: FeaturesData | None = Field(None, description="the run's data when absent")


def check_classifier(config: FeaturesConfig, seed: int) -> None:
    """Raise `RecipeError` for a missing package, or options that the classifier refuses.

    The classifier is fitted on a few random points to find out.
    """
    kind = CLASSIFIERS[config.classifier]
    for package in ("skops", kind.package):
        if importlib.util.find_spec(package) is None:
            extra = "classify" if package == "skops" else "boost"
            raise RecipeError(
                f"`features.classifier: {config.classifier}` needs {package}, which is not "
                f'installed; `pip install "attar[{extra}]"`.'
            )
    known = _option_names(kind.build(seed, {}))
    for name in config.options:
        if name not in known:
            raise RecipeError(
                f"`features.options.{name}` is not an option of {config.classifier}; it has "
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
    except Exception as error:  # XGBoost and LightGBM raise their own errors
        if not type(error).__module__.startswith((kind.package, "sklearn")):
            raise
        reason = " ".join(str(error).split())[:300]
        raise RecipeError(
            f"`features.options`: {config.classifier} refuses them: {reason}"
        ) from None


def _option_names(estimator: Any) -> list[str]:
    last = estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator
    return sorted(last.get_params(deep=False))


# Fitting and saving ------------------------------------------------------------------------------


def fit(config: FeaturesConfig, seed: int, features_FH: np.ndarray, classes_F: np.ndarray) -> Any:
    """The fitted classifier. Classes are numbers from 0 without a gap; its warnings are logged."""
    made = CLASSIFIERS[config.classifier].build(seed, config.options)
    return fit_estimator(made, f"features: {config.classifier}", features_FH, classes_F)


def fit_estimator(estimator: Any, name: str, inputs: Any, classes_F: np.ndarray) -> Any:
    """A fitted estimator of scikit-learn; what it warns of is logged under the name."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimator.fit(inputs, classes_F)
    for text in dict.fromkeys(" ".join(str(one.message).split()) for one in caught):
        log.warning("%s warns: %s", name, text[:300])
    return estimator


def save(estimator: Any, file: Path) -> None:
    """Write the fitted classifier as a .skops file."""
    from skops.io import dump

    with staged_file(file) as aside:
        dump(estimator, aside)


def load(file: Path) -> Any:
    """Load a fitted classifier.

    Raises `ModelError` for a file with types that no registered classifier has; no code is run.
    """
    from skops.io import get_untrusted_types
    from skops.io import load as load_plain

    named = get_untrusted_types(file=file)
    known = {held for name in CLASSIFIERS for held in CLASSIFIERS[name].holds}
    unknown = [name for name in named if name not in known]
    if unknown:
        raise ModelError(
            f"{file} holds types that no registered classifier has: {', '.join(unknown)}."
        )
    return load_plain(file, trusted=named)
