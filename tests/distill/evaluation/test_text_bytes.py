"""Nats a byte, and greedy text: what models of different tokenizers are compared by."""

import numpy as np
import pytest

from distill.evaluation.same_prompts import GreedyText, greedy_texts, text_agreement
from distill.evaluation.samples import Prompt
from distill.evaluation.text_bytes import are_same_tokens, difference_by_byte, nats_per_byte
from distill.report.paired_difference import difference_of
from distill.runtimes.hugging_face import Transformers
from distill.runtimes.runtime import ModelSource
from tests.helpers.other_tokenizers import in_other_ids


def tokens_of(dice, documents=20, shift=0.0):
    """Arrays over tokens of documents of unequal length."""
    lengths = dice.integers(3, 60, documents)
    document = np.repeat(np.arange(documents), lengths)
    level = dice.normal(3, 0.5, documents)[document]
    return {
        "document": document,
        "nll": (level + shift + dice.gamma(1, 1, len(document))).astype(np.float32),
        "bytes": dice.integers(0, 9, len(document)),
    }


def in_fewer_tokens(arrays):
    """The same text and the same probabilities, every two tokens of a document being one."""
    found = {name: [] for name in arrays}
    for number in np.unique(arrays["document"]):
        mine = {name: values[arrays["document"] == number] for name, values in arrays.items()}
        places = np.arange(0, len(mine["nll"]), 2)
        found["document"].append(np.full(len(places), number))
        for name in ("nll", "bytes"):
            found[name].append(np.add.reduceat(mine[name].astype(np.float64), places))
    return {name: np.concatenate(values) for name, values in found.items()}


def test_other_tokens_of_the_same_text_have_the_same_nats_a_byte():
    one = tokens_of(np.random.default_rng(0))
    other = in_fewer_tokens(one)
    mine, its = (nats_per_byte(arrays, 300) for arrays in (one, other))
    assert mine["nats_per_byte"] == pytest.approx(its["nats_per_byte"])
    assert mine["nats_per_byte_interval"] == pytest.approx(its["nats_per_byte_interval"])
    assert mine["text_bytes"] == its["text_bytes"] == one["bytes"].sum()
    assert mine["nats_per_byte"] == pytest.approx(one["nll"].sum() / one["bytes"].sum())
    low, high = mine["nats_per_byte_interval"]
    assert low < mine["nats_per_byte"] < high
    assert np.mean(one["nll"]) != pytest.approx(np.mean(other["nll"]), rel=0.1)
    found = difference_by_byte(one, other, 300)
    assert found["difference"] == pytest.approx(0, abs=1e-7)
    assert found["documents"] == 20


def test_models_of_other_tokens_are_compared_by_document_and_byte():
    dice = np.random.default_rng(1)
    one = tokens_of(dice)
    worse = {**one, "nll": one["nll"] + dice.normal(0.4, 0.1, len(one["nll"])).astype(np.float32)}
    other = in_fewer_tokens(worse)
    assert not are_same_tokens(one, other)
    assert are_same_tokens(one, worse)
    by_byte = difference_of(other, one, "nll", 300)
    wanted = (worse["nll"].sum() - one["nll"].sum()) / one["bytes"].sum()
    assert by_byte["difference"] == pytest.approx(wanted, rel=1e-5)
    low, high = by_byte["interval"]
    assert 0 < low < by_byte["difference"] < high
    single = nats_per_byte(one, 300)["nats_per_byte_interval"]
    assert high - low < (single[1] - single[0]) / 3, "paired: what documents share cancels"
    by_token = difference_of(worse, one, "nll", 300)
    assert by_token["difference"] == pytest.approx(0.4, abs=0.02), "of the same tokens, a token"


