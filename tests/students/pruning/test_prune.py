"""A cut of every family along every axis: it reloads, runs with and without a cache, generates."""

import dataclasses

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    DistilBertConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

from attar.errors import ModelError
from students.pruning.architectures import modules_with, prunable_architecture, sizes_of
from students.pruning.depth import cut_depth
from students.pruning.prune import KeptParts, cut_model
from students.pruning.rotation import rotate

COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SMALL = {**COMMON, "num_key_value_heads": 2}
DECODERS = {
    "llama": LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True),
    "llama-tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "mistral": MistralConfig(**SMALL, sliding_window=4, head_dim=12),
    "qwen2": Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=4, max_window_layers=2),
    "qwen3": Qwen3Config(**SMALL, head_dim=12),
    "gemma": GemmaConfig(**SMALL, head_dim=8),
    "gemma2": Gemma2Config(**SMALL, head_dim=8, sliding_window=4),
    "gemma3": Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=4),
}
DISTILBERT = {"vocab_size": 64, "dim": 32, "hidden_dim": 48, "n_layers": 4, "n_heads": 4}
ENCODERS = {
    "bert": BertConfig(**COMMON),
    "roberta": RobertaConfig(**COMMON),
    "distilbert": DistilBertConfig(**DISTILBERT, pad_token_id=0),
}
EVERY = {**DECODERS, **ENCODERS}
IDS = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(0))
ALL = KeptParts(list(range(4)))
GROUPS = [[1], [0], [1], [0]]
NEURONS = [[i, 7, 20, 21, 40, 47] for i in range(4)]
CHANNELS = list(range(0, 32, 2))
CUTS = {
    "blocks": KeptParts([0, 3]),
    "groups": KeptParts([0, 1, 2, 3], groups=GROUPS),
    "neurons": KeptParts([0, 1, 2, 3], neurons=NEURONS),
    "channels": KeptParts([0, 1, 2, 3], channels=CHANNELS),
    "ids": KeptParts([0, 1, 2, 3], ids=[0, 2, 1, *range(3, 64, 3)]),
    "all": KeptParts([0, 2, 3], GROUPS[:3], NEURONS[:3], CHANNELS, [0, 1, 2, *range(10, 40)]),
}


def random_model(config, kind=AutoModelForCausalLM):
    torch.manual_seed(0)
    model = kind.from_config(config).eval()
    with torch.no_grad():  # biases and norms of 0 and 1 would hide mistakes
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(2.0)
    return model


def teacher_of(name):
    return random_model(EVERY[name], AutoModelForMaskedLM if name in ENCODERS else _DECODER)


_DECODER = AutoModelForCausalLM


@pytest.fixture(params=list(EVERY))
def family(request):
    return request.param


def cut_for(name, axis):
    """The cut, with sizes that the family can have: the heads of an encoder make up its width."""
    kept = CUTS[axis]
    if name in ENCODERS and axis in ("groups", "channels", "all"):
        heads = [[3, 1]] * len(kept.blocks)
        return dataclasses.replace(kept, groups=heads, channels=CHANNELS)
    return kept


EVERY_CUT = [(name, axis) for name in EVERY for axis in CUTS]
# Every family cut along all axes at once, and each axis alone in three that differ most.
SOME_CUTS = [
    (name, axis)
    for name, axis in EVERY_CUT
    if axis == "all" or name in ("llama-tied", "gemma3", "bert")
]
OTHER_CUTS = [one for one in EVERY_CUT if one not in SOME_CUTS]


@pytest.mark.parametrize(("family", "axis"), SOME_CUTS)
def test_a_cut_reloads_to_the_same_logits(family, axis, tmp_path):
    check_reload(family, axis, tmp_path)


@pytest.mark.parametrize(("family", "axis"), OTHER_CUTS)
def test_every_other_cut_reloads_to_the_same_logits(full_product, family, axis, tmp_path):
    check_reload(family, axis, tmp_path)


def check_reload(family, axis, tmp_path):
    teacher, kept = teacher_of(family), cut_for(family, axis)
    student = cut_model(teacher, kept)
    student.save_pretrained(tmp_path)
    again = type(student).from_pretrained(tmp_path)
    ids = IDS % student.config.vocab_size
    with torch.inference_mode():
        expected = student(input_ids=ids).logits
        assert expected.isfinite().all()
        torch.testing.assert_close(again(input_ids=ids).logits, expected)
    for name, tensor in student.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert sizes_of(again.config) == kept.sizes(
        sizes_of(teacher.config), prunable_architecture(teacher)
    )
    if kept.ids is not None:
        ends = teacher.config.eos_token_id
        assert ends == (None if family == "distilbert" else 2)
        assert again.config.eos_token_id == (None if ends is None else kept.ids.index(ends))
    kinds = getattr(teacher.config, "layer_types", None)
    if kinds is not None:
        assert list(again.config.layer_types) == [kinds[block] for block in kept.blocks]


@pytest.mark.parametrize(("name", "axis"), [one for one in SOME_CUTS if one[0] in DECODERS])
def test_a_cut_decoder_generates_alike_with_and_without_cache(name, axis):
    check_generation(name, axis)


