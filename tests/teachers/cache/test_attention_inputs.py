"""Queries, keys and values from a cache: inputs through the codec, frozen maps in the assets."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from attar.errors import CacheError, ModelError, RecipeError
from attar.models.attention import linear_map
from teachers.cache.attention_inputs import attention_from_inputs, projection_assets
from teachers.cache.config import CacheConfig, HiddenStatesConfig, manifest_of
from teachers.cache.reader import SignalCache
from teachers.cache.records import manifest_identity
from teachers.cache_tools.convert import converted
from teachers.cache_tools.ensemble import mixed
from teachers.cache_tools.rewrite import merged, sliced, write_cache
from teachers.cache_tools.statistics import statistics
from teachers.cache_tools.verify import compare_with_teacher, teacher_of, verify
from teachers.codecs.layer_states import Bfloat16
from teachers.codecs.pca_basis import Basis
from teachers.codecs.topk import TopK
from teachers.load import TeacherConfig, load_teacher
from teachers.online import OnlineTeacher
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request

KEPT = {"layers": [1], "attention": [1, 2], "codec": "bf16"}
NAMES = ("queries_NC", "keys_ND", "values_ND")


@pytest.fixture(scope="module")
def examples(make_examples):
    return make_examples(30, seed=3)


def online(model, examples, blocks, layers=()):
    """Each example's signals one by one, in the order of keys."""
    teacher = OnlineTeacher(model, 97, list(layers), blocks)
    found = []
    for example in sorted(examples, key=lambda example: example.key):
        ids_BT = torch.from_numpy(example.input_ids)[None]
        where_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
        where_BT[0, example.counted] = True
        found.append(teacher.signals({"input_ids": ids_BT, "attention_mask": None}, where_BT))
    return found


def joined(parts, block, name):
    return torch.cat([getattr(part.attention(block), name) for part in parts])


def apart(one, other):
    """The relative error."""
    return float((one - other).norm() / other.norm())


# Building and reading --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "allowed"),
    [("bf16", 0.003), ("int8", 0.01), ("basis", 0.13), ({"name": "basis", "step": 0.05}, 0.02)],
)
def test_the_cache_gives_what_the_teacher_makes(built, teachers, examples, signals, codec, allowed):
    stored = signals(built("topk", layers={**KEPT, "codec": codec}))
    parts = online(teachers[0], examples, [1, 2])
    for block in (1, 2):
        found = stored.attention(block)
        assert (found.num_heads, found.num_kv_heads) == (4, 2)
        assert found is stored.attention(block)  # decoded once
        for name, width in zip(NAMES, (32, 16, 16), strict=True):
            states = getattr(found, name)
            assert states.shape == (stored.num_tokens, width)
            assert states.dtype == torch.float32
            assert apart(states, joined(parts, block, name)) < allowed


def test_bf16_is_exact_to_rounding_of_the_inputs(built, teachers, examples, signals):
    stored = signals(built("topk", layers=KEPT))
    inputs_NH = stored.states("attention_2")
    again = attention_from_inputs(inputs_NH, projection_assets(teachers[0], 2))
    for name in NAMES:
        assert torch.equal(getattr(stored.attention(2), name), getattr(again, name))


def test_layers_and_distributions_stay_what_they_were(built, signals):
    one, other = built("hybrid", layers=KEPT), built("hybrid", layers={**KEPT, "attention": []})
    assert torch.equal(signals(one).hidden(1), signals(other).hidden(1))
    here, there = signals(one).distribution(1.0), signals(other).distribution(1.0)
    assert torch.equal(here.ids_NK, there.ids_NK)
    assert torch.equal(here.logprobs_NK, there.logprobs_NK)


def test_a_block_that_is_not_cached_is_refused_by_its_key(built, signals):
    with pytest.raises(RecipeError, match=r"add it to `cache\.hidden\.attention` \(now \[1, 2\]"):
        signals(built("topk", layers=KEPT)).attention(3)
    with pytest.raises(RecipeError, match=r"block 1 is not in the cache.*now \[\]"):
        signals(built("topk")).attention(1)


@pytest.mark.parametrize("block", [0, 3])
def test_blocks_that_the_teacher_lacks_are_refused_before_it_runs(tiny_model, block):
    config = CacheConfig.model_validate({"hidden": {"attention": [block]}})
    with pytest.raises(ModelError, match=f"Block {block} does not exist.* blocks 1 to 2"):
        TeacherRunner(tiny_model, 97, config)


def test_nothing_is_run_to_learn_where_no_codec_learns(tiny_model):
    config = CacheConfig.model_validate({"hidden": KEPT})
    learned = TeacherRunner(tiny_model, 97, config).learn([])
    assert set(learned) == {"attention_1", "attention_2"}
    maps = {"heads", "query_weight", "key_weight", "value_weight"}
    assert set(learned["attention_1"]) == maps
    assert torch.equal(
        learned["attention_1"]["key_weight"], tiny_model.model.layers[0].self_attn.k_proj.weight
    )


