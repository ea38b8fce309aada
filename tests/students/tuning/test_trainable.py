import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
)

from attar.errors import RecipeError
from students.tuning.trainable import (
    Reinitialized,
    Trainable,
    choose_trainable,
    depths_of,
    prepare_learning,
)

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 50}


def learning(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def written(value):
    """Return the validated form of a recipe's value."""
    return TypeAdapter(Trainable).validate_python(value)


@pytest.fixture
def bert():
    return BertForMaskedLM(BertConfig(num_attention_heads=2, **SHAPE))


@pytest.fixture
def gpt2():
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50))


def test_all_is_everything(make_model):
    model = make_model()
    assert choose_trainable(model, "all") == sum(p.numel() for p in model.parameters())


def test_last_blocks_and_a_pattern_unite(make_model):
    model = make_model(layers=3)
    choose_trainable(model, ["last:1", "re:norm"])
    names = learning(model)
    assert all(name.startswith("model.layers.2.") or "norm" in name for name in names)
    assert "model.layers.0.input_layernorm.weight" in names
    assert "model.layers.1.mlp.up_proj.weight" not in names


@pytest.mark.parametrize(
    ("part", "blocks"),
    [
        ("last:2", {3, 4}),
        ("first:2", {0, 1}),
        ("layers:3", {3}),
        ("layers:0,2-4", {0, 2, 3, 4}),
        ({"layers": [0, 3]}, {0, 3}),
        ("layers:[0, 3]", {0, 3}),
        ({"last": 1}, {4}),
    ],
)
def test_blocks_are_chosen_by_number(make_model, part, blocks):
    model = make_model(layers=5)
    choose_trainable(model, written(part))
    assert {int(name.split(".")[2]) for name in learning(model)} == blocks


def test_a_tied_head_is_the_embedding(make_model):
    model = make_model(tie_word_embeddings=True)
    choose_trainable(model, "head")
    assert learning(model) == {"model.embed_tokens.weight"}
    choose_trainable(model, "embeddings")
    assert learning(model) == {"model.embed_tokens.weight"}


def test_an_untied_head_stands_alone(make_model):
    model = make_model(tie_word_embeddings=False)
    choose_trainable(model, "head")
    assert learning(model) == {"lm_head.weight"}
    choose_trainable(model, "embeddings")
    assert learning(model) == {"model.embed_tokens.weight"}


def test_norms_and_biases_of_every_block_and_of_the_end(gpt2):
    choose_trainable(gpt2, "norms")
    assert learning(gpt2) == {n for n, _ in gpt2.named_parameters() if ".ln_" in n}
    choose_trainable(gpt2, "bias")
    assert learning(gpt2) == {n for n, _ in gpt2.named_parameters() if n.endswith("bias")}


def test_the_parts_of_an_encoder(bert):
    choose_trainable(bert, "embeddings")
    assert learning(bert) == {
        n for n, _ in bert.named_parameters() if n.startswith("bert.embeddings.")
    }
    choose_trainable(bert, ["head", "-embeddings"])
    assert learning(bert) == {n for n, _ in bert.named_parameters() if n.startswith("cls.")}


@pytest.mark.parametrize(
    ("config", "blocks", "head"),
    [
        (
            BertConfig(num_attention_heads=2, **SHAPE),
            "bert.encoder.layer.1.",
            ["bert.pooler.", "cl"],
        ),
        (
            DistilBertConfig(dim=16, hidden_dim=32, n_layers=2, n_heads=2, vocab_size=50),
            "distilbert.transformer.layer.1.",
            ["pre_classifier.", "classifier."],
        ),
        (LlamaConfig(num_attention_heads=2, **SHAPE), "model.layers.1.", ["score."]),
    ],
)
def test_the_parts_of_classifiers(config, blocks, head):
    model = AutoModelForSequenceClassification.from_config(config)
    everything = {name for name, _ in model.named_parameters()}
    choose_trainable(model, "last:1")
    assert learning(model) == {name for name in everything if name.startswith(blocks)}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    prepare_learning(model, "head", "head", 1)
    assert learning(model) == {name for name in everything if name.startswith(tuple(head))}
    for name, parameter in model.named_parameters():
        drawn = name in learning(model) and not name.endswith("bias")
        assert torch.equal(parameter, before[name]) == (not drawn), name


