"""Texts are read as the encoder's own library reads them: lower case, prompts, limits."""

import json
from types import SimpleNamespace

import pytest
from tokenizers.normalizers import NFC

from attar.errors import ModelError
from attar.files import read_json
from attar.models.encoder_texts import EncoderTexts, copy_encoder_texts, read_encoder_texts
from attar.models.pooling import Pooling, copy_pooling, write_pooling
from distill.data.config import DataConfig
from distill.data.examples import Examples
from distill.data.placed import part_file
from distill.data.prepare import prepare
from distill.data.scored_pairs import PairsConfig, read_pairs
from distill.tasks.embedding.task import Embedding, _say_how_texts_are_read
from tests.helpers.classifying import word_tokenizer, write_rows

LIMITS, PROMPTS = "sentence_bert_config.json", "config_sentence_transformers.json"


@pytest.fixture
def teacher(tmp_path):
    """`teacher(limits, asked, pooling)`: a folder with an encoder's files."""

    def make(limits=None, asked=None, pooling=None):
        folder = tmp_path / "teacher"
        folder.mkdir(exist_ok=True)
        write_pooling(folder, Pooling("mean", True), 32, 16)
        for name, values in (
            (LIMITS, limits),
            (PROMPTS, asked),
            ("1_Pooling/config.json", pooling),
        ):
            if values is not None:
                known = read_json(folder / name) if (folder / name).exists() else {}
                (folder / name).write_text(json.dumps({**known, **values}))
        return folder

    return make


LOWER = {"do_lower_case": True}
ASKED = {"prompts": {"query": "the film ", "document": ""}, "default_prompt_name": "query"}


def cased_tokenizer():
    """A tokenizer that tells upper from lower case."""
    made = word_tokenizer()
    made._tokenizer.normalizer = NFC()
    return made


def ids_of(tmp_path, folder, rows):
    write_rows(str(tmp_path / "rows.jsonl"), rows)
    config = DataConfig(train=str(tmp_path / "rows.jsonl"), held_out=0.2, max_length=24)
    reader = Embedding().reader(SimpleNamespace(_name_or_path=str(folder)), False, 0)
    made = prepare(config, cased_tokenizer(), "ids", 0, tmp_path / "data", reader)
    parts = [Examples(part_file(made, part)) for part in ("train", "validation", "held_out")]
    return sorted(tuple(example.input_ids) for part in parts for example in part)


def test_texts_are_put_into_lower_case_where_the_encoder_does_so(tmp_path, teacher):
    low = [{"text": f"the film was {word}"} for word in ("warm", "dull", "cold", "grim", "fine")]
    high = [{"text": row["text"].capitalize()} for row in low]
    assert ids_of(tmp_path, teacher(), low) != ids_of(tmp_path, teacher(), high)
    assert ids_of(tmp_path, teacher(LOWER), low) == ids_of(tmp_path, teacher(LOWER), high)


def test_the_default_prompt_is_put_before_texts_and_pairs(tmp_path, teacher):
    bare = [{"text": f"was {word}"} for word in ("warm", "dull", "cold", "grim", "fine")]
    asked = [{"text": f"the film {row['text']}"} for row in bare]
    plain = ids_of(tmp_path, teacher(), asked)
    folder = teacher(None, ASKED)
    assert plain == ids_of(tmp_path, folder, bare)
    rows = [{"sentence1": "was warm", "sentence2": "was dull", "score": i} for i in range(2)]
    write_rows(str(tmp_path / "pairs.jsonl"), rows)
    pairs = PairsConfig(source=str(tmp_path / "pairs.jsonl"))
    found = read_pairs(pairs, word_tokenizer(), 24, read_encoder_texts(str(folder)))
    assert tuple(found["first"][0]) in plain
    assert found["first"] != read_pairs(pairs, word_tokenizer(), 24)["first"]


def test_a_student_is_read_as_its_teacher(tmp_path, teacher):
    folder, student = teacher(LOWER, ASKED), tmp_path / "student"
    student.mkdir()
    write_pooling(student, Pooling("mean", True), 16, 12)
    copy_encoder_texts(str(folder), student)
    found = read_encoder_texts(str(student))
    assert (found.lower, found.prompt, found.max_length) == (True, "the film ", 12)
    (tmp_path / "artifact").mkdir()
    copy_pooling(student, tmp_path / "artifact")
    assert read_encoder_texts(str(tmp_path / "artifact")) == found


def test_what_is_not_read_as_users_know_it_is_said(teacher, caplog):
    asked = {"prompts": {"query": "q: ", "passage": "p: "}, "default_prompt_name": None}
    recipe = SimpleNamespace(
        teacher=SimpleNamespace(model=str(teacher({"max_seq_length": 16}, asked))),
        data=SimpleNamespace(max_length=24),
    )
    _say_how_texts_are_read(recipe)
    assert "prompts for query, passage, which are not put before texts" in caplog.text
    assert "the teacher itself reads the first 16 tokens" in caplog.text


def test_a_prompt_that_is_not_pooled_is_refused(teacher):
    with pytest.raises(ModelError, match="leaves it out of the pooling"):
        read_encoder_texts(str(teacher(None, ASKED, {"include_prompt": False})))


def test_other_models_read_texts_as_they_are():
    assert read_encoder_texts("") == EncoderTexts()
    assert EncoderTexts().read("Some Text") == "Some Text"
    assert EncoderTexts().identity == {}
