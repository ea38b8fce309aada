"""What the teacher reads in place of a row's prompt, and what of an example stays the same."""

import json
from collections import Counter

import numpy as np
import pytest

from attar.errors import DataError
from distill.data.bad_rows import RowError
from distill.data.batching import collate
from distill.data.config import DataConfig
from distill.data.examples import Examples, example_key, example_of, key_of
from distill.data.part_writer import EXAMPLE_SCHEMA
from distill.data.placed import DATA_PARTS
from distill.data.prepare import prepare
from distill.data.reader import NextTokenTexts
from distill.data.row_list import RowList
from distill.data.teacher_prompts import TeacherPrompts, as_teacher_reads
from distill.data.tokenize import IGNORE, NO_TEACHER_PROMPT, NO_TEACHER_ROOM, SEVERAL_TURNS
from tests.helpers.preparing import write_jsonl

ROW = {"prompt": "What is 2 + 2?", "completion": "It is four.", "hint": "four"}
HINT = "{prompt}\nHint: {hint}"


@pytest.fixture
def read(tokenizer):
    """`read(row, template, tokenizer=..., positions=..., key=value)`: (examples, tally)."""

    def make(row, template=HINT, tokenizer=tokenizer, positions=None, **options):
        config = DataConfig.model_validate({"train": "rows", "max_length": 512, **options})
        reader = NextTokenTexts(None if template is None else TeacherPrompts(template, positions))
        tally = Counter()
        (reading,) = reader.open(tokenizer, config, [RowList([row])], ["rows"])
        return [example_of(*one) for one in reading(row, tally)], tally

    return make


def sides(tokenizer, example):
    """(what the teacher reads before the answer, the answer), checked against the example."""
    theirs = as_teacher_reads(example)
    assert theirs.key == example.key
    assert theirs.counted_labels.tolist() == example.counted_labels.tolist()
    assert all(theirs.labels[t] == theirs.input_ids[t + 1] for t in theirs.counted)
    assert len(theirs.labels) == len(theirs.input_ids)
    np.testing.assert_array_equal(theirs.input_ids[: len(theirs.prompt)], example.teacher_prompt)
    return tokenizer.decode(theirs.prompt), tokenizer.decode(theirs.counted_labels)


# What the teacher reads ---------------------------------------------------------------------------


def test_with_a_chat_template_it_is_the_users_turn_and_other_turns_stay(read, tokenizer):
    row = {**ROW, "system": "Be brief.", "history": [["Hello", "Hi."]]}
    ((example,), _) = read(row)
    assert sides(tokenizer, example) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi.<|im_end|>\n"
        "<|im_start|>user\nWhat is 2 + 2?\nHint: four<|im_end|>\n<|im_start|>assistant\n",
        "It is four.<|im_end|>",
    )


def test_without_a_template_it_is_the_text_before_the_answer(read, bare_tokenizer):
    row = {**ROW, "system": "Be brief."}
    ((example,), _) = read(row, "{prompt} ({hint}) ", bare_tokenizer)
    assert sides(bare_tokenizer, example) == (
        "Be brief.\n\nWhat is 2 + 2? (four) ", "It is four.<|endoftext|>",
    )  # fmt: skip


