"""What a sentence encoder's files say beside its pooling: prompts, and the case of letters."""

import json

import pytest

from attar.errors import ModelError
from attar.models.pooling import check_letters, copy_pooling, read_prompts, write_prompts


def write(folder, name, **values):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(values))


def test_prompts_are_kept_through_student_and_artifact_but_none_by_default(tmp_path):
    teacher, student, artifact = (tmp_path / name for name in ("teacher", "student", "artifact"))
    prompts = {"query": "query: ", "document": "passage: "}
    write(
        teacher, "config_sentence_transformers.json",
        prompts={**prompts, "plain": ""}, default_prompt_name="query",
    )  # fmt: skip
    assert read_prompts(str(teacher)) == (prompts, "query")
    student.mkdir()
    artifact.mkdir()
    write_prompts(student, read_prompts(str(teacher))[0])
    copy_pooling(student, artifact)
    assert read_prompts(str(artifact)) == (prompts, None)
    assert read_prompts(str(tmp_path)) == ({}, None)


def test_an_encoder_that_lower_cases_texts_itself_is_refused(tmp_path):
    check_letters(str(tmp_path))
    write(tmp_path, "sentence_bert_config.json", do_lower_case=False)
    check_letters(str(tmp_path))
    write(tmp_path, "sentence_bert_config.json", do_lower_case=True)
    with pytest.raises(ModelError, match="make the texts of `data` lower case"):
        check_letters(str(tmp_path))
