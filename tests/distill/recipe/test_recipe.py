"""A recipe says everything about a run, and every mistake in it is told with its mend."""

import json

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attar.errors import RecipeError
from distill.recipe.other_names import OTHER_NAMES
from distill.recipe.parse import parse_yaml
from distill.recipe.schema import Recipe
from distill.run.load import check_recipe, load_recipe, recipe_schema, short_form

GOOD = """
task: causal-lm
data: {train: train.jsonl, held_out: 0.1, max_length: 256}
teacher: {model: some/teacher}
cache:
  codec: {name: topk, k: 16, temperatures: [1.0, 2.0]}
  hidden: {layers: [4, 2], codec: int8}
student: {from: teacher, layers: {keep: 3, by: even}}
train:
  objective:
    - {loss: forward_kl, weight: 1.0, temperature: 2.0}
    - {loss: cross_entropy, weight: 0.1}
    - {loss: hidden_mse, layers: [[1, 2]]}
  lr: 2e-4
  arms: [finetune]
"""


@pytest.fixture
def load(tmp_path):
    """`load("a.b=c", ..., text=GOOD)`: the recipe of a file with overrides."""

    def read(*overrides, text=GOOD):
        (tmp_path / "recipe.yaml").write_text(text)
        return load_recipe(str(tmp_path / "recipe.yaml"), overrides)

    return read


def set_in(path, value):
    """The good recipe's values with one key changed; the path is a list of keys."""
    values = here = parse_yaml(GOOD, "test")
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    return values


@pytest.mark.parametrize("section", ["specialize", "features"])
def test_data_of_a_section_are_cut_as_the_runs_where_it_names_no_length(load, section):
    own = f"{section}.data.train=own.jsonl"
    recipe = load(own)
    assert getattr(recipe, section).data.max_length == recipe.data.max_length == 256
    assert "max_length" not in short_form(recipe)[section]["data"]
    for length in (64, 1024):
        recipe = load(own, f"{section}.data.max_length={length}")
        assert getattr(recipe, section).data.max_length == length
        assert check_recipe(short_form(recipe)) == recipe


def test_good_recipe_says_what_it_says(load):
    recipe = load()
    assert recipe.train.lr == 2e-4
    assert recipe.cache.codec.k == 16
    assert recipe.cache.hidden.layers == [2, 4]
    assert [term.loss for term in recipe.train.objective] == [
        "forward_kl",
        "cross_entropy",
        "hidden_mse",
    ]
    assert recipe.train.objective[2].layers == [(1, 2)]


def test_smallest_recipe_distils_into_a_copy_with_a_control_arm():
    recipe = check_recipe({"data": {"train": "x"}, "teacher": {"model": "y"}, "student": {}})
    assert recipe.student.from_ == "teacher"
    assert [term.loss for term in recipe.train.objective] == ["forward_kl"]
    assert recipe.train.arms == ["finetune"]


def test_round_trip_through_plain_values(load):
    recipe = load()
    plain = recipe.model_dump(by_alias=True, mode="json")
    assert check_recipe(plain) == recipe
    assert check_recipe(parse_yaml(yaml.safe_dump(plain), "dump")) == recipe


# Numbers and overrides ---------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "1E-4", "+1e-4", ".1e-3", "10e-5"])
def test_scientific_notation_is_a_number(load, text):
    assert load(text=GOOD.replace("2e-4", text)).train.lr == pytest.approx(1e-4)
    assert load(f"train.lr={text}").train.lr == pytest.approx(1e-4)
    assert isinstance(parse_yaml(f"x: {text}", "test")["x"], float)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_that_python_prints_is_read_back(value):
    assert parse_yaml(f"[{value!r}]", "test") == [value]


@pytest.mark.parametrize("text", ["e4", "1e", "a1e-4", "1e-4b", "v1.e5x", "2024-01-01x"])
def test_names_that_look_like_numbers_stay_names(text):
    assert parse_yaml(f"x: {text}", "test")["x"] == text


