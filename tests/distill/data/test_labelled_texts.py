"""Labelled texts: columns, classes, pairs, truncation; each mistake in a sentence."""

import logging

import datasets
import pytest

from attar.errors import DataError
from distill.data.config import DataConfig
from distill.data.examples import Examples
from distill.data.labelled_texts import LabelledTexts
from distill.data.prepare import prepare, prepare_whole
from distill.data.tokenize import IGNORE
from tests.helpers.classifying import word_tokenizer

ROWS = [
    {"text": "the film was fine", "label": "good"},
    {"text": "a grim story", "label": "bad"},
    {"text": "very lovely music", "label": "good"},
    {"text": "cold and dull", "label": "bad"},
]


def stands(rows):
    """Whether these are names of what is on disk, and not rows."""
    return isinstance(rows, str) or isinstance(rows[0], str)


@pytest.fixture
def read(tmp_path, write_rows):
    """`read(rows, held, order, **keys)`: (training, held-out examples, what stats.json keeps).

    The validation part is the first of the held-out rows with another text; a share of the rows
    where a share is held out.
    """

    def another_text(held):
        if isinstance(held, list):
            return write_rows([{**held[0], "text": "the story and the music"}], "chosen_on.jsonl")
        table = datasets.load_from_disk(held).select([0])
        table.map(lambda _: {"text": "the story and the music"}).save_to_disk(tmp_path / "chosen")
        return str(tmp_path / "chosen")

    def make(rows=ROWS, held=ROWS[:1], order=None, **keys):
        values = {
            "train": rows if stands(rows) else write_rows(rows),
            "held_out": write_rows(held, "held.jsonl") if isinstance(held, list) else held,
            "validation": 0.02 if isinstance(held, float) else another_text(held),
            "max_length": 24, **keys,
        }  # fmt: skip
        config = DataConfig.model_validate(values)
        folder = tmp_path / "data"
        prepare(config, word_tokenizer(), "ids", 0, folder, LabelledTexts(order))
        from attar.files import read_json

        parts = (Examples(folder / f"{name}.arrow") for name in ("train", "held_out"))
        return *parts, read_json(folder / "stats.json")

    return make


def test_a_text_counts_once_and_carries_its_class(read):
    train, _, stats = read()
    assert stats["classes"] == ["bad", "good"]
    assert len(train) == 3, "the held-out text is not learned"
    assert set(train.counts) == {1}
    for example in train:
        ids = example.input_ids.tolist()
        assert ids[0] == 2
        assert ids[-1] == 3
        assert example.labels[0] in (0, 1)
        assert (example.labels[1:] == IGNORE).all()
        assert example.token_types is None


def test_a_key_does_not_tell_the_class(read):
    swapped = [{**row, "label": {"good": "bad", "bad": "good"}[row["label"]]} for row in ROWS]
    before, _, _ = read()
    after, _, _ = read(swapped, held=[swapped[0]])
    labels = [{e.key: int(e.labels[0]) for e in part} for part in (before, after)]
    assert labels[0].keys() == labels[1].keys()
    assert all(labels[0][key] != labels[1][key] for key in labels[0])


def test_pairs_have_token_types_and_keys_that_know_their_border(read):
    rows = [
        {"text": "the film", "other": "was fine", "label": 1},
        {"text": "the film was", "other": "fine", "label": 0},
        {"text": "cold", "other": "music", "label": 0},
    ]
    train, _, stats = read(rows, held=rows[2:], pair_column="other")
    assert stats["classes"] == ["0", "1"]
    assert [e.token_types.tolist().count(1) for e in train] in ([2, 3], [3, 2])
    assert len({e.key for e in train}) == 2


def test_texts_beyond_the_window_are_cut_and_counted(read, caplog):
    long = {"text": " ".join(["very"] * 40) + " dull", "label": "bad"}
    with caplog.at_level(logging.WARNING):
        train, _, _ = read([*ROWS, long], max_length=8)
    assert max(train.lengths) == 8
    assert "of the rows, 1 are longer than `data.max_length` and end there" in caplog.text


def test_rows_without_class_or_text_are_left_out_and_counted(read, caplog):
    rows = [*ROWS, {"text": "fine", "label": None}, {"text": " ", "label": "bad"}]
    with caplog.at_level(logging.WARNING):
        train, _, _ = read(rows)
    assert len(train) == 3
    assert "1 have no label" in caplog.text
    assert "1 have no text" in caplog.text


def test_numbers_get_their_names(read):
    rows = [{**row, "label": int(row["label"] == "good")} for row in ROWS]
    _, held, stats = read(rows, held=rows[:1], label_column="label", label_names=["bad", "good"])
    assert stats["classes"] == ["bad", "good"]
    assert held[0].labels[0] == 1
    assert stats["examples_by_class"] == {
        "train": [2, 1], "validation": [0, 1], "held_out": [0, 1],
    }  # fmt: skip


@pytest.fixture
def save_table(tmp_path):
    """`save_table(rows, names)`: a saved data set whose words are numbers with these names."""

    def save(rows, names, name="table"):
        table = datasets.Dataset.from_list(rows)
        table = table.cast_column("label", datasets.ClassLabel(names=names))
        table.save_to_disk(str(tmp_path / name))
        return str(tmp_path / name)

    return save


def said(examples, stats):
    """The name of each text's class, by its words."""
    names = word_tokenizer().convert_ids_to_tokens
    return {
        " ".join(names(e.input_ids[1:-1].tolist())): stats["classes"][int(e.labels[0])]
        for e in examples
    }


TRUE = {"a grim story": "bad", "very lovely music": "good", "cold and dull": "bad"}


