"""Judged answers as ids: one prompt, answers alone count, and rows that teach nothing are named."""

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from attar.errors import DataError
from distill.data.config import DataConfig
from distill.data.examples import CHOSEN, REJECTED
from distill.data.preference_rows import format_of_table
from distill.data.row_list import RowList
from distill.data.tokenize import IGNORE, tokenize_document
from distill.data.tokenize_answers import tokenize_judged
from tests.helpers.judging import ratings, said

THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def read(tokenizer, row, tally=None, **keys):
    config = DataConfig.model_validate({"train": "rows", "max_length": 256, **keys})
    layout = format_of_table(RowList([row]), "rows", config)
    return tokenize_judged(tokenizer, row, layout, config, Counter() if tally is None else tally)


def learned(tokenizer, labels):
    return tokenizer.decode([label for label in labels if label != IGNORE])


def prompt_ids(ids, labels):
    """The ids before the first that counts; labels are one place behind."""
    return ids[: next(t for t, label in enumerate(labels) if label != IGNORE) + 1]


texts = st.text("ab ?\n", min_size=1, max_size=12).filter(str.strip)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(texts, texts, texts, st.booleans(), st.integers(8, 60))
def test_both_texts_have_the_same_prompt_and_count_only_answers(
    tokenizer, bare_tokenizer, prompt, chosen, rejected, templated, max_length
):
    chosen_tokenizer = tokenizer if templated else bare_tokenizer
    row, tally = {"prompt": prompt, "chosen": chosen, "rejected": rejected}, Counter()
    found = read(chosen_tokenizer, row, tally, max_length=max_length)
    if not found:
        assert sum(tally.values()) == 1
        return
    ((ids, labels, types, role, (other_ids, other_labels)),) = found
    assert (types, role) == (None, CHOSEN)
    assert prompt_ids(ids, labels) == prompt_ids(other_ids, other_labels)
    for one, labelled, answer in ((ids, labels, chosen), (other_ids, other_labels, rejected)):
        assert len(one) == len(labelled) <= max_length
        pairs = zip(one[1:], labelled, strict=False)
        assert all(label in (IGNORE, i) for i, label in pairs)
        end = chosen_tokenizer.eos_token
        whole = answer + end
        said_ = learned(chosen_tokenizer, labelled)
        assert whole.startswith(said_) or said_.strip().startswith(answer.strip()[:3])
        if len(one) < max_length:
            assert said_.endswith(end)
            assert said_.count(end) == 1


@pytest.mark.parametrize("templated", [True, False])
def test_each_text_is_that_of_a_prompt_with_one_answer(tokenizer, bare_tokenizer, templated):
    chosen_tokenizer = tokenizer if templated else bare_tokenizer
    row = {"prompt": "what?", "chosen": "the student", "rejected": "nobody", "system": "be kind"}
    ((ids, labels, _, _, other),) = read(chosen_tokenizer, row)
    config = DataConfig(train="rows", max_length=256)
    for answer, found in (("the student", (ids, labels)), ("nobody", other)):
        plain = {"prompt": "what?", "completion": answer, "system": "be kind"}
        layout = format_of_table(RowList([plain]), "rows", config)
        assert tokenize_document(chosen_tokenizer, plain, layout, config) == [found]


def test_a_token_over_the_end_of_the_prompt_ends_the_prompt_in_both_texts():
    vocabulary = {t: i for i, t in enumerate(["<s>", "a", "b", " ", " b", "c", "</s>"])}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[(" ", "b")]))
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>")
    ((ids, labels, _, _, (other_ids, other_labels)),) = read(
        made, {"prompt": "a ", "chosen": "bc", "rejected": "cb"}
    )
    assert made.convert_ids_to_tokens(ids) == ["a", " b", "c", "</s>"]
    assert made.convert_ids_to_tokens(other_ids) == ["a", " ", "c", "b", "</s>"]
    assert labels == [*ids[1:], IGNORE]
    assert other_labels == [*other_ids[1:], IGNORE]


