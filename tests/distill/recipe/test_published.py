"""What a card says of a recipe: hub ids and last names, no folder of this machine."""

import pytest

from distill.run.load import check_recipe
from distill.run.published import hub_data, hub_models, published_name, published_recipe

CACHED = "/home/me/.cache/huggingface/hub/models--org--big/snapshots/0a1b2c3d"


def recipe(**changes):
    values = {
        "data": {"train": "org/texts"},
        "teacher": {"model": "org/teacher"},
        "student": {"layers": {"keep": 2}},
    }
    return check_recipe({**values, **changes})


def test_names_of_the_hub_and_below_the_recipe_stay():
    given = recipe(data={"train": ["org/texts", "data/mine.jsonl"], "held_out": "split:test"})
    assert published_recipe(given)["data"]["train"] == ["org/texts", "data/mine.jsonl"]
    assert published_recipe(given)["data"]["held_out"] == "split:test"
    assert hub_models(given) == ["org/teacher"]


def test_every_path_loses_its_folders_and_stays_another_than_the_others():
    data = {"train": ["/home/me/a/rows.jsonl", "~/other.csv"], "held_out": "../b/rows.jsonl"}
    given = recipe(
        data=data, teacher={"model": "/models/big"}, cache={"dir": "/scratch/me/signals"},
        student={"from": CACHED},
    )  # fmt: skip
    found = published_recipe(given)
    assert found["data"]["train"] == ["a/rows.jsonl", "other.csv"]
    assert found["data"]["held_out"] == "b/rows.jsonl"
    assert found["teacher"]["model"] == "big"
    assert found["cache"]["dir"] == "signals"
    assert found["student"]["from"] == "org/big"
    assert check_recipe(found)
    assert hub_models(given) == ["org/big"]
    assert hub_data(given) == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("org/model", "org/model"),
        ("/a/b/model/", "model"),
        ("./model", "./model"),
        ("../../model", "model"),
        (CACHED, "org/big"),
        ("https://me:hf_secret@host/rows.jsonl", "https://host/rows.jsonl"),
        ("/", "local"),
    ],
)
def test_the_name_of_a_source(source, name):
    assert published_name(source) == name


def test_a_local_folder_called_like_a_model_is_not_one_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "teacher").mkdir(parents=True)
    assert hub_models(recipe()) == []
    assert hub_data(recipe()) == ["org/texts"]


def test_the_address_of_a_server_is_not_published():
    server = {"url": "https://gpu7.intern:8443/v1", "kind": "vllm", "model": "big"}
    given = recipe(
        teacher={"model": "org/teacher", "server": server}, cache={"codec": "topk"},
        student={"from": "org/small"},
    )  # fmt: skip
    found = published_recipe(given)
    assert "intern" not in str(found)
    assert check_recipe(found).teacher.server.model == "big"


def test_nor_is_that_of_a_server_that_writes():
    server = {"url": "https://gpu7.intern:8443/v1", "kind": "llama-server", "model": "big"}
    answers = {"samples": 1, "from": {"server": server}}
    found = published_recipe(recipe(data={"train": "org/texts", "answers": answers}))
    assert "intern" not in str(found)
    assert check_recipe(found).data.answers.server.model == "big"
