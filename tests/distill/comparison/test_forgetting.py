"""What a model could do before: the same text and questions, by the start and by what learned."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaForSequenceClassification

from attar.errors import DataError
from distill.comparison.forgetting import (
    check_forgetting,
    forgotten,
    measure_forgetting,
    pieces_of,
    put_body,
)
from distill.comparison.starts import start_of
from distill.recipe.compare import ForgetConfig
from distill.runtimes.runtime import ModelSource
from tests.helpers.classifying import write_rows
from tests.helpers.compared_folder import fill_folder, open_comparison, tiny_decoder

TASK = {"name": "films", "kind": "multiple_choice", "prompt": "{query}"}


def measured(nll_G, correct=None):
    arrays = {
        "document": np.arange(len(nll_G)),
        "nll": np.array(nll_G, np.float64),
        "tokens": np.full(len(nll_G), 10),
    }
    if correct is None:
        return {}, arrays
    return {"task": "films"}, {**arrays, "correct": np.array(correct, bool)}


def test_a_model_that_did_not_change_forgot_nothing():
    nll_G = np.random.default_rng(0).uniform(20, 30, 12)
    found = forgotten(measured(nll_G), measured(nll_G))
    assert found["nll_difference"] == {"difference": 0, "interval": [0, 0], "documents": 12}
    assert found["perplexity_after"] == found["perplexity_before"]
    assert found["perplexity_before"] == pytest.approx(np.exp(nll_G.sum() / 120))
    assert "task" not in found


def test_what_is_lost_is_after_minus_before():
    dice = np.random.default_rng(0)
    nll_G = dice.uniform(20, 30, 12)
    worse_G = nll_G + dice.uniform(1, 3, 12)
    right = [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    found = forgotten(measured(nll_G, right), measured(worse_G, [0] * 8 + [0, 1]))
    low, high = found["nll_difference"]["interval"]
    assert 0 < low < found["nll_difference"]["difference"] < high
    assert found["nll_difference"]["difference"] == pytest.approx((worse_G - nll_G).sum() / 120)
    assert found["task"]["accuracy_before"] == 0.8
    assert found["task"]["difference"] == pytest.approx(-0.7)
    assert found["task"]["interval"][1] < 0


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_of_the_start_is_put_on_the_trained_body(tied):
    model = tiny_decoder(tied=tied)
    head_VH = model.get_output_embeddings().weight.detach().clone()
    classifier = LlamaForSequenceClassification(copy.deepcopy(model.config))
    with torch.no_grad():
        classifier.model.embed_tokens.weight.add_(1.0)
    ids_BT = torch.tensor([[4, 5, 6]])
    assert put_body(model, classifier) is None
    logits = model(input_ids=ids_BT).logits
    expected = classifier.model(input_ids=ids_BT).last_hidden_state @ head_VH.T
    torch.testing.assert_close(logits, expected)


def test_another_body_is_a_reason():
    config = copy.deepcopy(tiny_decoder().config)
    config.num_hidden_layers = 1
    reason = put_body(tiny_decoder(), LlamaForSequenceClassification(config))
    assert "another body" in reason


def test_the_text_is_cut_to_its_tokens(tmp_path):
    runtime = SimpleNamespace(encode=lambda text: list(range(len(text))), context=None)
    write_rows(tmp_path / "many.jsonl", [{"text": "x" * 40} for _ in range(50)])
    write_rows(tmp_path / "one.jsonl", [{"text": "x" * 4000}])
    many = ForgetConfig(text=str(tmp_path / "many.jsonl"), tokens=320)
    documents, pieces = pieces_of(many, runtime)
    assert sum(map(len, pieces)) == 320
    assert len(set(documents)) == 16
    assert max(map(len, pieces)) == 20
    one = ForgetConfig(text=str(tmp_path / "one.jsonl"), tokens=320)
    documents, pieces = pieces_of(one, runtime)
    assert sum(map(len, pieces)) == 320
    assert list(documents) == list(range(16))


def test_a_text_without_words_is_refused(tmp_path):
    fill_folder(tmp_path)
    (tmp_path / "empty.jsonl").write_text('{"text": " "}\n')
    (tmp_path / "columns.jsonl").write_text('{"a": "b"}\n')
    for name, said in (("empty", "has no text"), ("columns", "rename the one"), ("no", "no file")):
        forget = {"text": str(tmp_path / f"{name}.jsonl")}
        comparison = open_comparison(tmp_path, compare={"forget": forget})
        with pytest.raises(DataError, match=said):
            check_forgetting(comparison)


@pytest.mark.usefixtures("whole_stages", "child_process")
def test_starts_adapters_and_classifiers_are_measured_alike(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill_folder(tmp_path)
    forget = {
        "text": str(tmp_path / "general.jsonl"),
        "tokens": 400,
        "task": {**TASK, "data": str(tmp_path / "questions.jsonl")},
    }
    comparison = open_comparison(tmp_path, compare={"forget": forget})
    check_forgetting(comparison)
    start = start_of(comparison, 0, "causal-lm")
    same = measure_forgetting(comparison, 0, ModelSource(str(start)), tmp_path / "same")
    assert same["nll_difference"]["difference"] == 0
    assert same["task"]["questions"] == 10
    before = (comparison.folder / "starts" / "abilities-seed0.json").stat().st_mtime_ns
    classifier = start_of(comparison, 0, "sequence-classification")
    body = measure_forgetting(comparison, 0, ModelSource(str(classifier)), tmp_path / "body")
    assert body["perplexity_after"] == pytest.approx(same["perplexity_before"], rel=1e-5)
    other = tiny_decoder(seed=1)
    other.save_pretrained(tmp_path / "other")
    for file in (start).glob("token*"):
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    changed = measure_forgetting(
        comparison, 0, ModelSource(str(tmp_path / "other")), tmp_path / "changed"
    )
    assert changed["nll_difference"]["difference"] != 0
    assert changed["nll_difference"]["documents"] > 8
    after = (comparison.folder / "starts" / "abilities-seed0.json").stat().st_mtime_ns
    assert before == after, "the start is measured once"
