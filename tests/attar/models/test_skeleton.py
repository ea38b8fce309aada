"""A model without weights, for checks of names and shapes before any work."""

from transformers import BertConfig, LlamaConfig

from attar.models.loading import skeleton
from attar.models.task_heads import CAUSAL, MASKED

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


class TheirConfig(LlamaConfig):
    """A config class whose code comes with its model."""


def test_a_skeleton_has_the_head_of_the_task_and_no_weights():
    model = skeleton(BertConfig(**SMALL, architectures=["BertForPreTraining"]), MASKED)
    assert type(model).__name__ == "BertForMaskedLM"
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_code_that_came_with_a_model_is_not_run_to_look_at_it():
    code = {"AutoConfig": "theirs.TheirConfig", "AutoModelForCausalLM": "theirs.Model"}
    only_model = {"AutoModelForCausalLM": "theirs.Model"}
    assert skeleton(TheirConfig(**SMALL, auto_map=code), CAUSAL) is None
    assert skeleton(LlamaConfig(**SMALL, auto_map=only_model), CAUSAL) is None
    # loaded without that code, as a config of transformers' own
    assert skeleton(LlamaConfig(**SMALL, auto_map=code), CAUSAL) is not None
