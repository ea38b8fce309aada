import pytest

from attar.errors import RecipeError
from students.trainable import choose_trainable


def learning(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


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


def test_a_tied_head_is_the_embedding(make_model):
    model = make_model(tie_word_embeddings=True)
    choose_trainable(model, "head")
    assert learning(model) == {"model.embed_tokens.weight"}


def test_an_untied_head_stands_alone(make_model):
    model = make_model(tie_word_embeddings=False)
    choose_trainable(model, "head")
    assert learning(model) == {"lm_head.weight"}


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("body", "not known"),
        ("last:9", "2 blocks"),
        ("last:0", "2 blocks"),
        ("re:nothing", "matches no parameter"),
        ("re:(", "regular expression"),
    ],
)
def test_a_part_that_means_nothing_is_refused(make_model, part, says):
    with pytest.raises(RecipeError, match=says):
        choose_trainable(make_model(), part)
