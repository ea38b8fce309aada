"""A model that is nowhere is told as such, not as a failure of the network."""

from pathlib import Path

import pytest

from attar.errors import ModelError
from attar.models.loading import load_config
from attar.models.locations import because_of
from attar.models.tokenizers import load_tokenizer


@pytest.mark.parametrize("load", [load_config, load_tokenizer])
@pytest.mark.parametrize("source", ["teachr", "models/teachr", "./models/teachr", "my teachr"])
def test_a_model_that_is_nowhere_is_told_with_the_nearest_folder(
    load, source, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("teacher", "models/teacher", "my teacher"):
        Path(name).mkdir(parents=True)
    with pytest.raises(ModelError) as caught:
        load(source)
    said = str(caught.value)
    assert source in said
    assert "folder" in said
    assert "Did you mean" in said
    assert "couldn't connect" not in said.lower()


def test_what_the_hub_says_is_a_clause():
    offline = OSError("We couldn't connect to 'https://huggingface.co' to load the files.")
    assert because_of(offline) == " (it cannot be reached)"
    assert because_of(OSError("Something  else.")) == " (Something else)"
