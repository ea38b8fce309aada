"""Who writes, and how it is known."""

from pathlib import Path

from distill import pipeline
from distill.run.context import Run
from distill.run.load import load_recipe
from distill.stages import answer
from distill.stages.answer_writers import writer_settings


def run_with(writer, *more):
    changes = (
        *more,
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


SERVER = "{server: {url: 'http://127.0.0.1:9', kind: vllm, model: big}}"


def test_where_a_server_is_and_how_it_is_asked_does_not_tell_it_from_another(workshop):
    one = run_with(SERVER)
    moved = run_with(
        SERVER.replace("127.0.0.1:9", "elsewhere:80").replace("big", "big, timeout: 9")
    )
    assert writer_settings(one) == writer_settings(moved)
    assert answer._inputs(one) == answer._inputs(moved)
    assert writer_settings(one) != writer_settings(run_with(SERVER.replace("big", "small")))
    assert writer_settings(one) != writer_settings(run_with(SERVER.replace("vllm", "sglang")))


def test_the_teacher_on_a_server_and_the_same_server_as_writer_are_one(workshop):
    teacher = "teacher.server={url: 'http://127.0.0.1:9', kind: vllm, model: big}"
    by_teacher = run_with("teacher", teacher, "cache={codec: topk}")
    assert writer_settings(by_teacher) == writer_settings(run_with(SERVER))


def test_nothing_of_drawing_decides_the_most_likely_answer(workshop):
    greedy = run_with("teacher, temperature: 0")
    assert writer_settings(greedy) == writer_settings(run_with("teacher, temperature: 0", "seed=7"))
    assert writer_settings(greedy) == writer_settings(run_with("teacher, temperature: 0, top_p: 1"))
    assert writer_settings(run_with("teacher")) != writer_settings(run_with("teacher", "seed=7"))
