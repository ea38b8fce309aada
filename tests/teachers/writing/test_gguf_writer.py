"""A GGUF file as a writer: its answers are those of its own logits, sample after sample."""

import numpy as np
import pytest
import torch

from attar.errors import ModelError
from attar.llama_cpp import GGUFModel
from attar.models.sampling import Sampling
from students.artifacts.gguf.writer import write_gguf
from teachers.writing.gguf import GGUFWriter, check_same_ids
from teachers.writing.local import LocalWriter
from teachers.writing.request import WriteRequest
from tests.conftest import chat_tokenizer


@pytest.fixture(scope="module")
def both(make_model, bytes_bpe, tmp_path_factory):
    """(a model, its float16 GGUF file in llama.cpp, its tokenizer)."""
    folder = tmp_path_factory.mktemp("writer")
    tokenizer = chat_tokenizer(bytes_bpe)
    model = make_model(3, width=64, layers=3, vocabulary=len(tokenizer) + 12)
    model.config.max_position_embeddings = 512
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_gguf(folder, folder / "model.gguf", "f16")
    return model, GGUFModel(folder / "model.gguf"), tokenizer


def requests(tokenizer, samples=3, limit=12):
    prompts = [np.asarray(tokenizer(text)["input_ids"]) for text in ("light falls", "what is")]
    return [WriteRequest(f"{p}/{s}", prompt, s, limit) for s in range(samples)
            for p, prompt in enumerate(prompts)]  # fmt: skip


def written(writer, wanted):
    found = {}
    for batch in writer.batches(wanted):
        writer.write(batch, lambda request, answer: found.update({request.key: answer}))
    return found


def test_answers_are_drawn_from_the_files_own_logits(both):
    _, model, tokenizer = both
    size, stops = len(tokenizer), list(range(60))
    writer = GGUFWriter(model, Sampling(12, 1.0, 0.9), size, stops, "0")
    found = written(writer, requests(tokenizer))
    assert len(found) == 6
    assert len({str(one.ids) for one in found.values()}) == 6
    assert any(one.ended for one in found.values())
    for request in requests(tokenizer):
        one = found[request.key]
        ids = [*request.prompt.tolist(), *one.ids.tolist()]
        model.start(len(ids))
        logits = torch.from_numpy(model.extend(ids, np.ones(len(ids), bool))[:, :size])
        logprobs = logits.log_softmax(-1)[len(request.prompt) - 1 : -1]
        theirs = logprobs.gather(-1, torch.from_numpy(one.ids)[:, None])[:, 0]
        np.testing.assert_allclose(one.logprobs, theirs.numpy(), atol=0.1)
        assert one.ended == (one.ids[-1] in stops)
        assert not set(one.ids[:-1].tolist()) & set(stops)


def test_at_temperature_0_it_writes_what_the_model_writes(both):
    model, file, tokenizer = both
    size, sampling = len(tokenizer), Sampling(4, temperature=0)
    wanted = requests(tokenizer, samples=1, limit=4)
    ours = written(GGUFWriter(file, sampling, size, (), "0"), wanted)
    theirs = written(LocalWriter(model, sampling, size, (), "0", 2), wanted)
    assert [ours[one.key].ids.tolist() for one in wanted] == [
        theirs[one.key].ids.tolist() for one in wanted
    ]


def test_a_file_of_another_tokenizer_is_refused(both):
    _, file, tokenizer = both

    def encode(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    check_same_ids(file, encode, len(tokenizer), ["light falls", "naïve 東京"])
    with pytest.raises(ModelError, match=r"reads .light falls. as"):
        check_same_ids(file, lambda text: encode(text)[::-1], len(tokenizer), ["light falls"])
    with pytest.raises(ModelError, match="ids, and the teacher's tokenizer 9999"):
        check_same_ids(file, encode, 9999, [])