# The manifest ----------------------------------------------------------------------------------


def test_without_attention_a_manifest_is_what_it_was():
    plain = CacheConfig.model_validate({"hidden": {"layers": [2, 1, 2], "codec": "bf16"}})
    empty = CacheConfig.model_validate({"hidden": {**KEPT, "layers": [1, 2], "attention": []}})
    was = {"layers": [1, 2], "codec": {"name": "bf16"}}
    assert plain.hidden.model_dump() == empty.hidden.model_dump() == was
    assert json.loads(plain.model_dump_json())["hidden"] == was
    assert list(plain.model_dump()["hidden"]) == ["layers", "codec"]
    manifests = [manifest_of(one, {}, {}, {}) for one in (plain, empty)]
    assert manifest_identity(manifests[0]) == manifest_identity({**manifests[1], "hidden": was})


def test_attention_is_named_in_the_manifest(built, signals):
    url = built("topk", layers={**KEPT, "attention": [2, 1, 2]})
    assert SignalCache(url).manifest["hidden"]["attention"] == [1, 2]
    assert HiddenStatesConfig(attention=[2, 1]).parts == ["attention_1", "attention_2"]
    assert "attention" in HiddenStatesConfig.model_json_schema()["properties"]


def test_a_cache_without_attention_does_not_serve_a_recipe_with_it(built):
    cache = SignalCache(built("topk"))
    wanted = {**cache.manifest, "hidden": {**cache.manifest["hidden"], "attention": [1]}}
    with pytest.raises(CacheError, match=r"made with hidden\.attention = None.*asks for \[1\]"):
        cache.store.check_fits({"hidden": wanted["hidden"]})


# Caches made from caches -------------------------------------------------------------------------


def test_a_slice_keeps_or_drops_blocks(built, signals, tmp_path):
    whole = built("nucleus", layers={**KEPT, "codec": "basis"})
    keys = sorted(SignalCache(whole).keys())[:9]
    write_cache(sliced(whole, examples=9), str(tmp_path / "all"))
    write_cache(sliced(whole, examples=9, layers=[], attention=[2]), str(tmp_path / "one"))
    for name in NAMES:
        expected = getattr(signals(whole, keys).attention(2), name)
        assert torch.equal(getattr(signals(tmp_path / "all").attention(2), name), expected)
        assert torch.equal(getattr(signals(tmp_path / "one").attention(2), name), expected)
    part = SignalCache(str(tmp_path / "one"))
    assert part.config.hidden.parts == ["attention_2"]
    assert {part for part in part.assets if part != "probe"} == {"attention_2", "distribution"}
    with pytest.raises(CacheError, match=r"no attention of block 3; it has \[1, 2\]"):
        sliced(whole, attention=[3])


def test_a_slice_without_attention_is_the_cache_that_never_had_it(built, tmp_path):
    write_cache(sliced(built("nucleus", layers=KEPT), attention=[]), str(tmp_path / "part"))
    direct = built("nucleus", layers={**KEPT, "attention": []})
    for path in (tmp_path / "part").rglob("*.*"):
        assert (
            path.read_bytes()
            == (tmp_path / direct / path.relative_to(tmp_path / "part")).read_bytes()
        )


def test_merged_caches_give_the_same(built, signals, tmp_path):
    parts = [
        built("topk", part=slice(0, 14), layers=KEPT),
        built("topk", part=slice(14, 30), layers=KEPT),
    ]
    write_cache(merged(parts), str(tmp_path / "merge"))
    whole = built("topk", layers=KEPT)
    for name in NAMES:
        found = getattr(signals(tmp_path / "merge").attention(1), name)
        assert torch.equal(found, getattr(signals(whole).attention(1), name))


def test_maps_of_another_teacher_are_not_merged(built, cache_of, make_model, examples, tmp_path):
    other = cache_of(
        tmp_path / "other", make_model(5), examples, {"name": "topk"}, layers=KEPT, name="teacher 0"
    )
    with pytest.raises(
        CacheError, match=r"teacher's maps .*attention_\d.*come from different teachers"
    ):
        merged([built("topk", part=slice(0, 14), layers=KEPT), other])


def test_learned_codes_are_still_what_cannot_be_merged(built):
    kept = {**KEPT, "layers": [], "codec": "basis"}
    parts = [built("topk", part=part, layers=kept) for part in (slice(0, 14), slice(14, 30))]
    with pytest.raises(CacheError, match=r"learned `basis` \(attention_\d\).*--hidden int8"):
        merged(parts)


