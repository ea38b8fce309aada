"""Frozen features and classical classifiers on them: by recipe, from the cache, loaded again."""

import importlib.util
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast

from attar.errors import CacheError, DataError, ModelError, RunError
from attar.models.structure import capture_layers, run_body
from teachers.cache_tools.feature_cache import FeatureCache, features_of, load_body
from teachers.load import TeacherConfig
from teachers.runners.request import Request

pytestmark = pytest.mark.usefixtures("saved_models")

needs_skops = pytest.mark.skipif(
    importlib.util.find_spec("skops") is None,
    reason='skops is not installed (`pip install "attar[classify]"`)',
)
KINDS = ["water", "light"]


def requests(number=7, vocabulary=320):
    dice = np.random.default_rng(0)
    lengths = dice.integers(3, 12, number)
    return [
        Request(f"{i:032x}", dice.integers(0, vocabulary, n), np.arange(1))
        for i, n in enumerate(lengths)
    ]


@pytest.fixture
def classes(workshop):
    """The workshop's recipe on texts of two classes, which a word tells apart."""
    dice, rows = random.Random(0), []
    for i in range(80):
        words = dice.choices(["the", "teacher", "says", "what", "falls", "on"], k=8)
        words[dice.randrange(8)] = KINDS[i % 2]
        rows.append({"text": " ".join(words), "kind": KINDS[i % 2]})
    Path("classes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = yaml.safe_load(Path("recipe.yaml").read_text())
    recipe["features"] = {
        "layer": 0,
        "data": {
            "train": "classes.jsonl", "held_out": 0.25, "label_column": "kind", "max_length": 48,
        },
    }  # fmt: skip
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    return workshop


def metrics(folder="out"):
    return json.loads(Path(folder, "features", "metrics.json").read_text())


@pytest.fixture
def bert(tmp_path):
    """A folder with a tiny BERT that was saved with a head, and its tokenizer, which has a CLS."""
    torch.manual_seed(0)
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "the", "teacher", "says", "what", "falls", "on"]
    vocabulary = {word: i for i, word in enumerate([*words, *KINDS])}
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = BertConfig(num_attention_heads=2, vocab_size=len(vocabulary), **shape)
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        unk_token="[UNK]",
    ).save_pretrained(tmp_path / "bert")  # fmt: skip
    return tmp_path / "bert"


# Vectors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["last", 0, 1, 4])
@pytest.mark.parametrize("pool", ["mean", "last", "cls"])
def test_a_text_of_a_batch_has_the_vector_of_the_text_alone(workshop, layer, pool):
    model = load_body(TeacherConfig(model="teacher", dtype="float32"))
    texts = requests()
    together = features_of(model, texts, layer, pool)
    for text, vector_H in zip(texts, together, strict=True):
        ids_1T = torch.from_numpy(text.input_ids)[None]
        with torch.no_grad(), capture_layers(model, [0, 1, 4]) as captured:
            states_TH = run_body(model, {"input_ids": ids_1T, "attention_mask": None})[0]
        if layer != "last":
            states_TH = captured.layers[layer][0]
        wanted = {"mean": states_TH.mean(0), "last": states_TH[-1], "cls": states_TH[0]}
        torch.testing.assert_close(vector_H, wanted[pool], rtol=1e-4, atol=1e-5)


def test_an_encoder_gives_what_transformers_gives(bert):
    plain = BertModel.from_pretrained(bert, add_pooling_layer=False).eval()
    texts = requests(vocabulary=12)
    found = features_of(load_body(TeacherConfig(model=str(bert), dtype="float32")), texts, 1, "cls")
    for text, vector_H in zip(texts, found, strict=True):
        ids_1T = torch.from_numpy(text.input_ids)[None]
        with torch.no_grad():
            states = plain(ids_1T, output_hidden_states=True).hidden_states[1]
        torch.testing.assert_close(vector_H, states[0, 0], rtol=1e-4, atol=1e-5)


def test_a_text_is_run_once_and_a_later_one_is_added(workshop, tmp_path):
    model = load_body(TeacherConfig(model="teacher", dtype="float32"))
    cache, texts, loads = FeatureCache(tmp_path / "cache"), requests(), []

    def load():
        loads.append(1)
        return model

    assert cache.build(texts[:4], load, 2, "mean", batch_tokens=32) == 4
    first = cache.read([text.key for text in texts[:4]])
    assert cache.build(texts[:4], load, 2, "mean", batch_tokens=32) == 0
    assert len(loads) == 1
    assert cache.build(texts, load, 2, "mean", batch_tokens=32) == 3
    assert np.array_equal(cache.read([text.key for text in texts])[:4], first)
    assert first.dtype == np.float32


def test_damaged_features_are_named_and_made_again(workshop, tmp_path):
    model = load_body(TeacherConfig(model="teacher", dtype="float32"))
    cache, texts = FeatureCache(tmp_path / "cache"), requests()
    cache.build(texts, lambda: model, "last", "last", batch_tokens=32)
    before = cache.read([text.key for text in texts])
    shard = next((tmp_path / "cache").glob("*.npz"))
    shard.write_bytes(shard.read_bytes()[:-200])
    with pytest.raises(CacheError, match=shard.name):
        cache.read([texts[0].key])
    shard.unlink()
    cache.build(texts, lambda: model, "last", "last", batch_tokens=32)
    assert np.array_equal(cache.read([text.key for text in texts]), before)