def test_the_beginning_of_a_sequence_stands_once():
    bpe = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "b": 2, "c": 3, "</s>": 4}, "a"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    from tokenizers.processors import TemplateProcessing

    bpe.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")
    ((ids, _, _, _, (other_ids, _)),) = read(made, {"chosen": "a b", "rejected": "a c"})
    assert (ids, other_ids) == ([0, 1, 2, 4], [0, 1, 3, 4])


def test_texts_with_marks_of_their_own_go_through_no_template(tokenizer):
    row = {"chosen": "Human: a\n\nAssistant: yes", "rejected": "Human: a\n\nAssistant: no"}
    ((ids, labels, *_),) = read(tokenizer, row)
    assert tokenizer.decode(ids) == row["chosen"] + "<|im_end|>"
    assert learned(tokenizer, labels) == " yes<|im_end|>"


def test_conversations_need_a_template(bare_tokenizer):
    row = {"prompt": [said("user", "a")], "chosen": "b", "rejected": "c"}
    with pytest.raises(DataError, match="no chat template"):
        read(bare_tokenizer, row)


@pytest.mark.parametrize(
    ("row", "keys", "reason"),
    [
        ({"chosen": "b", "rejected": "b"}, {}, "have the same answer as chosen and rejected"),
        ({"chosen": " ", "rejected": "b"}, {}, "have an empty answer"),
        ({"chosen": "b", "rejected": ""}, {}, "have an empty answer"),
        ({"chosen": "b", "rejected": None}, {}, "lack one of two answers"),
        ({"chosen": "b" * 90, "rejected": "b" * 91}, {"max_length": 70}, "differ only beyond"),
        ({"chosen": "b", "rejected": "c", "prompt": "a?" * 40}, {"max_length": 20}, "fills `{}"),
    ],
)
@pytest.mark.parametrize("templated", [True, False])
def test_rows_that_teach_nothing_are_left_out_by_name(
    tokenizer, bare_tokenizer, row, keys, reason, templated
):
    tally = Counter()
    row = {"prompt": "what?", **row}
    assert read(tokenizer if templated else bare_tokenizer, row, tally, **keys) == []
    assert list(tally.values()) == [1]
    assert reason in next(iter(tally))


def test_each_text_is_cut_at_its_end(tokenizer):
    row, tally = {"prompt": "what?", "chosen": "yes", "rejected": "b" * 90}, Counter()
    ((ids, _, _, _, (other_ids, _)),) = read(tokenizer, row, tally, max_length=70)
    ((whole, *_, (longer, _)),) = read(tokenizer, row)
    assert (ids, other_ids) == (whole, longer[:70])
    assert tally == {"are longer than `{}.max_length` and end there": 1}


def test_an_answer_in_several_texts_is_left_out(tokenizer):
    tokenizer.chat_template = THINKING
    start, tally = [said("user", "a?")], Counter()
    two = [
        said("assistant", "<think>hm</think>b"), said("user", "c?"),
        said("assistant", "<think>so</think>d"),
    ]  # fmt: skip
    row = {"chosen": [*start, *two], "rejected": [*start, said("assistant", "<think>x</think>e")]}
    assert read(tokenizer, row, tally) == []
    assert "gives in several texts" in next(iter(tally))
    assert len(read(tokenizer, {**row, "chosen": [*start, two[0]]})) == 1


def test_a_rated_answer_is_an_ordinary_one_with_a_role(tokenizer):
    for row in ratings(4):
        ((ids, labels, types, role, other),) = read(tokenizer, row)
        assert (types, role, other) == (None, CHOSEN if row["label"] else REJECTED, None)
        assert learned(tokenizer, labels) == row["completion"] + "<|im_end|>"
        assert tokenizer.decode(ids).startswith("<|im_start|>user\nwhat says")
    tally = Counter()
    config = DataConfig(train="rows")
    layout = format_of_table(RowList(ratings(2)), "rows", config)
    row = {**ratings(1)[0], "label": None}
    assert tokenize_judged(tokenizer, row, layout, config, tally) == []
    assert tally == {"have no rating": 1}