def test_of_a_conversation_the_last_turn_of_the_user_is_another(read, tokenizer):
    messages = [
        {"role": "user", "content": "One"}, {"role": "assistant", "content": "Two", "train": False},
        {"role": "user", "content": "Three"}, {"role": "assistant", "content": "Four"},
    ]  # fmt: skip
    ((example,), _) = read({"messages": messages, "hint": "4"}, "Think of {hint}")
    before, answer = sides(tokenizer, example)
    assert "One" in before and "Two" in before and "Three" not in before  # noqa: PT018
    assert before.endswith("user\nThink of 4<|im_end|>\n<|im_start|>assistant\n")
    assert answer == "Four<|im_end|>"


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("What is 2 + 2?", {}),
        ("What is 2 + 2? ", {}),
        ("the teacher\n\n", {}),
        ("  ", {}),
        ("What is 2 + 2?", {"prompt": "{prompt}\nAnswer: ", "label_column": "completion"}),
        ("What is 2 + 2?", {"prompt": "{prompt}\nAnswer:", "label_column": "completion"}),
        ("What is 2 + 2?", {"cut": 2}),
    ],
)
@pytest.mark.parametrize("templated", [True, False])
def test_the_students_own_prompt_gives_the_very_same_ids(
    read, tokenizer, bare_tokenizer, prompt, options, templated
):
    chosen = tokenizer if templated else bare_tokenizer
    row = {**ROW, "prompt": prompt, "completion": " what the student learns"}
    if "cut" in options:
        ((whole,), _) = read(row, None, chosen)
        options = {"max_length": len(whole.input_ids) - options["cut"]}
    (plain,), notes = read(row, None, chosen, **options)
    if not prompt.strip():
        assert read(row, "{prompt}", chosen, **options)[1][NO_TEACHER_PROMPT] == 1
        return
    (example,), tally = read(row, options.get("prompt", "{prompt}"), chosen, **options)
    theirs = as_teacher_reads(example)
    assert theirs.input_ids.tolist() == plain.input_ids.tolist() == example.input_ids.tolist()
    assert theirs.labels.tolist() == plain.labels.tolist()
    assert +tally == +notes


def test_an_answer_to_an_empty_prompt_is_read_whole(read, bare_tokenizer):
    row = {**ROW, "prompt": ""}
    ((example,), _) = read(row, "Say {hint}: ", bare_tokenizer)
    theirs = as_teacher_reads(example)
    assert bare_tokenizer.decode(theirs.input_ids) == "Say four: It is four.<|endoftext|>"
    assert theirs.counted_labels.tolist() == example.counted_labels.tolist()


def test_a_longer_prompt_does_not_shorten_the_answer(read, bare_tokenizer):
    row = {**ROW, "hint": "light falls on water " * 50}
    (plain,), _ = read(row, None, bare_tokenizer, max_length=20)
    (example,), _ = read(row, HINT, bare_tokenizer, max_length=20)
    assert example.input_ids.tolist() == plain.input_ids.tolist()
    assert len(as_teacher_reads(example).input_ids) > 200


# Rows that are left out, tables that are refused --------------------------------------------------


def test_rows_that_cannot_have_one_are_left_out_and_counted(read):
    turns = [{"role": role, "content": "word"} for role in ("user", "assistant") * 2]
    assert read({"messages": turns, "hint": "x"}, "{hint}") == ([], {SEVERAL_TURNS: 1})
    assert read({**ROW, "hint": None}, "Hint: {hint}") == ([], {NO_TEACHER_PROMPT: 1})
    ((example,), _) = read(ROW)
    length = len(as_teacher_reads(example).input_ids)
    assert len(read(ROW, positions=length)[0]) == 1
    assert read(ROW, positions=length - 1) == ([], {NO_TEACHER_ROOM: 1})
    system = [{"role": "system", "content": "x"}, {"role": "assistant", "content": "y"}]
    with pytest.raises(RowError, match=r"have no turn of a user, in whose place `teacher.prompt`"):
        read({"messages": system, "hint": "x"}, "{hint}")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "light"}, "the rows of `rows` are plain texts; give rows with `prompt`"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "`rows` are judged answers; give rows"),
        (ROW, r"`rows` has no column `hints` \(`teacher.prompt`\); .* Did you mean `hint`"),
    ],
)
def test_tables_without_what_it_needs_are_refused(read, row, says):
    with pytest.raises(DataError, match=says):
        read(row, "{hints}" if row is ROW else HINT)


# Keys and parts -----------------------------------------------------------------------------------


def test_keys_know_the_teachers_prompt_and_are_as_before_without_one():
    ids, labels = [5, 6, 7, 8], [IGNORE, 7, 8, IGNORE]
    assert key_of(ids, labels) == "a3a87b002e33d638e7678f228caae83a"
    assert example_key(ids, labels) == example_of(ids, labels).key == key_of(ids, labels)
    keys = {example_of(ids, labels, teacher_prompt=prompt).key for prompt in (None, [1], [1, 2])}
    assert len(keys) == 3


