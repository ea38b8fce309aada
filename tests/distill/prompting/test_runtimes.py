"""Every runtime is asked: what only scores, and what keeps no keys and values between prompts."""

from pathlib import Path

import numpy as np
import pytest

from attar.errors import ModelError, RecipeError
from attar.files import read_json
from distill.prompting.config import PromptConfig
from distill.prompting.job import PromptJob, measure_job
from distill.prompting.prompt_file import PromptedModel, read_prompt
from distill.prompting.scorer import PlainScorer
from distill.prompting.search import check_ways
from distill.prompting.shared_prefix import open_scorer
from distill.runtimes.runtime import ModelSource, open_runtime
from tests.helpers.prompting import question_set

CONFIG = PromptConfig(shots=[0, 1], sets=1, candidates=3, dev=9)


@pytest.fixture
def gguf(make_model, tokenizer, tmp_path):
    """A tiny model for llama.cpp, and the same for transformers."""
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    from students.artifacts.gguf.writer import write_gguf

    make_model(0, width=64, vocabulary=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "model.gguf", "f16")
    return tmp_path / "model.gguf"


def measure(path, folder, questions):
    folder.mkdir()
    values = CONFIG.model_dump()
    measure_job(
        PromptJob(ModelSource(str(path)), "m", questions, values, 0, True, str(folder), "i")
    )
    return read_json(folder / "numbers.json")["numbers"]


def test_llama_cpp_is_asked_as_transformers_is(gguf, tmp_path):
    questions = question_set(12, 9, 8)
    config = CONFIG.model_copy(update={"demonstrations": ["balanced"]})
    values, found = config.model_dump(), {}
    for name, path in (("one", gguf), ("other", gguf.with_suffix(""))):
        folder = tmp_path / name
        folder.mkdir()
        source = ModelSource(str(path), dtype="float32")
        measure_job(PromptJob(source, "m", questions, values, 0, True, str(folder), "i"))
        with np.load(folder / "held_out.npz") as arrays:
            found[name] = dict(arrays)
    np.testing.assert_allclose(found["one"]["nll"], found["other"]["nll"], atol=0.05)
    assert isinstance(open_scorer(open_runtime(ModelSource(str(gguf))), 4), PlainScorer)


def test_nearest_needs_hidden_states(gguf):
    config = PromptConfig(demonstrations=["nearest"])
    with pytest.raises(RecipeError, match=r"which llama.cpp does not give"):
        check_ways(config, "llama.cpp")
    check_ways(config, "transformers")


def test_a_runtime_that_only_scores_writes_no_answers(runtime, tmp_path):
    questions = question_set(12, 9, 8)
    kept = measure(tmp_path / "model", tmp_path / "prompt", questions)
    assert 0 <= kept["accuracy"] <= 1
    prompt, inputs = read_prompt(Path(tmp_path / "prompt" / "prompt.json"))
    assert inputs == "i"
    assert PromptedModel(prompt, runtime).answer("the student") in questions.classes
    runtime.can_generate = False
    from dataclasses import replace

    with pytest.raises(ModelError, match="only scores texts"):
        PromptedModel(replace(prompt, kind="generation"), runtime)


def test_a_kept_prompt_gives_the_classes_that_were_measured(runtime, tmp_path):
    questions = question_set(12, 9, 8)
    measure(tmp_path / "model", tmp_path / "prompt", questions)
    prompt, _ = read_prompt(tmp_path / "prompt" / "prompt.json")
    model = PromptedModel(prompt, runtime)
    with np.load(tmp_path / "prompt" / "held_out.npz") as arrays:
        predicted = arrays["predicted"].tolist()
    texts = [one.prompt for one in questions.unseen.questions]
    assert [model.answer(text) for text in texts] == [questions.classes[i] for i in predicted]