def test_a_part_with_a_minus_is_removed(make_model):
    model = make_model(layers=3)
    everything = {name for name, _ in model.named_parameters()}
    choose_trainable(model, ["all", "-embeddings", "-layers:0"])
    left = learning(model)
    assert everything - left == {
        n for n in everything if "embed_tokens" in n or n.startswith("model.layers.0.")
    }
    choose_trainable(model, ["-embeddings", "-layers:0"])
    assert learning(model) == left
    choose_trainable(model, ["last:1", "-norms"])
    assert not any("norm" in name for name in learning(model))


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("body", "not known"),
        ("last:9", "the model has 2 blocks"),
        ("layers:1-2", "2 blocks, 0 to 1"),
        ("layers:1-0", "2 blocks"),
        ("re:nothing", r"matches no parameter of the model; it has head, embeddings, norms, 2 blo"),
        ("bias", "matches no parameter of the model; it has .*self_attn.q_proj.weight"),
        (["last:1", "-embeddings"], "`-embeddings` removes nothing from `.last:1.`"),
        (["last:1", "-last:2"], "leaves nothing to train"),
    ],
)
def test_a_part_that_matches_nothing_is_refused(make_model, part, says):
    with pytest.raises(RecipeError, match=says):
        choose_trainable(make_model(), part)


def test_a_tied_head_without_its_embedding_says_why_nothing_is_left(make_model):
    with pytest.raises(RecipeError, match="the head is the embedding: one matrix"):
        choose_trainable(make_model(tie_word_embeddings=True), ["head", "-embeddings"])


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("last:0", "not known"),
        ("last", "not known"),
        ("re:(", "regular expression"),
        ("embedding", "Did you mean `embeddings`"),
        (["layers:3", "5-7"], "in quotes"),
        ([], "trains nothing"),
        (3, "not known"),
        ({"last": 2, "first": 1}, "not known"),
    ],
)
def test_a_word_is_refused_as_the_recipe_is_read(value, says):
    with pytest.raises(ValidationError, match=says):
        written(value)


def test_depths_rise_from_the_embeddings_to_what_is_above_the_blocks(make_model, bert, gpt2):
    for model, first, last in (
        (make_model(tie_word_embeddings=False), "model.embed_tokens.weight", "lm_head.weight"),
        (bert, "bert.embeddings.LayerNorm.weight", "cls.predictions.transform.dense.weight"),
        (gpt2, "transformer.wpe.weight", "transformer.ln_f.weight"),
    ):
        depths, named = depths_of(model), dict(model.named_parameters())
        assert depths[id(named[first])] == 0
        assert depths[id(named[last])] == 3
        assert {depths[id(p)] for p in model.parameters()} == {0, 1, 2, 3}


# Reinitialising ----------------------------------------------------------------------------------


def test_only_the_named_blocks_are_reinitialised_from_the_seed(make_model):
    models = [make_model(layers=3) for _ in range(4)]
    for model, seed in zip(models[1:], (5, 5, 6), strict=True):
        prepare_learning(model, "all", "last:1", seed)
    before, one, same, other = (dict(model.named_parameters()) for model in models)
    for name, tensor in before.items():
        fresh = name.startswith("model.layers.2.")
        assert torch.equal(one[name], same[name])
        assert torch.equal(one[name], tensor) == (not fresh or "norm" in name)
        assert torch.equal(one[name], other[name]) == (not fresh or "norm" in name)
    drawn = one["model.layers.2.mlp.up_proj.weight"].detach()
    assert 0.07 < float(drawn.std()) < 0.09  # the model's initializer_range
    assert torch.equal(one["model.layers.2.input_layernorm.weight"], torch.ones(32))


def test_a_loaded_model_can_be_reinitialised(make_model, tmp_path):
    """`transformers` marks loaded weights so that its initialisation skips them."""
    make_model(layers=2).save_pretrained(tmp_path)
    model = type(make_model()).from_pretrained(tmp_path)
    before = model.model.layers[1].mlp.up_proj.weight.detach().clone()
    kept = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    prepare_learning(model, "all", "layers:1", 0)
    assert not torch.equal(model.model.layers[1].mlp.up_proj.weight, before)
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, kept)


def test_an_untied_head_can_be_reinitialised_and_a_tied_one_cannot(make_model):
    model = make_model(tie_word_embeddings=False)
    before = model.lm_head.weight.detach().clone()
    prepare_learning(model, "head", "head", 0)
    assert not torch.equal(model.lm_head.weight, before)
    with pytest.raises(RecipeError, match="the head is tied to the embedding"):
        prepare_learning(make_model(tie_word_embeddings=True), "all", "head", 0)


def test_reinitialised_parts_must_be_trained(make_model):
    with pytest.raises(
        RecipeError, match=r"`train\.reinitialize: last:1` reinitialises .* weights"
    ):
        prepare_learning(make_model(), "norms", "last:1", 0, "train.")


@pytest.mark.parametrize("value", ["embeddings", "-last:1", "re:mlp", ["last:1", "norms"]])
def test_only_blocks_and_head_can_be_reinitialised(value):
    with pytest.raises(ValidationError, match="cannot be reinitialised"):
        TypeAdapter(Reinitialized).validate_python(value)
