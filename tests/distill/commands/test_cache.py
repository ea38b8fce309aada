"""`distill cache ...` as a user meets it: what it prints, what it leaves, and one line an error."""

import json
import math
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from distill.commands.codec_argument import codec_of, layer_codec_of
from distill.commands.main import main
from teachers.cache.reader import SignalCache
from teachers.codecs.codec import CODECS, LAYER_CODECS

COMMANDS = ["verify", "stats", "slice", "merge", "convert", "ensemble"]


@pytest.fixture
def build(workshop):
    """`build(name, *changes)`: the recipe's cache with some keys changed, in NAME/cache."""

    def make(name, *changes):
        changes = ("data.train_tokens=1200", "data.held_out_tokens=300", *changes)
        settings = [part for change in changes for part in ("--set", change)]
        workshop("cache", "build", "recipe.yaml", "--run-dir", name, "--quiet", *settings)
        return f"{name}/cache"

    return make


def refused(workshop, *arguments):
    """What a command says that ends with exit 1: one line, no traceback."""
    result = workshop("cache", *arguments, ok=False)
    assert result.exit_code == 1
    (line,) = result.output.strip().splitlines()
    assert line.startswith("Error: ")
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    result = CliRunner().invoke(main, ["cache", command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_verify_says_what_is_well_and_what_is_not(build, workshop, make_model):
    url = build("run")
    whole = ("cache", "verify", url, "--tokenizer", "teacher", "--teacher")
    assert workshop(*whole).stdout.startswith("All is well: ")
    Path("teacher").rename("moved")
    assert "`teacher`" in refused(workshop, "verify", url, "--teacher")
    assert "All is well" in workshop("cache", "verify", url, "--teacher-model", "moved").output
    make_model(5, width=64, layers=4, vocabulary=320).save_pretrained("other")
    result = workshop("cache", "verify", url, "--teacher-model", "other", ok=False)
    assert result.exit_code == 1
    assert result.stdout.startswith("teacher.weights")
    shard = Path(url) / "shards/00001.arrow"
    shard.write_bytes(shard.read_bytes()[:-9])
    result = workshop("cache", "verify", url, ok=False)
    assert result.exit_code == 1
    assert "00001.arrow is truncated" in result.output
    assert "no cache at nowhere" in refused(workshop, "verify", "nowhere")


def test_stats_prints_ascii_and_writes_json(build, workshop):
    url = build("run")
    output = workshop("cache", "stats", url, "--json", "stats.json").output
    assert output.isascii()
    found = json.loads(Path("stats.json").read_text())
    cache = SignalCache(url)
    assert found["tokens"] == cache.manifest["data"]["tokens"]
    assert f"{found['bytes_per_token']:.2f}" in output
    assert {"ids", "logprobs", "tail_1", "layer_2", "layer_4_scale"} <= found["columns"].keys()
    assert sum(found["kept"]["counts"]) == found["tokens"]
    assert found["kept"]["edges"][-1] is None
    for name in ("bytes a token", "layer_4", "entropy of the targets", "mass of the entries", "##"):
        assert name in output


def test_slice_and_merge(build, workshop):
    url = build("run")
    keys = SignalCache(url).keys()
    Path("keys.txt").write_text("\n".join(keys[:20]) + "\n")
    Path("others.txt").write_text("\n".join(keys[15:]))
    workshop("cache", "slice", url, "one", "--keys", "keys.txt")
    workshop("cache", "slice", url, "two", "--keys", "others.txt")
    output = workshop("cache", "merge", "one", "two", "whole").output
    assert output.startswith(f"whole: {len(keys)} examples, ")
    assert "bytes a token" in output
    assert (Path(url) / "manifest.json").read_bytes() == Path("whole/manifest.json").read_bytes()
    workshop("cache", "slice", url, "small", "--examples", 5, "--layers", "4")
    assert SignalCache("small").config.hidden.layers == [4]
    workshop("cache", "slice", url, "bare", "--layers", "none")
    assert SignalCache("bare").config.hidden.layers == []


def test_a_recipe_goes_on_with_a_converted_cache(build, workshop):
    """What is cached once in full serves a recipe with another codec; nothing is made again."""
    url = build("full", "cache.codec={name: final_hidden, kl: 1e-6}")
    workshop("cache", "convert", url, "topk", "--codec", "topk:k=16", "--hidden", "basis:step=0.1")
    before = {path: path.stat().st_mtime_ns for path in Path("topk").rglob("*.*")}
    build("run", "cache.dir=topk", "cache.hidden.codec={name: basis, step: 0.1}")
    assert before == {path: path.stat().st_mtime_ns for path in Path("topk").rglob("*.*")}
    direct, found = SignalCache(build("direct")), SignalCache("topk")
    assert sorted(direct.keys()) == sorted(found.keys())
    key = direct.keys()[0]
    one, other = (c.signals([key]).distribution(1.0) for c in (direct, found))
    assert (one.ids_NK[:, 0] == other.ids_NK[:, 0]).float().mean() > 0.95


LABELS = (
    "cache.codec=label",
    "cache.hidden.layers=[]",
    "train.objective=[{loss: cross_entropy}]",
)


def test_a_cache_of_labels_is_made_though_no_term_reads_it(build, workshop):
    url = build("run", *LABELS)
    workshop("cache", "verify", url, "--tokenizer", "teacher", "--teacher")
    output = workshop("cache", "stats", url, "--json", "stats.json").output
    found = json.loads(Path("stats.json").read_text())
    cache = SignalCache(url)
    nll = -cache.signals(cache.keys()).stored_logprobs().double().mean().item()
    assert found["perplexity"] == pytest.approx(math.exp(nll))
    assert re.search(rf"perplexity +{found['perplexity']:.3f}", output)
    assert "minus the log-probability of the text's own tokens, nats: mean" in output
    assert "entropy" not in output
    settings = [part for change in LABELS for part in ("--set", change)]
    said = workshop("plan", "recipe.yaml", "--run-dir", "run", *settings).output
    assert re.search(r"cache .*4 bytes a token", said)
    assert "All is well" in workshop("verify", "run").output


def test_labels_of_a_converted_cache_come_from_the_run(build, workshop):
    full = build("full", "cache.codec={name: final_hidden, kl: 1e-6}", "cache.hidden.layers=[]",
                 "train.objective=[{loss: forward_kl}]")  # fmt: skip
    said = refused(workshop, "convert", full, "out", "--codec", "label")
    assert "does not hold the text's own tokens" in said
    assert "`--data`" in said
    workshop("cache", "convert", full, "out", "--codec", "label", "--data", "full")
    direct, found = SignalCache(build("direct", *LABELS)), SignalCache("out")
    keys = direct.keys()
    assert sorted(keys) == sorted(found.keys())
    one, other = (cache.signals(keys).stored_logprobs() for cache in (direct, found))
    assert (one - other).abs().mean() < 0.02
    workshop("cache", "verify", "out", "--teacher")
    build("run", *LABELS, "cache.dir=out")
    assert not Path("run/cache").exists()
    workshop("cache", "ensemble", "out", "direct/cache", "both", "--codec", "label")
    mixed = SignalCache("both").signals(keys).stored_logprobs()
    assert ((one.exp() + other.exp()) / 2 - mixed.exp()).abs().max() < 1e-6


def test_labels_beside_a_codec_come_with_it(build, workshop):
    url = build("both", "cache.labels=true")
    workshop("cache", "verify", url, "--tokenizer", "teacher", "--teacher")
    output = workshop("cache", "stats", url).output
    assert "entropy of the targets" in output
    assert re.search(r"perplexity +\d", output)
    workshop("cache", "convert", url, "alone", "--codec", "label", "--hidden", "bf16")
    direct = SignalCache(build("direct", *LABELS))
    found, keys = SignalCache("alone"), direct.keys()
    one, other = (cache.signals(keys).stored_logprobs() for cache in (direct, found))
    assert (one == other).all()
    said = workshop("cache", "build", "recipe.yaml", "--run-dir", "both", ok=False).output
    assert "labels = True, the recipe asks for False; write `cache.labels: true`" in said
    fine = "cache.codec={name: final_hidden, kl: 1e-6}"
    workshop("cache", "convert", build("full", fine), "added", "--labels", "--data", "full")
    build("full", fine, "cache.labels=true", "cache.dir=added")
    workshop("cache", "verify", "added", "--teacher")
    added = SignalCache("added").signals(keys).stored_logprobs()
    assert (one - added).abs().mean() < 0.02


def test_ensemble_takes_weights_in_the_order_of_the_caches(build, workshop, make_model, tokenizer):
    make_model(3, width=32, vocabulary=320).save_pretrained("second")
    tokenizer.save_pretrained("second")
    small = ("cache.codec={name: final_hidden, kl: 1e-5}", "cache.hidden.layers=[]")
    plain = ("train.objective=[{loss: forward_kl}]",)
    one, two = build("one", *small, *plain), build("two", "teacher.model=second", *small, *plain)
    output = workshop(
        "cache", "ensemble", one, two, "both", "--codec", "hybrid:k=8", "--weights", "3,1"
    ).output
    assert output.startswith("both: ")
    teacher = SignalCache("both").manifest["teacher"]
    assert [(t["model"], t["weight"]) for t in teacher["ensemble"]] == [
        ("teacher", 0.75),
        ("second", 0.25),
    ]
    workshop("cache", "verify", "both", "--tokenizer", "second")
    assert "ensemble of 2 teachers" in refused(workshop, "verify", "both", "--teacher")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["slice", "CACHE", "out"], "Say what to keep"),
        (["slice", "CACHE", "out", "--layers", "two"], "`--layers two` must be numbers"),
        (["slice", "CACHE", "out", "--layers", "3"], "no layer 3"),
        (["slice", "nowhere", "out", "--examples", "3"], "no cache at nowhere"),
        (["merge", "CACHE", "out"], "two or more"),
        (["convert", "CACHE", "out"], "Say what to convert to"),
        (["convert", "CACHE", "out", "--codec", "topkk"], "Did you mean `topk`?"),
        (["convert", "CACHE", "out", "--codec", "topk:kk=3"], "Did you mean `k`?"),
        (["convert", "CACHE", "out", "--codec", "topk:k=0"], "`k`: must be at least"),
        (["convert", "CACHE", "out", "--codec", "topk:k"], "found None"),
        (["convert", "CACHE", "out", "--codec", "topk:k=[1"], "is not valid YAML"),
        (["convert", "CACHE", "out", "--codec", "final_hidden"], "needs the full distribution"),
        (["convert", "CACHE", "out", "--codec", "label"], "needs the full distribution"),
        (
            ["convert", "CACHE", "out", "--codec", "topk:k=2", "--data", "x"],
            "`--data` has no effect",
        ),
        (["convert", "CACHE", "out", "--labels"], "build it again with `cache.labels: true`"),
        (["convert", "CACHE", "out", "--hidden", "int9"], "Did you mean `int8`?"),
        (["ensemble", "CACHE", "CACHE", "out", "--codec", "hybrid"], "cannot be stored"),
        (["ensemble", "CACHE", "CACHE", "out", "--codec", "topk", "--weights", "1"], "2 caches"),
        (["ensemble", "CACHE", "CACHE", "out", "--codec", "topk", "--weights", "1,-1"], "above 0"),
    ],
)
def test_every_mistake_is_one_line(shared_cache, arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(
        main, ["cache", *(shared_cache if part == "CACHE" else part for part in arguments)]
    )
    assert result.exit_code == 1
    (line,) = result.output.strip().splitlines()
    assert line.startswith("Error: ")
    assert says in line
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def shared_cache(make_model, make_examples, make_cache, tmp_path_factory):
    """A cache of top-k entries that commands may read."""
    url = tmp_path_factory.mktemp("shared") / "cache"
    make_cache(url, make_model(0), make_examples(5))
    return str(url)


# Codecs on the command line ----------------------------------------------------------------------


@pytest.mark.parametrize("name", list(CODECS))
def test_every_codec_can_be_named(name):
    assert codec_of(name, "--codec") == CODECS[name]()
    assert codec_of(f"{{name: {name}}}", "--codec") == CODECS[name]()


@pytest.mark.parametrize("name", list(LAYER_CODECS))
def test_every_layer_codec_can_be_named(name):
    assert layer_codec_of(name, "--hidden") == LAYER_CODECS[name]()


@pytest.mark.parametrize(
    "text",
    [
        "topk:k=8,temperatures=[1,2.5]",
        " topk : k = 8, temperatures = [1, 2.5]",
        "{name: topk, k: 8, temperatures: [1, 2.5]}",
    ],
)
def test_parameters_may_be_lists(text):
    assert codec_of(text, "--codec") == CODECS["topk"](k=8, temperatures=[1.0, 2.5])


def test_numbers_may_be_short():
    assert codec_of("final_hidden:kl=1e-3", "--codec").kl == pytest.approx(1e-3)
    assert math.isclose(layer_codec_of("basis:step=.5", "--hidden").step, 0.5)