@pytest.mark.parametrize("documents", [8, 20])
def test_equally_good_models_of_two_tokenizers_are_called_different_as_often_as_said(
    documents, full_product
):
    dice, trials, claimed = np.random.default_rng(documents), 600, 0
    for _ in range(trials):
        lengths, level = dice.integers(40, 400, documents), dice.normal(0.7, 0.2, documents)
        models = []
        for size in (3, 4):  # bytes a token
            number = np.maximum(1, lengths // size)
            document = np.repeat(np.arange(documents), number)
            sizes = (lengths / number)[document]
            own = level + dice.normal(0, 0.1, documents)
            nll = sizes * own[document] + dice.normal(0, 0.5, len(document))
            models.append({"document": document, "nll": nll, "bytes": sizes})
        low, high = difference_by_byte(models[0], models[1], 400)["interval"]
        claimed += not low <= 0 <= high
    assert 0.01 < claimed / trials < 0.055 + 3 * (0.05 * 0.95 / trials) ** 0.5


def test_only_documents_that_both_read_are_compared():
    one = tokens_of(np.random.default_rng(2))
    other = in_fewer_tokens(one)
    kept = other["document"] % 2 == 0
    other = {name: values[kept] for name, values in other.items()}
    found = difference_by_byte(one, other, 300)
    assert found["documents"] == 10
    assert found["difference"] == pytest.approx(0, abs=1e-7)


def test_there_is_no_number_without_bytes_and_no_interval_of_what_is_not_finite():
    one = tokens_of(np.random.default_rng(3))
    assert nats_per_byte({name: one[name] for name in ("document", "nll")}, 100) == {}
    assert nats_per_byte({**one, "bytes": 0 * one["bytes"]}, 100) == {}
    one["nll"][4] = np.inf
    assert nats_per_byte(one, 100)["nats_per_byte_interval"] is None
    assert difference_by_byte(one, one, 100)["interval"] is None


# Greedy text -------------------------------------------------------------------------------------


def text(words, ended=False):
    return GreedyText(words, ended)


@pytest.mark.parametrize(
    ("mine", "its", "same"),
    [
        (text("light falls"), text("light falls"), 1.0),
        (text("light falls on"), text("light falls"), 1.0),  # where it was stopped
        (text("light fell"), text("light falls"), 7 / 11),
        (text("light"), text("light falls"), 5 / 11),
        (text("light", ended=True), text("light", ended=True), 1.0),
        (text("light on", ended=True), text("light", ended=True), 5 / 6),
        (text("light"), text("light", ended=True), 5 / 6),
        (text(""), text("", ended=True), 0.0),
    ],
)
def test_text_agrees_up_to_the_first_difference(mine, its, same):
    assert text_agreement([mine], [its])["same"] == pytest.approx(same)


def test_agreement_is_a_mean_over_prompts_with_text():
    its = [text("light"), text("water falls"), text("")]
    found = text_agreement([text("light"), text("wind"), text("x")], its)
    assert found == {"prompts": 2, "characters": 8, "same": (1 + 1 / 11) / 2}
    assert text_agreement([text("x")], [text("")]) == {}


def test_the_same_model_in_other_ids_writes_the_same_text(make_model, tokenizer, tmp_path):
    model = make_model(0, vocabulary=320)
    twin, other = in_other_ids(model, tokenizer)
    runtimes, prompts = [], []
    for name, (made, its) in {"a": (model, tokenizer), "b": (twin, other)}.items():
        made.save_pretrained(tmp_path / name)
        its.save_pretrained(tmp_path / name)
        runtimes.append(Transformers(ModelSource(str(tmp_path / name))))
        ids = [its("the teacher says")["input_ids"], its("light")["input_ids"]]
        prompts.append([Prompt(one, [], is_answer=False) for one in ids])
    assert prompts[0][0].ids != prompts[1][0].ids
    wrote = greedy_texts(runtimes[0], prompts[0], 12, ())
    again = greedy_texts(runtimes[1], prompts[1], 12, (), wrote)
    found = text_agreement(again, wrote)
    assert found["same"] == 1.0
    assert found["prompts"] == 2