def test_attention_and_layers_go_into_another_codec_together(built, signals, tmp_path):
    url = built("topk", layers=KEPT)
    write_cache(converted(url, layer_codec=Basis(step=0.1)), str(tmp_path / "basis"))
    write_cache(converted(str(tmp_path / "basis"), layer_codec=Bfloat16()), str(tmp_path / "back"))
    was, now = signals(url), signals(tmp_path / "basis")
    back = SignalCache(str(tmp_path / "back"))
    assert back.manifest["hidden"] == SignalCache(url).manifest["hidden"]
    assert "mean" not in back.assets["attention_1"]
    for block in (1, 2):
        for name in NAMES:
            one, other = getattr(now.attention(block), name), getattr(was.attention(block), name)
            assert 0 < apart(one, other) < 0.05
            again = getattr(signals(tmp_path / "back").attention(block), name)
            assert apart(again, one) < 0.005
    assert apart(now.hidden(1), was.hidden(1)) < 0.03


def test_converting_distributions_leaves_attention_as_it_is(built, signals, tmp_path):
    url = built("topk", layers=KEPT)
    write_cache(converted(url, codec=TopK(k=4)), str(tmp_path / "small"))
    assert SignalCache(str(tmp_path / "small")).manifest["hidden"]["attention"] == [1, 2]
    one, other = signals(url).attention(2), signals(tmp_path / "small").attention(2)
    assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in NAMES)


def test_a_mixture_leaves_attention_out_and_says_so(built, tmp_path, caplog):
    members = [(built("topk", teacher, layers=KEPT), 1.0) for teacher in (0, 1)]
    write_cache(mixed(members, TopK(k=8)), str(tmp_path / "mixture"))
    assert "Attention inputs of blocks [1, 2] of" in caplog.text
    made = SignalCache(str(tmp_path / "mixture"))
    assert made.config.hidden.parts == []
    assert "attention" not in made.manifest["hidden"]


def test_statistics_count_attention(built):
    found = statistics(built("topk", layers=KEPT))
    assert found.attention == [1, 2]
    assert found.values()["attention"] == [1, 2]
    assert found.columns["attention_1"] > 0
    assert found.assets["attention_2"] == 4 * 32 * 64 + 16
    assert found.overhead + sum(found.columns.values()) == found.shard_bytes


# Verification -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(cache_of, make_model, examples, tmp_path_factory):
    """A cache of a teacher saved in a folder."""
    folder = tmp_path_factory.mktemp("teacher")
    made = make_model(7, attention_bias=True)
    for block in made.model.layers:
        torch.nn.init.normal_(block.self_attn.v_proj.bias)
    made.save_pretrained(folder)
    url = folder / "cache"
    model = load_teacher(TeacherConfig(model=str(folder), dtype="float32"))
    kept = {**KEPT, "codec": "int8"}
    return cache_of(url, model, examples, {"name": "topk"}, layers=kept, name=str(folder))


def test_the_teacher_confirms_its_attention(real):
    assert verify(real, teacher=teacher_of(real)) == []
    model = load_teacher(teacher_of(real))
    assert min(compare_with_teacher(SignalCache(real), model).cosines.values()) > 0.999
    assert compare_with_teacher(SignalCache(real), model).cosines.keys() == {
        "layer_1", "attention_1", "attention_2"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["query_weight", "value_bias", "heads"])
def test_another_map_is_found_by_name(real, tmp_path, forged_copy, name):
    def change(own):
        own[f"attention_2.{name}"] = own[f"attention_2.{name}"].flip(0) * 2

    url = forged_copy(real, tmp_path, change)
    (fault,) = verify(url, teacher=teacher_of(url))
    assert fault == f"the teacher's attention 2 has a different `{name}`"


@pytest.fixture
def forged_copy(forgery):
    """`forged_copy(url, folder, change)`: a copy with forged assets and matching checksums."""

    def make(url, folder, change):
        made = forgery(shutil.copytree(url, folder / "forged"))
        own = load_file(made.folder / "assets.safetensors")
        change(own)
        made.assets(save(own))
        return str(made.folder)

    return make


