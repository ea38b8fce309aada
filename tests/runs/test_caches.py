"""Runs that share, lack, convert or weigh a signal cache, through the command line."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from attar.errors import CacheError, RecipeError
from distill.cache_audit.audit import choose, write_codec
from distill.run.load import load_recipe
from teachers.cache.reader import SignalCache
from teachers.cache.store import SignalStore
from teachers.codecs.codec import CODECS

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = ["--set", "train.max_steps=3", "--set", "train.arms=[]"]


def nll_of(folder):
    return json.loads((Path(folder) / "arms/distill/result.json").read_text())["history"][-1]["nll"]


@pytest.mark.parametrize("codec", list(CODECS))
def test_every_codec_trains_a_student(codec, workshop):
    more = ["--set", f"cache.codec={{name: {codec}}}", "--set", "cache.hidden.codec=basis"]
    if CODECS[codec].gives != "distribution":
        more += ["--set", "train.objective=[{loss: cross_entropy}, {loss: hidden_mse}]"]
    workshop.upto_train("run", *more, *SHORT)
    assert 0 < nll_of("run") < 10
    again = workshop("train", "recipe.yaml", "--run-dir", "run", *more, *SHORT)
    assert "Nothing to do" in again.output


def test_a_precise_cache_trains_the_student_that_a_full_one_does(workshop):
    for folder, codec in (
        ("all", "{name: topk, k: 320}"),  # every id of the tiny vocabulary
        ("state", "{name: final_hidden, kl: 1.0e-7}"),
        ("fine", "{name: hybrid, k: 4096}"),
    ):
        workshop.upto_train(folder, "--set", f"cache.codec={codec}", *SHORT)
    assert nll_of("state") == pytest.approx(nll_of("all"), rel=1e-3)
    assert nll_of("fine") == pytest.approx(nll_of("all"), rel=1e-3)


def test_one_cache_serves_other_recipes_on_some_of_its_examples(workshop):
    shared = ["--set", "cache.dir=shared", "--set", "data.held_out=text.jsonl"]
    shared += ["--set", "data.held_out_tokens=200"]
    workshop("cache", "build", "recipe.yaml", "--run-dir", "first", *shared)
    before = {path: path.read_bytes() for path in Path("shared").rglob("*") if path.is_file()}
    few = [*shared, "--set", "data.train_tokens=500"]
    for stage in (["cache", "build"], ["build"], ["train"]):
        workshop(*stage, "recipe.yaml", "--run-dir", "few", *few, *SHORT)
    assert nll_of("few") > 0
    assert {p: p.read_bytes() for p in Path("shared").rglob("*") if p.is_file()} == before


def test_three_students_are_told_the_same(workshop, monkeypatch, capsys):
    workshop("cache", "build", "recipe.yaml", "--run-dir", "run", "--set", "cache.codec=hybrid")
    spec = importlib.util.spec_from_file_location("three", EXAMPLES / "three_students.py")
    three = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(three)
    monkeypatch.setattr("sys.argv", ["three_students.py", "run"])
    with pytest.raises(SystemExit) as ended:
        three.main()
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert "All signals are identical." in said
    assert said.count("examples; example") == 3


def test_a_cache_that_still_grows_is_read_only_if_asked(workshop):
    workshop("cache", "build", "recipe.yaml", "--run-dir", "maker")
    entries = sorted(Path("maker/cache/shards").glob("*.json"))
    assert len(entries) > 2
    entries[-1].unlink()
    reader = ["recipe.yaml", "--run-dir", "reader", "--set", "cache.dir=maker/cache", *SHORT]
    asked = [*reader, "--set", "cache.unfinished=true"]
    workshop("cache", "build", *asked)
    workshop("build", *asked)
    refused = workshop("train", *reader, ok=False)
    assert refused.exit_code == 1
    said = workshop("train", *asked, "--set", "train.arms=[finetune]").output
    assert not entries[-1].exists(), "a reader builds nothing"
    assert nll_of("reader") > 0
    arms = json.loads(Path("reader/records/train.json").read_text())["notes"]
    assert arms["distill"]["tokens"] == arms["finetune"]["tokens"], "the same examples"
    assert "in the unfinished cache" in (said + Path("reader/run.log").read_text())


def test_opening_an_unfinished_cache_says_what_to_do(
    tmp_path, make_cache, tiny_model, make_examples
):

    make_cache(tmp_path / "cache", tiny_model, make_examples(4))
    store = SignalStore(str(tmp_path / "cache"))
    for number in store.entries():
        (tmp_path / f"cache/shards/{number:05d}.json").unlink()
    with pytest.raises(CacheError, match=r"0 of 4 examples.*`cache\.unfinished: true`"):
        SignalCache(str(tmp_path / "cache"))
    assert SignalCache(str(tmp_path / "cache"), unfinished=True).keys() == []


# The audit -------------------------------------------------------------------------------------


def test_audit_measures_chooses_and_writes(workshop, monkeypatch):
    grid = [{"name": "hybrid", "k": 4}, {"name": "hybrid", "k": 64}, {"name": "final_hidden"}]
    monkeypatch.setattr("distill.cache_audit.audit.GRID", grid)
    command = ["cache", "audit", "recipe.yaml", "--run-dir", "run", "--tokens", "300"]
    said = workshop(*command, "--budget", "60", "--write").output
    found = {one["label"]: one for one in json.loads(Path("run/audit.json").read_text())["codecs"]}
    assert set(found) == {"topk k=16", "hybrid k=4", "hybrid k=64", "final_hidden"}
    errors = {label: one["measures"]["summed_error"] for label, one in found.items()}
    assert errors["final_hidden"] < errors["hybrid k=64"] < errors["hybrid k=4"]
    sizes = {label: one["bytes_per_token"] for label, one in found.items()}
    assert sizes["hybrid k=4"] < sizes["hybrid k=64"] <= 60
    assert Path("run/audit.png").stat().st_size > 5000
    assert "cache.codec: {name: hybrid, k: 64}" in said
    assert load_recipe("recipe.yaml", ()).cache.codec == CODECS["hybrid"](k=64)
    plan = workshop("plan", "recipe.yaml", "--run-dir", "run").output
    assert "measured" in plan


def test_audit_measures_what_the_cache_then_takes(workshop, monkeypatch):
    monkeypatch.setattr("distill.cache_audit.audit.GRID", [])
    workshop("cache", "audit", "recipe.yaml", "--run-dir", "run", "--tokens", "2000")
    (audited,) = json.loads(Path("run/audit.json").read_text())["codecs"]
    plain = ["--set", "cache.hidden={}", "--set", "train.objective=[{loss: forward_kl}]"]
    workshop("cache", "build", "recipe.yaml", "--run-dir", "run", *plain)
    record = json.loads(Path("run/records/cache.json").read_text())
    built = record["notes"]["bytes_per_token"]
    assert audited["bytes_per_token"] == pytest.approx(built, rel=0.35)


def test_audit_leaves_out_a_codec_of_labels(workshop, monkeypatch):
    monkeypatch.setattr("distill.cache_audit.audit.GRID", [{"name": "hybrid", "k": 4}])
    labels = ["--set", "cache.codec=label", "--set", "train.objective=[{loss: cross_entropy}]"]
    said = workshop("cache", "audit", "recipe.yaml", *labels, "--run-dir", "run", "--tokens", "300")
    (one,) = json.loads(Path("run/audit.json").read_text())["codecs"]
    assert one["label"] == "hybrid k=4"
    assert "label" not in said.stdout


def test_audit_refuses_what_it_cannot_do(workshop, monkeypatch):
    monkeypatch.setattr("distill.cache_audit.audit.GRID", [{"name": "hybrid", "k": 4}])
    refused = workshop("cache", "audit", "recipe.yaml", "--write", ok=False)
    assert refused.exit_code == 1
    assert "--budget" in refused.output
    small = ["--run-dir", "run", "--tokens", "100", "--budget", "0.5"]
    refused = workshop("cache", "audit", "recipe.yaml", *small, ok=False)
    assert refused.exit_code == 1
    assert "0.5 bytes a token" in refused.output
    assert "Raise --budget" in refused.output


@pytest.mark.parametrize(
    "cache",
    [
        "",
        "cache: {}\n",
        "cache:\n",
        "cache: {dir: there}\n",
        "cache: {codec: {name: topk, k: 8}, dir: there}\n",
        "cache:\n  codec: {name: topk, k: 8}  # why\n  dir: there\n",
        "cache:\n  dir: there\n  codec:\n    name: topk\n    k: 8\n",
        "cache:\n  codec:\n    name: topk\n    k: 8\n  dir: there\n",
        "cache:\n  # first\n  dir: there\n",
    ],
)
def test_a_codec_is_written_into_any_recipe(cache, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    before = {"data": {"train": "x"}, "teacher": {"model": "m"}}
    text = f"# mine\ndata: {{train: x}}\n{cache}teacher:\n  model: m  # good\n"
    recipe.write_text(text)
    write_codec(recipe, CODECS["hybrid"](k=64).model_dump())
    after = yaml.safe_load(recipe.read_text())
    was = yaml.safe_load(text).get("cache") or {}
    assert after == {**before, "cache": {**was, "codec": {"name": "hybrid", "k": 64}}}
    assert "# mine" in recipe.read_text()
    assert "# good" in recipe.read_text()


def test_choosing_within_a_budget_needs_a_codec_that_fits():
    with pytest.raises(RecipeError, match="No codec that serves this objective"):
        choose([], 64)
