"""`student.target`: the cost of students, the shapes that are searched, and the result."""

import math

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    Gemma3TextConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

from attar.errors import RecipeError
from students.config import StudentConfig
from students.pruning import cost_model
from students.pruning.architectures import prunable_architecture, sizes_of
from students.pruning.cost_model import Costs, Latencies, leading_parts
from students.pruning.prune import cut_model
from students.pruning.shape_search import (
    DivergenceEstimate,
    ShapeMeasures,
    ShapeSpace,
    search_shapes,
)

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
FEW = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
SIZES = {"vocab_size": 64, "dim": 32, "hidden_dim": 128, "n_layers": 6, "n_heads": 8}
MODELS = {
    "tied llama": (AutoModelForCausalLM, LlamaConfig(**SMALL, tie_word_embeddings=True)),
    "llama": (AutoModelForCausalLM, LlamaConfig(**SMALL, tie_word_embeddings=False)),
    "qwen2": (AutoModelForCausalLM, Qwen2Config(**SMALL)),
    "qwen3": (AutoModelForCausalLM, Qwen3Config(**SMALL, head_dim=8)),
    "gemma3": (AutoModelForCausalLM, Gemma3TextConfig(**SMALL, head_dim=8)),
    "bert": (AutoModelForMaskedLM, BertConfig(**FEW)),
    "bert of classes": (AutoModelForSequenceClassification, BertConfig(**FEW)),
    "roberta": (AutoModelForMaskedLM, RobertaConfig(**FEW)),
    "distilbert": (AutoModelForSequenceClassification, DistilBertConfig(**SIZES)),
}
IDS = torch.randint(3, 64, (6, 16), generator=torch.Generator().manual_seed(0))
ALL = ("layers", "heads", "feed_forward", "hidden")


def random_model(name):
    torch.manual_seed(0)
    kind, config = MODELS[name]
    model = kind.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.dim() > 1 else 1.0)
    model.config.architectures = [type(model).__name__]
    return model.requires_grad_(False)


def space_of(model, axes=ALL):
    return ShapeSpace(sizes_of(model.config), prunable_architecture(model), axes)


