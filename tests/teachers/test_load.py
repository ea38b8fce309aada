"""Teachers in full precision, quantised, and missing."""

import numpy as np
import pytest
import torch

from attar.errors import ModelError
from attar.models.fingerprints import weights_fingerprint
from teachers.cache.config import CacheConfig
from teachers.load import TeacherConfig, load_teacher, teacher_identity
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request


@pytest.fixture(scope="module")
def folder(make_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher")
    make_model(0, width=64, vocabulary=320).save_pretrained(path)
    return path


def signals_of(folder, **config):
    teacher = load_teacher(TeacherConfig(model=str(folder), **config))
    assert not any(p.requires_grad for p in teacher.parameters())
    request = Request("1" * 32, np.arange(5, 25), np.arange(19))
    (columns,) = TeacherRunner(teacher, 320, CacheConfig()).run([request], {})
    return CacheConfig().codec.decode(columns, 19, 1.0, {})


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantised_teacher_says_nearly_the_same(folder, quantization):
    full = signals_of(folder, dtype="float32")
    quantised = signals_of(folder, dtype="float32", quantization=quantization)
    overlap = [
        len(set(a.tolist()) & set(b.tolist()))
        for a, b in zip(full.ids_NK, quantised.ids_NK, strict=True)
    ]
    assert np.mean(overlap) > 20  # of 32; by chance 3


def test_bfloat16_is_close_to_float32(folder):
    full, half = signals_of(folder, dtype="float32"), signals_of(folder, dtype="bfloat16")
    assert torch.allclose(full.logprobs_NK[:, 0], half.logprobs_NK[:, 0], atol=0.2)


def test_identity_changes_with_weights_dtype_and_quantisation(folder, make_model, tmp_path):
    config = TeacherConfig(model=str(folder), dtype="float32")
    identity = teacher_identity(config)
    assert identity == teacher_identity(config)
    for change in ({"dtype": "bfloat16"}, {"quantization": "nf4"}):
        assert teacher_identity(config.model_copy(update=change)) != identity
    make_model(1, width=64, vocabulary=320).save_pretrained(tmp_path)
    assert weights_fingerprint(str(tmp_path)) != weights_fingerprint(str(folder))


@pytest.mark.parametrize("name", ["./nowhere", "nowhere.gguf", "/no/such/folder"])
def test_a_teacher_that_is_not_there_is_named(name):
    with pytest.raises(ModelError, match=name):
        load_teacher(TeacherConfig(model=name))


def test_a_folder_without_a_model_is_told(tmp_path):
    with pytest.raises(ModelError, match="holds no model"):
        load_teacher(TeacherConfig(model=str(tmp_path)))
