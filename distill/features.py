"""`distill features`: fit a classifier on features of labelled texts from a run's model.

It writes into features/ of the run folder: data/ (texts as ids, with classes), cache/ (features by
model, layer and pooling), classifier.skops, classifier.json (the model and settings that it needs)
and metrics.json. Legend: F texts, H width, C classes.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from attar import __version__
from attar.checksums import faults_of, record_files
from attar.device import peak_memory
from attar.errors import DataError, ModelError, RecipeError, RunError
from attar.files import fingerprint, read_json, read_json_object, write_json
from attar.models.fingerprints import weights_fingerprint
from attar.models.loading import fetch_weights, load_config
from attar.models.structure import check_layers, usable_positions
from attar.models.tokenizers import load_tokenizer, tokenizer_fingerprint
from distill.classifiers import FeaturesConfig, check_classifier, fit, load, save
from distill.console import log_to_file
from distill.data.config import DataConfig, check_sources
from distill.data.examples import Examples
from distill.data.labelled_texts import LabelledTexts, tokenize_labelled
from distill.data.placed import DATA_PARTS, part_file
from distill.data.prepare import prepare
from distill.evaluation.text_features import stored_features
from distill.run.context import Run
from distill.stages.made_files import check_made
from distill.stages.stage import STAGES
from distill.stages.status import first_fault, is_done
from distill.tasks.sequence_classification.metrics import macro_f1
from teachers.cache_tools.feature_cache import features_of, load_body
from teachers.load import TeacherConfig, loaded_here, teacher_identity
from teachers.runners.request import Request

log = logging.getLogger(__name__)
CLASSIFIER_FILES = ("classifier.skops", "classifier.json")


def fit_classifier(run: Run, lone_texts: Sequence[str] = ()) -> dict[str, Any]:
    """Fit a classifier on features of the recipe's texts; returns its numbers on each part.

    A classifier that was fitted on the same inputs is kept. lone_texts: single texts that it will
    classify next, which a classifier of pairs cannot. Raises `RecipeError` or `DataError` for wrong
    settings or data before the model runs.
    """
    config = run.recipe.features
    if config is None:
        raise RecipeError(
            "The recipe has no section `features`; add one, e.g. `features: {layer: last, pool: "
            "mean, classifier: logistic_regression}`, and name the classes with "
            "`data.label_column`."
        )
    data = _data_of(run, config)
    if lone_texts:
        _refuse_other_texts(lone_texts, data.pair_column is not None)
    check_sources(data)
    check_classifier(config, run.recipe.seed)
    source = _model_of(run, config)
    fetch_weights(source.model)
    tokenizer = load_tokenizer(source.model, trust_remote_code=source.trust_remote_code)
    _check_model(run, config, source, tokenizer)
    folder = run.folder.features
    folder.mkdir(parents=True, exist_ok=True)
    with run.folder.owned(), log_to_file(run.folder.log):
        identity = tokenizer_fingerprint(tokenizer)
        seed, beside = run.recipe.seed, _data_learned(run, config)
        prepare(data, tokenizer, identity, seed, folder / "data", LabelledTexts(), beside)
        stats = read_json(folder / "data" / "stats.json")
        wanted = fingerprint(
            [__version__, config.model_dump(), stats["inputs"], teacher_identity(source)]
        )
        known = _known_metrics(folder)
        if known is not None and known["inputs"] == wanted:
            log.info("features: up to date")
            return known
        found = _fit(run, config, source, data, folder, stats["classes"])
        files = record_files([folder / name for name in CLASSIFIER_FILES], folder)
        found = {"inputs": wanted, "files": files, **found}
        write_json(folder / "metrics.json", {**found, "checksum": fingerprint(found)})
    return found


def _known_metrics(folder: Path) -> dict[str, Any] | None:
    """What was written of a classifier whose files are as they were left; None of any other."""
    if not (folder / "metrics.json").exists():
        return None
    known = read_json_object(folder / "metrics.json", "inputs", "files", "checksum")
    faults = {"metrics.json": "was changed"}
    if known.pop("checksum") == fingerprint(known):
        faults = faults_of(known["files"], folder)
    for name, fault in faults.items():
        log.warning("features: %s %s; it is made again", folder / name, fault)
    return None if faults else known


def _data_of(run: Run, config: FeaturesConfig) -> DataConfig:
    """The data that the classifier is fitted on."""
    return config.data or run.recipe.data


def _data_learned(run: Run, config: FeaturesConfig) -> Path | None:
    """The folder of the data that the model of the features learned from in this run, if any."""
    learned = config.model == "student" or (
        config.model == "teacher" and run.recipe.teacher.adapt is not None
    )
    folder = run.folder.data()
    return folder if learned and (folder / "stats.json").exists() else None


def _model_of(run: Run, config: FeaturesConfig) -> TeacherConfig:
    """The model that gives the features. Raises `RunError` where the run has not made it yet."""
    if config.model == "teacher":
        source = loaded_here(run.teacher)
        _refuse_damage(run, "adapt-teacher")
        if not is_done(run, "adapt-teacher"):
            raise RunError(
                f"`features.model: teacher` is the adapted teacher, which is not in {run.folder} "
                "yet, or was made by another recipe; run `distill adapt-teacher` on this recipe "
                "first."
            )
        return source
    if config.model == "student":
        folder = run.merged_student
        _refuse_damage(run, "specialize" if run.recipe.specialize is not None else "train")
        if folder is None or not (is_done(run, "train") and is_done(run, "specialize")):
            raise RunError(
                f"`features.model: student` is the trained student, which is not in {run.folder} "
                "yet, or was made by another recipe; run `distill run` on this recipe first."
            )
        return TeacherConfig(model=str(folder), trust_remote_code=run.trusts_student)
    check_made(config.model)
    return TeacherConfig(model=config.model, trust_remote_code=config.trust_remote_code)


def _refuse_damage(run: Run, stage: str) -> None:
    if found := first_fault(run, stage):
        command = STAGES[found[0]].command
        raise RunError(f"Of {run.folder}, {found[1]}; run `distill {command}` on it first.")


def _check_model(run: Run, config: FeaturesConfig, source: TeacherConfig, tokenizer: Any) -> None:
    data = _data_of(run, config)
    found = load_config(source.model, trust_remote_code=source.trust_remote_code)
    if config.layer != "last":
        try:
            check_layers([config.layer], found.get_text_config().num_hidden_layers)
        except ModelError as error:
            raise RecipeError(f"`features.layer`: {error}") from None
    if config.pool == "cls" and tokenizer.cls_token_id is None:
        raise RecipeError(
            "`features.pool: cls` reads the CLS token, and the tokenizer of "
            f"{source.model} has none: a decoder's first token attends to itself only; use "
            "`mean` or `last`."
        )
    positions = usable_positions(found)
    if positions is not None and data.max_length > positions:
        raise RecipeError(
            f"`{data.section}.max_length` is {data.max_length}, and {source.model} has "
            f"{positions} positions for a text; lower it."
        )


@dataclass(frozen=True)
class _Features:
    """Texts of one part of the data: features (F, H), and the number of each text's class (F,)."""

    features_FH: np.ndarray
    classes_F: np.ndarray


