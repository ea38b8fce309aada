"""Distributions carried between tiny tokenizers, against definitions over all tokens."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from attar.models.token_bytes import TokenBytes, spans_of
from teachers.codecs.top_entries import top_entries_of
from teachers.codecs.topk import TopK
from teachers.transport.text import TextPair, TokenizedText
from teachers.transport.token_map import TokenMap
from teachers.transport.transport import (
    ALIGNED,
    INSIDE,
    SPANS,
    UNSERVED,
    count_extended,
    transport_text,
)

PARAGRAPH = (
    "The teacher says what the student learns, then the student says what the teacher said. "
    "There is light on the water, and there are thirteen lights within the house.\n\n"
    "Nobody learns anything that nobody teaches; another thing is the weather. "
)
TEXT = "The student learns there, then another teacher said 😀 the light.\n\nNobody thinks so."
SPECIAL = ["<eos>", "<bos>"]


def wrapped(tokenizer):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<bos>")


def byte_level(size):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([PARAGRAPH] * 4, trainer)
    return wrapped(made)


def marked(kind):
    """BPE or Unigram on text whose spaces are a marker, with fallback to bytes."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE() if kind == "bpe" else models.Unigram())
    trained.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = (
        trainers.BpeTrainer(vocab_size=150, special_tokens=SPECIAL, show_progress=False)
        if kind == "bpe"
        else trainers.UnigramTrainer(vocab_size=90, special_tokens=SPECIAL, show_progress=False)
    )
    trained.train_from_iterator([PARAGRAPH.replace("\n", " ")] * 4, trainer)
    rules = json.loads(trained.to_str())
    model = rules["model"]
    if kind == "bpe":
        for token in fallback:
            model["vocab"][token] = len(model["vocab"])
        model["unk_token"] = None
    else:
        model["vocab"] += [[token, -20.0] for token in fallback]
        model["vocab"] += [["<unk>", -30.0]]
        model["unk_id"] = len(model["vocab"]) - 1
    model["byte_fallback"] = True
    rules["pre_tokenizer"] = None
    return wrapped(Tokenizer.from_str(json.dumps(rules)))


def word_piece():
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=["[UNK]", *SPECIAL], show_progress=False
    )
    made.train_from_iterator([PARAGRAPH + " 😀k"] * 4, trainer)
    return wrapped(made)


def with_numbers(tokenizer, longest=3):
    """A byte-level tokenizer with one token for each number of up to three digits."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    model = rules["model"]
    for length in range(2, longest + 1):
        for number in range(10**length):
            digits = f"{number:0{length}}"
            model["vocab"][digits] = len(model["vocab"])
            model["merges"].append([digits[:-1], digits[-1]])
    return wrapped(Tokenizer.from_str(json.dumps(rules)))


def permuted(tokenizer, order):
    """The same tokenizer, the id i of which is order[i]."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = rules["model"]["vocab"]
    rules["model"]["vocab"] = {token: int(order[i]) for token, i in vocabulary.items()}
    for token in rules["added_tokens"]:
        token["id"] = int(order[token["id"]])
    return wrapped(Tokenizer.from_str(json.dumps(rules)))


@pytest.fixture(scope="module")
def pool():
    return {
        "small": byte_level(290),
        "large": byte_level(380),
        "bytes": byte_level(258),
        "bpe": marked("bpe"),
        "unigram": marked("unigram"),
        "words": word_piece(),
        "numbers": with_numbers(byte_level(290)),
    }


class Side:
    """A tokenizer with its bytes, and a text's tokens."""

    def __init__(self, tokenizer):
        self.tokenizer, self.bytes = tokenizer, TokenBytes(tokenizer, "a model")
        self.eos, self.bos = tokenizer.eos_token_id, tokenizer.bos_token_id

    def read(self, text, *, eos=True, bos=False):
        """(ids, ends) of a text."""
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = found["input_ids"], found["offset_mapping"]
        _, ends = spans_of(self.bytes, text, ids, offsets)
        end = len(text.encode())
        ids = [*[self.bos] * bos, *ids, *[self.eos] * eos]
        return np.array(ids), np.array([*[0] * bos, *ends, *[end] * eos])


