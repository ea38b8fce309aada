"""Baselines of classifiers: linear classifiers of the training texts, without any network trained.

A baseline is a class under `@BASELINES.add(name)` that is fitted on the part that students learn
from. What is fitted is measured as every model is, in a fresh process and on the same held-out
texts, so it must pickle. Legend: B texts of a batch, F training texts, H width, C classes.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from attar.errors import ModelError
from attar.files import stored_weight_bytes
from attar.models.structure import count_parameters
from attar.models.tokenizers import load_tokenizer
from attar.registry import Registry
from distill.classifiers import FeaturesConfig, fit, fit_estimator
from distill.data.batching import Batch
from distill.data.calibration import low_discrepancy_order
from distill.data.examples import Example, Examples
from distill.evaluation.text_features import stored_features
from teachers.cache_tools.feature_cache import features_of_inputs, load_body
from teachers.load import TeacherConfig

MAX_TEXTS = 100_000  # training texts of a baseline: what its features take stays below a GB
MAX_WORDS = 100_000  # of TF-IDF, the most frequent
INVERSE_PENALTY = (
    10.0  # of TF-IDF's weights; on banking77 and sms_spam better than 1, as good as 30
)
UNSEEN_PROBABILITY = 1e-6  # of a class without training texts
FEATURES = FeaturesConfig()  # as `distill features` takes them where a recipe says nothing


@dataclass(frozen=True)
class TrainingTexts:
    """What a baseline is fitted on and with.

    classes: C. teacher: the teacher as it is used. tokenizer: the model whose tokenizer made the
    ids. folder: the run's folder of features.
    """

    examples: Examples
    classes: int
    teacher: TeacherConfig
    tokenizer: TeacherConfig
    folder: Path
    batch_tokens: int
    seed: int

    @property
    def number(self) -> int:
        """How many texts a baseline is fitted on."""
        return min(len(self.examples), MAX_TEXTS)

    def chosen(self) -> list[Example]:
        """All texts; of more than `MAX_TEXTS` as many from all over the data."""
        numbers = low_discrepancy_order(len(self.examples))[: self.number]
        return [self.examples[int(i)] for i in np.sort(numbers)]


class BaselineRuntime(Protocol):
    """A loaded baseline, which is measured as a `ClassRuntime`; it reads the teacher's ids."""

    parameters: int
    device: torch.device

    def classes(self, batch: Batch) -> Tensor:
        """Float32 logits (B, C) of labelled texts, on the CPU."""


class FittedBaseline(Protocol):
    """A baseline that was fitted. bytes: of all that it needs to classify, None where unknown."""

    @property
    def bytes(self) -> int | None:
        """Its size on disk."""

    def open(self) -> BaselineRuntime:
        """It, ready to classify."""


class Baseline(Protocol):
    """A way to classify that needs no training of a network.

    about: what it is, as in "... is better than the student". made_by: how a user makes it, as a
    sentence.
    """

    about: ClassVar[str]
    made_by: ClassVar[str]

    def fit(self, texts: TrainingTexts) -> FittedBaseline:
        """Fit it. Raises `ModelError` or `ValueError` where these texts do not allow it."""


BASELINES: Registry[type[Baseline]] = Registry("baseline")


# Frozen features ---------------------------------------------------------------------------------


@BASELINES.add("features")
class FrozenFeatures:
    """Logistic regression on the teacher's features, as `distill features` makes it by default."""

    about: ClassVar[str] = "logistic regression on the teacher's frozen features"
    made_by: ClassVar[str] = "`distill features` on the recipe with `features: {}` makes it."

    def fit(self, texts: TrainingTexts) -> FittedFeatures:
        """Fit it; the teacher runs once over texts whose features are not stored yet."""
        examples = texts.chosen()
        learned, classes_F = learned_classes(examples)
        cache = stored_features(
            texts.folder, texts.teacher, FEATURES.layer, FEATURES.pool, examples,
            texts.batch_tokens,
        )  # fmt: skip
        features_FH = cache.read([one.key for one in examples])
        estimator = fit(FEATURES, texts.seed, features_FH, classes_F)
        return FittedFeatures(texts.teacher, LinearClassifier(estimator, learned, texts.classes))


@dataclass(frozen=True)
class FittedFeatures:
    """The classifier, and the model that gives its features."""

    model: TeacherConfig
    linear: LinearClassifier

    @property
    def bytes(self) -> int | None:
        """Of the model's weights and the classifier; None for a model that is no local folder."""
        path = Path(self.model.model)
        return stored_weight_bytes(path) + self.linear.bytes if path.exists() else None

    def open(self) -> BaselineRuntime:
        """The model without its head, and the classifier behind it."""
        return FeatureRuntime(self)


class FeatureRuntime:
    """Classifies by the features of a loaded model."""

    def __init__(self, fitted: FittedFeatures) -> None:
        self._fitted = fitted
        self._model = load_body(fitted.model)
        self.parameters = count_parameters(self._model) + fitted.linear.weights
        self.device = next(self._model.parameters()).device

    def classes(self, batch: Batch) -> Tensor:
        """Float32 logits (B, C) of labelled texts, on the CPU."""
        inputs = batch.model_inputs()
        features_BH = features_of_inputs(self._model, inputs, FEATURES.layer, FEATURES.pool)
        return self._fitted.linear.logits(features_BH.cpu().numpy())


