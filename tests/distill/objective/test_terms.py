"""Terms as a user writes them: what is refused, in which words, and what is accepted."""

import pytest

from attar.errors import RecipeError
from distill.objective.losses import LOSSES
from distill.objective.terms import TERM_MODELS, check_served
from distill.run.load import check_recipe
from teachers.codecs.codec import CODECS, is_full_codec
from tests.helpers.definitions import DISTRIBUTION_LOSSES, reading

TAILS = ["drop", "renormalize", "renormalize_both"]
BUCKETS = [name for name, codec in CODECS.items() if codec.tail == "bucket"]
SAMPLES = [name for name, codec in CODECS.items() if codec.tail == "sampled"]
FULL = [name for name, codec in CODECS.items() if is_full_codec(codec)]


def recipe(*objective, codec="topk", section="train", hidden=None, **more):
    """A recipe whose section has these terms."""
    codec = {"name": codec} if isinstance(codec, str) else codec
    values = {
        "data": {"train": "x"}, "teacher": {"model": "y"}, "student": {},
        "cache": {"codec": codec, "hidden": hidden or {}},
        "train": {"objective": [{"loss": "cross_entropy"}]},
    }  # fmt: skip
    values[section] = {"objective": list(objective), **more}
    return check_recipe(values)


def refused(words, *objective, **options):
    """The recipe is refused in one line that says all of it, in this order."""
    with pytest.raises(RecipeError, match=words) as caught:
        recipe(*objective, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Codecs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["train", "specialize"])
@pytest.mark.parametrize("loss", DISTRIBUTION_LOSSES)
@pytest.mark.parametrize("codec", list(CODECS))
def test_recipe_takes_what_serves_a_loss_and_refuses_the_rest_by_its_path(section, loss, codec):
    found, tail = LOSSES[loss], CODECS[codec].tail
    terms = [{"loss": "cross_entropy"}, {"loss": loss}]
    path = rf"`{section}\.objective\[1\]`: {loss}"
    others = r"use `\w+`((, | or )`\w+`)* in `cache\.codec`"
    if CODECS[codec].gives != "distribution":
        words = (
            rf"{path} compares distributions, and .*`{codec}` holds the probability of the text's"
        )
        told = refused(
            rf"{words} own .*; {others}, or `source: online`", *terms, codec=codec, section=section
        )
        assert f"`{codec}`" not in told.split(";")[1]
    elif found.full and tail != "none":
        words = rf"{path} compares every id, .*`{codec}` do not hold; {others}, or `source: online`"
        refused(words, *terms, codec=codec, section=section)
    elif tail == "sampled" and not found.linear:
        words = rf"{path} is not linear .*samples of the codec `{codec}` would bias it; {others}"
        refused(words, *terms, codec=codec, section=section)
    else:
        assert recipe(*terms, codec=codec, section=section).learning()[section].objective


@pytest.mark.parametrize("loss", DISTRIBUTION_LOSSES)
@pytest.mark.parametrize("codec", list(CODECS))
def test_the_teacher_online_serves_every_loss_whatever_the_codec(loss, codec):
    assert recipe({"loss": loss, "source": "online", "temperature": 3.3}, codec=codec)
    assert recipe({"loss": loss, "temperature": 3.3}, codec=codec, source="online")


# Tails -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("codec", [*SAMPLES, *FULL])
def test_a_tail_is_refused_where_there_is_none(tail, codec):
    words = (
        rf"`train\.objective\[0\]`: `tail: {tail}` needs .*`{codec}` has none\. Leave `tail` out"
    )
    told = refused(words, {"loss": "forward_kl", "tail": tail}, codec=codec)
    assert all(f"`{name}`" in told for name in BUCKETS)


@pytest.mark.parametrize("loss", [n for n in DISTRIBUTION_LOSSES if not LOSSES[n].full])
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("codec", BUCKETS)
def test_a_tail_left_out_is_refused_where_the_loss_would_be_wrong(loss, tail, codec):
    found, term = LOSSES[loss], {"loss": loss, "tail": tail}
    if tail == "drop" and not found.linear:
        refused(rf"\[0\]`: {loss} with `tail: drop` is not a divergence.*leave `tail` out", term)
    elif tail == "renormalize" and found.needs_mass:
        refused(rf"\[0\]`: {loss} with `tail: renormalize` is infinite.*leave `tail` out", term)
    else:
        assert recipe(term, codec=codec)


@pytest.mark.parametrize("tail", TAILS)
def test_a_tail_has_no_effect_online(tail):
    term = {"loss": "forward_kl", "tail": tail, "source": "online"}
    refused(r"`train\.objective\[0\]`: `tail` is for stored entries, and `source: online`", term)


