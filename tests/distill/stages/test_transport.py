"""The student's cache, made of its teacher's in other ids."""

import numpy as np
import pytest

from attar.models.token_bytes import TokenBytes
from distill.data.paired_texts import Passages
from distill.stages.transport import TextTransport, TransportRunner, roles_of
from distill.stages.transport_fidelity import (
    TransportFidelity,
    log_fidelity,
    transport_fidelity,
)
from teachers.cache.config import CacheConfig
from teachers.runners.request import Request
from teachers.transport.token_map import TokenMap
from teachers.transport.transport import UNSERVED
from tests.helpers.preparing import write_jsonl
from tests.helpers.two_tokenizers import other_tokenizer, teacher_texts, tokenizer_without_tab

WORDS = ["light", "falls", "on", "water", "nobody", "says", "teacher", "\U0001f600", "1234"]
IDS = 288  # of the tokenizer


@pytest.fixture
def transport_to(tokenizer, make_model, make_cache, tmp_path):
    """`transport_to(other, codec)`: (how signals get there, requests of the student's texts)."""

    def make(other, codec, labels=True):
        dice = np.random.default_rng(0)
        rows = [{"text": " ".join(dice.choice(WORDS, 4 + i % 17))} for i in range(40)]
        file = write_jsonl(tmp_path / "rows.jsonl", rows)
        parts, texts = teacher_texts(tokenizer, other, file, tmp_path)
        config = CacheConfig.model_validate({"codec": codec, "labels": labels})
        model = make_model(0, vocabulary=IDS)
        cache = make_cache(
            tmp_path / "cache",
            model,
            list({e.key: e for e in texts.examples}.values()),
            config,
            vocabulary=IDS,
        )
        sides = TokenBytes(tokenizer, "one"), TokenBytes(other, "two")
        token_map = TokenMap(*sides, roles_of(*sides, [texts.roles]))
        found = TextTransport(cache, token_map, [Passages(texts.passages)])
        return found, [
            Request(e.key, e.input_ids, e.counted, labels=e.counted_labels)
            for examples in parts.values()
            for e in examples
        ]

    return make


def columns_of(transport, requests, vocabulary, labels=True):
    runner = TransportRunner(transport, vocabulary, labels)
    return runner.run(requests, runner.learn(requests))


def test_one_tokenizer_gives_the_cache_that_was_there(tokenizer, transport_to):
    transport, requests = transport_to(tokenizer, {"name": "topk", "k": 16})
    for request, made in zip(requests, columns_of(transport, requests, IDS), strict=True):
        stored = transport.cache.columns(request.key)
        assert made.keys() == stored.keys()
        for name, column in made.items():
            assert np.array_equal(column.reshape(-1), stored[name])


@pytest.mark.parametrize("codec", [{"name": "topk", "k": IDS}, {"name": "nucleus", "k": 64}])
def test_targets_are_distributions_over_the_students_ids(codec, transport_to):
    other = other_tokenizer()
    transport, requests = transport_to(other, codec)
    for request in requests:
        made = transport.text(request.key, len(request.counted), 64)
        first = int((made.case_N != UNSERVED).argmax())  # nothing predicts a text's first token
        assert first < 8
        assert (made.case_N[first:] != UNSERVED).all()
        total = np.exp(made.logprobs_NK).sum(1) + np.exp(made.tail_N)
        assert total == pytest.approx(np.ones(len(total)), abs=0.03)  # as far as it is stored
        assert made.ids_NK.max() < len(other)


def test_the_order_of_texts_changes_nothing(transport_to):
    transport, requests = transport_to(other_tokenizer(), {"name": "topk", "k": 8})
    runner = TransportRunner(transport, 290, False)
    forth = runner.run(requests, {})
    back = runner.run(requests[::-1], {})[::-1]
    for one, other in zip(forth, back, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_nothing_is_lost_where_the_teacher_is_known_whole(transport_to):
    transport, requests = transport_to(other_tokenizer(), {"name": "topk", "k": IDS})
    found = transport_fidelity(transport, requests, IDS)
    shares = found.aligned, found.inside, found.spans
    assert found.served > 0.97
    assert sum(shares) == pytest.approx(found.served)
    assert found.nats_per_byte > 0
    assert found.lost == pytest.approx(0, abs=0.5)
    less = transport_fidelity(transport, requests, 4)
    assert less.kept < found.kept


def test_without_labels_the_teachers_words_are_read_from_the_entries(transport_to):
    transport, requests = transport_to(other_tokenizer(), {"name": "topk", "k": IDS}, labels=False)
    assert transport_fidelity(transport, requests, IDS).teacher_nats_per_byte is None
    made = columns_of(transport, requests, 290, labels=False)
    assert all("label_logprob" not in columns for columns in made)


def test_a_token_in_no_passage_teaches_nothing(transport_to):
    transport, _ = transport_to(other_tokenizer(), {"name": "topk", "k": 8})
    made = transport.text("f" * 32, 3, 8)
    assert (made.case_N == UNSERVED).all()
    assert (made.tail_N == 0).all()


def test_characters_without_an_id_have_no_target_and_the_others_have(tokenizer, transport_to):
    other = tokenizer_without_tab()
    transport, requests = transport_to(other, {"name": "topk", "k": 16})
    labels = np.concatenate([request.labels for request in requests])
    cases = [transport.text(one.key, len(one.counted), 16).case_N for one in requests]
    unknown = labels == other.unk_token_id
    assert unknown.any()
    unserved = np.concatenate(cases) == UNSERVED
    assert unserved[unknown].all()
    assert unserved[~unknown].mean() < 0.05


@pytest.mark.parametrize(("served", "level"), [(0.98, "INFO"), (0.39, "WARNING")])
def test_the_log_warns_where_few_tokens_have_a_target(served, level, caplog):
    caplog.set_level("INFO")
    log_fidelity(TransportFidelity(64, 2765, served, 0.6, 0.3, 0.1, 0.94, 0.66, 0.65))
    (said,) = caplog.records
    assert said.levelname == level
    assert f"{served:.1%} of 2,765 tokens have a target" in said.getMessage()
    assert ("lacks characters" in said.getMessage()) == (level == "WARNING")
