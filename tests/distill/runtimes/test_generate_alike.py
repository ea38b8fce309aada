"""Every runtime that generates takes the most likely id, whatever the model's files ask for."""

import pytest
import torch

from distill.evaluation.generation_speed import agreement
from distill.runtimes.runtime import ModelSource, open_runtime
from students.artifacts.gguf.writer import write_gguf

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")
START = [5, 6, 7, 8]


@pytest.fixture
def student(make_model, tokenizer, tmp_path):
    """A folder whose settings of generation differ from greedy, and a head beyond the ids.

    The end of a turn is a likely id, and so are rows of the head that no text can have.
    """
    model = make_model(0, width=64, vocabulary=len(tokenizer) + 12)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] *= 6
        model.lm_head.weight[len(tokenizer) :] *= 3
    asked = {"repetition_penalty": 1.9, "min_new_tokens": 20, "no_repeat_ngram_size": 2,
             "suppress_tokens": [9, 10]}  # fmt: skip
    for key, value in asked.items():
        setattr(model.generation_config, key, value)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, 0]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    write_gguf(tmp_path, tmp_path / "model.gguf", "f16")
    return tmp_path


@pytest.fixture
def both(student, tokenizer):
    sources = (str(student), str(student / "model.gguf"))
    return [open_runtime(ModelSource(s, vocabulary=len(tokenizer))) for s in sources]


def test_each_generated_id_is_the_most_likely_one(both, tokenizer):
    for runtime in both:
        found = runtime.generate(START, 40)
        assert len(found) == 40
        assert tokenizer.eos_token_id in found
        logits_TV = runtime.logits(START + found)[len(START) - 1 : -1]
        assert logits_TV.shape[1] == len(tokenizer)
        chosen_T = logits_TV.gather(1, torch.tensor(found)[:, None])[:, 0]
        assert (logits_TV.max(1).values - chosen_T).max() < 0.05


def test_equal_weights_agree_and_end_at_the_ids_that_they_are_given(both, tokenizer):
    ends = (tokenizer.eos_token_id,)
    mine, theirs = ([runtime.generate(START, 40)] for runtime in both)
    assert agreement(mine, theirs)["same_until"] > 20
    stopped = [runtime.generate(START, 40, ends) for runtime in both]
    assert stopped[0] == stopped[1]
    assert stopped[0][-1] in ends
    assert both[0].end_ids == (0, tokenizer.eos_token_id)
