"""A server as a writer: what is asked, what of its reply is believed, what fails alone."""

import json
from dataclasses import replace
from typing import get_args
from urllib.request import Request as HTTPRequest
from urllib.request import urlopen

import numpy as np
import pytest
import torch

from attar.errors import UserError
from attar.llama_cpp import GGUFModel, _server
from attar.models.sampling import Sampling, seed_of
from students.artifacts.gguf.writer import write_gguf
from teachers.cache.config import CacheConfig
from teachers.remote.client import ServerRefusal
from teachers.server_config import WriterKind
from teachers.writing.ask import ask, lacking
from teachers.writing.local import encode_logits
from teachers.writing.request import WriteRequest
from teachers.writing.served import SEED_BITS, ServedWriter, encode_entries
from teachers.writing.server_kinds import (
    SERVER_KINDS,
    LlamaServer,
    SGLangWriting,
    VLLMWriting,
)
from teachers.writing.store import RequestStore, StoreWriter
from tests.conftest import chat_tokenizer
from tests.helpers.writing_replies import (
    END,
    VOCABULARY,
    FakeServer,
    llama_reply,
    logits_of,
    sglang_reply,
    vllm_reply,
)

TOPK = CacheConfig.model_validate({"codec": {"name": "topk", "k": 4}}).codec
LABEL = CacheConfig.model_validate({"codec": "label"}).codec


KINDS = {
    "vllm": (VLLMWriting("name"), vllm_reply),
    "llama-server": (LlamaServer(), llama_reply),
    "sglang": (SGLangWriting("name"), sglang_reply),
}


def writer(server, kind, codec=None, sampling=None, labels=False):
    sampling = sampling or Sampling(8, 0.7, 0.9)
    return ServedWriter(
        server,
        kind,
        sampling,
        VOCABULARY,
        [END, 3],
        "0",
        3,
        codec,
        labels,
    )


def requests(number=10):
    prompt = np.asarray([4, 5, 6])
    return [WriteRequest(f"{i}", prompt, i, 8) for i in range(number)]


def written(made, wanted, folder):
    store = RequestStore(folder)
    with StoreWriter(folder, codec="codec") as storing:
        asked = ask(made, lacking(store, wanted), storing)
    return asked, dict(store.read()), store


def test_every_kind_is_tried_here():
    assert set(SERVER_KINDS) == set(KINDS) == set(get_args(WriterKind))


@pytest.mark.parametrize("name", KINDS)
def test_all_of_sampling_is_said_and_each_answer_has_a_seed_of_its_own(name, tmp_path):
    kind, reply = KINDS[name]
    server = FakeServer(reply)
    written(writer(server, kind), requests(), tmp_path)
    assert {body["path"] for body in server.bodies} == {kind.path}
    assert len({body.get("seed") for body in server.bodies}) == (1 if name == "sglang" else 10)
    for body in server.bodies:
        settings = body.get("sampling_params", body)
        assert [4, 5, 6] in (body.get("prompt"), body.get("input_ids"))
        assert (settings["temperature"], settings["top_p"], settings["min_p"]) == (0.7, 0.9, 0.0)
        assert settings["top_k"] in (0, -1)
        assert 8 in map(settings.get, ("n_predict", "max_tokens", "max_new_tokens"))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("codec", "labels"),
    [(TOPK, False), (TOPK, True), (LABEL, False)],
    ids=["topk", "both", "label"],
)
def test_signals_are_those_of_the_servers_own_logits(name, codec, labels, tmp_path):
    kind, reply = KINDS[name]
    server = FakeServer(reply)
    top_p = 1.0 if kind.tempers else 0.9
    made = writer(server, kind, codec, Sampling(8, 1.0, top_p), labels=labels)
    _, found, store = written(made, requests(4), tmp_path)
    columns = [store.signals(line, "codec") for line in store.index().values()]
    seeds = [body.get("seed", number) for number, body in enumerate(server.bodies)]
    assert len(set(seeds)) == 4
    wanted = []
    for seed in seeds:
        logits = logits_of(seed, 4)
        own = logits.log_softmax(-1)[range(4), [5, 6, 7, END]]
        wanted.append({} if codec is LABEL else encode_logits(codec, logits))
        wanted[-1] |= LABEL.columns(own) if codec is LABEL or labels else {}
    for one in columns:  # answers come in any order
        assert one.keys() == wanted[0].keys()
        close = [
            all(np.allclose(one[n], w[n], atol=2e-3) for n in w if n != "ids")
            and ("ids" not in w or (one["ids"] == w["ids"]).all())
            for w in wanted
        ]
        assert sum(close) == 1
    assert all(one.ended and one.ids.tolist() == [5, 6, 7, END] for one in found.values())