@pytest.mark.parametrize("tail", ["bucket", "keep"])
def test_an_unknown_tail_is_told_what_there_is(tail):
    words = rf"`train\.objective\[0\]\.tail`: .*'drop'.*found '{tail}'"
    refused(words, {"loss": "forward_kl", "tail": tail})


# Sources -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["train", "specialize"])
def test_a_section_that_reads_no_teacher_cannot_be_online(section):
    terms = [{"loss": "cross_entropy"}]
    words = rf"`{section}\.source: online` has no effect"
    refused(words, *terms, section=section, source="online")
    cached = [{"loss": "forward_kl", "source": "cache"}, *terms]
    refused(words, *cached, section=section, source="online")


def test_a_term_may_read_another_source_than_its_section():
    terms = [{"loss": "forward_kl"}, {"loss": "jsd", "source": "online", "temperature": 7.0}]
    assert recipe(*terms).train.objective[1].source == "online"
    terms = [{"loss": "forward_kl", "source": "cache", "temperature": 7.0}, {"loss": "jsd"}]
    refused(r"`train\.objective\[0\]\.temperature`", *terms, source="online")


def test_labels_have_no_source_and_no_temperature():
    for key, value in (("source", "online"), ("temperature", 2.0), ("tail", "drop")):
        refused(rf"`train\.objective\[0\]\.{key}` is not", {"loss": "cross_entropy", key: value})


@pytest.mark.parametrize("source", ["online", "cache"])
def test_the_teacher_cannot_learn_from_itself(source):
    values = {"objective": [{"loss": "forward_kl", "source": source}]}
    with pytest.raises(
        RecipeError, match=r"`teacher\.adapt`: the teacher cannot learn from itself"
    ):
        check_recipe(
            {"data": {"train": "x"}, "teacher": {"model": "y", "adapt": values}, "student": {}}
        )


# Numbers and schedules ---------------------------------------------------------------------------


def ramp(first, last, schedule="linear", **more):
    return {"schedule": schedule, "from": first, "to": last, **more}


OUT_OF_RANGE = [
    ({"loss": "forward_kl", "weight": ramp(1.0, -0.5)}, "weight", "-0.5"),
    ({"loss": "cross_entropy", "weight": ramp(-1.0, 0.5)}, "weight", "-1"),
    ({"loss": "cross_entropy", "label_smoothing": ramp(0.1, 1.0)}, "label_smoothing", "1"),
    ({"loss": "jsd", "beta": ramp(0.0, 0.5)}, "beta", "0"),
    ({"loss": "jsd", "beta": {"schedule": "warmup", "to": 0.5}}, "beta", "0"),
    ({"loss": "skew_kl", "alpha": ramp(0.5, 1.0)}, "alpha", "1"),
    ({"loss": "adaptive_kl", "head": {"schedule": "constant", "to": 1.5}}, "head", "1.5"),
    ({"loss": "forward_kl", "temperature": ramp(0.0, 2.0)}, "temperature", "0"),
]


@pytest.mark.parametrize(("term", "key", "end"), OUT_OF_RANGE)
def test_an_end_of_a_schedule_outside_the_range_is_told_by_its_path(term, key, end):
    words = rf"`train\.objective\[0\]\.{key}`: {end} is an end of the schedule: it must be"
    refused(words, term, source="online" if term["loss"] != "cross_entropy" else "cache")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1.5, r"\.beta`: .*below 1.*found 1\.5"),
        (0, r"\.beta`: .*above 0.*found 0"),
        ({"schedule": "linear", "to": 0.5}, r"\.beta`: a `linear` schedule needs `from`"),
        ({"schedule": "cosine", "to": 0.5}, r"\.beta`: a `cosine` schedule needs `from`"),
        (ramp(0.1, 0.5, "constant"), r"\.beta`: a `constant` schedule has only `to`"),
        (ramp(0.1, 0.5, over=[0.5, 0.2]), r"\.beta`: `over` is \[start, end\]"),
        (ramp(0.1, 0.5, over=[0.5, 0.5]), r"\.beta`: `over` is \[start, end\]"),
        (ramp(0.1, 0.5, over=[-1, 5]), r"\.beta`: `over` is \[start, end\]"),
        (ramp(0.1, 0.5, over=[0.5, 300, 2]), r"\.beta\.over`: "),
        (ramp(0.1, 0.5, "step"), r"\.beta\.schedule`: .*'linear'.*found 'step'"),
        (ramp(0.1, 0.5, form=1), r"\.beta\.form` is not a key.*`from`"),
        ({"from": 0.1, "to": 0.5}, r"\.beta\.schedule` is missing"),
        ({"schedule": "linear", "from": 0.1}, r"\.beta\.to` is missing"),
        ("fast", r"\.beta`: .*number.*found 'fast'"),
        ([0.1, 0.5], r"\.beta`: .*number"),
    ],
)  # fmt: skip
def test_a_wrong_number_of_a_term_is_told_by_its_path(value, words):
    refused(rf"`train\.objective\[0\]{words}", {"loss": "jsd", "beta": value})