def _parts(
    run: Run, config: FeaturesConfig, source: TeacherConfig, folder: Path
) -> dict[str, _Features]:
    """The parts of the data, from the cache; the model runs on texts that it does not hold yet."""
    parts = {part: Examples(part_file(folder / "data", part)) for part in DATA_PARTS}
    texts = chain.from_iterable(parts.values())
    batch_tokens = run.recipe.cache.batch_tokens
    cache = stored_features(folder, source, config.layer, config.pool, texts, batch_tokens)
    return {
        name: _Features(
            cache.read(examples.keys), np.asarray([int(example.labels[0]) for example in examples])
        )
        for name, examples in parts.items()
    }


def _fit(
    run: Run,
    config: FeaturesConfig,
    source: TeacherConfig,
    data: DataConfig,
    folder: Path,
    names: list[str],
) -> dict[str, Any]:
    """Fit the classifier and write it, with what it needs, into the folder; returns its numbers."""
    start = time.perf_counter()
    with peak_memory() as peak:
        parts = _parts(run, config, source, folder)
    train = parts["train"]
    learned, compact_F = np.unique(train.classes_F, return_inverse=True)
    if len(learned) < 2:
        raise RunError(
            f"All {len(compact_F)} training texts are of one class ({names[learned[0]]}); a "
            "classifier needs two. Give `data.train` more texts, or hold out fewer."
        )
    running = time.perf_counter() - start
    estimator = fit(config, run.recipe.seed, train.features_FH, compact_F)
    fitting = time.perf_counter() - start - running
    save(estimator, folder / "classifier.skops")
    about = {
        "layer": config.layer,
        "pool": config.pool,
        "classifier": config.classifier,
        "classes": [names[i] for i in learned],
    }
    needs = {
        "model": source.model_dump(),
        "weights": weights_fingerprint(source.model),
        "max_length": data.max_length,
        "pair": data.pair_column is not None,
    }
    write_json(folder / "classifier.json", {**needs, **about})
    most = Counter(train.classes_F.tolist()).most_common(1)[0][0]
    found: dict[str, Any] = {
        "model": source.model,
        **about,
        "width": int(train.features_FH.shape[1]),
        "seconds": {"features": running, "fit": fitting},
        "peak_memory_bytes": peak.bytes,
    }
    for name, part in parts.items():
        predicted_F = learned[estimator.predict(part.features_FH)]
        found[name] = {
            "texts": len(predicted_F),
            "accuracy": float((predicted_F == part.classes_F).mean()),
            "macro_f1": macro_f1(part.classes_F, predicted_F),
            "most_frequent": float((part.classes_F == most).mean()),
        }
    return found