@pytest.mark.parametrize("name", KINDS)
def test_an_answer_that_was_cut_off_is_not_ended(name, tmp_path):
    kind, reply = KINDS[name]
    _, found, _ = written(writer(FakeServer(reply, finish="length"), kind), requests(2), tmp_path)
    assert not any(one.ended for one in found.values())


def test_an_end_that_the_server_keeps_is_put_back_without_signals(tmp_path):
    def reply(logits, ids, k, finish):
        found = vllm_reply(logits, ids, k)
        found["choices"][0]["token_ids"] = ids[:-1]
        return found

    made = writer(FakeServer(reply), VLLMWriting("name"), TOPK)
    _, found, store = written(made, requests(1), tmp_path)
    assert found["0"].ids.tolist() == [5, 6, 7, END]
    assert found["0"].ended
    assert found["0"].logprobs is None
    assert store.has_signals("codec") == set()


def test_one_failure_leaves_its_siblings_and_is_asked_again(tmp_path):
    server = FakeServer(vllm_reply, fails=[2, 5], refuses=lambda body: body["max_tokens"] == 7)
    wanted = [*requests(9), replace(requests(10)[9], limit=7)]
    asked, found, _ = written(writer(server, VLLMWriting("name")), wanted, tmp_path)
    assert asked.failed == {"The server is full (429).": 2}
    assert asked.written == 7
    assert len(found) == 8  # with the refusal, which stays
    again = FakeServer(vllm_reply)
    _, found, _ = written(writer(again, VLLMWriting("name")), wanted, tmp_path)
    assert len(again.bodies) == 2
    assert len(found) == 10


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_refusal_of_every_request_ends_the_asking_with_its_sentence(status, tmp_path):
    server = FakeServer(vllm_reply, refuses=lambda body: True, status=status)
    made = writer(server, VLLMWriting("name"))
    with pytest.raises(ServerRefusal, match=f"refuses \\({status}\\)"):
        written(made, requests(40), tmp_path)
    assert len(server.bodies) <= 6  # those that were under way, and whether others are answered
    assert dict(RequestStore(tmp_path).read()) == {}


def test_what_was_answered_beside_a_refusal_of_every_request_is_kept(tmp_path):
    def post(path, body):
        if body["max_tokens"] == 7:
            raise ServerRefusal("The key is no longer valid (401).", 401, "")
        return vllm_reply(logits_of(0, 4), [5, 6, 7, END], body["logprobs"])

    wanted = [*requests(2), replace(requests(3)[2], limit=7)]
    made = writer(post, VLLMWriting("name"))
    with pytest.raises(ServerRefusal, match="no longer valid"):
        written(made, wanted, tmp_path)
    assert set(dict(RequestStore(tmp_path).read())) == {"0", "1"}


def test_a_request_that_is_refused_while_the_server_goes_away_is_asked_again(tmp_path):
    def post(path, body):
        if body["max_tokens"] == 1:
            raise UserError("The server is away.")
        raise ServerRefusal("Too long (400).", 400, "")

    asked, found, _ = written(writer(post, VLLMWriting("name")), requests(1), tmp_path)
    assert asked.failed == {"The server is away.": 1}
    assert found == {}


