"""Held-out text for several tokenizers: the same bytes of the same documents count for all."""

import json

import numpy as np
import pytest

from attar.errors import DataError
from attar.models.token_bytes import TokenBytes
from distill.data.config import DataConfig
from distill.data.examples import Examples
from distill.data.part_writer import PartWriter
from distill.data.prepare import prepare_whole
from distill.data.tokenize import IGNORE
from distill.evaluation.predictions import spread_examples
from distill.evaluation.same_prompts import same_prompts
from distill.evaluation.same_text import SLACK_BYTES, HeldOut, write_same_text
from tests.helpers.judging import preferences
from tests.helpers.other_tokenizers import one_token_a_byte, space_before_text

PLAIN = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
WORDS = ["teacher", "says", "what", "light", "naïve", "東京", "the student", "learns", "🙂", "9.5"]


@pytest.fixture
def corpus(tmp_path):
    """Texts of all lengths, in a file; two of them are the same."""
    dice = np.random.default_rng(0)
    texts = [" ".join(dice.choice(WORDS, int(n))) for n in dice.integers(1, 90, 14)]
    return write(tmp_path, [{"text": text} for text in [*texts, texts[3]]])


def write(folder, rows):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


def versions_of(source, tokenizers, folder, **keys):
    """All held-out documents as each tokenizer cuts them."""
    config, documents, found = DataConfig(train=source, **keys), None, []
    for i, one in enumerate(tokenizers):
        made = prepare_whole(config, one, 0, folder / str(i), documents=documents)
        found.append(HeldOut(made / "held_out.arrow", one, f"model {i}"))
        documents = documents or set(Examples(found[0].file).documents.tolist())
    return found


def cut(source, tokenizers, folder, tokens=10_000, **keys):
    """The held-out examples that are measured, for each tokenizer, and the first one's before."""
    found = versions_of(source, tokenizers, folder, max_length=32, **keys)
    files = write_same_text(found, tokens, folder)
    return [Examples(file) for file in files], Examples(found[0].file)


def counted_text(examples, tokenizer):
    """By document: the bytes of all tokens that count."""
    known, found = TokenBytes(tokenizer, "it").bytes_of, {}
    for number, example in zip(examples.documents.tolist(), examples, strict=True):
        more = b"".join(known[i] for i in example.counted_labels)
        found[number] = found.get(number, b"") + more
    return found


@pytest.mark.parametrize("tokens", [60, 300, 10_000])
@pytest.mark.parametrize("limit", [None, 200])
def test_the_same_bytes_of_the_same_documents_count(corpus, tokenizer, tmp_path, tokens, limit):
    others = [tokenizer, one_token_a_byte(), space_before_text()]
    found, _ = cut(corpus, others, tmp_path, tokens, held_out_tokens=limit)
    texts = [counted_text(*pair) for pair in zip(found, others, strict=True)]
    assert len({tuple(one) for one in texts}) == 1, "the same documents, in the same order"
    for number in texts[0]:
        shortest, _, longest = sorted((one[number] for one in texts), key=len)
        for one in texts:
            assert one[number] in longest
        assert len(longest) - len(shortest) <= 16, "half a token at the beginning and at the end"


def test_the_first_tokenizer_chooses_as_where_it_is_the_only_one(corpus, tokenizer, tmp_path):
    (mine, _), before = cut(corpus, [tokenizer, one_token_a_byte()], tmp_path, 120)
    chosen = before.numbered(spread_examples(before, 120))
    assert sorted(mine.documents.tolist()) == sorted(chosen.documents.tolist())
    rows = zip(mine, [chosen[i] for i in np.argsort(chosen.documents, kind="stable")], strict=True)
    for one, before in rows:
        assert one.input_ids.tolist() == before.input_ids.tolist()
        assert len(before.counted) - len(one.counted) <= 4, "but for halves of the other's tokens"


def test_the_end_of_a_text_counts_for_all(corpus, tokenizer, tmp_path):
    others = [tokenizer, one_token_a_byte(), space_before_text()]
    found, _ = cut(corpus, others, tmp_path)
    ends = [
        sum(int((example.labels == one.eos_token_id).sum()) for example in examples)
        for examples, one in zip(found, others, strict=True)
    ]
    assert len(set(ends)) == 1
    assert ends[0] == len(np.unique(found[0].documents)), "one a document"