@pytest.fixture
def parts(tokenizer, tmp_path):
    """`parts(template, rows)`: the examples of each part, and stats.json."""

    def make(template, rows=None, positions=None):
        rows = rows or [
            {"prompt": f"ask {i}", "answer": f"says {i}", "hint": f"it is {i}"} for i in range(20)
        ]
        source = write_jsonl(tmp_path / "rows.jsonl", rows)
        config = DataConfig.model_validate({"train": source, "held_out": 0.2, "validation": 0.2})
        prompts = None if template is None else TeacherPrompts(template, positions)
        folder = prepare(config, tokenizer, "id", 0, tmp_path / "d", NextTokenTexts(prompts))
        found = {part: Examples(folder / f"{part}.arrow") for part in DATA_PARTS}
        return found, json.loads((folder / "stats.json").read_text())

    return make


def test_all_but_the_held_out_part_keep_it(parts):
    plain, _ = parts(None)
    found, _ = parts("{prompt} {hint}")
    for part in DATA_PARTS:
        texts = [example.input_ids.tolist() for example in found[part]]
        assert texts == [example.input_ids.tolist() for example in plain[part]]
        assert found[part].counts.tolist() == plain[part].counts.tolist()
        has = [example.teacher_prompt is not None for example in found[part]]
        assert has == [part != "held_out"] * len(has)
    assert found["held_out"].keys == plain["held_out"].keys
    assert not set(found["train"].keys) & set(plain["train"].keys)
    other, _ = parts("{hint} {prompt}")
    assert not set(found["train"].keys) & set(other["train"].keys)


def test_equal_rows_with_other_hints_are_examples_of_their_own(parts):
    rows = [{"prompt": f"ask {i % 20}", "answer": "yes", "hint": str(i)} for i in range(40)]
    found, _ = parts("{prompt} {hint}", rows)
    train = found["train"]
    assert len(set(train.keys)) == len(train)
    assert len({example.input_ids.tobytes() for example in train}) < len(train)
    texts = [{one.input_ids.tobytes() for one in found[part]} for part in DATA_PARTS]
    assert not texts[0] & texts[2], "a text is in one part, whatever the teacher reads"


def test_what_is_left_out_is_named(parts):
    rows = [{"prompt": f"ask {i}", "answer": "yes", "hint": "x" * 99 * (i % 4)} for i in range(40)]
    _, stats = parts("{prompt} {hint}", rows, positions=250)
    (said,) = stats["left_out"]
    assert said == (
        "10 have a `teacher.prompt` that leaves the answer no room in the teacher's positions, and "
        "are left out"
    )


def test_data_that_were_prepared_before_are_read(parts, tmp_path):
    import pyarrow as pa

    found, _ = parts(None)
    file, old = tmp_path / "d" / "train.arrow", tmp_path / "old.arrow"
    with pa.memory_map(str(file)) as source:
        table = pa.ipc.open_stream(source).read_all().drop_columns(["teacher_prompt"])
    with pa.OSFile(str(old), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    assert EXAMPLE_SCHEMA.names[-1] == "teacher_prompt"
    assert [one.key for one in Examples(old)] == found["train"].keys
    assert all(one.teacher_prompt is None for one in Examples(old))


# Batches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
def test_a_batch_has_the_texts_as_the_teacher_reads_them(make_examples, packed):
    dice = np.random.default_rng(0)
    examples = [
        example_of(one.input_ids, one.labels, teacher_prompt=dice.integers(0, 97, 3 + i).tolist())
        for i, one in enumerate(make_examples(6, seed=3))
    ]
    batch = collate([examples[:4], examples[4:]] if packed else [[one] for one in examples])
    theirs = batch.of_teacher
    assert theirs.of_teacher is None
    assert (theirs.keys, theirs.counts) == (batch.keys, batch.counts)
    counted = [one.labels_BT[one.labels_BT != IGNORE].tolist() for one in (batch, theirs)]
    assert counted[0] == counted[1]
    assert batch.input_ids_BT.shape != theirs.input_ids_BT.shape
    assert collate([[one] for one in make_examples(3)]).of_teacher is None