def test_a_text_whose_features_are_not_finite_is_named(workshop, tmp_path):
    model = load_body(TeacherConfig(model="teacher", dtype="float32"))
    texts = requests()
    model.embed_tokens.weight[int(texts[3].input_ids[0])] = float("nan")
    with pytest.raises(CacheError, match=f"{3:032x}"):
        FeatureCache(tmp_path).build(texts[3:4], lambda: model, 0, "mean", batch_tokens=32)


# The command -------------------------------------------------------------------------------------


@needs_skops
def test_a_classifier_on_the_teachers_features_learns_and_is_loaded_again(classes):
    from distill.features import load_feature_classifier

    shown = classes("features", "recipe.yaml", "--run-dir", "out")
    found = metrics()
    assert "macro-F1" in shown.output
    assert found["train"]["texts"] + found["held_out"]["texts"] <= 80
    assert found["held_out"]["accuracy"] > 0.9 > found["held_out"]["most_frequent"]
    assert found["held_out"]["macro_f1"] > 0.9
    loaded = load_feature_classifier(Path("out/features"))
    texts = ["the teacher says water falls on the light", "what falls on water", "light falls"]
    assert loaded.predict(texts[1:]) == KINDS
    probabilities = loaded.probabilities(texts)
    assert probabilities.shape == (3, 2)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)
    told = classes("features", "recipe.yaml", "--run-dir", "out", "--text", texts[1])
    assert "water (" in told.output


