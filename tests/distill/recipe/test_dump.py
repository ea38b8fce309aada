"""Whatever a section of a recipe says, its dump says the same."""

import json
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from attar.config import Section
from distill.recipe.parse import parse_yaml
from distill.recipe.schema import Recipe
from distill.run.load import check_recipe, short_form
from distill.training.arms import ARMS
from distill.training.train_config import TrainConfig


def sections_in(annotation):
    """The section models inside an annotation, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [model for part in get_args(annotation) for model in sections_in(part)]


def all_sections():
    found, waiting = {}, [Recipe]
    while waiting:
        model = waiting.pop()
        if model.__name__ not in found:
            found[model.__name__] = model
            for field in model.model_fields.values():
                waiting += sections_in(field.annotation)
    return found


SECTIONS = all_sections()
VALID = {  # few values would do by chance
    "url": "http://localhost:8000", "key_env": "BIG_KEY", "over": {"train.lr": [1e-3, 1e-4]},
    "rungs": [0.25, 1.0], "front": ["quality", "bytes"], "budget": "90m",
}  # fmt: skip
WORDS = ["all", "last", "last:2", "head", "0.5", "60%", "finetune", "bf16", "topk", "x"]


def values_of(annotation, name=""):
    """Plain values as a recipe may hold for an annotation; many of them valid."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return keys_of(annotation)
    kind = get_origin(annotation)
    if kind is Literal:
        return st.sampled_from(get_args(annotation))
    if kind is Union or kind is type(int | str):
        return st.one_of([values_of(part, name) for part in get_args(annotation)])
    if kind is list:
        return st.lists(values_of(get_args(annotation)[0], name), min_size=1, max_size=2)
    if kind is tuple:
        return st.tuples(*map(values_of, get_args(annotation))).map(list)
    if kind is not None and annotation is not Any and not isinstance(annotation, type):
        parts = [part for part in get_args(annotation) if not isinstance(part, FieldInfo)]
        return values_of(parts[0], name)  # Annotated
    simple = {
        bool: st.booleans(),
        int: st.integers(1, 9),
        float: st.sampled_from([0.25, 0.5, 0.125]),
        str: st.sampled_from(WORDS),
        type(None): st.none(),
    }
    return simple.get(annotation, st.just({}))


def keys_of(model):
    """Plain values of a section: what it must have, and up to three of its other keys."""
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    needed = {key for key, field in fields.items() if field.is_required()}
    tags = {
        key: field.default
        for key, field in fields.items()
        if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
    }
    free = sorted(fields.keys() - needed - tags.keys())

    def with_keys(chosen):
        keys = sorted(needed | set(chosen))
        values = {
            key: st.just(VALID[key]) if key in VALID else values_of(fields[key].annotation)
            for key in keys
        }
        return st.fixed_dictionaries(values).map(
            lambda found: {**{k: v for k, v in tags.items() if k not in needed}, **found}
        )

    return (
        st.lists(st.sampled_from(free), max_size=3, unique=True).flatmap(with_keys)
        if free
        else with_keys([])
    )


@pytest.mark.parametrize("name", sorted(SECTIONS))
@settings(
    max_examples=10,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(data=st.data())
def test_every_section_survives_dump_and_validate(name, data):
    model = SECTIONS[name]
    try:
        section = model.model_validate(data.draw(keys_of(model)))
    except ValidationError:
        assume(False)
    assert model.model_validate(section.model_dump()) == section
    assert model.model_validate_json(section.model_dump_json()) == section
    plain = section.model_dump(mode="json")
    assert model.model_validate(parse_yaml(yaml.safe_dump(plain), "dump")) == section


@pytest.mark.parametrize("arm", list(ARMS))
def test_what_an_arm_trains_by_survives_dump_and_validate(arm):
    keys = {"unfreeze": {"every": 2, "from": "bottom"}, "layer_lr_decay": 0.9}
    config = ARMS[arm].configure(TrainConfig.model_validate(keys), "cross_entropy")
    assert type(config).model_validate(json.loads(json.dumps(config.model_dump()))) == config


# The recipe on a model card ----------------------------------------------------------------------

SMALL = {"data": {"train": "x"}, "teacher": {"model": "y"}, "student": {}}
ON_CARDS = {
    "defaults": {},
    "kinds at their defaults": {
        "cache": {"codec": {"name": "topk"}, "hidden": {"layers": [1], "codec": "bf16"}},
        "train": {"objective": [{"loss": "forward_kl"}, {"loss": "hidden_mse", "weight": 0.5}]},
        "specialize": {"method": "lora", "data": {"train": "z"}, "rank": 4},
    },
    "kinds with keys": {
        "cache": {"codec": {"name": "hybrid", "k": 4}},
        "train": {
            "objective": [{"loss": "forward_kl", "weight": {"schedule": "linear", "from": 0,
                                                            "to": 1}}],
            "unfreeze": {"every": 2, "from": "bottom"},
            "arms": [],
        },
        "export": {"artifacts": ["bf16", "gguf-q8_0"], "recover": {"lr": 0.001}},
    },
    "a fresh student": {"student": {"from": {"num_hidden_layers": 2}}},
    "classes": {"task": "sequence-classification", "data": {"train": "x", "label_column": "c"}},
    "vectors": {"task": "embedding", "data": {"train": "x", "pooling": "mean"}},
    "masks": {"task": "masked-lm", "train": {"objective": [{"loss": "forward_kl"}]}},
    "a default of the schema, not of the task": {
        "task": "sequence-classification", "cache": {"codec": "classes", "shard_tokens": 7},
    },
}  # fmt: skip


@pytest.mark.parametrize("changes", ON_CARDS.values(), ids=ON_CARDS)
def test_the_recipe_on_a_card_is_the_run_s(changes):
    recipe = check_recipe({**SMALL, **changes})
    card = yaml.safe_dump(short_form(recipe), sort_keys=False)
    assert check_recipe(parse_yaml(card, "card")) == recipe


def test_the_recipe_on_a_card_leaves_defaults_out():
    assert short_form(check_recipe(SMALL)) == SMALL