@pytest.mark.parametrize(("name", "axis"), [one for one in OTHER_CUTS if one[0] in DECODERS])
def test_every_other_cut_decoder_generates_alike(full_product, name, axis):
    check_generation(name, axis)


def check_generation(name, axis):
    student = cut_model(teacher_of(name), CUTS[axis])
    ids = IDS % student.config.vocab_size
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": 9}
    with_cache = student.generate(ids, use_cache=True, **settings)
    assert torch.equal(with_cache, student.generate(ids, use_cache=False, **settings))


def test_cutting_nothing_changes_nothing(family):
    teacher = teacher_of(family)
    sizes = sizes_of(teacher.config)
    everything = KeptParts(
        ALL.blocks,
        [list(range(sizes.groups))] * 4,
        [list(range(48))] * 4,
        list(range(32)),
        list(range(64)),
    )
    with torch.inference_mode():
        expected = teacher(input_ids=IDS).logits
        assert torch.equal(cut_model(teacher, ALL)(input_ids=IDS).logits, expected)
        torch.testing.assert_close(cut_model(teacher, everything)(input_ids=IDS).logits, expected)


def test_fewer_ids_are_the_teachers_logits_at_those_ids(family):
    teacher, ids = teacher_of(family), [0, 1, 2, *range(5, 64, 2)]
    student = cut_model(teacher, KeptParts(ALL.blocks, ids=ids))
    rows = torch.tensor(ids)[None, 3:15]
    with torch.inference_mode():
        expected = teacher(input_ids=rows).logits[..., ids]
        found = student(input_ids=torch.arange(3, 15)[None]).logits
    torch.testing.assert_close(found, expected)


def silence(model, kept):
    """Make every removed part add nothing: neurons, heads and channels of weight 0."""
    family, sizes = prunable_architecture(model), sizes_of(model.config)
    with torch.no_grad():
        for axes, size, lists in (("HI", 1, kept.neurons), ("HQ", None, kept.groups)):
            size = size or sizes.head_size * sizes.heads_per_group
            for module, keep in zip(
                modules_with(model, family, axes).values(), lists or [], strict=False
            ):
                for part in set(range(module.weight.shape[1] // size)) - set(keep):
                    module.weight[:, part * size : (part + 1) * size] = 0.0


@pytest.mark.parametrize("axis", ["groups", "neurons"])
def test_cutting_heads_and_neurons_that_do_nothing_is_exact(family, axis):
    if family in ENCODERS and axis == "groups":
        pytest.skip("an encoder's heads are cut with its width")
    teacher, kept = teacher_of(family), CUTS[axis]
    silence(teacher, kept)
    with torch.inference_mode():
        expected = teacher(input_ids=IDS).logits
        torch.testing.assert_close(cut_model(teacher, kept)(input_ids=IDS).logits, expected)


@pytest.mark.parametrize("name", list(DECODERS))
def test_cutting_channels_that_are_always_zero_is_exact(name):
    teacher = teacher_of(name)
    gone = [c for c in range(32) if c not in CHANNELS]
    with torch.no_grad():
        teacher.get_input_embeddings().weight[:, gone] = 0.0
        for axes in ("HI", "HQ"):
            for module in modules_with(teacher, prunable_architecture(teacher), axes).values():
                module.weight[gone] = 0.0
                if module.bias is not None:
                    module.bias[gone] = 0.0
        student = cut_model(teacher, CUTS["channels"])
        expected = teacher(input_ids=IDS).logits
        torch.testing.assert_close(student(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_an_unknown_family_says_how_to_add_it():
    from transformers import GPT2Config

    model = random_model(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    with pytest.raises(ModelError, match=r"gpt2.*add an entry to `PRUNABLE_ARCHITECTURES`"):
        cut_model(model, KeptParts([0]))


@pytest.mark.parametrize(
    ("name", "kept", "says"),
    [
        ("llama", KeptParts([0, 4]), "blocks 0 to 3"),
        ("llama", KeptParts([]), "0 blocks cannot be kept"),
        ("llama", KeptParts([0], neurons=[[]]), "0 neurons cannot be kept"),
        ("llama", KeptParts([0], channels=list(range(18))), "keep 16 or 20"),
        ("gemma3", KeptParts([0], channels=list(range(18))), "keep 16 or 20"),
        ("bert", KeptParts([0], groups=[[0, 1]]), "keep 16 channels, or 4 heads"),
        ("bert", KeptParts([0], channels=list(range(24))), "keep 32 channels, or 3 heads"),
    ],
)
def test_sizes_that_no_config_can_have_are_refused(name, kept, says):
    with pytest.raises(ModelError, match=says):
        cut_model(teacher_of(name), kept)


def test_a_student_is_where_its_teacher_is():
    """The meta device stands in for a GPU."""
    teacher = teacher_of("llama").to("meta")
    turned = rotate(teacher, torch.eye(32))
    for student in (cut_model(teacher, CUTS["all"]), cut_depth(teacher, [0, 3]), turned):
        assert {parameter.device.type for parameter in student.parameters()} == {"meta"}
        assert {buffer.device.type for buffer in student.buffers()} == {"meta"}


def test_another_dtype_is_kept():
    teacher = teacher_of("llama").to(torch.bfloat16)
    assert next(cut_model(teacher, CUTS["all"]).parameters()).dtype == torch.bfloat16
