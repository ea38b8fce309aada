"""Baselines of classifiers: what they learn from, their logits, and what they leave out."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from attar.errors import ModelError
from distill.data.batching import collate_texts
from distill.data.examples import Example
from distill.evaluation.baselines import (
    BASELINES,
    UNSEEN_PROBABILITY,
    LinearClassifier,
    TextOfIds,
    TrainingTexts,
    learned_classes,
)
from teachers.cache_tools.feature_cache import FeatureCache
from teachers.load import TeacherConfig
from tests.helpers.classifying import sentences, tiny_bert, word_tokenizer


def labelled(texts, tokenizer, number_of=int):
    """Examples of (text, class)."""
    rows = []
    for i, (text, kind) in enumerate(texts):
        ids = np.asarray(tokenizer(text)["input_ids"])
        labels = np.full(len(ids), -100)
        labels[0] = number_of(kind)
        rows.append(Example(f"{i:032x}", ids, labels))
    return rows


@pytest.fixture
def texts(tmp_path):
    """The training texts of the tiny teacher in tmp_path."""
    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(tmp_path / "teacher")
    tiny_bert().save_pretrained(tmp_path / "teacher")
    teacher = TeacherConfig(model=str(tmp_path / "teacher"), dtype="float32")
    examples = labelled(sentences(160), tokenizer)
    return TrainingTexts(examples, 2, teacher, teacher, tmp_path / "features", 512, 0)


@pytest.mark.parametrize("name", list(BASELINES))
def test_a_baseline_learns_pickles_and_classifies_other_texts(texts, name):
    fitted = pickle.loads(pickle.dumps(BASELINES[name]().fit(texts)))
    held_out = labelled(sentences(80, seed=1), word_tokenizer())
    runtime = fitted.open()
    batches = [collate_texts([[one] for one in held_out[i : i + 8]]) for i in range(0, 80, 8)]
    logits = torch.cat([runtime.classes(batch) for batch in batches])
    labels = torch.tensor([int(one.labels[0]) for one in held_out])
    assert logits.shape == (80, 2)
    assert (logits.argmax(-1) == labels).float().mean() > 0.75, "a telling word is in every text"
    assert fitted.bytes > 4 * runtime.parameters > 0
    alone = runtime.classes(collate_texts([[held_out[3]]]))
    torch.testing.assert_close(alone[0], logits[3], atol=1e-4, rtol=1e-4)


def test_the_lines_that_make_tf_idf_anew_give_the_same_probabilities(texts):
    words, new = sentences(160), [text for text, _ in sentences(20, seed=1)]
    (line,) = re.findall("`(.*)`", BASELINES["tf-idf"].made_by)
    names = {
        "make_pipeline": make_pipeline, "TfidfVectorizer": TfidfVectorizer,
        "LogisticRegression": LogisticRegression, "texts": [text for text, _ in words],
        "classes": [kind for _, kind in words],
    }  # fmt: skip
    made = eval(line, names)
    linear = BASELINES["tf-idf"]().fit(texts).linear
    measured = linear.logits(new).softmax(-1)
    np.testing.assert_allclose(made.predict_proba(new), measured, atol=1e-4)
    guide = Path("docs/guides/classification.md").read_text().replace("100_000", "100000")
    settings = re.findall(r"\((token_pattern[^)]*|C=[^)]*)\)", line.replace(r"'\\w+'", r'r"\w+"'))
    assert len(settings) == 2
    assert all(one in guide for one in settings), "the guide has other settings"


def test_features_are_run_once(texts, monkeypatch):
    BASELINES["features"]().fit(texts)
    monkeypatch.setattr(
        "distill.evaluation.text_features.load_body", lambda source: pytest.fail("run again")
    )
    BASELINES["features"]().fit(texts)
    (folder,) = (texts.folder / "cache").iterdir()
    assert FeatureCache(folder).read([one.key for one in texts.examples]).shape == (160, 32)


@pytest.mark.parametrize("classes", [2, 3])
def test_logits_are_scikit_learns_probabilities_and_unseen_classes_get_almost_none(classes):
    dice = np.random.default_rng(0)
    inputs, labels = dice.normal(size=(60, 4)), np.arange(60) % classes
    made = make_pipeline(StandardScaler(), LogisticRegression()).fit(inputs, labels)
    learned = np.arange(classes) * 2  # the odd classes have no training texts
    linear = LinearClassifier(made, learned, 2 * classes)
    probabilities = linear.logits(inputs).double().softmax(-1)
    rescaled = 1 + classes * UNSEEN_PROBABILITY
    np.testing.assert_allclose(
        probabilities[:, learned] * rescaled, made.predict_proba(inputs), atol=1e-5
    )
    unseen = probabilities[:, learned + 1]
    torch.testing.assert_close(
        unseen, torch.full_like(unseen, UNSEEN_PROBABILITY), rtol=1e-4, atol=0
    )
    one = 4 if classes == 2 else 12
    assert linear.weights == one + (1 if classes == 2 else 3) + 4 + 4, "weights, biases, scaling"


def test_only_classes_that_occur_are_learned_and_one_is_too_few():
    tokenizer = word_tokenizer()
    examples = labelled([("the film", 4), ("a story", 1), ("water", 4)], tokenizer)
    learned, classes = learned_classes(examples)
    assert (learned.tolist(), classes.tolist()) == ([1, 4], [1, 0, 1])
    with pytest.raises(ModelError, match="all training texts are of one class"):
        learned_classes(examples[::2])


def test_text_of_ids_has_both_texts_of_a_pair_apart(tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    read = TextOfIds(str(tmp_path), False)
    pair = np.asarray(tokenizer("the film", "was dull")["input_ids"])
    assert read([pair, pair[:3], np.empty(0, int)]) == ["the film was dull", "the film", ""]
    assert "_tokenizer" in vars(read)
    assert "_tokenizer" not in vars(pickle.loads(pickle.dumps(read)))
