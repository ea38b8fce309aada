"""A text that is held out, or chooses, is learned nowhere in a run, whatever file it stands in."""

import logging
import random

import pytest

from attar.files import read_json
from distill.data.config import DataConfig
from distill.data.documents import text_key
from distill.data.examples import Examples
from distill.data.labelled_texts import LabelledTexts
from distill.data.masked_texts import MaskedTexts
from distill.data.placed import DATA_PARTS, part_file
from distill.data.prepare import prepare
from distill.data.unlabelled_texts import SingleTexts
from distill.recipe.specialize import SpecializeData
from tests.helpers.classifying import write_rows
from tests.helpers.masking import tokenizer


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Texts that all differ, and files of them: first.jsonl, second.jsonl."""
    monkeypatch.chdir(tmp_path)
    known = [word for word in tokenizer().get_vocab() if word.isalpha()]
    dice = random.Random(0)
    texts = [" ".join(dice.choices(known, k=30)) for _ in range(60)]
    found = [{"text": text, "label": i % 2} for i, text in enumerate(texts)]
    write_rows("first.jsonl", found[:30])
    write_rows("second.jsonl", found[30:])
    return found


@pytest.fixture
def make(tmp_path):
    """`make(folder, config, ...)`: texts by part, and the log's stats."""

    def made(name, config, reader=None, beside=None, seed=0):
        folder = tmp_path / name
        beside = beside and tmp_path / beside
        prepare(config, tokenizer(), "ids", seed, folder, reader, beside)
        parts = {part: Examples(part_file(folder, part)) for part in DATA_PARTS}
        return {part: set(examples._rows["text"]) for part, examples in parts.items()}, parts

    return made


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("length", [64, 12])
@pytest.mark.parametrize(
    "readers",
    [
        (None, None),
        (None, LabelledTexts()),
        (SingleTexts(), None),
        (MaskedTexts(0), SingleTexts()),
    ],
)
def test_no_section_learns_what_another_holds_out(rows, make, seed, length, readers):
    config = DataConfig(
        train=["first.jsonl", "second.jsonl"], held_out=0.35, validation=0.1, max_length=64
    )
    run, _ = make("data", config, readers[0], seed=seed)
    own = SpecializeData(train="first.jsonl", max_length=length)
    special, _ = make("special", own, readers[1], beside="data", seed=seed)
    mine = {text_key(row, ["text"]) for row in rows[:30]}
    hidden = run["held_out"] | run["validation"]
    assert mine & hidden, "there is something to keep apart"
    assert not special["train"] & hidden
    if mine & run["validation"]:
        assert special["validation"] <= run["validation"], "chosen by text that was not learned"
    assert mine & run["held_out"] <= special["held_out"]
    assert special["train"] | special["validation"] | special["held_out"] == mine


def test_equal_texts_are_known_in_other_files_and_spacing(rows, make):
    config = DataConfig(train="first.jsonl", held_out=0.3, validation=0.2, max_length=64)
    run, _ = make("data", config)
    spaced = [
        {"id": i, "text": f"  {row['text'].replace(' ', '  ')}"} for i, row in enumerate(rows)
    ]
    write_rows("spaced.jsonl", spaced)
    special, _ = make("special", SpecializeData(train="spaced.jsonl"), beside="data")
    assert not special["train"] & (run["held_out"] | run["validation"])
    assert len(special["train"]) > 30


def test_a_held_out_source_of_its_own_is_learned_nowhere(rows, make):
    config = DataConfig(train="first.jsonl", held_out="second.jsonl", max_length=64)
    run, _ = make("data", config)
    own = SpecializeData(train=["first.jsonl", "second.jsonl"], validation="second.jsonl")
    with pytest.raises(Exception, match="stand in another part"):
        make("special", own, beside="data")
    own = SpecializeData(train=["first.jsonl", "second.jsonl"])
    special, _ = make("special", own, beside="data")
    assert len(run["held_out"]) == 30
    assert not special["train"] & run["held_out"]


@pytest.mark.parametrize("length", [16, 9, 40])
def test_the_windows_of_one_document_keep_their_part(tmp_path, make, rows, length):
    write_rows("book.jsonl", [{"text": " ".join(row["text"] for row in rows)}])
    config = DataConfig(train="book.jsonl", held_out=0.2, validation=0.2, max_length=16)
    _, run = make("data", config)
    _, special = make(
        "special", SpecializeData(train="book.jsonl", max_length=length), beside="data"
    )
    begins = {part: examples._rows["begin"] for part, examples in run.items()}
    held, chosen = min(begins["held_out"]), min(begins["validation"])
    assert max(special["train"]._rows["begin"]) < chosen < held
    assert all(chosen - 1e-6 <= one < held for one in special["validation"]._rows["begin"])
    assert len(special["train"]) > len(special["validation"]) > 0


def test_texts_that_are_all_learned_choose_with_a_word(rows, make, caplog):
    config = DataConfig(train="first.jsonl", held_out=0.02, validation=0.02, max_length=64)
    run, _ = make("data", config)
    learned = [row for row in rows[:30] if text_key(row, ["text"]) in run["train"]]
    write_rows("third.jsonl", learned[:9])
    with caplog.at_level(logging.WARNING):
        special, _ = make("special", SpecializeData(train="third.jsonl"), beside="data")
    assert len(special["validation"]) == 1
    assert len(special["train"]) == 8
    assert not special["held_out"]
    assert (
        caplog.text.count("left for `specialize.data.validation` is learned elsewhere in the run")
        == 1
    )


def test_other_parts_of_the_run_make_the_data_anew(rows, make, tmp_path):
    config = DataConfig(train="first.jsonl", held_out=0.3, max_length=64)
    own = SpecializeData(train="first.jsonl")
    make("data", config)
    make("special", own, beside="data")
    before = read_json(tmp_path / "special" / "stats.json")["inputs"]
    make("data", config.model_copy(update={"held_out": 0.4}))
    make("special", own, beside="data")
    assert read_json(tmp_path / "special" / "stats.json")["inputs"] != before


def test_copies_of_a_window_stay_together(rows, make):
    """Another mask over a window that is held out is still that window."""
    write_rows("book.jsonl", [{"text": " ".join(row["text"] for row in rows)}])
    config = DataConfig.model_validate(
        {"train": "book.jsonl", "held_out": 0.2, "validation": 0.2, "max_length": 16,
         "masking": {"copies": 3}}
    )  # fmt: skip
    _, parts = make("data", config, MaskedTexts(0))
    begins = {part: set(examples._rows["begin"]) for part, examples in parts.items()}
    assert all(begins.values())
    assert not begins["held_out"] & (begins["train"] | begins["validation"])
    assert not begins["train"] & begins["validation"]
