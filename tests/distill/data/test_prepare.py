"""From rows to examples: windows, labels, files, parts, and errors."""

import copy
import gzip
import json
import re

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from attar.errors import DataError
from distill.data.config import DataConfig
from distill.data.examples import Examples, key_of
from distill.data.row_formats import RowFormat
from distill.data.tokenize import IGNORE, tokenize_document, windows
from tests.helpers.chatting import CHAT, tokenize_chat
from tests.helpers.preparing import texts, write_jsonl


def decode(tokenizer, examples):
    """The text of each example, sorted."""
    return sorted(tokenizer.decode(example.input_ids) for example in examples)


# Windows and labels ------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), max_size=200), st.integers(2, 40), st.sampled_from([None, 77]))
def test_every_token_but_the_first_is_predicted_exactly_once(ids, max_length, first):
    predicted = []
    for number, (piece, labels) in enumerate(windows(ids, max_length, first)):
        if first is not None and number and max_length > 2:
            assert piece[0] == first
            assert labels[0] == IGNORE, "what is put before a window predicts nothing"
        assert 2 <= len(piece) <= max_length
        assert len(labels) == len(piece)
        for t, label in enumerate(labels):
            if label != IGNORE:
                assert label == piece[t + 1]
                predicted.append(label)
    assert predicted == ids[1:]


def test_each_window_begins_as_the_tokenizer_begins_a_text(tokenizer):
    text = " ".join(f"word{i}" for i in range(100))
    told = copy.deepcopy(tokenizer)
    told.bos_token, bos = "<|pad|>", told.convert_tokens_to_ids("<|pad|>")
    told._tokenizer.post_processor = TemplateProcessing(
        single=f"{told.bos_token} $A", special_tokens=[(told.bos_token, bos)]
    )
    config = DataConfig(train="x", max_length=24)
    plain = tokenize_document(tokenizer, {"text": text}, RowFormat("text", ("text",)), config)
    assert {ids[0] for ids, _ in plain} != {bos}, "a tokenizer that adds nothing"
    found = tokenize_document(told, {"text": text}, RowFormat("text", ("text",)), config)
    assert len(found) > 3
    assert {ids[0] for ids, _ in found} == {bos}
    predicted = [label for _, labels in found for label in labels if label != IGNORE]
    assert predicted == [*told(text)["input_ids"][1:], told.eos_token_id]


def test_labels_are_the_following_ids(prepared):
    for part in prepared([{"text": text} for text in texts(20)]):
        for example in part:
            assert example.labels[:-1].tolist() == example.input_ids[1:].tolist()
            assert example.labels[-1] == IGNORE


@pytest.mark.parametrize("append", [True, False])
def test_each_text_ends_with_the_end_of_sequence(prepared, tokenizer, append):
    rows = [{"text": text} for text in texts(5)]
    train, held_out = prepared(rows, append_eos=append, max_length=512)
    ends = [example.input_ids[-1] for example in [*train, *held_out]]
    assert [end == tokenizer.eos_token_id for end in ends] == [append] * 5


def test_tokenizer_without_an_end_of_sequence_appends_nothing(prepared, tokenizer):
    tokenizer.eos_token = None
    train, held_out = prepared([{"text": text} for text in texts(4)], max_length=512)
    got = decode(tokenizer, [*train, *held_out])
    assert got == sorted(texts(4))


@given(st.lists(st.integers(0, 99), min_size=2, max_size=30), st.data())
def test_key_changes_with_ids_and_with_what_counts(ids, data):
    labels = [*ids[1:], IGNORE]
    at = data.draw(st.integers(0, len(ids) - 2))
    masked = [IGNORE if t == at else label for t, label in enumerate(labels)]
    changed = [(i + 1) % 100 if t == at else i for t, i in enumerate(ids)]
    assert key_of(ids, labels) == key_of(list(ids), list(labels))
    assert len({key_of(ids, labels), key_of(ids, masked), key_of(changed, labels)}) == 3


# Conversations -----------------------------------------------------------------------------------


def test_conversations_without_an_assistant_are_left_out(prepared, tokenizer):
    answers = [{"role": "assistant", "content": str(i)} for i in range(9)]
    rows = [{"messages": [*CHAT[:2], answer]} for answer in answers]
    train, held_out = prepared([{"messages": CHAT[:2]}, *rows], max_length=128)
    assert len(train) + len(held_out) == 9


# Kinds of files ----------------------------------------------------------------------------------


ROWS = [{"text": text} for text in texts(8)]
TABLE = datasets.Dataset.from_list(ROWS)


def write_each(write, pattern):
    """One file a row, at the places that a glob will find."""
    for i, row in enumerate(ROWS):
        write(pattern.with_name(re.sub(r"[*?]", str(i), pattern.name)), row)