def test_overrides_reach_keys_list_items_and_absent_sections(load):
    recipe = load(
        "train.objective.0.weight=0.5",
        "train.objective.2.layers=[[2, 8]]",
        "cache.hidden.layers.0=8",
        "specialize.method=lora",
        "cache.dir=null",
        "seed=7",
        "data.held_out=split:validation",
    )
    assert recipe.train.objective[0].weight == 0.5
    assert recipe.train.objective[2].layers == [(2, 8)]
    assert recipe.cache.hidden.layers == [2, 8]
    assert recipe.specialize.method == "lora"
    assert recipe.cache.dir is None
    assert recipe.seed == 7
    assert recipe.data.held_out == "split:validation"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.lr", "KEY=VALUE"),
        ("=3", "KEY=VALUE"),
        ("train.objective.7.weight=1", "`7` is not one of the 3 items"),
        ("train.objective.first.weight=1", "`first` is not one of the 3 items"),
        ("train.objective.-1.weight=1", "`-1` is not one of the 3 items"),
        ("cache.hidden.layers.0.x=1", "cache.hidden.layers.0.x"),
        ("cache.hidden.layers.0.x.y=1", "cache.hidden.layers.0.x.y"),
        ("train.lr=[1", "not valid YAML"),
        ("train.lrr=1", "`train.lr`|`lr`"),
        ("train.lr=fast", "`train.lr`"),
    ],
)
def test_wrong_override_is_told_by_its_key(load, override, words):
    with pytest.raises(RecipeError, match=words):
        load(override)


# Mistakes ----------------------------------------------------------------------------------------

