"""Held-out pairs of answers: each text is read once, and the sums are those of its tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distill.data.placed import part_file
from distill.evaluation.job import EvaluateConfig, MeasureJob
from distill.evaluation.predictions import held_out_batches
from distill.evaluation.preferences import measure_pairs
from distill.runtimes.runtime import ModelSource, open_runtime
from distill.tasks.causal_lm.metrics import CausalLMMetrics
from tests.helpers.judging import preferences, prepare_parts


@pytest.fixture
def runtime(make_model, tokenizer, tmp_path):
    """A model that notes the keys of the texts that it reads."""
    make_model(0, vocabulary=320).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    made = open_runtime(ModelSource(str(tmp_path / "model"), None, 320, "float32", "none"))
    read, made.seen = made.read, []

    def noting(batch):
        made.seen += batch.keys
        return read(batch)

    made.read = noting
    return made


def test_no_text_of_a_pair_is_read_twice(runtime, tokenizer, tmp_path):
    parts, _ = prepare_parts(tokenizer, tmp_path, preferences(12, each=3), held_out=0.4)
    held_out, metrics = parts["held_out"], CausalLMMetrics()
    config = EvaluateConfig(tokens=10_000)
    job = MeasureJob(
        "distill", "model", 320, str(part_file(Path(tmp_path / "data"), "held_out")),
        str(tmp_path / "out.json"), config.model_dump(), metrics,
    )  # fmt: skip
    examples = metrics.measured(held_out)
    batches = held_out_batches(examples, config.tokens, config.batch_size)
    found = metrics.arrays(runtime, examples, batches, job)
    texts = {text.key: text for pair in held_out for text in pair.texts}
    assert sorted(runtime.seen) == sorted(texts)
    assert len(found["pair_document"]) == len(held_out)
    by_hand = {key: log_probability(runtime, text) for key, text in texts.items()}
    for side, place in (("chosen", 0), ("rejected", 1)):
        wanted = [by_hand[pair.texts[place].key] for pair in held_out]
        np.testing.assert_allclose(found[f"{side}_logprob"], wanted, rtol=1e-4)
        counts = [len(pair.texts[place].counted) for pair in held_out]
        assert found[f"{side}_tokens"].tolist() == counts
    alone = measure_pairs(runtime, job)
    np.testing.assert_allclose(alone["chosen_logprob"], found["chosen_logprob"], rtol=1e-4)


@torch.inference_mode()
def log_probability(runtime, text):
    logits = runtime.model(torch.from_numpy(text.input_ids)[None]).logits[0, text.counted]
    picked = logits[:, :320].double().log_softmax(-1)
    return float(picked.gather(1, torch.from_numpy(text.counted_labels)[:, None]).sum())
