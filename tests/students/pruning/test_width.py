"""Heads, neurons and channels: the ones that matter stay, as many as the recipe says."""

import pytest
import torch
from pydantic import ValidationError
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from attar.errors import ModelError, RecipeError
from students.config import StudentConfig
from students.pruning.architectures import modules_with, prunable_architecture, sizes_of
from students.pruning.importance import measure_importance
from students.pruning.least_squares import refit
from students.pruning.prune import KeptParts, cut_model
from students.pruning.record import channel_map
from students.pruning.rotation import principal_channels, rotate
from students.pruning.width import choose_parts, student_sizes
from students.save import cut_student, save_cut

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
IDS = torch.randint(3, 64, (6, 16), generator=torch.Generator().manual_seed(0))
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "gemma2": Gemma2Config(**SMALL, head_dim=4),
    "bert": BertConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}),
}


def random_model(name):
    torch.manual_seed(0)
    kind = AutoModelForMaskedLM if name == "bert" else AutoModelForCausalLM
    model = kind.from_config(CONFIGS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.dim() > 1 else 1.0)
    return model


def widths(**sections):
    return StudentConfig.model_validate(sections)


def faint(model, groups, neurons):
    """Leave only the named groups and neurons of every block loud: the rest adds little."""
    family, sizes = prunable_architecture(model), sizes_of(model.config)
    size = sizes.head_size * sizes.heads_per_group
    with torch.no_grad():
        for axes, part, keep in (("HQ", size, groups), ("HI", 1, neurons)):
            for module in modules_with(model, family, axes).values():
                loud = [i * part + j for i in keep for j in range(part)]
                quiet = [i for i in range(module.weight.shape[1]) if i not in loud]
                module.weight[:, quiet] *= 1e-3
    return model


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2"])
def test_the_heads_and_neurons_that_matter_stay(name):
    model = faint(random_model(name), groups=[1, 2], neurons=list(range(5, 21)))
    config = widths(heads={"keep": 4}, feed_forward={"keep": 16})
    kept, scores = choose_parts(model, [0, 2, 3], config, IDS)
    assert kept.groups == [[1, 2]] * 3
    assert kept.neurons == [list(range(5, 21))] * 3
    assert kept.channels is None
    assert scores.groups_LG.shape == (4, 4)


def test_what_is_scaled_down_before_its_map_and_up_by_it_is_worth_the_same():
    """A score reads what arrives in the residual stream, not how a model shares out its scales."""
    plain, shared = random_model("llama"), random_model("llama")
    with torch.no_grad():
        for block in shared.model.layers:
            block.mlp.up_proj.weight[:24] *= 0.01
            block.mlp.down_proj.weight[:, :24] *= 100.0
    expected, found = measure_importance(plain, IDS), measure_importance(shared, IDS)
    torch.testing.assert_close(found.neurons_LI, expected.neurons_LI, rtol=1e-3, atol=1e-6)


def test_channels_without_energy_go_first():
    model = random_model("llama")
    gone = [3, 4, 10, 11, 20, 25, 30, 31]
    with torch.no_grad():
        model.model.embed_tokens.weight[:, gone] = 0.0
        for axes in ("HI", "HQ"):
            for module in modules_with(model, prunable_architecture(model), axes).values():
                module.weight[gone] = 0.0
    kept, _ = choose_parts(model, [0, 1, 2, 3], widths(hidden={"keep": 24}), IDS)
    assert kept.channels == [c for c in range(32) if c not in gone]


def test_even_needs_no_text():
    config = widths(
        heads={"keep": 4, "by": "even"},
        feed_forward={"keep": 4, "by": "even"},
        hidden={"keep": 0.5, "by": "even"},
    )
    kept, scores = choose_parts(random_model("llama"), [0, 1], config, None)
    assert kept.groups == [[0, 3]] * 2
    assert kept.neurons == [[0, 16, 31, 47]] * 2
    assert len(kept.channels) == 16
    assert scores is None