# The cost of a student -------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_cut_model(name):
    model = random_model(name)
    costs, space = Costs(model), space_of(model)
    shapes = space.filled(costs.parameters, 0.7 * costs.parameters(costs.whole))
    assert len(shapes) > 5
    for sizes in [costs.whole, space.smallest(), *shapes[:: len(shapes) // 5]]:
        student = cut_model(model, leading_parts(sizes, costs.whole))
        assert costs.parameters(sizes) == sum(p.numel() for p in student.parameters())
        inside = sum(p.numel() for n, p in student.named_parameters() if "layer" in n and "." in n)
        assert costs.outside_blocks(sizes) >= costs.parameters(sizes) - inside


def test_bytes_leave_embeddings_as_they_are():
    model = random_model("tied llama")
    costs = Costs(model)
    whole, embedded = costs.whole, 64 * 32
    linear = sum(p.numel() for n, p in model.named_parameters() if "layers" in n and p.dim() == 2)
    assert costs.bytes(whole, "bf16") == 2 * costs.parameters(whole)
    rest = 2 * (costs.parameters(whole) - linear)
    assert rest > 2 * embedded
    assert costs.bytes(whole, "int8") == rest + linear
    assert costs.bytes(whole, "nf4") == rest + linear * (0.5 + 1 / 16)


def test_latency_is_measured_in_turn_and_predicted_between_measurements(monkeypatch):
    """With a clock that counts parameters: measured shares are exact, predicted ones near."""
    model = random_model("llama")
    costs = Costs(model)

    def clock(_step, timed):
        return (
            1.0 + 0.5 * len(timed.model.layers) + 1e-4 * sum(p.numel() for p in timed.parameters())
        )

    monkeypatch.setattr(cost_model, "_step_seconds", clock)
    latencies, space = Latencies(model, costs), space_of(model)
    for axis in ALL:
        for removed in (0.25, 0.5):
            latencies.measure(space.alone(axis, removed))
    for sizes in space.filled(costs.parameters, 0.5 * costs.parameters(costs.whole))[::20]:
        told = latencies.predict(sizes)
        share = clock(None, cut_model(model, leading_parts(sizes, costs.whole))) / clock(
            None, model
        )
        assert told == pytest.approx(share, abs=0.02)
        assert latencies.measure(sizes) == pytest.approx(share)


@pytest.mark.parametrize("name", ["llama", "bert of classes"])
def test_a_step_can_be_timed(name):
    latencies = Latencies(random_model(name), Costs(random_model(name)))
    assert latencies.seconds > 0
    assert 0 < latencies.measure(space_of(random_model(name)).smallest()) < 10


# Before the search ----------------------------------------------------------------------------


def student_of(**target):
    return StudentConfig.model_validate({"target": target})


def test_a_target_below_the_embeddings_names_them():
    config = LlamaConfig(**{**SMALL, "vocab_size": 4096})
    with pytest.raises(RecipeError, match="cannot be met") as error:
        student_of(parameters="30%", axes=["layers", "feed_forward"]).cut_config(config)
    assert "`student.target.parameters: 30%`" in str(error.value)
    assert "parameters are embeddings and head; cut the vocabulary first" in str(error.value)
    assert "or allow heads, hidden in `student.target.axes`" in str(error.value)
    with pytest.raises(RecipeError, match="parameters are blocks"):
        student_of(bytes="100", axes=["heads"]).cut_config(MODELS["llama"][1])


def test_a_latency_is_not_refused_by_a_number_of_parameters():
    """An encoder's table takes most of its parameters and none of its time."""
    config = BertConfig(**{**FEW, "vocab_size": 30522})
    for latency in ("40%", "5ms"):
        student_of(latency=latency, axes=["layers", "feed_forward"]).cut_config(config)
    with pytest.raises(RecipeError, match="embeddings and head"):
        student_of(parameters="40%", axes=["layers", "feed_forward"]).cut_config(config)


@pytest.mark.parametrize("kind", ["latency", "parameters"])
@pytest.mark.parametrize(
    ("config", "axes", "says"),
    [
        (BertConfig(**FEW), ["heads"], "the heads of a BERT make up its width: name `hidden`"),
        (BertConfig(**FEW), ["layers", "heads"], "name `hidden`, which cuts both"),
        (
            LlamaConfig(**{**SMALL, "num_hidden_layers": 1}),
            ["layers"],
            "axes: .layers.` cuts nothing",
        ),
    ],
)
def test_axes_that_cut_nothing_are_refused(kind, config, axes, says):
    amount = {"latency": "5ms", "parameters": "99%"}[kind]
    with pytest.raises(RecipeError, match=says):
        student_of(**{kind: amount}, axes=axes).cut_config(config)


def test_a_checkpoint_counts_with_the_head_of_its_task():
    config = BertConfig(**FEW, architectures=["BertForPreTraining"])
    whole = Costs(AutoModelForMaskedLM.from_config(config)).parameters(sizes_of(config))
    smaller = student_of(parameters="70%").cut_config(config, "AutoModelForMaskedLM")
    student = AutoModelForMaskedLM.from_config(smaller)
    assert 0.6 * whole < sum(p.numel() for p in student.parameters()) <= 0.7 * whole


@pytest.mark.parametrize("name", MODELS)
def test_before_the_search_a_shape_under_the_target_is_assumed(name):
    model = random_model(name)
    costs, config = Costs(model), model.config
    sizes = sizes_of(student_of(parameters="50%").cut_config(config, MODELS[name][0].__name__))
    assert 0.4 < costs.parameters(sizes) / costs.parameters(costs.whole) <= 0.5
    space = space_of(model)
    assert max(space.removed(sizes).values()) <= 0.5  # no axis is cut deeply


# The search ------------------------------------------------------------------------------------


def test_every_shape_in_the_search_space_can_be_cut():
    for name in MODELS:
        model = random_model(name)
        costs, space = Costs(model), space_of(model)
        for sizes in space.filled(costs.parameters, 0.6 * costs.parameters(costs.whole))[::25]:
            kept = leading_parts(sizes, costs.whole)
            assert kept.sizes(costs.whole, space.family) == sizes


def test_axes_that_are_not_allowed_are_not_cut():
    model = random_model("llama")
    costs, space = Costs(model), space_of(model, ("heads", "feed_forward"))
    shapes = space.filled(costs.parameters, 0.8 * costs.parameters(costs.whole))
    assert {one.blocks for one in shapes} == {6}
    assert {one.channels for one in shapes} == {32}
    assert len({one.groups for one in shapes}) > 1


def harm_of(weights, interplay=0.0):
    """A divergence that is steep along some axes; its best shape is found by trying all."""

    def divergence(sizes, whole):
        gone = [
            1 - sizes.blocks / whole.blocks,
            1 - sizes.groups / whole.groups,
            1 - sizes.neurons / whole.neurons,
            1 - sizes.channels / whole.channels,
        ]
        parts = [w * g**1.5 for w, g in zip(weights, gone, strict=True)]
        return sum(parts) + interplay * math.prod(1 + g for g in gone) - interplay

    return divergence


@pytest.mark.parametrize(
    ("weights", "interplay"),
    [((1, 1, 1, 1), 0.0), ((4, 1, 1, 9), 0.0), ((1, 9, 3, 9), 1.0), ((9, 2, 1, 4), 3.0)],
)
@pytest.mark.parametrize("share", [0.8, 0.5])
def test_a_few_trials_find_nearly_the_best_of_all_shapes(weights, interplay, share):
    model = random_model("llama")
    costs, divergence = Costs(model), harm_of(weights, interplay)
    limit = share * costs.parameters(costs.whole)
    space = space_of(model).within(costs.parameters, limit)
    tried = []

    def measured(sizes):
        tried.append(sizes)
        return divergence(sizes, costs.whole)

    measures = ShapeMeasures(costs.parameters, measured)
    found = search_shapes(space, measures, limit, candidates=10)
    assert len(found) == 10
    assert len(tried) <= 10 + 12
    assert all(one.cost <= limit for one in found)
    assert [one.divergence for one in found] == sorted(one.divergence for one in found)
    every = [divergence(one, costs.whole) for one in space.filled(costs.parameters, limit)]
    assert found[0].divergence <= 1.1 * min(every)
    alone = [one.divergence for one in found if space.removed(one.sizes)["layers"] == 0]
    assert alone  # the shape of neurons alone is among them
    depth = [
        one for one in found
        if [k for k, gone in space.removed(one.sizes).items() if gone] == ["layers"]
    ]  # fmt: skip
    assert depth
    assert found[0].divergence <= depth[0].divergence


def test_a_shape_that_turns_out_too_slow_is_not_taken():
    """Costs are predicted wrongly at first, and better after each measurement."""
    model = random_model("llama")
    costs = Costs(model)
    known = {}

    def exact(sizes):
        known[sizes] = costs.parameters(sizes) * 1.2
        return known[sizes]

    def told(sizes):
        return known.get(sizes, costs.parameters(sizes) * (1.0 + 0.01 * len(known)))

    limit = 0.6 * costs.parameters(costs.whole)
    measures = ShapeMeasures(told, lambda sizes: harm_of((1, 1, 1, 1))(sizes, costs.whole), exact)
    found = search_shapes(space_of(model), measures, limit, candidates=5)
    assert found
    assert all(known[one.sizes] <= 1.01 * limit for one in found)


def test_a_measurement_corrects_the_estimates_of_similar_shapes():
    model = random_model("llama")
    space = space_of(model)
    estimate = DivergenceEstimate(space)
    for axis in ALL:
        sizes = space.alone(axis, 0.5)
        estimate.learn_axis(axis, sizes, 1.0)
    both = space.sized(3, 2, 128, 32)
    assert estimate.of(both) == pytest.approx(2.0)
    estimate.learn(both, 6.0)
    assert estimate.of(both) == pytest.approx(2.0 * 3 ** (1 / 1.1))
    assert estimate.of(space.sized(6, 4, 64, 32)) == pytest.approx(1.0)  # not similar


def test_no_shape_is_found_if_all_exceed_the_limit():
    model = random_model("llama")
    measures = ShapeMeasures(*[Costs(model).parameters] * 2)
    assert search_shapes(space_of(model), measures, 100.0, candidates=3) == []