WRITERS = {
    "data.json": lambda path: path.write_text(json.dumps(ROWS)),
    "data.jsonl": lambda path: write_jsonl(path, ROWS),
    "data.jsonl.gz": lambda path: path.write_bytes(
        gzip.compress("\n".join(json.dumps(row) for row in ROWS).encode())
    ),
    "data.parquet": lambda path: TABLE.to_parquet(str(path)),
    "saved": lambda path: TABLE.save_to_disk(str(path)),
    "splits": lambda path: datasets.DatasetDict(train=TABLE, other=TABLE).save_to_disk(str(path)),
    "part*.txt": lambda path: write_each(lambda p, row: p.write_text(row["text"]), path),
    "part?.jsonl": lambda path: write_each(lambda p, row: write_jsonl(p, [row]), path),
    "folder": lambda path: path.mkdir() or write_jsonl(path / "train.jsonl", ROWS),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_documents(prepared, tokenizer, tmp_path, name):
    WRITERS[name](tmp_path / name)
    source = str(tmp_path / name)
    train, held_out = prepared(source, held_out=0.2, max_length=512, append_eos=False)
    assert len(held_out) == 2
    assert decode(tokenizer, [*train, *held_out]) == texts(8)


def test_several_sources_are_one(prepared, tokenizer, tmp_path):
    first = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts(8)[:4]])
    second = write_jsonl(tmp_path / "b.jsonl", [{"content": text} for text in texts(8)[4:]])
    train, held_out = prepared((first, second), max_length=512, append_eos=False)
    assert decode(tokenizer, [*train, *held_out]) == texts(8)


HUMAN = {"from": "human", "value": "What is 2 + 2?"}
SAME_CHAT = {
    "messages": {"messages": CHAT[1:3]},
    "sharegpt": {"conversations": [HUMAN, {"from": "gpt", "value": "It is four."}]},
    "pair": {"prompt": "What is 2 + 2?", "completion": "It is four."},
    "instruction": {"instruction": "What is 2 + 2?", "output": "It is four."},
}


@pytest.mark.parametrize("row", SAME_CHAT.values(), ids=SAME_CHAT.keys())
def test_every_form_of_conversation_gives_the_same_example(prepared, tokenizer, row):
    filler = json.loads(json.dumps(row).replace("four", "4"))
    train, held_out = prepared([row, filler], held_out=0.5, max_length=128)
    expected, labels = tokenize_chat(tokenizer, CHAT[1:3], 128)
    found = [e for e in [*train, *held_out] if e.key == key_of(expected, labels)]
    assert len(found) == 1
    assert found[0].labels.tolist() == labels


def test_text_column_chooses_among_columns(prepared, tokenizer):
    rows = [{"text": "no", "body": text} for text in texts(4)]
    train, held_out = prepared(rows, text_column="body", max_length=512, append_eos=False)
    assert decode(tokenizer, [*train, *held_out]) == texts(4)


# Held out ----------------------------------------------------------------------------------------


def documents_of(tokenizer, examples):
    """Numbers of the documents whose words `w<number>x...` stand in these windows."""
    found = [re.findall(r"w(\d+)x", tokenizer.decode(e.input_ids)) for e in examples]
    return {number for numbers in found for number in numbers}


def test_held_out_documents_are_never_trained_on(prepared, tokenizer):
    train, held_out = prepared([{"text": t} for t in texts(30, 40)], held_out=0.2, max_length=24)
    learned, asked = (documents_of(tokenizer, part) for part in (train, held_out))
    assert len(asked) == 6
    assert len(learned) == 24
    assert not learned & asked


def test_what_stands_in_both_parts_is_learned_in_neither_twice(prepared):
    rows = [{"text": text} for text in texts(4) * 10]
    train, held_out = prepared(rows, held_out=0.05, max_length=512)
    assert not set(train.keys) & set(held_out.keys)
    assert len(set(train.keys) | set(held_out.keys)) == 4


