"""Every registered loss on every registered codec that serves it, and the refusal of the others.

Errors and limits are those of `conformance.py`; docs/make_conformance.py runs this file and writes
what it measured into docs/reference/conformance.md.
"""

import re
from dataclasses import replace

import pytest

from distill.objective.losses import LOSSES
from distill.objective.terms import TERM_MODELS, check_served
from teachers.codecs.codec import CODECS
from tests.helpers.conformance import (
    DEPTH,
    PAIRED,
    PROPERTIES,
    REFUSED,
    SERVED,
    SOURCES,
    WIDTH,
    World,
    limit,
    refusal,
)
from tests.helpers.conformance_texts import VOCABULARY, paired, written_answers


@pytest.fixture(scope="module")
def pair_of(make_model, make_examples, make_cache, tmp_path_factory):
    """`pair_of(loss, source)`: the pair on one world, with its whole step known once."""
    models = [make_model(seed, width=WIDTH, layers=DEPTH) for seed in (0, 7)]
    examples = make_examples(4, seed=1, shortest=5, longest=11)
    texts = make_examples(8, seed=2, shortest=5, longest=11)
    answers = [paired(*texts[i : i + 2]) for i in range(0, 8, 2)]
    world = World(
        models[0].requires_grad_(False), models[1], examples, answers, written_answers(examples),
        make_cache, tmp_path_factory.mktemp("conformance"),
    )  # fmt: skip
    exact = {"topk": {"k": VOCABULARY}, "final_hidden": {"kl": 1e-7}}
    fine = replace(world, folder=world.folder / "fine", settings=exact, _caches={}, _pairs={})
    worlds = {"defaults": world, "fine": fine}
    return lambda name, source, which="defaults": worlds[which].pair(name, source)


def test_every_loss_is_served_by_something():
    alone = {name for name, loss in LOSSES.items() if not SOURCES[loss.reads]}
    assert {name for name, _ in SERVED} == set(LOSSES) - alone


def test_every_loss_and_every_source_is_among_the_pairs_of_the_gate():
    for i in (0, 1):
        assert {pair[i] for pair in PAIRED} == {pair[i] for pair in SERVED}


def check_property(pair_of, record_property, name, source, measure):
    error = measure(pair_of(name, source))
    if error is None:
        return
    record_property("conformance", (measure.__name__, name, source, error))
    assert error <= limit(measure, source)


every_property = pytest.mark.parametrize("measure", PROPERTIES, ids=lambda found: found.__name__)


@every_property
@pytest.mark.parametrize(("name", "source"), PAIRED)
def test_property_holds(pair_of, record_property, name, source, measure):
    check_property(pair_of, record_property, name, source, measure)


@every_property
@pytest.mark.parametrize(("name", "source"), [pair for pair in SERVED if pair not in PAIRED])
def test_property_holds_for_every_other_pair(
    full_product, pair_of, record_property, name, source, measure
):
    check_property(pair_of, record_property, name, source, measure)


FINE = {"topk": 2e-2, "final_hidden": 2e-3, "bf16": 2e-2}  # float16 logs, a KL of 1e-7, bfloat16


@pytest.mark.parametrize(("name", "source"), [pair for pair in SERVED if pair[1] in FINE])
def test_a_cache_that_leaves_nothing_out_equals_the_teacher_online(pair_of, name, source):
    """k = V entries, final states to a KL of nothing, states of layers in 16 bits."""
    online, cached = pair_of(name, "online"), pair_of(name, source, "fine")
    assert online.whole.distance(cached.whole) < FINE[source]


@pytest.mark.parametrize(("name", "codec"), REFUSED)
def test_refusal_names_the_loss_the_reason_and_every_codec_that_can(name, codec):
    told = refusal(name, codec)
    assert re.match(rf"{name} .*`{codec}`", told)
    named = set(re.findall(r"`(\w+)`", told)) & set(CODECS) - {codec}
    able = {other for other in SOURCES["distribution"] if other in CODECS}
    able = {other for other in able if refusal(name, other) is None}
    assert named == able
    for other in named:
        check_served(TERM_MODELS[name](), CODECS[other]())
