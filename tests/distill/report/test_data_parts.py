"""Which part of the data chose what: the entry of report.json and its sentence."""

import pytest

from distill.report.data_parts import VALIDATION_SOURCES, DataParts, data_entry, data_section

STATS = {
    "documents": 40,
    "train": {"examples": 90, "tokens": 9000},
    "validation": {"examples": 10, "tokens": 1024},
    "held_out": {"examples": 20, "tokens": 2048},
    "validation_from": "documents",
}


def test_the_entry_has_the_tokens_of_both_parts_and_says_what_each_is_for():
    entry = DataParts.from_stats(STATS).entry()
    assert entry["validation_tokens"] == 1024
    assert entry["held_out_tokens"] == 2048
    assert entry["validation_from"] == "documents"
    assert "chosen on the validation part (1,024 tokens, from training doc" in entry["sentence"]
    assert "held-out part (2,048 tokens), which nothing before `evaluate` read" in entry["sentence"]


def test_what_specialising_chose_on_data_of_its_own_is_said():
    own = {**STATS, "validation": {"examples": 5, "tokens": 315}, "validation_from": "source"}
    entry = DataParts.from_stats(STATS, own).entry()
    assert entry["sentence"].startswith(
        "Checkpoints and shapes were chosen on the validation part (1,024 tokens, "
    )
    merge = "its merge, on that of `specialize.data` (315 tokens, from a source of its own)"
    assert merge in entry["sentence"]
    assert entry["specialize_validation_tokens"] == 315
    assert entry["specialize_validation_from"] == "source"


@pytest.mark.parametrize("source", list(VALIDATION_SOURCES))
def test_every_source_of_the_validation_part_is_put_in_words(source):
    sentence = DataParts.from_stats({**STATS, "validation_from": source}).sentence()
    assert VALIDATION_SOURCES[source] in sentence


def test_where_every_example_is_a_text_texts_are_counted():
    part = {"documents": 799, "examples": 800, "tokens": 800}
    parts = dict.fromkeys(("train", "validation", "held_out"), part)
    stats = {**parts, "validation_from": "documents", "left_out": []}
    assert "(800 texts, from training texts that nothing" in DataParts.from_stats(stats).sentence()
    section = data_section({"data": data_entry(stats, 128)})
    assert "<th>texts</th><th>different texts</th></tr>" in section.markup
    assert "<td>held_out</td><td>800</td><td>799</td>" in section.markup
    assert "A text has at most 128 tokens" in section.markup
    assert "counted tokens" not in section.markup