def test_one_long_document_holds_out_its_end(prepared, tokenizer, tmp_path):
    text = " ".join(f"word{i}" for i in range(300))
    (tmp_path / "book.txt").write_text(text)
    train, held_out = prepared(str(tmp_path / "book.txt"), held_out=0.1, append_eos=False)
    ids = tokenizer(text)["input_ids"]
    whole = [*train, *held_out]
    joined = [whole[0].input_ids[0], *(label for e in whole for label in e.labels[:-1])]
    assert [int(i) for i in joined] == ids, "in order, and nothing is lost"
    assert len(held_out) == -(-len(whole) // 10)


def test_another_source_can_be_held_out(prepared, tokenizer, tmp_path):
    other = write_jsonl(tmp_path / "other.jsonl", [{"text": text} for text in texts(9)[6:]])
    rows = [{"text": text} for text in texts(7)]  # document 6 stands in both
    train, held_out = prepared(rows, held_out=other, max_length=512, append_eos=False)
    assert decode(tokenizer, held_out) == texts(9)[6:]
    assert decode(tokenizer, train) == texts(6)


def test_another_split_can_be_held_out(prepared, tokenizer, tmp_path):
    parts = {"train": texts(9)[:6], "test": texts(9)[6:]}
    saved = {k: datasets.Dataset.from_dict({"text": v}) for k, v in parts.items()}
    datasets.DatasetDict(saved).save_to_disk(str(tmp_path / "saved"))
    train, held_out = prepared(
        str(tmp_path / "saved"), held_out="split:test", max_length=512, append_eos=False
    )
    assert decode(tokenizer, held_out) == parts["test"]
    assert decode(tokenizer, train) == parts["train"]


def test_token_limits_stop_at_the_first_example_that_reaches_them(prepared):
    rows = [{"text": text} for text in texts(40)]
    train, held_out = prepared(rows, train_tokens=200, held_out_tokens=40, held_out=0.5)
    for part, limit in ((train, 200), (held_out, 40)):
        assert part.num_tokens >= limit
        assert part.num_tokens - part.counts[-1] < limit


# Repeating ---------------------------------------------------------------------------------------


def test_same_seed_same_bytes_other_seed_other_order(prepared, tmp_path):
    rows = [{"text": text} for text in texts(30)]
    keys = [prepared(rows, seed=seed, folder=f"run{i}")[0].keys for i, seed in enumerate((3, 3, 4))]
    files = [(tmp_path / f"run{i}" / "train.arrow").read_bytes() for i in range(3)]
    assert files[0] == files[1] != files[2]
    assert keys[0] == keys[1] != keys[2]


def test_prepared_data_are_kept_until_their_source_changes(prepared, tmp_path):
    rows = [{"text": text} for text in texts(10)]
    prepared(source := write_jsonl(tmp_path / "train.jsonl", rows))
    made = (tmp_path / "data" / "train.arrow").stat()
    prepared(source)
    assert (tmp_path / "data" / "train.arrow").stat().st_ino == made.st_ino
    write_jsonl(tmp_path / "train.jsonl", rows[:5])
    train, held_out = prepared(source, max_length=512)
    assert len(train) + len(held_out) == 5


def test_fingerprint_is_of_the_set_not_of_its_order(prepared, tmp_path):
    held = write_jsonl(tmp_path / "held.jsonl", [{"text": "held out"}])
    rows = [{"text": text} for text in texts(12)]
    one, other = (prepared(rows, seed=s, held_out=held, folder=f"run{s}")[0] for s in (0, 1))
    fewer = prepared(rows[:-1], held_out=held, folder="fewer")[0]
    assert one.keys != other.keys
    assert one.fingerprint() == other.fingerprint() != fewer.fingerprint()


# Refused -----------------------------------------------------------------------------------------


def test_missing_file_names_the_nearest(prepared, tmp_path):
    write_jsonl(tmp_path / "chats.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match=r"no file or folder .*chat\.jsonl.*`chats\.jsonl`"):
        prepared(str(tmp_path / "chat.jsonl"))


def test_hub_id_that_cannot_be_reached_is_named(prepared):
    with pytest.raises(DataError, match="no-such-org/no-such-set"):
        prepared("no-such-org/no-such-set")


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.txt"])
def test_empty_file_is_refused(prepared, tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=rf"{name}.*empty"):
        prepared(str(tmp_path / name))


@pytest.mark.parametrize("text", ["", None])
def test_rows_that_are_all_empty_are_refused(prepared, text):
    rows = [{"text": text, "id": i} for i in range(4)]
    with pytest.raises(DataError, match=r"data\.(train|held_out)"):
        prepared(rows, append_eos=False)


def test_no_known_column_lists_what_there_is(prepared):
    with pytest.raises(DataError, match=r"columns subject, verb.*data\.text_column"):
        prepared([{"subject": "a", "verb": "b"}] * 3)


def test_misspelt_text_column_names_the_nearest(prepared):
    with pytest.raises(DataError, match=r"no column `bodi`.*`body`"):
        prepared([{"body": "a", "verb": "b"}] * 3, text_column="bodi")


def test_conversations_without_a_template_are_refused(prepared, bare_tokenizer):
    with pytest.raises(DataError, match="no chat template"):
        prepared([{"messages": CHAT}] * 3, tokenizer=bare_tokenizer)


def test_broken_json_is_named(prepared, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(DataError, match=r"1 is no JSON \(first: line 2 of .*bad\.jsonl"):
        prepared(str(tmp_path / "bad.jsonl"))


def test_files_of_two_kinds_are_refused(prepared, tmp_path):
    (tmp_path / "mixed1.txt").write_text("a")
    write_jsonl(tmp_path / "mixed2.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match="one kind"):
        prepared(str(tmp_path / "mixed*"))


def test_failed_preparation_leaves_the_last_one(prepared, tmp_path):
    source = write_jsonl(tmp_path / "train.jsonl", [{"text": text} for text in texts(6)])
    before = prepared(source)[0].keys
    write_jsonl(tmp_path / "train.jsonl", [{"verb": "a"}])
    with pytest.raises(DataError):
        prepared(source)
    assert Examples(tmp_path / "data" / "train.arrow").keys == before