MISTAKES = {
    "unknown section": (["trian"], {}, r"`trian` is not a key.*`train`"),
    "unknown key": (["train", "leraning_rate"], 1.0, r"`train\.leraning_rate` is not a key"),
    "nearest key": (["data", "max_lenght"], 5, r"`data\.max_lenght` is not .*`max_length`"),
    "key of a term": (
        ["train", "objective", 0, "temprature"],
        2.0,
        r"`train\.objective\[0\]\.temprature` is not .*`temperature`",
    ),
    "key of another loss": (
        ["train", "objective", 1, "layers"],
        [[1, 2]],
        r"`train\.objective\[1\]\.layers` is not a key",
    ),
    "key of another section": (["lr"], 1e-4, r"`lr` is not a key.*`train\.lr`"),
    "wrong type": (["train", "lr"], "fast", r"`train\.lr`: .*number.*found 'fast'"),
    "out of range": (["train", "lr"], -1.0, r"`train\.lr`: .*above 0 .*found -1"),
    "not a number": (["train", "lr"], float("nan"), r"`train\.lr`"),
    "fraction of a whole": (["train", "batch_size"], 2.5, r"`train\.batch_size`: .*whole number"),
    "negative weight": (["train", "objective", 1, "weight"], -1, r"objective\[1\]\.weight`"),
    "loss": (
        ["train", "objective", 0, "loss"],
        "foward_kl",
        r"`train\.objective\[0\]`.*no `foward_kl`.*`forward_kl`",
    ),
    "codec": (["cache", "codec", "name"], "topq", r"`cache\.codec.*topk"),
    "hidden codec": (["cache", "hidden", "codec"], "int7", r"`cache\.hidden\.codec`.*`int8`"),
    "temperatures": (["cache", "codec", "temperatures"], [0.0], r"`cache\.codec\.temperatures`"),
    "choice": (["train", "schedule"], "cosin", r"`train\.schedule`: .*'cosine'"),
    "share": (["data", "held_out"], 2.0, r"`data\.held_out.*between 0 and 1"),
    "no objective": (["train", "objective"], [], r"`train\.objective`"),
    "objective without a list": (["train", "objective"], "forward_kl", r"`train\.objective`"),
    "temperature not cached": (
        ["train", "objective", 0, "temperature"],
        3.0,
        r"`train\.objective\[0\]\.temperature`: .*\[1\.0, 2\.0\].* 3; .*cache\.codec\.temperatures",
    ),
    "temperature of samples": (
        ["cache", "codec"],
        {"name": "hybrid", "k": 16},
        r"`train\.objective\[0\]\.temperature`: .*`hybrid` .* asks for 2; use `final_hidden`",
    ),
    "codec without a name": (["cache", "codec"], {"k": 16}, r"`cache\.codec` lacks `name`"),
    "term without a loss": (
        ["train", "objective", 1],
        {"weight": 2.0},
        r"`train\.objective\[1\]` lacks `loss`",
    ),
    "key of another codec": (
        ["cache", "codec"],
        {"name": "topk", "draws": 4},
        r"`cache\.codec\.draws` is not a key.*name, k, temperatures",
    ),
    "key of a hidden codec": (
        ["cache", "hidden", "codec"],
        {"name": "basis", "stap": 0.2},
        r"`cache\.hidden\.codec\.stap` is not a key.*`step`",
    ),
    "value of a hidden codec": (
        ["cache", "hidden", "codec"],
        {"name": "basis", "step": 0.0},
        r"`cache\.hidden\.codec\.step`: .*above 0 .*found 0",
    ),
    "layer not cached": (
        ["train", "objective", 2, "layers"],
        [[1, 3]],
        r"`train\.objective\[2\]\.layers`.*layer 3.*cache\.hidden\.layers",
    ),
    "cut of a fresh model": (["student", "from"], {"hidden_size": 16}, r"layers.*random weights"),
    "section that is a word": (["student"], "teacher", r"`student`"),
    "teacher that learns from itself": (
        ["teacher", "adapt"],
        {"objective": [{"loss": "forward_kl"}]},
        r"`teacher\.adapt`.*cross_entropy",
    ),
    "no such method": (["specialize"], {"method": "lorra"}, r"`specialize`.*no `lorra`.*`lora`"),
    "key of no method": (
        ["specialize"],
        {"method": "prefix", "virtual_token": 4},
        r"`specialize\.virtual_token` is not a key.*`virtual_tokens`",
    ),
    "key of another method": (
        ["specialize"],
        {"method": "lora", "base": "nf4"},
        r"`specialize\.base` is not a key",
    ),
    "value of a method's key": (
        ["specialize"],
        {"method": "p_tuning", "encoder": "gru"},
        r"`specialize\.encoder`: .*'lstm'.*found 'gru'",
    ),
    "pissa on 4 bits": (
        ["specialize"],
        {"init": "pissa"},
        r"`specialize`: `init: pissa` decomposes the weights.*use `method: lora`",
    ),
    "prefix with checkpointing": (
        ["specialize"],
        {"method": "prefix", "gradient_checkpointing": True},
        r"`specialize`: prefix gives every block its keys and values.*gradient_checkpointing",
    ),
}


