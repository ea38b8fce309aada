"""The JSON schema of a recipe knows all that is registered."""

import json

from distill.objective.losses import LOSSES
from distill.objective.preference_forms import FORMS
from distill.recipe.schema import Recipe
from students.tuning.method import METHODS
from teachers.codecs.codec import CODECS, LAYER_CODECS


def test_schema_knows_every_registered_loss_codec_and_method():
    text = json.dumps(Recipe.model_json_schema())
    for name in [*LOSSES, *CODECS, *LAYER_CODECS, *METHODS]:
        assert f'"{name}"' in text


def test_schema_gives_each_loss_its_own_parameters():
    terms = Recipe.model_json_schema()["$defs"]
    by_loss = {
        d["properties"]["loss"]["const"]: set(d["properties"])
        for d in terms.values()
        if "const" in d.get("properties", {}).get("loss", {})
    }
    assert set(by_loss) == set(LOSSES)
    reads = {
        "labels": {"on"},
        "distribution": {"source", "on", "temperature", "tail"},
        "sequence": {"source", "form"} | {k for _, f in FORMS.items() for k in f.parameters()},
        "hidden": {"source", "on", "layers"},
        "relation": {"source", "on", "layers", "heads", "relations"},
        "vector": {"source"},
        "order": set(),
        "rewards": {"source", "temperature"},
        "similarity": {"source"},
        "rollouts": set(),
    }
    for name, found in LOSSES.items():
        assert by_loss[name] == {"loss", "weight"} | reads[found.reads] | set(found.parameters())


def test_schema_lets_every_number_of_a_term_follow_the_steps():
    terms = Recipe.model_json_schema()["$defs"]
    for name, found in LOSSES.items():
        own = {key for key, (_, default) in found.parameters().items() if type(default) is float}
        numbers = {"weight", *own} | ({"temperature"} if found.reads == "distribution" else set())
        for number in numbers:
            kinds = terms[f"{name}_term"]["properties"][number]
            assert "Ramp" in json.dumps(kinds), f"{name}.{number}"