def metric_rows(found: dict[str, Any]) -> list[list[str]]:
    """The numbers of each part as a table of text, header first."""
    rows = [["", "texts", "accuracy", "macro-F1", "always the most frequent"]]
    for name in DATA_PARTS:
        part = found[name]
        numbers = [f"{part[key]:.4f}" for key in ("accuracy", "macro_f1", "most_frequent")]
        rows.append([name.replace("_", "-"), f"{part['texts']:,}", *numbers])
    return rows


# Using a classifier ------------------------------------------------------------------------------

TextOrPair = str | tuple[str, str]  # as the classifier was fitted


def _refuse_other_texts(texts: Sequence[TextOrPair], pair: bool) -> None:
    for text in texts:
        if pair and isinstance(text, str):
            raise DataError(
                f"The classifier reads pairs of texts, and {text[:60]!r} is a single one; give "
                "`predict` of distill/features.py a tuple of both."
            )
        if not pair and not isinstance(text, str):
            raise DataError(
                f"The classifier reads single texts, and {text[0][:60]!r} comes with another; give "
                "single texts."
            )


@dataclass
class FeatureClassifier:
    """A classifier on the features of a model, as `distill features` wrote it."""

    model: Any
    tokenizer: Any
    estimator: Any
    known: dict[str, Any]

    def probabilities(self, texts: Sequence[TextOrPair]) -> np.ndarray:
        """Probability of each class for each text, (F, C), in the order of `classes`.

        Raises `DataError` for a single text where it was fitted on pairs, and the other way round.
        """
        _refuse_other_texts(texts, self.known["pair"])
        rows = []
        for text in texts:
            both = [text] if isinstance(text, str) else text
            ids, labels, types = tokenize_labelled(
                self.tokenizer, both, 0, self.known["max_length"], Counter()
            )
            known_types = None if types is None else np.asarray(types)
            counted = np.flatnonzero(np.asarray(labels) >= 0)
            one = Request("", np.asarray(ids), counted, known_types)
            vector_1H = features_of(self.model, [one], self.known["layer"], self.known["pool"])
            rows.append(vector_1H.cpu().numpy())
        found: np.ndarray = self.estimator.predict_proba(np.concatenate(rows))
        return found

    def predict(self, texts: Sequence[TextOrPair]) -> list[str]:
        """The most probable class of each text."""
        chosen = self.probabilities(texts).argmax(-1)
        return [self.classes[i] for i in chosen]

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        names: list[str] = self.known["classes"]
        return names


def load_feature_classifier(folder: Path) -> FeatureClassifier:
    """The classifier that `distill features` wrote into a run's folder features/, with its model.

    Raises `RunError` where there is none, `ModelError` where the model is not the one that the
    classifier was fitted on.
    """
    if not (folder / "metrics.json").exists():
        raise RunError(f"There is no classifier in {folder}; `distill features` makes one.")
    record = read_json_object(folder / "metrics.json", "files")
    for name, fault in faults_of(record["files"], folder).items():
        raise RunError(f"{folder / name}, which `distill features` made, {fault}; run that again.")
    known = read_json(folder / "classifier.json")
    source = TeacherConfig(**known["model"])
    if weights_fingerprint(source.model) != known["weights"]:
        raise ModelError(
            f"{source.model} is not the model that the classifier in {folder} was fitted on: its "
            "weights have changed; run `distill features` again."
        )
    tokenizer = load_tokenizer(source.model, trust_remote_code=source.trust_remote_code)
    return FeatureClassifier(load_body(source), tokenizer, load(folder / "classifier.skops"), known)