@needs_skops
def test_a_classifier_of_pairs_is_asked_for_pairs(classes):
    from distill.features import load_feature_classifier

    rows = [json.loads(line) for line in Path("classes.jsonl").read_text().splitlines()]
    pairs = [{"text": "what falls", "other": row["text"], "kind": row["kind"]} for row in rows]
    Path("classes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    change = ("--set", "features.data.pair_column=other")
    asked = classes(
        "features", "recipe.yaml", "--run-dir", "out", *change, "--text", "water", ok=False
    )
    assert "reads pairs of texts, and 'water' is a single one" in asked.output
    assert not Path("out/features").exists(), "said before any work"
    classes("features", "recipe.yaml", "--run-dir", "out", *change)
    loaded = load_feature_classifier(Path("out/features"))
    assert loaded.predict([("what falls", "water"), ("what falls", "light")]) == KINDS
    with pytest.raises(DataError, match="is a single one"):
        loaded.predict(["water"])
    single = ("--set", "features.data.text_column=other")
    classes("features", "recipe.yaml", "--run-dir", "out", *single)
    with pytest.raises(DataError, match="reads single texts"):
        load_feature_classifier(Path("out/features")).predict([("what falls", "water")])


@needs_skops
def test_features_of_a_teacher_adapted_by_another_recipe_are_refused(classes):
    adapt = ("--set", "teacher.adapt.max_steps=1")
    classes("adapt-teacher", "recipe.yaml", "--run-dir", "out", *adapt)
    classes("features", "recipe.yaml", "--run-dir", "out", *adapt)
    change = (*adapt, "--set", "teacher.adapt.lr=1.0e-3")
    stale = classes("features", "recipe.yaml", "--run-dir", "out", *change, ok=False)
    assert "or was made by another recipe; run `distill adapt-teacher`" in stale.output


@needs_skops
def test_another_classifier_reads_the_features_that_are_there(classes):
    classes("features", "recipe.yaml", "--run-dir", "out")
    kept = {file: file.stat().st_mtime_ns for file in Path("out/features/cache").rglob("*.npz")}
    change = (
        "--set",
        "features.classifier=random_forest",
        "--set",
        "features.options={max_depth: 4}",
    )
    classes("features", "recipe.yaml", "--run-dir", "out", *change)
    assert metrics()["classifier"] == "random_forest"
    assert kept == {f: f.stat().st_mtime_ns for f in Path("out/features/cache").rglob("*.npz")}
    assert "0 texts run" in Path("out/run.log").read_text()
    classes("features", "recipe.yaml", "--run-dir", "out", *change)
    assert "features: up to date" in Path("out/run.log").read_text()


@needs_skops
@pytest.mark.parametrize("name", ["xgboost", "lightgbm"])
def test_boosted_trees_are_fitted_saved_and_loaded(classes, name):
    pytest.importorskip(name, reason=f'{name} is not installed (`pip install "attar[boost]"`)')
    from distill.features import load_feature_classifier

    few = ("--set", "features.options={n_estimators: 20, n_jobs: 1}")
    change = ("--set", f"features.classifier={name}", *few)
    classes("features", "recipe.yaml", "--run-dir", "out", *change)
    assert metrics()["train"]["accuracy"] > 0.7
    assert load_feature_classifier(Path("out/features")).probabilities(["water"]).shape == (1, 2)


@needs_skops
def test_features_of_the_student_and_of_an_encoder(classes, bert):
    change = ("--set", "features.model=student")
    early = classes("features", "recipe.yaml", "--run-dir", "out", *change, ok=False)
    assert "`features.model: student` is the trained student, which is not in out" in early.output
    short = ("--set", "train.arms=[]", "--set", "train.max_steps=1")
    classes.upto_train("out", *short)
    stale = classes("features", "recipe.yaml", "--run-dir", "out", *change, ok=False)
    assert "or was made by another recipe; run `distill run`" in stale.output
    change = (*change, *short)
    classes("features", "recipe.yaml", "--run-dir", "out", *change)
    assert metrics()["width"] == 64
    of_bert = ("--set", f"features.model={bert}", "--set", "features.pool=cls")
    classes("features", "recipe.yaml", "--run-dir", "out", *of_bert, "--set", "features.layer=last")
    assert metrics()["width"] == 16


@needs_skops
def test_a_recipe_of_features_alone_needs_no_student(classes, bert):
    recipe = yaml.safe_load(Path("recipe.yaml").read_text())
    data = recipe["features"]["data"]
    features = {"model": str(bert), "layer": "last", "pool": "mean"}
    Path("alone.yaml").write_text(yaml.safe_dump({"data": data, "features": features}))
    classes("features", "alone.yaml", "--run-dir", "out")
    assert metrics()["width"] == 16
    for model, lacks in (("teacher", "`teacher`"), ("student", "`teacher`")):
        change = ("--set", f"features.model={model}")
        told = classes("features", "alone.yaml", "--run-dir", "out", *change, ok=False)
        assert f"{lacks} is missing" in told.output


@needs_skops
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("features=null", "has no section `features`"),
        ("features.layer=9", "`features.layer`: Layer 9 does not exist"),
        ("features.pool=cls", "a decoder's first token attends to itself only"),
        ("features.pool=max", "`features.pool`"),
        ("features.classifier=logistic", "Did you mean `logistic_regression`"),
        ("features.options={c: 1}", "`features.options.c` is not an option of logistic_regression"),
        ("features.options={C: -1}", "logistic_regression refuses them"),
        ("features.data.label_column=kid", "Did you mean `kind`"),
        ("features.data.max_length=400", "`features.data.max_length` is 400"),
        ("features.data.label_column=null", "Name it with `features.data.label_column`"),
        ("features.data.train=nothing.jsonl", "There is no file or folder nothing.jsonl"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_runs(classes, change, says):
    result = classes("features", "recipe.yaml", "--run-dir", "out", "--set", change, ok=False)
    assert result.exit_code == 1
    assert says in result.output
    assert not Path("out/features/cache").exists()


@needs_skops
def test_texts_of_one_class_are_refused(classes):
    rows = [json.loads(line) for line in Path("classes.jsonl").read_text().splitlines()]
    same = [{**row, "kind": "water"} for row in rows]
    Path("classes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in same))
    result = classes("features", "recipe.yaml", "--run-dir", "out", ok=False)
    assert "at least two classes" in result.output


@needs_skops
def test_a_classifier_of_another_models_features_is_refused(classes, make_model):
    from distill.features import load_feature_classifier

    classes("features", "recipe.yaml", "--run-dir", "out")
    make_model(5, width=64, layers=4, vocabulary=320).save_pretrained("teacher")
    with pytest.raises(ModelError, match="is not the model that the classifier"):
        load_feature_classifier(Path("out/features"))


@needs_skops
@pytest.mark.parametrize("name", ["classifier.skops", "classifier.json", "metrics.json"])
def test_a_damaged_classifier_is_named_and_made_again(classes, name):
    from distill.features import load_feature_classifier

    classes("features", "recipe.yaml", "--run-dir", "out")
    file = Path("out/features", name)
    before = file.read_bytes()
    file.write_bytes(before.replace(b"water", b"watEr").replace(b'"accuracy": 1', b'"accuracy": 2'))
    if name == "classifier.skops":
        file.write_bytes(before[:-100])
    assert file.read_bytes() != before
    if name != "metrics.json":
        with pytest.raises(RunError, match=name):
            load_feature_classifier(file.parent)
    found = classes("features", "recipe.yaml", "--run-dir", "out")
    assert name in found.output + Path("out/run.log").read_text()
    load_feature_classifier(file.parent)
    if name == "classifier.json":
        assert file.read_bytes() == before


class Stranger:
    """What a file from somewhere else might hold."""

    def __reduce__(self):
        return (Path, ("x",))


@needs_skops
def test_a_file_with_other_classes_is_refused_unread(tmp_path):
    from skops.io import dump

    from distill.classifiers import load

    dump(Stranger(), tmp_path / "classifier.skops")
    with pytest.raises(ModelError, match="types that no registered classifier has"):
        load(tmp_path / "classifier.skops")


def test_skops_that_is_absent_is_named(classes, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "skops" else found(name)
    )
    result = classes("features", "recipe.yaml", "--run-dir", "out", ok=False)
    assert "needs skops, which is not installed" in result.output
