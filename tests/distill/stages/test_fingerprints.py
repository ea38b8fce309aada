"""What stages depend on beside their section of the recipe."""

from types import SimpleNamespace

from distill.stages.fingerprints import reference_inputs
from distill.training.config import LoopConfig


def test_a_training_depends_on_the_weights_of_a_named_reference(make_model, tmp_path):
    def inputs(name):
        config = LoopConfig(objective=[{"loss": "preference"}], reference=name)
        return reference_inputs(SimpleNamespace(inputs_read={}), config)

    name = str(tmp_path / "other")
    make_model(3).save_pretrained(name)
    first = inputs(name)
    assert first == inputs(name)
    make_model(4).save_pretrained(name)
    assert first != inputs(name)
    assert inputs(None) == []
