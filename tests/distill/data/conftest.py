"""Prepared data."""

import pytest

from distill.data.config import DataConfig
from distill.data.examples import Examples
from distill.data.prepare import prepare
from tests.helpers.preparing import write_jsonl


@pytest.fixture
def prepared(tmp_path, tokenizer):
    """`prepared(rows or a source or a tuple of them)`: training and held-out examples.

    The validation part has a source of its own, so that the rows are divided in two.
    """

    def make(source, *, seed=0, folder="data", tokenizer=tokenizer, **config):
        column = config.get("text_column", "text")
        chosen_on = write_jsonl(tmp_path / "chosen_on.jsonl", [{column: "a text that chooses"}])
        if isinstance(source, list):
            source = write_jsonl(tmp_path / "train.jsonl", source)
        source = list(source) if isinstance(source, tuple) else source
        keys = {"train": source, "validation": chosen_on, "max_length": 32, **config}
        config = DataConfig.model_validate(keys)
        made = prepare(config, tokenizer, "id", seed, tmp_path / folder)
        return Examples(made / "train.arrow"), Examples(made / "held_out.arrow")

    return make
