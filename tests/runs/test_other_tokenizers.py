"""Runs whose student has another tokenizer than its teacher, through the command line."""

import json
from pathlib import Path

import pytest

from teachers.cache.reader import SignalCache
from tests.helpers.two_tokenizers import other_tokenizer, tokenizer_without_tab

FRESH = "student={from: {num_hidden_layers: 1, hidden_size: 32}, tokenizer: other}"
OPTIONS = [
    "--set", FRESH,
    "--set", "cache={codec: {name: topk, k: 32}, shard_tokens: 400}",
    "--set", "train.objective=[{loss: forward_kl}]",
    "--set", "train.arms=[]",
    "--set", "train.max_steps=6",
]  # fmt: skip


@pytest.fixture
def two_tokenizers(workshop):
    """The workshop with a folder that has another tokenizer."""
    other_tokenizer().save_pretrained("other")
    return workshop


def test_a_student_of_another_tokenizer_learns_from_the_teachers_cache(two_tokenizers):
    two_tokenizers.upto_train("run", *OPTIONS)
    history = json.loads(Path("run/arms/distill/result.json").read_text())["history"]
    assert history[-1]["nll"] < history[0]["nll"]
    record = json.loads(Path("run/records/cache.json").read_text())
    kept = record["notes"]["transport"]
    assert kept["served"] > 0.99
    assert kept["nats_per_byte"] > 0
    cache = SignalCache("run/cache")
    assert cache.manifest["tokenizer"] != SignalCache("run/teacher_cache").manifest["tokenizer"]
    assert (
        "Nothing to do"
        in two_tokenizers("cache", "build", "recipe.yaml", "--run-dir", "run", *OPTIONS).output
    )


def test_the_report_compares_by_bytes_and_says_what_was_kept(two_tokenizers):
    two_tokenizers("run", "recipe.yaml", "--run-dir", "run", *OPTIONS)
    report = json.loads(Path("run/report.json").read_text())
    student, teacher = report["arms"]["distill"], report["teacher"]
    assert student["nats_per_byte"] > 0
    assert teacher["nats_per_byte"] > 0
    assert "kl_to_teacher" not in student
    assert report["transport"]["served"] > 0.99
    assert "transported" in Path("run/report.html").read_text()
    assert "teacher_cache" in two_tokenizers("verify", "run").output


def test_a_tokenizer_without_some_characters_serves_rows_that_have_none(two_tokenizers):
    tokenizer_without_tab().save_pretrained("other")
    said = two_tokenizers("cache", "build", "recipe.yaml", "--run-dir", "run", *OPTIONS).output
    assert "Such characters get no target." in said
    kept = json.loads(Path("run/records/cache.json").read_text())["notes"]["transport"]
    assert kept["served"] > 0.99
    tokenizer_without_tab(lower_cased=True).save_pretrained("lower")
    more = [*OPTIONS, "--set", "student.tokenizer=lower"]
    refused = two_tokenizers("plan", "recipe.yaml", *more, ok=False)
    assert "do not give back the text at character 0 ('Hello, world')" in refused.output


def test_the_teachers_cache_serves_a_second_student(two_tokenizers):
    two_tokenizers("cache", "build", "recipe.yaml", "--run-dir", "run", *OPTIONS)
    before = {p: p.read_bytes() for p in Path("run/teacher_cache").rglob("*") if p.is_file()}
    more = [*OPTIONS, "--set", "cache.dir=run/teacher_cache"]
    two_tokenizers("cache", "build", "recipe.yaml", "--run-dir", "second", *more)
    assert {p: p.read_bytes() for p in before} == before
    assert not Path("second/teacher_cache").exists()
    first, second = SignalCache("run/cache"), SignalCache("second/cache")
    assert sorted(first.keys()) == sorted(second.keys())


def test_a_cache_that_was_transported_serves_a_recipe(two_tokenizers):
    plain = ["--set", "cache={codec: {name: topk, k: 32}, labels: true}"]
    plain += ["--set", "evaluate.own_answers={}"]  # what the run measures does not matter
    objective = ["--set", "train.objective=[{loss: forward_kl}]"]
    two_tokenizers("cache", "build", "recipe.yaml", "--run-dir", "run", *plain, *objective)
    said = two_tokenizers("cache", "transport", "run/cache", "there", "--to", "other").output
    assert "served" in said
    assert "there:" in said
    more = [*OPTIONS, "--set", "cache={codec: {name: topk, k: 32}, dir: there}"]
    two_tokenizers.upto_train("second", *more)
    assert not Path("second/cache").exists()
    assert not Path("second/teacher_cache").exists()
    twice = two_tokenizers(
        "cache", "transport", "there", "x", "--to", "teacher", "--data", "run", ok=False
    )
    assert "was itself transported" in twice.output
    same = two_tokenizers("cache", "transport", "run/cache", "x", "--to", "teacher", ok=False)
    assert "serves such students as it is" in same.output
    taken = two_tokenizers(
        "cache", "transport", "run/cache", "run/cache", "--to", "other", ok=False
    )
    assert "There is another cache at run/cache (tokenizer." in taken.output
    ids = two_tokenizers("cache", "verify", "there", "--teacher", ok=False)
    assert "which its teacher cannot read" in ids.output
    lacking = two_tokenizers(
        "cache", "build", "recipe.yaml", "--run-dir", "x", *more, "--set", "seed=5", ok=False
    )
    assert "was transported, and lacks examples of this recipe" in lacking.output
    assert not Path("there/growing.json").exists()


def test_commands_that_compare_ids_say_so(two_tokenizers):
    refused = two_tokenizers("doctor", "recipe.yaml", *OPTIONS, ok=False)
    assert "this student has another tokenizer" in refused.output
    refused = two_tokenizers("cache", "audit", "recipe.yaml", "--budget", "9", *OPTIONS, ok=False)
    assert "--budget chooses among codecs" in refused.output


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("cache.codec=final_hidden", "`cache.codec: final_hidden` cannot be transported"),
        ("train.source=online", "cannot ask the teacher within the step"),
        (
            "cache.codec={name: topk, k: 8, temperatures: [1.0, 2.0]}",
            "is not known after the transport",
        ),
        ("teacher.adapt={lr: 1e-4}", "`teacher.adapt` would read the data in ids"),
        ("cache.unfinished=true", "still lacks without targets"),
        ("cache.hidden={layers: [2]}", "`cache.hidden` keeps states at tokens"),
        ("train.objective=[{loss: forward_kl}, {loss: hidden_mse}]", "has no counterpart"),
    ],
)
def test_what_has_no_counterpart_is_refused_before_work(option, says, two_tokenizers):
    refused = two_tokenizers("plan", "recipe.yaml", *OPTIONS, "--set", option, ok=False)
    assert refused.exit_code == 1
    assert says in refused.output
    assert "The student has another vocabulary than the teacher" in refused.output


def test_a_fresh_student_has_a_row_for_every_id_of_its_tokenizer(two_tokenizers):
    few = FRESH.replace("hidden_size: 32", "hidden_size: 32, vocab_size: 100")
    refused = two_tokenizers("plan", "recipe.yaml", *OPTIONS, "--set", few, ok=False)
    assert "`student.from.vocab_size` is 100, and its tokenizer has 290 ids" in refused.output