def test_a_text_that_one_tokenizer_cuts_off_is_cut_off_for_all(tokenizer, tmp_path):
    answer = "the student learns what the teacher says " * 3
    source = write(tmp_path, [{"prompt": f"{i}:", "completion": answer} for i in range(3)])
    tokenizer.chat_template = None
    others = [tokenizer, one_token_a_byte()]
    (mine, its), before = cut(source, others, tmp_path)
    assert mine.num_tokens < before.num_tokens, "bytes take more tokens, and 32 are read"
    for one, other in zip(
        counted_text(mine, others[0]).values(), counted_text(its, others[1]).values(), strict=True
    ):
        assert 0 <= len(other) - len(one) <= SLACK_BYTES
        assert other.startswith(one)


def test_pairs_of_answers_stay_whole(tokenizer, tmp_path):
    source = write(tmp_path, preferences(12, each=3))
    other = one_token_a_byte(end="<|im_end|>")
    other.chat_template = tokenizer.chat_template
    versions = versions_of(source, [tokenizer, other], tmp_path, max_length=512)
    mine, its = map(Examples, write_same_text(versions, 100, tmp_path))
    assert len(mine) == len(its) > 0
    assert mine.documents.tolist() == its.documents.tolist()
    for i, pairs in enumerate((mine, its)):
        assert set(pairs.keys) <= set(Examples(versions[i].file).keys)
    for one, two in zip(mine, its, strict=True):
        texts = [
            [made.decode(text.counted_labels) for text in pair.texts]
            for pair, made in ((one, tokenizer), (two, other))
        ]
        assert texts[0] == texts[1]


def test_without_a_common_text_there_is_nothing_to_measure(tokenizer, tmp_path):
    source = write(tmp_path, [{"text": "the teacher says"}])
    made = prepare_whole(DataConfig(train=source), tokenizer, 0, tmp_path / "a")
    PartWriter(tmp_path / "none.arrow", None).close()
    versions = [
        HeldOut(made / "held_out.arrow", tokenizer, "a"),
        HeldOut(tmp_path / "none.arrow", tokenizer, "b"),
    ]
    with pytest.raises(DataError, match="the tokenizers of a and b read a token"):
        write_same_text(versions, 100, tmp_path)


# Prompts -----------------------------------------------------------------------------------------


def test_prompts_are_the_same_text_and_end_with_a_token_of_all(corpus, tokenizer, tmp_path):
    others = [tokenizer, one_token_a_byte(), space_before_text()]
    held_out = versions_of(corpus, others, tmp_path, max_length=32)
    known = [one.bytes_of for one in held_out]
    prompts = same_prompts(held_out, range(14), 5)
    assert [len(one) for one in prompts] == [5, 5, 5]
    for versions in zip(*prompts, strict=True):
        texts = [
            b"".join(its[i] for i in prompt.ids).lstrip()
            for prompt, its in zip(versions, known, strict=True)
        ]
        assert texts[0] == texts[1] == texts[2] != b""
        texts[0].decode()  # no character is split
        assert not any(prompt.is_answer for prompt in versions)
        following = [
            b"".join(its[i] for i in prompt.following)
            for prompt, its in zip(versions, known, strict=True)
        ]
        shortest = min(map(len, following))
        assert shortest > 0
        assert len({one[:shortest] for one in following}) == 1, "they go on alike"


def test_prompts_of_conversations_end_where_each_template_ends_them(tokenizer, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"say {i}"},
                      {"role": "assistant", "content": "the student says light"}]}
        for i in range(4)
    ]  # fmt: skip
    other = one_token_a_byte()
    other.chat_template = PLAIN
    source = write(tmp_path, rows)
    versions = versions_of(source, [tokenizer, other], tmp_path, max_length=512)
    mine, its = same_prompts(versions, range(4), 3)
    assert len(mine) == len(its) == 3
    for one, two in zip(mine, its, strict=True):
        assert one.is_answer
        assert two.is_answer
        asked = tokenizer.decode(one.ids).split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
        assert other.decode(two.ids) == f"user: {asked}\nassistant: "


def test_labels_beyond_do_not_count(tokenizer, tmp_path):
    source = write(tmp_path, [{"text": "the teacher says light " * 20}])
    (mine, its), _ = cut(source, [tokenizer, one_token_a_byte()], tmp_path, 20)
    assert len(mine) == 1
    last = its[len(its) - 1]
    assert (last.labels[:-1] == IGNORE).any(), "the last window is cut where the first's ends"
    assert its.num_tokens == sum(len(example.counted) for example in its)