def logprobs_of(ids, vocabulary, seed=0, scale=3.0):
    """Random distributions in float32, a row for each token, its own token made likelier."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(ids), vocabulary, generator=random) * scale
    logits[torch.arange(len(ids)), torch.as_tensor(ids)] += 4.0
    return logits.log_softmax(-1)


class Carried:
    """A text carried from one tokenizer to another, with a distribution for every token."""

    def __init__(self, teacher, student, text=TEXT, k=None, *, eos=True, bos=False, labels=True,
                 logprobs=None, keep=None):  # fmt: skip
        self.teacher, self.student = Side(teacher), Side(student)
        roles = {self.teacher.eos: self.student.eos}
        if teacher is student:
            roles = {i: i for i in self.teacher.bytes.special}
        self.map = TokenMap(self.teacher.bytes, self.student.bytes, roles)
        self.raw = text.encode()
        ids, ends = self.teacher.read(text, eos=eos, bos=bos)
        self.teacher_text = TokenizedText(ids, ends, np.arange(len(ids)) - bos)
        ids, ends = self.student.read(text, eos=eos)
        self.student_text = TokenizedText(ids, ends, np.arange(len(ids)))
        own = torch.as_tensor(self.teacher_text.ids[int(bos) :])
        size = len(self.teacher.bytes.bytes_of)
        self.logprobs = logprobs_of(own, size) if logprobs is None else logprobs
        self.labels = self.logprobs[torch.arange(len(own)), own].double().numpy()
        self.entries = top_entries_of(self.logprobs.clone(), keep or k or size, [1.0])
        self.k = k or len(self.student.bytes.bytes_of)
        self.found = transport_text(
            self.map, self.raw, self.teacher_text, self.entries,
            self.labels if labels else None, self.student_text, self.k,
        )  # fmt: skip

    def probabilities(self):
        """Float64 (N, ids of the student), without the tail."""
        dense = np.zeros((len(self.found.ids_NK), len(self.student.bytes.bytes_of)))
        rows = np.arange(len(dense))[:, None]
        np.add.at(dense, (rows, self.found.ids_NK), np.exp(self.found.logprobs_NK.astype(float)))
        return dense


PAIRS = [
    ("small", "large"), ("large", "small"), ("large", "bytes"), ("bytes", "large"),
    ("small", "bpe"), ("bpe", "small"), ("bpe", "unigram"), ("unigram", "large"),
    ("large", "words"),
]  # fmt: skip


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("name", ["small", "large", "bytes", "bpe", "unigram", "words"])
def test_an_equal_tokenizer_gets_the_same_bits(pool, name, labels):
    carried = Carried(pool[name], pool[name], TEXT.lower(), 16, labels=labels)
    vocabulary = len(carried.teacher.bytes.bytes_of)
    found = carried.found
    own = TopK(k=16).encode_top(carried.entries, vocabulary, {})
    made = torch.from_numpy
    again = type(carried.entries)(
        made(found.ids_NK), made(found.logprobs_NK), {1.0: made(found.tail_N)}
    )
    columns = TopK(k=16).encode_top(again, vocabulary, {})
    assert own.keys() == columns.keys()
    assert all(np.array_equal(own[key], columns[key]) for key in own)
    assert (found.case_N == ALIGNED).all()
    if labels:
        np.testing.assert_allclose(found.label_logprob_N, carried.labels, atol=1e-6)


@pytest.mark.parametrize("keep", [None, 8])
@pytest.mark.parametrize("pair", PAIRS)
def test_every_token_is_served_and_its_target_sums_to_one(pool, pair, keep):
    found = Carried(*(pool[name] for name in pair), keep=keep, k=40).found
    assert (found.case_N != UNSERVED).all()
    total = np.exp(found.logprobs_NK.astype(float)).sum(-1) + np.exp(found.tail_N.astype(float))
    np.testing.assert_allclose(total, 1.0, atol=1e-6)
    assert np.isfinite(found.label_logprob_N).all()
    assert (found.logprobs_NK[:, 1:] <= found.logprobs_NK[:, :-1]).all()


@pytest.mark.parametrize("pair", PAIRS)
def test_a_text_is_as_likely_as_the_teacher_says(pool, pair):
    carried = Carried(*(pool[name] for name in pair))
    own, teacher = carried.found.label_logprob_N.sum(), carried.labels.sum()
    if pair[1] == "words":  # other cases of a word are the same text to it
        assert own >= teacher
    else:
        assert own == pytest.approx(teacher, rel=1e-6)


@pytest.mark.parametrize("pair", PAIRS)
def test_the_label_is_the_probability_of_the_own_entry(pool, pair):
    carried = Carried(*(pool[name] for name in pair))
    own = carried.probabilities()[
        np.arange(len(carried.student_text.ids)), carried.student_text.ids
    ]
    np.testing.assert_allclose(own, np.exp(carried.found.label_logprob_N), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("side", [0, 1])
def test_permuting_a_vocabulary_changes_nothing(pool, side):
    names = ["small", "large"]
    plain = Carried(*(pool[name] for name in names))
    size = len((plain.teacher, plain.student)[side].bytes.bytes_of)
    order = np.random.default_rng(0).permutation(size)
    both = [pool[name] for name in names]
    both[side] = permuted(both[side], order)
    logprobs = plain.logprobs
    if side == 0:
        logprobs = torch.empty_like(logprobs).index_copy_(1, torch.from_numpy(order), logprobs)
    other = Carried(*both, logprobs=logprobs)
    ours, theirs = plain.probabilities(), other.probabilities()
    if side == 1:
        theirs = theirs[:, order]
    np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-9)
    np.testing.assert_array_equal(plain.found.case_N, other.found.case_N)


def test_bytes_within_a_token_are_as_likely_as_all_tokens_that_begin_so(pool):
    carried = Carried(pool["large"], pool["bytes"])
    first = int(carried.teacher_text.ends[0])
    assert first > 1
    strings = carried.teacher.bytes.bytes_of
    p = carried.logprobs[0].double().exp().numpy()
    for length in range(1, first + 1):
        begun = sum(p[i] for i, s in enumerate(strings) if s.startswith(carried.raw[:length]))
        product = np.exp(carried.found.label_logprob_N[:length].sum())
        assert product == pytest.approx(begun, rel=1e-5)
    # What follows weighs the token against longer ones: so its own probability comes back.
    holds = [b for b in strings if b.startswith(carried.raw[:first])]
    assert carried.raw[:first] in holds
    assert (carried.found.case_N[1:first] == INSIDE).all()


def test_a_character_in_several_tokens_on_either_side(pool):
    for pair in (("small", "bpe"), ("bpe", "bytes"), ("large", "small")):
        carried = Carried(*(pool[name] for name in pair), text="a 😀 the 😀")
        assert carried.student_text.ends[-1] == len(carried.raw)
        assert (carried.found.case_N != UNSERVED).all()


def test_a_beginning_of_text_on_one_side_only_shifts_nothing(pool):
    plain = Carried(pool["small"], pool["large"])
    other = Carried(pool["small"], pool["large"], bos=True)
    np.testing.assert_array_equal(plain.found.ids_NK, other.found.ids_NK)
    np.testing.assert_array_equal(plain.found.logprobs_NK, other.found.logprobs_NK)


def test_a_beginning_of_text_of_the_student_shifts_nothing_either(pool):
    plain = Carried(pool["large"], pool["small"])
    one = plain.student_text
    student = TokenizedText(
        np.append(plain.student.bos, one.ids), np.append(0, one.ends), np.append(-1, one.rows)
    )
    found = transport_text(
        plain.map, plain.raw, plain.teacher_text, plain.entries, plain.labels, student, plain.k
    )
    np.testing.assert_array_equal(plain.found.ids_NK, found.ids_NK)
    np.testing.assert_array_equal(plain.found.logprobs_NK, found.logprobs_NK)


def test_a_token_that_the_teacher_rules_out_spoils_no_other(pool):
    plain = Carried(pool["large"], pool["small"])
    labels = plain.labels.copy()
    labels[5] = -np.inf
    found = transport_text(
        plain.map, plain.raw, plain.teacher_text, plain.entries, labels, plain.student_text, 40
    )
    assert (found.case_N != UNSERVED).all()
    assert np.isfinite(found.label_logprob_N).all()
    far = plain.student_text.starts > plain.teacher_text.ends[11]
    np.testing.assert_allclose(
        found.label_logprob_N[far], plain.found.label_logprob_N[far], rtol=1e-6
    )


def test_the_end_of_an_answer_becomes_the_students_own(pool):
    carried = Carried(pool["small"], pool["words"])
    row = carried.found
    eos = carried.student.eos
    assert carried.student_text.ids[-1] == eos
    assert carried.probabilities()[-1, eos] == pytest.approx(np.exp(carried.labels[-1]), rel=1e-5)
    assert row.case_N[-1] == ALIGNED


def test_a_space_is_a_space_under_any_marker(pool):
    """`▁the` and `Ġthe` are the same bytes, and `the` is not."""
    teacher, student = Side(pool["large"]), Side(pool["bpe"])
    known = TokenMap(teacher.bytes, student.bytes, {}).table()
    spaced = teacher.tokenizer.convert_tokens_to_ids("Ġthe")
    assert student.bytes.bytes_of[known.first_V[spaced]] == b" the"


def test_a_number_is_learned_as_the_student_writes_it(pool):
    text = "There are 472 lights"
    plain = Carried(pool["small"], pool["numbers"], text)
    at = plain.student.tokenizer.convert_ids_to_tokens(plain.student_text.ids).index("472")
    ids = [plain.teacher.tokenizer.convert_tokens_to_ids(d) for d in "472"]
    first = int(np.nonzero(plain.teacher_text.ids == ids[0])[0][0])
    chain = np.exp(plain.labels[first : first + 3].sum())
    q = plain.probabilities()[at]
    assert q[plain.student_text.ids[at]] > 0.9 * chain
    assert plain.found.case_N[at] == SPANS
    single = [plain.student.tokenizer.convert_tokens_to_ids(d) for d in "0123456789"]
    assert q[single].sum() == 0.0


def test_counts_say_how_often_the_student_goes_on(pool):
    carried = Carried(pool["small"], pool["large"])
    before = carried.map.extended_share()
    count_extended(carried.map, carried.teacher_text, carried.student_text)
    after = carried.map.extended_share()
    assert (before <= 1).all()
    assert (after >= 0).all()
    assert (after <= 1).all()
    assert (after > 0).any()


def test_without_a_row_a_token_is_not_served(pool):
    carried = Carried(pool["small"], pool["large"])
    rows = carried.teacher_text.rows.copy()
    rows[:6] = -1
    teacher = TokenizedText(carried.teacher_text.ids, carried.teacher_text.ends, rows)
    found = transport_text(
        carried.map, carried.raw, teacher, carried.entries, carried.labels,
        carried.student_text, 8,
    )  # fmt: skip
    unserved = found.case_N == UNSERVED
    assert unserved[carried.student_text.ends <= teacher.ends[5]].all()
    assert not unserved.all()
    assert (found.logprobs_NK[unserved] == -np.inf).all()
    assert (found.tail_N[unserved] == 0.0).all()
    assert np.isfinite(found.label_logprob_N[~unserved]).all()


def test_a_pair_finds_the_token_that_holds_each_boundary(pool):
    carried = Carried(pool["large"], pool["bytes"])
    pair = TextPair(
        carried.map, carried.raw, carried.teacher_text, carried.entries, None,
        carried.student_text,
    )  # fmt: skip
    starts = np.append(carried.teacher_text.starts, len(carried.raw) + 1)
    inside = pair.bounds[: len(carried.raw)]
    holders = pair.holders[: len(carried.raw)]
    assert (starts[holders] <= inside).all()
    assert (inside < starts[holders + 1]).all()
