"""Who writes, how it is known, and which of a server's errors are final."""

from pathlib import Path

import pytest

from attar.errors import UserError
from distill import pipeline
from distill.run.context import Run
from distill.run.load import load_recipe
from distill.stages.answer_writers import _refuses, writer_settings
from teachers.remote.client import ServerRefusal


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_only_an_error_about_one_request_is_final(status):
    assert _refuses(ServerRefusal("", status, "")) == (status in (413, 422))
    assert not _refuses(UserError(""))


def run_with(writer):
    changes = (
        f"data.answers={{samples: 1, from: {writer}}}",
        "train.objective=[{loss: cross_entropy}]",
    )
    return Run(load_recipe("recipe.yaml", changes), Path("out"))


def test_the_writers_weights_are_fetched_before_it_is_known_by_them(workshop, monkeypatch):
    fetched = []
    monkeypatch.setattr(pipeline, "fetch_weights", fetched.append)
    for writer in ("someone/model", "file.gguf", "teacher"):
        pipeline._fetch_models(run_with(writer))
    assert [name for name in fetched if name != "teacher"] == ["someone/model"]


def test_a_writer_without_known_weights_is_known_by_its_name(workshop, monkeypatch):
    identity = {"weights": None, "dtype": "float32"}
    monkeypatch.setattr(
        "distill.stages.answer_writers.teacher_identity",
        lambda config: {"model": config.model, **identity},
    )
    one, other = (writer_settings(run_with(name)) for name in ("teacher", "someone/model"))
    assert one["model"] == "teacher"
    assert other["model"] == "someone/model"
