"""What a training asks of a teacher that runs in its steps."""

from types import SimpleNamespace

from distill.stages import training
from distill.stages.training import _online_teacher
from distill.training.config import LoopConfig


def test_a_teacher_in_the_step_serves_preferences_and_layers(make_model, monkeypatch):
    monkeypatch.setattr(training, "load_teacher", lambda _: make_model(3))
    preference = {"loss": "preference", "source": "online"}
    layers = {"loss": "hidden_mse", "source": "online", "layers": [[1, 2]]}
    pairs = {1: [(1, 2)]}
    layer_map = SimpleNamespace(pairs=lambda objective, source: pairs)
    run = SimpleNamespace(layer_map=lambda: layer_map, teacher=None, vocabulary=97)
    config = LoopConfig.model_validate({"objective": [preference, layers]})
    teacher = _online_teacher(run, config, packing=False)
    assert (teacher.layers, teacher.blocks) == ([2], [])