def test_steps_and_shares_do_not_mix():
    """[0.5, 10] is half of the run and step 10: which comes first is anyone's guess."""
    refused(r"\.weight`: `over`", {"loss": "forward_kl", "weight": ramp(1, 2, over=[0.5, 10])})


@pytest.mark.parametrize("codec", [*BUCKETS, *SAMPLES])
@pytest.mark.parametrize("grid", [[1.0, 2.0], [1.0, 1.5, 2.0]])
def test_a_scheduled_temperature_needs_the_full_distribution(codec, grid):
    options = {"name": codec, **({"temperatures": grid} if codec in BUCKETS else {})}
    term = {"loss": "forward_kl", "temperature": ramp(1.0, 2.0)}
    words = r"`train\.objective\[0\]\.temperature`: .*"
    told = refused(words, term, codec=options)
    assert "final_hidden" in told
    assert recipe({**term, "source": "online"}, codec=options)


@pytest.mark.parametrize("codec", FULL)
def test_the_full_distribution_serves_any_scheduled_temperature(codec):
    assert recipe({"loss": "jsd", "temperature": ramp(4.0, 1.0, "cosine")}, codec=codec)


def test_a_constant_schedule_of_a_stored_temperature_is_that_number():
    term = {"loss": "forward_kl", "temperature": {"schedule": "constant", "to": 2.0}}
    assert recipe(term, codec={"name": "topk", "temperatures": [1.0, 2.0]})


def test_schedules_survive_a_round_trip_through_plain_values():
    term = {"loss": "skew_kl", "weight": ramp(1.0, 0.5, over=[0.1, 0.9]), "alpha": ramp(0.5, 0.1)}
    made = recipe(term)
    assert check_recipe(made.model_dump(by_alias=True, mode="json")) == made


# Layers and relations ----------------------------------------------------------------------------


@pytest.mark.parametrize("loss", reading("hidden", "relation"))
def test_pairs_name_what_the_cache_keeps(loss):
    key, what = ("attention", "block") if loss in reading("relation") else ("layers", "layer")
    term = {"loss": loss, "layers": [[1, 2], [2, 5]]}
    words = (
        rf"`train\.objective\[0\]\.layers` reads teacher {what} 5, which is not in `cache\.hidden"
    )
    refused(rf"{words}\.{key}` \[2, 4\]; add it there", term, hidden={key: [4, 2]})
    assert recipe(term, hidden={key: [2, 5]})
    assert recipe({**term, "source": "online"})


@pytest.mark.parametrize("loss", reading("hidden", "relation"))
@pytest.mark.parametrize("layers", ["cut", "even", "last"])
def test_maps_of_layers_have_names(loss, layers):
    hidden = {"layers": [2], "attention": [2]}
    made = recipe({"loss": loss, "layers": layers}, hidden=hidden)
    assert made.train.objective[0].layers == layers
    words = r"`train\.objective\[0\]\.layers`: .*`cut`, `even`, `last`.*found 'uniform'"
    refused(words, {"loss": loss, "layers": "uniform"}, hidden=hidden)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("heads", 0, r"`train\.objective\[0\]\.heads`: .*at least 1.*found 0"),
        ("heads", 1.5, r"`train\.objective\[0\]\.heads`: .*whole number"),
        ("relations", [], r"`train\.objective\[0\]\.relations`: .*at least 1"),
        ("relations", ["output"], r"`train\.objective\[0\]\.relations\[0\]`: .*'query'"),
    ],
)
def test_keys_of_a_relation_are_checked(key, value, words):
    refused(words, {"loss": "relation", key: value}, hidden={"attention": [2]})


@pytest.mark.parametrize("loss", list(LOSSES))
def test_what_the_recipe_calls_a_term_is_what_the_term_says(loss):
    term = TERM_MODELS[loss]()
    assert term.loss == loss
    assert set(term.loss_parameters()) == set(LOSSES[loss].parameters())
    if loss in DISTRIBUTION_LOSSES:
        for codec in FULL:
            check_served(term, CODECS[codec]())