def test_an_encoders_heads_follow_its_width():
    kept, _ = choose_parts(random_model("bert"), [0, 1, 2], widths(hidden={"keep": 16}), IDS)
    assert [len(groups) for groups in kept.groups] == [4, 4, 4]
    assert len(kept.channels) == 16


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"heads": {"keep": 3}}, r"student.heads.keep` is 3; .* 8 heads, 2 to a key-value head"),
        ({"heads": {"keep": 10}}, "keep one of 2, 4, 6, 8"),
        ({"feed_forward": {"keep": 49}}, "`student.feed_forward.keep` is 49; the teacher has 48"),
        ({"hidden": {"keep": 33}}, "`student.hidden.keep` is 33; the teacher has 32"),
        ({"hidden": {"keep": 20}}, "`student.hidden.keep`: .* keep 16 or 24 channels"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_its_key(sections, says):
    with pytest.raises(RecipeError, match=says):
        widths(**sections).cut_config(CONFIGS["llama"])


def test_an_encoder_whose_heads_are_not_its_width_is_refused():
    with pytest.raises(RecipeError, match=r"student.heads.keep.*keep 16 channels, or 8 heads"):
        widths(heads={"keep": 4}).cut_config(CONFIGS["bert"])


def test_judging_without_text_is_refused():
    with pytest.raises(RecipeError, match=r"student.heads.by: activation.*write `by: even`"):
        choose_parts(random_model("llama"), [0], widths(heads={"keep": 4}), torch.zeros(0, 0))


def test_a_refit_without_text_is_refused():
    with pytest.raises(RecipeError, match=r"student.refit` needs training text"):
        cut_student(random_model("llama"), [0, 2, 3], widths(layers={"keep": 3}, refit=True), None)


def test_an_unknown_family_is_refused_before_work():
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)
    with pytest.raises(ModelError, match=r"can only be cut by blocks .*PRUNABLE_ARCHITECTURES"):
        widths(heads={"keep": 2}).cut_config(config)
    assert widths(layers={"keep": 1}).cut_config(config).num_hidden_layers == 1


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"heads": {"keep": 1.5}}, "share between 0 and 1"),
        ({"heads": {"keep": 0}}, "share between 0 and 1"),
        (
            {"from": {"hidden_size": 16}, "hidden": {"keep": 8}},
            "a model with random weights has the size that `from`",
        ),
        ({"refit": True}, "`refit` has no effect"),
    ],
)
def test_sections_that_mean_nothing_are_refused(values, says):
    with pytest.raises(ValidationError, match=says):
        StudentConfig.model_validate(values)


def test_removed_blocks_of_an_encoder_are_not_made_up_for():
    with pytest.raises(RecipeError, match=r"student.refit.*BERT.*cut its width only"):
        widths(layers={"keep": 2}, refit=True).cut_config(CONFIGS["bert"])
    searched = {"parameters": "80%", "axes": ["layers", "hidden"]}
    for target in (searched, {"latency": "5ms"}):
        with pytest.raises(RecipeError, match="take `layers` out of"):
            widths(target=target, refit=True).cut_config(CONFIGS["bert"])
    widths(target={"latency": "5ms", "axes": ["hidden"]}, refit=True).cut_config(CONFIGS["bert"])


def test_a_share_is_rounded_to_what_the_family_can_say():
    sizes = student_sizes(CONFIGS["llama"], 4, widths(hidden={"keep": 0.7}, heads={"keep": 0.5}))
    assert (sizes.channels, sizes.heads, sizes.groups) == (24, 4, 2)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2"])
def test_the_config_is_known_before_the_cut(name, tmp_path, tokenizer):
    teacher = random_model(name)
    config = widths(
        layers={"keep": [0, 3]},
        heads={"keep": 4},
        feed_forward={"keep": 20},
        hidden={"keep": 16},
        refit=True,
    )
    student, pruning, rotation = cut_student(teacher, [0, 3], config, IDS)
    assert sizes_of(config.cut_config(teacher.config)) == sizes_of(student.config)
    save_cut(student, pruning, rotation, tokenizer, tmp_path / "cut")
    assert pruning["layers"] == [0, 3, 4]
    assert len(pruning["channels"]) == 16
    assert len(pruning["scores"]["neurons"][0]) == 48


# Rotation --------------------------------------------------------------------------------------


