"""A tiny model as a runtime of transformers."""

import pytest

from distill.runtimes.hugging_face import Transformers
from distill.runtimes.runtime import ModelSource


@pytest.fixture
def runtime(make_model, tokenizer, tmp_path):
    """A small Llama with random weights and room for 512 ids."""
    model = make_model(0, vocabulary=len(tokenizer))
    model.config.max_position_embeddings = 512
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return Transformers(ModelSource(str(tmp_path / "model"), dtype="float32"))