@pytest.mark.parametrize(("path", "value", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake_names_its_path_and_its_mend(path, value, words):
    with pytest.raises(RecipeError, match=words) as caught:
        check_recipe(set_in(path, value))
    assert "\n" not in str(caught.value)
    assert ".." not in str(caught.value)


def test_a_codec_of_hidden_states_is_a_name_or_a_name_and_parameters():
    for value, step in (("basis", 0.4), ({"name": "basis", "step": 0.1}, 0.1)):
        codec = check_recipe(set_in(["cache", "hidden", "codec"], value)).cache.hidden.codec
        assert (codec.name, codec.step) == ("basis", step)


@pytest.mark.parametrize("section", ["data", "teacher"])
def test_missing_section_is_named(section):
    values = parse_yaml(GOOD, "test")
    del values[section]
    with pytest.raises(RecipeError, match=f"`{section}` is missing"):
        check_recipe(values)


def test_missing_key_is_named():
    with pytest.raises(RecipeError, match=r"`teacher\.model` is missing"):
        check_recipe(set_in(["teacher"], {}))


def test_temperatures_of_specialising_are_checked_too():
    special = {"objective": [{"loss": "forward_kl", "temperature": 4.0}]}
    with pytest.raises(RecipeError, match=r"`specialize\.objective\[0\]\.temperature`"):
        check_recipe(set_in(["specialize"], special))


def test_missing_file_tells_how_to_start(tmp_path):
    with pytest.raises(RecipeError, match="distill init"):
        load_recipe(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize("text", ["", "- a\n- b", "just words", "3"])
def test_file_that_is_no_mapping_is_refused(load, text):
    with pytest.raises(RecipeError, match="is not a recipe"):
        load(text=text)


def test_broken_yaml_gives_its_line(load):
    with pytest.raises(RecipeError, match=r"not valid YAML.*line 3"):
        load(text="data:\n  train: x\n  : [\n")


def test_key_written_twice_is_refused(load):
    """YAML keeps the last one silently: a setting without effect."""
    with pytest.raises(RecipeError, match="lr"):
        load(text=GOOD + "  lr: 5e-5\n")


def test_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"data: \xff\xfe\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        load_recipe(str(tmp_path / "recipe.yaml"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
PATHS = [
    ["data"], ["data", "train"], ["data", "held_out"], ["teacher", "model"], ["teacher", "adapt"],
    ["cache"], ["cache", "codec"], ["cache", "codec", "name"], ["cache", "hidden", "layers"],
    ["student"], ["student", "from"], ["student", "layers"], ["train"], ["train", "objective"],
    ["train", "objective", 0], ["train", "objective", 0, "loss"],
    ["train", "objective", 2, "layers"], ["train", "arms"], ["specialize"], ["export"],
]  # fmt: skip


def outcome(values):
    """The checked recipe, or the message of the error that a user would read."""
    try:
        return check_recipe(values)
    except RecipeError as error:
        return str(error)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=100)
@given(st.sampled_from(PATHS), JSON)
def test_whatever_stands_at_a_key_is_accepted_or_refused_in_one_line(path, value):
    told = outcome(set_in(path, value))
    if isinstance(told, str):
        assert told.strip()
    else:
        assert check_recipe(told.model_dump(by_alias=True, mode="json")) == told


def test_a_method_brings_its_own_keys_to_those_of_a_training():
    special = {"method": "p_tuning", "encoder": "lstm", "lr": 1e-2, "data": {"train": "x"}}
    recipe = check_recipe(set_in(["specialize"], special))
    assert (recipe.specialize.encoder, recipe.specialize.lr) == ("lstm", 1e-2)
    again = check_recipe(recipe.model_dump(by_alias=True, mode="json"))
    assert again.specialize == recipe.specialize


# The schema --------------------------------------------------------------------------------------


# Names of other tools ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.learning_rate=1e-4", r"Did you mean `lr`\?"),
        ("train.num_train_epochs=3", r"Did you mean `epochs`\?"),
        ("train.per_device_train_batch_size=4", r"Did you mean `batch_size`\?"),
        ("teacher.adapt.learning_rate=1e-4", r"Did you mean `lr`\?"),
        ("export.recover.warmup_ratio=0.1", r"Did you mean `warmup`\?"),
        ("learning_rate=1e-4", r"Did you mean `train\.lr`\?"),
        ("data.max_seq_length=8", r"Did you mean `max_length`\?"),
        ("train.max_seq_length=8", r"Did you mean `data\.max_length`\?"),
        ("specialize.lora_r=8", r"Did you mean `rank`\?"),
        ("teacher.model_name_or_path=x", r"Did you mean `model`\?"),
        ("output_dir=x", "--run-dir"),
    ],
)
def test_a_name_of_another_tool_is_told_by_ours(load, override, words):
    with pytest.raises(RecipeError, match=words):
        load(override)


def test_every_name_of_another_tool_leads_to_a_key():
    schema = json.dumps(recipe_schema())
    for key, place in OTHER_NAMES.items():
        assert f'"{place.split(".")[-1]}"' in schema, key
        assert place.split(".")[0] in Recipe.model_fields, key