def tall(config, **more):
    """A random decoder whose norms are not all one."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**SMALL, **more)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    ("config", "more"),
    [
        (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
        (LlamaConfig, {"tie_word_embeddings": True}),
        (Qwen2Config, {}),
        (Qwen3Config, {"head_dim": 4}),
        (GemmaConfig, {"head_dim": 4}),
    ],
)
def test_a_rotated_model_is_the_same(config, more, tmp_path):
    teacher = tall(config, **more)
    rotation = principal_channels(teacher, IDS)
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(32), rtol=1e-4, atol=1e-5)
    turned = rotate(teacher, rotation)
    with torch.inference_mode():
        expected = teacher(input_ids=IDS).logits
        torch.testing.assert_close(turned(input_ids=IDS).logits, expected, rtol=1e-3, atol=1e-4)
    student = cut_model(turned, KeptParts([0, 2], channels=list(range(16))))
    student.save_pretrained(tmp_path)
    with torch.inference_mode():
        found = AutoModelForCausalLM.from_pretrained(tmp_path)(input_ids=IDS).logits
        torch.testing.assert_close(found, student(input_ids=IDS).logits)


def test_a_stream_of_few_dimensions_is_cut_without_loss(tmp_path, tokenizer):
    """Everything is written into a turned subspace of 16 dimensions, and pca finds it."""
    teacher = tall(LlamaConfig)
    basis = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(3)))[0]
    inside = basis[:, :16] @ basis[:, :16].T
    with torch.no_grad():
        teacher.model.embed_tokens.weight.copy_(teacher.model.embed_tokens.weight @ inside)
        for axes in ("HQ", "HI"):
            for module in modules_with(teacher, prunable_architecture(teacher), axes).values():
                module.weight.copy_(inside @ module.weight)
    config = widths(hidden={"keep": 16, "by": "pca"})
    student, pruning, rotation = cut_student(teacher, [0, 1, 2, 3], config, IDS)
    with torch.inference_mode():
        expected = teacher(input_ids=IDS).logits
        torch.testing.assert_close(student(input_ids=IDS).logits, expected, rtol=1e-3, atol=1e-3)
    assert not config.cut_config(teacher.config).tie_word_embeddings
    save_cut(student, pruning, rotation, tokenizer, tmp_path / "cut")
    torch.testing.assert_close(channel_map(tmp_path / "cut", 32), rotation)


@pytest.mark.parametrize("name", ["gemma2", "bert"])
def test_a_family_that_cannot_be_rotated_says_so(name):
    with pytest.raises(RecipeError, match=r"student.hidden.by: pca` cannot rotate .*`activation`"):
        widths(hidden={"keep": 16, "by": "pca"}).cut_config(CONFIGS[name])


def test_a_classifier_is_rotated():
    torch.manual_seed(0)
    config = LlamaConfig(**SMALL, num_labels=3)
    teacher = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        teacher.model.norm.weight.add_(0.3 * torch.randn(32))
    turned = rotate(teacher, principal_channels(teacher, IDS))
    with torch.inference_mode():
        expected = teacher(input_ids=IDS).logits
        torch.testing.assert_close(turned(input_ids=IDS).logits, expected, rtol=1e-3, atol=1e-4)
    student, _, _ = cut_student(teacher, [0, 2], widths(hidden={"keep": 16, "by": "pca"}), IDS)
    assert student(input_ids=IDS).logits.shape == expected.shape
    assert student.config.hidden_size == 16


def test_a_body_without_a_head_is_not_rotated():
    body = AutoModel.from_config(CONFIGS["llama"]).eval()
    with pytest.raises(ModelError, match="LlamaModel has no head to absorb the last norm"):
        cut_student(body, [0, 1], widths(hidden={"keep": 16, "by": "pca"}), IDS)


# Refit -----------------------------------------------------------------------------------------


def divergence(model, teacher):
    with torch.inference_mode():
        logits = [one(input_ids=IDS).logits.log_softmax(-1) for one in (teacher, model)]
    return float(
        torch.nn.functional.kl_div(logits[1], logits[0], log_target=True, reduction="batchmean")
    )


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize(
    "kept",
    [
        KeptParts([0, 1, 2, 3], neurons=[list(range(32))] * 4),
        KeptParts([0, 2, 3]),
        KeptParts([0, 1, 3], groups=[[1, 3]] * 3),
    ],
    ids=["neurons", "blocks", "blocks and heads"],
)
def test_a_refit_brings_a_cut_nearer_to_its_teacher(name, kept):
    if name == "bert" and len(kept.blocks) < 4:
        pytest.skip("refused where norms stand behind sums")
    teacher = random_model(name)
    student = cut_model(teacher, kept)
    before = divergence(student, teacher)
    refit(student, teacher, kept, IDS)
    assert divergence(student, teacher) < before


def test_a_refit_of_everything_changes_nothing():
    teacher = random_model("llama")
    student = cut_model(teacher, KeptParts([0, 1, 2, 3], neurons=[list(range(48))] * 4))
    refit(student, teacher, KeptParts([0, 1, 2, 3], neurons=[list(range(48))] * 4), IDS)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(parameter, teacher.get_parameter(name), rtol=1e-4, atol=1e-4)


def test_a_refit_makes_up_for_repeated_neurons_exactly():
    """Every neuron has a twin; without the twins the projection must double, and does."""
    teacher = random_model("llama")
    with torch.no_grad():
        for block in teacher.model.layers:
            for linear in (block.mlp.gate_proj, block.mlp.up_proj):
                linear.weight[24:] = linear.weight[:24]
            block.mlp.down_proj.weight[:, 24:] = block.mlp.down_proj.weight[:, :24]
    kept = KeptParts([0, 1, 2, 3], neurons=[list(range(24))] * 4)
    student = cut_model(teacher, kept)
    before = divergence(student, teacher)
    many = torch.randint(3, 64, (32, 32), generator=torch.Generator().manual_seed(1))
    refit(student, teacher, kept, many)
    assert divergence(student, teacher) < 0.5 * before


def test_a_refit_leaves_blocks_before_the_first_cut_alone():
    teacher = random_model("llama")
    student = cut_model(teacher, KeptParts([0, 1, 3]))
    refit(student, teacher, KeptParts([0, 1, 3]), IDS)
    for name, parameter in student.model.layers[0].named_parameters():
        assert torch.equal(parameter, teacher.model.layers[0].get_parameter(name))