# TF-IDF ------------------------------------------------------------------------------------------


TFIDF_WORDS = {"token_pattern": r"\w+", "sublinear_tf": True, "max_features": MAX_WORDS}
TFIDF_LINEAR = {"C": INVERSE_PENALTY, "max_iter": 1000}


def _arguments(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())


@BASELINES.add("tf-idf")
class Tfidf:
    """Logistic regression on the words of the texts as the models read them, cut where they are."""

    about: ClassVar[str] = "logistic regression on TF-IDF"
    made_by: ClassVar[str] = (
        "scikit-learn alone makes it: `make_pipeline("
        f"TfidfVectorizer({_arguments(TFIDF_WORDS)}), "
        f"LogisticRegression({_arguments(TFIDF_LINEAR)})).fit(texts, classes)`."
    )

    def fit(self, texts: TrainingTexts) -> FittedTfidf:
        """Fit it on words in lower case, the logarithm of their counts weighed by rarity."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        examples = texts.chosen()
        learned, classes_F = learned_classes(examples)
        words = TfidfVectorizer(**TFIDF_WORDS, dtype=np.float32)
        linear = LogisticRegression(**TFIDF_LINEAR, random_state=texts.seed)
        tokenizer = texts.tokenizer
        read = TextOfIds(tokenizer.model, tokenizer.trust_remote_code)
        known = read([one.input_ids for one in examples])
        fitted = fit_estimator(make_pipeline(words, linear), "tf-idf", known, classes_F)
        return FittedTfidf(read, LinearClassifier(fitted, learned, texts.classes))


@dataclass(frozen=True)
class FittedTfidf:
    """The classifier, and how ids become the text that it reads."""

    read: TextOfIds
    linear: LinearClassifier

    @property
    def bytes(self) -> int:
        """Of the words, their weights and the classifier."""
        return self.linear.bytes

    def open(self) -> BaselineRuntime:
        """The classifier on texts."""
        return TfidfRuntime(self)


class TfidfRuntime:
    """Classifies by words; what it takes to make text of ids again is in its time."""

    def __init__(self, fitted: FittedTfidf) -> None:
        self._fitted = fitted
        self.parameters = fitted.linear.weights
        self.device = torch.device("cpu")
        fitted.read([np.empty(0, np.int64)])  # loads the tokenizer

    def classes(self, batch: Batch) -> Tensor:
        """Float32 logits (B, C) of labelled texts, on the CPU."""
        assert batch.mask_BT is not None
        pairs = zip(batch.input_ids_BT, batch.mask_BT, strict=True)
        rows = [ids_T[mask_T.bool()].numpy() for ids_T, mask_T in pairs]
        return self._fitted.linear.logits(self._fitted.read(rows))


class TextOfIds:
    """Text of ids by a model's tokenizer, loaded at the first call; special ids part texts."""

    def __init__(self, model: str, trust_remote_code: bool) -> None:
        self.model, self.trust_remote_code = model, trust_remote_code

    def __call__(self, rows: Sequence[np.ndarray]) -> list[str]:
        """The text of each row of ids, the two of a pair with a space between them."""
        special = set(self._tokenizer.all_special_ids)
        return [
            " ".join(
                str(self._tokenizer.decode(list(part)))
                for is_special, part in groupby(ids.tolist(), special.__contains__)
                if not is_special
            )
            for ids in rows
        ]

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.model, trust_remote_code=self.trust_remote_code)

    def __getstate__(self) -> dict[str, Any]:
        """Without the tokenizer, which a fresh process loads itself: it may be code of a model."""
        return {"model": self.model, "trust_remote_code": self.trust_remote_code}


# Linear classifiers of some of the classes -------------------------------------------------------


@dataclass(frozen=True)
class LinearClassifier:
    """A fitted pipeline that ends with a logistic regression.

    learned: the number of each class that it knows. classes: C.
    """

    estimator: Any
    learned: np.ndarray
    classes: int

    @property
    def weights(self) -> int:
        """Numbers that it learned: of the logistic regression, and of what comes before it."""
        steps = [step for _, step in self.estimator.steps]
        names = ("coef_", "intercept_", "mean_", "scale_", "idf_")
        return sum(np.size(getattr(step, name)) for step in steps for name in names
                   if hasattr(step, name))  # fmt: skip

    @property
    def bytes(self) -> int:
        """Size of all that it holds, words included."""
        return len(pickle.dumps(self.estimator))

    def logits(self, inputs: Any) -> Tensor:
        """Float32 logits (B, C); a class that no training text had gets `UNSEEN_PROBABILITY`."""
        scores = np.asarray(self.estimator.decision_function(inputs), np.float64)
        if scores.ndim == 1:  # of two classes, the log of their odds
            scores = np.stack([np.zeros_like(scores), scores], axis=1)
        known = torch.from_numpy(scores).log_softmax(-1)
        logits_BC = torch.full((len(known), self.classes), math.log(UNSEEN_PROBABILITY))
        logits_BC[:, torch.from_numpy(self.learned)] = known.float()
        return logits_BC


def learned_classes(examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """(the classes that occur, the place of each text's class among them, (F,)).

    Raises `ModelError` where there is only one.
    """
    learned, classes_F = np.unique([int(one.labels[0]) for one in examples], return_inverse=True)
    if len(learned) < 2:
        raise ModelError("all training texts are of one class, and a classifier needs two.")
    return learned, classes_F