@pytest.mark.parametrize(
    ("temperature", "top_p", "known"),
    [(0.0, 1.0, True), (0.0, 0.9, True), (1.0, 1.0, True), (1.0, 0.9, False), (0.7, 1.0, False)],
)
def test_log_probabilities_of_what_sglang_draws_from_are_not_kept(
    temperature, top_p, known, tmp_path
):
    sampling, server = Sampling(8, temperature, top_p), FakeServer(sglang_reply)
    made = writer(server, SGLangWriting("name"), TOPK, sampling)
    _, found, store = written(made, requests(1), tmp_path)
    asked = server.bodies[0]["sampling_params"]["top_p"]
    assert asked == (top_p if temperature else 1.0)  # some versions cut by it at temperature 0 too
    assert found["0"].ended
    assert (found["0"].logprobs is not None) == known
    assert bool(store.has_signals("codec")) == known


def test_sglangs_older_replies_and_ends_that_it_keeps_are_read():
    reply = sglang_reply(logits_of(0, 4), [5, 6, 7, END], 4)
    del reply["output_ids"]
    assert SGLangWriting("name").read(reply).ids == [5, 6, 7, END]
    kept = sglang_reply(logits_of(0, 4), [5, 6, 7, END], 4)
    kept["output_ids"] = [5, 6, 7]
    found = SGLangWriting("name").read(kept)
    assert (found.ids, found.ended) == ([5, 6, 7, END], True)
    kept["meta_info"]["finish_reason"] = {"type": "abort"}
    with pytest.raises(ValueError, match="gave up"):
        SGLangWriting("name").read(kept)


@pytest.mark.parametrize(
    "reply",
    [{}, {"choices": []}, [], None, {"choices": [{"token_ids": ["a"], "finish_reason": "stop"}]},
     {"choices": [{"token_ids": [], "finish_reason": "stop"}]},
     {"choices": [{"token_ids": [5, VOCABULARY], "finish_reason": "stop"}]}],
)  # fmt: skip
def test_a_reply_that_is_none_fails_and_is_not_believed(reply, tmp_path):
    asked, found, _ = written(
        writer(lambda path, body: reply, VLLMWriting("name")), requests(1), tmp_path
    )
    assert sum(asked.failed.values()) == 1
    assert found == {}


def changed(**keys):
    """A reply of four tokens of which some numbers are others."""
    reply = vllm_reply(logits_of(0, 4), [5, 6, 7, END], 4)
    reply["choices"][0]["logprobs"].update(keys)
    return reply


@pytest.mark.parametrize(
    "reply",
    [changed(token_logprobs=[-1.0, float("nan"), -1.0, -1.0]),
     changed(token_logprobs=[-1.0, 0.1, -1.0, -1.0]),
     changed(top_logprobs=[{"token_id:1": -0.1, "token_id:2": -0.1}] * 4),
     changed(top_logprobs=[None] * 4), changed(top_logprobs=[{"token_id:1": float("nan")}] * 4),
     {"choices": [{"token_ids": [float("inf")], "finish_reason": "stop"}]}],
)  # fmt: skip
def test_numbers_that_cannot_be_fail_alone(reply, tmp_path):
    good = changed()
    made = writer(
        lambda path, body: reply if body["seed"] in bad else good, VLLMWriting("name"), TOPK
    )
    bad = {seed_of("0", np.asarray([4, 5, 6]), 1) % (1 << SEED_BITS)}
    asked, found, _ = written(made, requests(3), tmp_path)
    assert sum(asked.failed.values()) == 1
    assert set(found) == {"0", "2"}


def test_entries_of_fewer_tokens_give_no_signals(tmp_path):
    reply = changed(top_logprobs=changed()["choices"][0]["logprobs"]["top_logprobs"][:3])
    made = writer(lambda path, body: reply, VLLMWriting("name"), TOPK)
    _, found, store = written(made, requests(1), tmp_path)
    assert len(found["0"].logprobs) == 4
    assert store.has_signals("codec") == set()


def test_what_stands_behind_the_first_end_is_cut(tmp_path):
    logits = logits_of(0, 4)
    reply = vllm_reply(logits, [5, 3, 7, 8], 4, "length")
    bodies = []
    made = writer(lambda path, body: bodies.append(body) or reply, VLLMWriting("name"), TOPK)
    _, found, store = written(made, requests(1), tmp_path)
    assert (found["0"].ids.tolist(), found["0"].ended) == ([5, 3], True)
    assert len(found["0"].logprobs) == 2
    assert len(store.signals(store.index()["0"], "codec")["logprobs"]) == 2
    assert bodies[0]["stop_token_ids"] == [END, 3]