@pytest.mark.parametrize("form", ["words", "numbers", "table"])
@pytest.mark.parametrize("names", [None, ["good", "bad"], ["bad", "good"]])
def test_a_class_keeps_its_meaning_in_the_order_of_a_teacher(read, save_table, form, names):
    """By words, by numbers that the recipe names, and by a table's own numbers."""
    rows, keys = ROWS, {} if names is None else {"label_names": names}
    if form == "numbers":
        keys = {"label_names": ["bad", "good"] if names is None else names}
        rows = [{**row, "label": keys["label_names"].index(row["label"])} for row in ROWS]
    if form == "table":
        rows = save_table(ROWS, ["bad", "good"])
    held = ROWS[:1] if form != "numbers" else rows[:1]
    for order in (["GOOD", "Bad"], ["BAD", "Good"], ["Odd", "Good", "Bad"], None):
        train, test, stats = read(rows, held=held, order=order, **keys)
        assert said(train, stats) == TRUE
        assert said(test, stats) == {"the film was fine": "good"}
        if order is not None:
            assert [name.casefold() for name in stats["classes"]] == [n.casefold() for n in order]
            assert int(test[0].labels[0]) == [n.casefold() for n in order].index("good")


def test_names_without_any_of_the_tables_own_stand_for_them(read, save_table):
    rows = save_table(ROWS, ["bad", "good"])
    held = save_table(ROWS[:1], ["bad", "good"], "held")
    _, test, stats = read(rows, held=held, label_names=["negative", "positive"])
    assert said(test, stats) == {"the film was fine": "positive"}


def test_each_table_names_its_own_classes(read, save_table):
    """Two tables that number the same classes otherwise, and one of words."""
    first = save_table(ROWS[:2], ["bad", "good"], "first")
    second = save_table(ROWS[2:], ["good", "bad"], "second")
    for held in (ROWS[:1], save_table(ROWS[:1], ["good", "bad"], "held")):
        train, test, stats = read([first, second], held=held)
        assert stats["classes"] == ["bad", "good"]
        assert said(train, stats) == TRUE
        assert said(test, stats) == {"the film was fine": "good"}


def test_bare_numbers_beside_named_classes_are_refused(read, save_table):
    held = [{**ROWS[0], "label": 1}]
    with pytest.raises(DataError, match=r"1 rows of .* training data: 1; .*`data.label_names`"):
        read(save_table(ROWS, ["bad", "good"]), held=held)


def test_numbers_without_names_count_upwards(read):
    rows = [{"text": text, "label": n} for text, n in (("fine", 10), ("dull", 9), ("cold", 100))]
    _, _, stats = read(rows, held=rows[:1])
    assert stats["classes"] == ["9", "10", "100"]


@pytest.mark.parametrize(
    ("rows", "keys", "said"),
    [
        (ROWS, {"label_column": "labl"}, r"no column `labl`.*Did you mean `label`"),
        (ROWS, {"pair_column": "txt"}, r"no column `txt` \(`data.pair_column`\)"),
        ([{"text": "fine", "label": 0.5}] * 2, {}, "numbers with fractions"),
        ([{"text": "fine", "label": "x"}] * 2, {}, "only x; a classifier needs at least two"),
        ([{"text": "fine", "tag": "x"}] * 2, {}, "which holds the classes.*`data.label_column`"),
        ([{"words": "fine", "label": 1}] * 2, {}, "which holds the texts.*`data.text_column`"),
        (
            [{"text": "a", "label": 3}],
            {"label_column": "label", "label_names": ["x", "y"]},
            "3 as label.*2 classes",
        ),
        ([{"text": "a", "label": ["x"]}] * 2, {}, "classes are words or numbers"),
    ],
)
def test_what_cannot_be_classes_is_said(read, rows, keys, said):
    with pytest.raises(DataError, match=said):
        read(rows, held=0.5, **keys)


def test_held_out_classes_that_were_never_learned_are_refused_with_their_number(read):
    held = [{"text": "warm", "label": "odd"}, {"text": "kind", "label": "odd"}, ROWS[0]]
    with pytest.raises(DataError, match=r"2 rows of .* not in the training data: odd; known are"):
        read(held=held)


def test_a_class_that_only_the_held_out_share_has_is_told(read, caplog):
    rows = [{"text": f"{word} film", "label": word} for word in ("warm", "kind", "cold", "grim")]
    with caplog.at_level(logging.WARNING):
        read(rows, held=0.25)
    assert "1 classes have held-out examples and none to learn from" in caplog.text


def test_a_teacher_whose_names_say_nothing_changes_no_order(read):
    _, held, stats = read(order=["LABEL_0", "LABEL_1"])
    assert stats["classes"] == ["bad", "good"]
    assert held[0].labels[0] == 1
    rows = [{**row, "label": int(row["label"] == "good")} for row in ROWS]
    _, held, stats = read(rows, held=rows[:1], order=["POSITIVE", "NEGATIVE"])
    assert stats["classes"] == ["0", "1"]
    assert held[0].labels[0] == 1


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (["a", "b", "c"], "teacher knows 3 classes.*data have 2"),
        (["yes", "no"], "teacher's classes are yes, no, the data's bad, good"),
    ],
)
def test_a_teacher_of_other_classes_is_refused(read, order, said):
    with pytest.raises(DataError, match=said):
        read(order=order)


def test_texts_alone_can_be_prepared_to_be_measured(tmp_path, write_rows):
    config = DataConfig.model_validate({"train": write_rows(ROWS), "max_length": 24})
    folder = prepare_whole(config, word_tokenizer(), 0, tmp_path / "all", LabelledTexts())
    assert len(Examples(folder / "held_out.arrow")) == 4