DAMAGE = {
    "no maps": lambda own: [own.pop(n) for n in list(own) if n.startswith("attention_1.")],
    "no keys": lambda own: own.pop("attention_1.key_weight"),
    "no heads": lambda own: own.pop("attention_1.heads"),
    "another width": lambda own: own.update({"attention_1.query_weight": torch.zeros(32, 31)}),
    "one number": lambda own: own.update({"attention_1.value_weight": torch.tensor(1.0)}),
    "a bias too long": lambda own: own.update({"attention_1.query_bias": torch.zeros(33)}),
    "heads that do not divide": lambda own: own.update({"attention_1.heads": torch.tensor([5, 2])}),
    "no head": lambda own: own.update({"attention_1.heads": torch.tensor([0, 0])}),
    "heads of three kinds": lambda own: own.update({"attention_1.heads": torch.tensor([4, 2, 2])}),
    "half a head": lambda own: own.update({"attention_1.heads": torch.tensor([0.5, 0.5])}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_maps_that_a_stranger_changed_are_refused(built, signals, tmp_path, forged_copy, damage):
    url = forged_copy(built("topk", layers=KEPT), tmp_path, DAMAGE[damage])
    with pytest.raises(CacheError) as raised:
        signals(url).attention(1)
    assert str(raised.value).count(". ") == 0
    assert "delete it and build it again" in str(raised.value)
    (fault, *_) = verify(url)
    about = str(raised.value).split(" (")[0]  # not of the same number of tokens
    assert about in fault


def test_columns_that_are_promised_and_lacking_are_refused(built, signals, tmp_path, forgery):
    made = forgery(shutil.copytree(built("topk"), tmp_path / "forged"))
    made.everywhere(hidden=HiddenStatesConfig.model_validate(KEPT).model_dump())
    for read in (lambda s: s.attention(1), lambda s: s.hidden(1)):
        with pytest.raises(CacheError, match=r"has no columns `\w+_1`, though its manifest prom"):
            read(signals(made.folder))
    assert "has no columns `layer_1`" in verify(str(made.folder))[0]


@pytest.mark.parametrize("blocks", ["all", [1.5], [None], {"1": 1}, [[1]]])
def test_manifest_whose_blocks_are_none_is_refused(built, tmp_path, forgery, blocks):
    made = forgery(shutil.copytree(built("topk", layers=KEPT), tmp_path / "forged"))
    hidden = {**made.record("manifest.json")["hidden"], "attention": blocks}
    made.everywhere(hidden=hidden)
    with pytest.raises(CacheError, match="names no known codec"):
        SignalCache(str(made.folder))


# Quantised teachers ------------------------------------------------------------------------------


@pytest.mark.parametrize(("quantization", "allowed"), [("nf4", 0.01), ("int8", 0.03)])
def test_a_quantised_teacher_gives_its_maps(make_model, tmp_path, quantization, allowed):
    made = make_model(0, width=64, attention_bias=True)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("proj.bias"):
                parameter.normal_().mul_(20.0)  # as in Qwen2: far larger than the weights
    made.save_pretrained(tmp_path)
    config = TeacherConfig(model=str(tmp_path), dtype="bfloat16", quantization=quantization)
    teacher = load_teacher(config)
    cache = CacheConfig.model_validate({"hidden": {"attention": [1], "codec": "bf16"}})
    runner = TeacherRunner(teacher, 97, cache)
    request = Request("1" * 32, np.arange(5, 45), np.arange(39))
    assets = runner.learn([request])
    own = assets["attention_1"]
    assert own["query_weight"].dtype == torch.bfloat16
    module = teacher.model.layers[0].self_attn.q_proj
    assert type(module) is not torch.nn.Linear
    assert torch.equal(own["query_bias"], module.bias.to(torch.bfloat16))
    assert module.bias is not None
    whole = made.model.layers[0].self_attn.q_proj.weight.detach()
    assert 0 < apart(own["query_weight"].float(), whole) < 0.15  # what quantising costs
    (columns,) = runner.run([request], assets)
    inputs = Bfloat16().decode({"": columns["attention_1"].reshape(-1)}, 39, {})
    found = attention_from_inputs(
        inputs, {n: t.float() if n != "heads" else t for n, t in own.items()}
    )
    (signals,) = [
        OnlineTeacher(teacher, 97, [], [1]).signals(
            {"input_ids": torch.arange(5, 45)[None], "attention_mask": None},
            torch.arange(40)[None] < 39,
        )
    ]
    bias = {"queries_NC": "query", "keys_ND": "key", "values_ND": "value"}
    for name in NAMES:
        states, exact = getattr(found, name), getattr(signals.attention(1), name)
        offset = own[f"{bias[name]}_bias"].float()
        assert apart(states, exact) < allowed
        assert apart(states - offset, exact - offset) < 0.2  # the bias does not hide the rest


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_the_map_of_a_quantised_module_is_what_it_multiplies_by(make_model, tmp_path, quantization):
    make_model(0, width=64).save_pretrained(tmp_path)
    config = TeacherConfig(model=str(tmp_path), dtype="float32", quantization=quantization)
    module = load_teacher(config).model.layers[0].self_attn.k_proj
    weight, bias = linear_map(module, torch.float32)
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    assert bias is None
    assert apart(x @ weight.T, module(x)) < (0.005 if quantization == "nf4" else 0.02)