def test_a_server_that_gives_nothing_is_soon_left_alone(tmp_path):
    server = FakeServer(vllm_reply, fails=range(1000))
    asked, _, _ = written(writer(server, VLLMWriting("name")), requests(40), tmp_path)
    assert len(server.bodies) == 3
    assert asked.gave_up


def test_batches_are_short_under_a_budget():
    made = writer(None, VLLMWriting("name"))
    assert [len(batch) for batch in made.batches(requests(40))] == [3, 24, 13]
    bounded = replace(made, bounded=True)
    assert [len(batch) for batch in bounded.batches(requests(7))] == [3, 3, 1]


def test_connections_end_with_what_was_asked():
    closed, done = [], []
    made = replace(
        writer(FakeServer(vllm_reply), VLLMWriting("name")),
        close=lambda: closed.append("close"),
        hang_up=lambda: closed.append("hang up"),
    )
    made.write(requests(3), lambda request, outcome: done.append(outcome))
    assert (len(done), closed) == (3, ["hang up"])

    def full(request, outcome):
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        made.write(requests(3), full)
    assert closed[1:] == ["close", "hang up"]


def test_entries_that_do_not_fill_a_codec_give_no_signals():
    entries = [{1: -1.0, 2: -2.0, 3: -3.0}]
    assert encode_entries(TOPK, entries, VOCABULARY) is None
    assert encode_entries(TOPK, [dict.fromkeys(range(36, 41), -2.0)], VOCABULARY) is None
    warm = CacheConfig.model_validate({"codec": {"name": "topk", "k": 2, "temperatures": [2.0]}})
    assert encode_entries(warm.codec, entries, VOCABULARY) is None


@torch.no_grad()
def prefer(model, ids):
    """Make a model write some ids alone: one channel of its state speaks for them."""
    model.model.embed_tokens.weight[:, 0] = 4.0
    model.model.norm.weight[0] = 3.0
    model.lm_head.weight[:, 0] = -4.0
    model.lm_head.weight[ids, 0] = 4.0


def test_llama_cpps_own_server_writes(make_model, bytes_bpe, tmp_path, local_server):
    tokenizer = chat_tokenizer(bytes_bpe)
    size, end = len(tokenizer), tokenizer.eos_token_id
    model = make_model(3, width=64, layers=3, vocabulary=size)
    model.config.max_position_embeddings = 256
    letters = [i for i in range(size) if tokenizer.decode([i]).isascii()]
    prefer(model, [*letters[:40], end])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    write_gguf(tmp_path, tmp_path / "model.gguf", "f16")
    file = GGUFModel(tmp_path / "model.gguf")
    prompt = np.asarray(tokenizer("light falls")["input_ids"])
    wanted = [WriteRequest(f"{i}", prompt, i, 40) for i in range(6)]
    with _server(tmp_path / "model.gguf") as address:

        def post(path, body):
            data = json.dumps(body).encode()
            where = f"{address}{path}"
            with urlopen(HTTPRequest(where, data, {"Content-Type": "application/json"})) as reply:
                return json.loads(reply.read())

        sampling = Sampling(40, 1.0)
        made = ServedWriter(post, LlamaServer(), sampling, size, [end], "0", 1, TOPK)
        asked, found, store = written(made, wanted, tmp_path / "requests")
    assert asked.failed == {}
    assert len({str(one.ids) for one in found.values()}) == 6
    assert any(one.ended for one in found.values())
    for key, one in found.items():
        assert one.ended == (one.ids[-1] == end)
        ids = [*prompt.tolist(), *one.ids.tolist()]
        file.start(len(ids))
        logits = torch.from_numpy(file.extend(ids, np.ones(len(ids), bool)))[len(prompt) - 1 : -1]
        own = logits.log_softmax(-1)[range(len(one.ids)), one.ids]
        np.testing.assert_allclose(one.logprobs, own.numpy(), atol=0.1)
        signals = store.signals(store.index()[key], "codec")
        close = encode_logits(TOPK, logits)
        np.testing.assert_allclose(signals["logprobs"], close["logprobs"], atol=0.1)
