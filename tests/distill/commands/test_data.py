"""`distill data`: what will be learned is counted and shown as the run will have it."""

import json
from itertools import takewhile
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from distill.commands.main import main
from distill.data.doubtful_classes import doubtful_classes
from distill.run.context import Run
from distill.run.load import load_recipe
from tests.helpers import classifying
from tests.helpers.judging import preferences, ratings


@pytest.fixture
def folder(make_model, tokenizer, tmp_path, monkeypatch):
    """A folder with a recipe of a language model; gives a function that writes the rows."""
    monkeypatch.chdir(tmp_path)
    make_model(0, vocabulary=320).save_pretrained("teacher")
    tokenizer.save_pretrained("teacher")
    recipe = {
        "data": {"train": "rows.jsonl", "held_out": 0.2, "max_length": 128},
        "teacher": {"model": "teacher"},
        "student": {"from": "teacher", "layers": {"keep": 1}},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))

    def write(rows):
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    return write


def show(*more):
    result = CliRunner().invoke(main, ["data", "recipe.yaml", "--run-dir", "out", *more])
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def row_of(lines, name):
    return next(line.split()[1:] for line in lines if line.split()[:1] == [name])


def talk(reply):
    asked, answered = {"role": "user", "content": "2 + 2?"}, {"role": "assistant"}
    return {"messages": [asked, {**answered, "content": reply}]}


def test_what_is_learned_of_the_first_rows_stands_in_marks(folder):
    bad = {"messages": [{"role": "bot", "content": "x"}]}
    folder([talk("It is\x1b four."), talk(""), bad, *(talk(str(i)) for i in range(30))])
    lines = show("--rows", "3")
    first = next(i for i, line in enumerate(lines) if line.startswith("line 1 of rows.jsonl"))
    assert lines[first + 1].endswith("assistant\\n⟪It is\\x1b four.<|im_end|>⟫\\n")
    assert lines[first + 2] == "line 2 of rows.jsonl: 1 have an empty answer, and are left out"
    assert lines[first + 3].startswith(
        "line 3 of rows.jsonl: left out: such rows have a message of the role `bot`"
    )
    assert not Path("out").exists()


def test_both_answers_of_a_pair_are_shown(folder):
    folder(preferences(20, each=1))
    lines = show("--rows", "1")
    first = next(i for i, line in enumerate(lines) if line.startswith("line 1 of rows.jsonl"))
    asked = "<|im_start|>user\\nwhat says 0?<|im_end|>\\n<|im_start|>assistant\\n"
    chosen, rejected = (f"⟪{preferences(1)[0][name]}<|im_end|>⟫" for name in ("chosen", "rejected"))
    assert lines[first + 1] == f"    chosen: {asked}{chosen}\\n"
    assert lines[first + 2] == f"    rejected: {asked}{rejected}\\n"
    documents, examples, _, judged, pairs = row_of(lines, "train")
    assert documents == examples == judged == pairs
    start = next(i for i, line in enumerate(lines) if line.startswith("length of train"))
    rows = takewhile(lambda line: line.strip()[:1].isdigit(), lines[start + 1 :])
    assert sum(int(row.split()[1]) for row in rows) == 2 * int(pairs)


def test_rated_answers_are_shown_with_their_ratings(folder):
    folder(ratings(20))
    lines = show("--rows", "2")
    first = next(i for i, line in enumerate(lines) if line.startswith("line 1 of rows.jsonl"))
    assert lines[first + 1].startswith("    bad: ")
    assert lines[first + 3].startswith("    good: ")
    assert row_of(lines, "train")[-1] != "0"


def test_a_held_out_part_that_can_tell_nothing_is_told_before_the_run(folder):
    folder([talk(f"It is {i}.") for i in range(20)])  # a fifth are 4 documents
    says = "The held-out part has 4 documents: below 8 there are no intervals"
    assert any(line.startswith(f"- {says}") for line in show("--rows", "0"))
    plan = ["plan", "recipe.yaml", "--run-dir", "out", "--set", "export.artifacts=[bf16]"]
    assert f"Warning: {says}" in CliRunner().invoke(main, plan).output
    folder([talk(f"It is {i}.") for i in range(60)])
    assert not any("there are no intervals" in line for line in show("--rows", "0"))


