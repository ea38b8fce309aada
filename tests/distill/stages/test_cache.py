"""A cache is offered to another teacher, tokenizer or recipe: refused, and the field is named."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from attar.errors import CacheError
from distill.run.context import Run
from distill.run.load import load_recipe
from distill.stages.cache import cache_manifest, make_cache, open_cache
from distill.stages.small_cache import labels_of_examples
from teachers.cache.store import SignalStore
from tests.helpers.judging import preferences, prepare_parts


def run_with(*changes):
    """The recipe of the current folder with changes, its data prepared; one cache for all."""
    run = Run(load_recipe("recipe.yaml", ("cache.dir=cache", *changes)), Path("+".join(changes)))
    run.prepare_data()
    return run


@pytest.fixture
def begun(workshop):
    """A cache that the recipe began; what fits it is known from its manifest."""
    run = run_with("seed=0")
    SignalStore(run.cache_url).begin(cache_manifest(run))
    return run


def refused(run, field):
    """By whoever reads it, and by whoever would go on with it."""
    for use in (open_cache, make_cache):
        with pytest.raises(CacheError, match=rf"made with {field} = .* the recipe asks for .*"):
            use(run)
    with pytest.raises(CacheError, match="made with"):
        SignalStore(run.cache_url).begin(cache_manifest(run))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("teacher.dtype=bfloat16", r"teacher\.dtype"),
        ("teacher.quantization=int8", r"teacher\.quantization"),
        ("data.max_length=40", r"data\.max_length"),
        ("cache.codec.k=8", r"codec\.k"),
        ("cache.codec.temperatures=[1.0, 2.0]", r"codec\.temperatures"),
        ("cache.codec={name: hybrid}", r"codec\.name"),
        ("cache.hidden.layers=[2]", r"hidden\.layers"),
        ("cache.hidden.codec=bf16", r"hidden\.codec"),
    ],
)
def test_other_setting_is_refused_by_name(begun, change, field):
    refused(run_with(change), field)


def test_other_weights_are_refused_by_name(begun, make_model):
    make_model(5, width=64, layers=4, vocabulary=320).save_pretrained("teacher")
    refused(run_with("seed=1"), r"teacher\.weights")


def test_other_tokenizer_is_refused_by_name(begun, tokenizer):
    tokenizer.add_tokens(["<|extra|>"])
    tokenizer.save_pretrained("teacher")
    refused(run_with("seed=1"), r"tokenizer\.vocabulary")


def test_other_chat_template_is_refused_by_name(begun, tokenizer):
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "helper")
    tokenizer.save_pretrained("teacher")
    refused(run_with("seed=1"), r"tokenizer\.chat_template")


def test_same_recipe_fits(begun):
    again = run_with("train.lr=1e-4")
    SignalStore(again.cache_url).check_fits(cache_manifest(again))
    with pytest.raises(CacheError, match="still being built"):
        open_cache(again)


def test_labels_are_those_of_both_texts_of_a_pair(tokenizer, tmp_path):
    parts, _ = prepare_parts(tokenizer, tmp_path, preferences(12))
    run = SimpleNamespace(prepare_data=lambda: None, all_examples=lambda: [parts["train"]])
    labels = labels_of_examples(run)
    for pair in parts["train"]:
        got = labels([text.key for text in pair.texts])
        assert [one.tolist() for one in got] == [t.counted_labels.tolist() for t in pair.texts]
    assert labels(["unknown"]) == [None]
