"""What a training asks of a teacher that runs in its steps."""

from types import SimpleNamespace

import pytest

from attar.errors import CacheError
from distill.stages import training
from distill.stages.training import _check_prompts, _online_teacher
from distill.training.config import LoopConfig
from tests.helpers.judging import preferences, prepare_parts


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


def test_an_unfinished_cache_with_one_prompt_is_refused_for_rated_answers(tokenizer, tmp_path):
    parts, _ = prepare_parts(tokenizer, tmp_path, preferences(6))
    train, run = parts["train"], SimpleNamespace(cache_url="caches/teacher")
    one_prompt = train.numbered([i for i, e in enumerate(train) if has_prompt_of(train[0], e)])
    plain = LoopConfig.model_validate({"objective": [{"loss": "cross_entropy"}]})
    rated = LoopConfig.model_validate({"objective": [{"loss": "preference", "form": "kto"}]})
    with pytest.raises(CacheError, match="caches/teacher holds judged answers to fewer than two"):
        _check_prompts(run, rated, train, one_prompt)
    _check_prompts(run, rated, train, train)
    _check_prompts(run, plain, train, one_prompt)


def has_prompt_of(one, other):
    return one.prompt.tolist() == other.prompt.tolist()