def test_parts_and_what_is_left_out_are_counted_as_the_run_prepares_them(folder):
    bad = {"messages": [{"role": "bot", "content": "x"}]}
    folder([talk(""), bad, *(talk(f"It is {i}.") for i in range(40))])
    lines = show("--rows", "0")
    run = Run(load_recipe("recipe.yaml"), Path("real"))
    run.prepare_data()
    train, validation = run.data()
    assert row_of(lines, "train") == [str(len(train)), str(len(train)), f"{train.num_tokens:,}"]
    assert row_of(lines, "validation")[1] == str(len(validation))
    said = "\n".join(lines)
    assert "- 1 have an empty answer, and are left out." in said
    assert "a message of the role `bot`" in said
    assert "line 2 of rows.jsonl" in said
    assert "`train` has " in said
    assert "optimiser steps" in said


def test_lengths_are_shown_with_those_that_fill_the_window_apart(folder):
    long = [{"text": f"light falls on water {i} " * 60} for i in range(10)]
    folder([*long, *({"text": f"a {i}"} for i in range(20))])
    lines = show("--rows", "0", "--set", "data.max_length=32")
    full = next(line for line in lines if line.startswith("32 (max_length)"))
    run = Run(load_recipe("recipe.yaml", ["data.max_length=32"]), Path("real"))
    run.prepare_data()
    lengths = run.data()[0].lengths
    assert int(full.split()[2]) == int((lengths == 32).sum())


def test_a_run_folder_keeps_what_was_prepared_and_is_not_prepared_again(folder):
    folder([talk(f"It is {i}.") for i in range(30)])
    Path("out").mkdir()
    before = show("--rows", "0")
    time = Path("out/data/train.arrow").stat().st_mtime_ns
    assert show("--rows", "0") == before
    assert Path("out/data/train.arrow").stat().st_mtime_ns == time


def test_classes_are_counted_and_a_misspelt_one_is_pointed_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    classifying.fill_workshop()
    rows = [json.loads(line) for line in Path("train.jsonl").read_text().splitlines()]
    classifying.write_rows("train.jsonl", [*rows, {"text": "the film was odd", "label": "goood"}])
    lines = show("--rows", "1")
    good = sum(row["label"] == "good" for row in rows)
    measured = Path("test.jsonl").read_text().count('"good"')
    train, validation, held_out = map(int, row_of(lines, "good"))
    assert good - 5 <= train + validation <= good, "a text that is held out is not learned"
    assert held_out <= measured
    asked = "- one row alone has the class `goood` (the first: line "
    [told] = [line for line in lines if line.startswith(asked)]
    assert told.endswith(f", and {good} have `good`: is it misspelt?")
    assert not any("bad" in line and "misspelt" in line for line in lines)
    heads = next(line.split() for line in lines if line.startswith("part"))
    assert heads == ["part", "documents", "examples"], "each text counts once"


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ({"NUM": 900, "NUMM": 1, "LOC": 500}, ["NUMM"]),
        ({"NUM": 900, "LOC": 500, "ABBR": 1}, ["ABBR"]),
        ({"lost_phone": 46, "los_phone": 4, "fee": 50}, ["los_phone"]),
        ({"level-1": 90, "level-2": 2}, []),
        ({"up": 5, "ups": 4}, []),
        ({"card_arrival": 90, "card_arrivals": 4, "card_linking": 80}, ["card_arrivals"]),
        ({"card arrival": 90, "Card-Arrival": 70}, ["Card-Arrival"]),
        ({"top_up_by_card": 90, "top_up_by_cash": 80}, []),
        ({"1": 90, "2": 1}, ["2"]),
        ({"yes": 90, "no": 0}, ["no"]),
    ],
)
def test_doubtful_classes_are_rare_or_named_almost_alike(rows, named):
    found = doubtful_classes(rows, dict.fromkeys(rows, "line 1"))
    assert len(found) == len(named)
    for sentence, name in zip(found, named, strict=True):
        assert f"the class `{name}`" in sentence
