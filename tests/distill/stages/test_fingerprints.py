"""What stages depend on beside their section of the recipe."""

from types import SimpleNamespace

from distill.recipe.schema import TeacherSection
from distill.stages.fingerprints import reference_inputs, teacher_inputs
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


def test_where_a_server_is_and_how_it_is_asked_changes_nothing(make_model, tmp_path):
    make_model(3).save_pretrained(tmp_path)

    def inputs(server, **more):
        teacher = TeacherSection(model=str(tmp_path), server=server, **more)
        return teacher_inputs(
            SimpleNamespace(inputs_read={}, recipe=SimpleNamespace(teacher=teacher))
        )

    server = {"url": "http://one:1", "kind": "vllm", "model": "big"}
    first = inputs(server)
    asked = {"url": "https://two:2/v1", "key_env": "A_KEY", "concurrency": 2, "timeout": 5.0}
    assert inputs({**server, **asked}) == first
    assert inputs({**server, "model": "bigger"}) != first
    assert inputs({**server, "kind": "sglang"}) != first
    assert inputs(None) != first
    assert "'server'" not in str(inputs(None))  # recipes without one keep their fingerprints
    assert inputs(None, prompt="{hint}") == inputs(None)  # the examples know it
    assert "'prompt'" not in str(inputs(None))
