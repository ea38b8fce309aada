"""Checks of `distill doctor` on tokenizer and data: what every id means, and what is counted.

Rows of the source are read and tokenised again. What they must become is worked out here from the
texts and messages themselves.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np

from attar.models.loading import load_config
from attar.models.tokenizers import load_tokenizer
from distill.data import tokenize
from distill.data.bad_rows import RowError
from distill.data.chat_rendering import Chat
from distill.data.conversations import conversation_of, thinking_of
from distill.data.row_formats import text_of
from distill.data.tokenize import IGNORE, TokenizedExamples
from distill.doctor.findings import Finding, check, judged
from distill.doctor.fixture import DoctorFixture, Row

CHECKED_CHARACTERS = 2000  # of a text, encoded and decoded again
EXCERPT_CHARACTERS = 48


@check("tokenizer")
def tokenizer(fixture: DoctorFixture) -> Finding:
    """Teacher, saved student and data agree on every id, and encoded text decodes to itself."""
    run, ours = fixture.run, fixture.run.tokenizer
    others = {"the student's": (str(run.folder.student), run.trusts_student)}
    if run.teacher.model != run.recipe.teacher.model:
        adapted = run.teacher
        others["the adapted teacher's"] = adapted.model, adapted.trust_remote_code
    texts = [text for row in fixture.rows for text in _texts(row)]
    for name, (source, trust) in others.items():
        theirs = load_tokenizer(source, trust_remote_code=trust)
        for difference in _differences(ours, theirs, texts):
            return judged(False, f"{name} tokenizer is not the teacher's: {difference}")
    changed = [text for text in texts if _plain(_decoded_again(ours, text)) != _plain(text)]
    if changed:
        back = _decoded_again(ours, changed[0])
        at = next((i for i, (a, b) in enumerate(zip(changed[0], back, strict=False)) if a != b), 0)
        was, now = (repr(text[max(0, at - 8) : at + 16]) for text in (changed[0], back))
        return judged(False, f"{len(changed)} of {len(texts)} texts come back changed: {was} {now}")
    says = f"teacher and student agree on {run.vocabulary:,} ids; {len(texts)} texts come back"
    end = _end_ids(load_config(str(run.folder.student), trust_remote_code=run.trusts_student))
    if ours.eos_token_id is not None and end and ours.eos_token_id not in end:
        about = f"its config ends a text at {end}, the tokenizer at {ours.eos_token_id}"
        return Finding("warn", f"{says}; the student may not stop: {about}")
    return judged(True, says, ids=run.vocabulary, texts=len(texts))


def _texts(row: Row) -> list[str]:
    if row.layout.kind == "text":
        found = [text_of(row.values[row.layout.columns[0]])]
    else:
        found = [m["content"] for m in conversation_of(row.values, row.layout).messages]
    return [text[:CHECKED_CHARACTERS] for text in found if text]


def _differences(ours: Any, theirs: Any, texts: list[str]) -> list[str]:
    """Return what two tokenizers disagree on, in words."""
    found = []
    one, other = ({i: t for t, i in side.get_vocab().items()} for side in (ours, theirs))
    wrong = [i for i in sorted(one.keys() | other.keys()) if one.get(i) != other.get(i)]
    if wrong:
        i = wrong[0]
        says = f"{len(wrong)} ids differ, e.g. {i} is {other.get(i)!r} where the teacher has "
        found.append(f"{says}{one.get(i)!r}")
    sides = [{i: str(t) for i, t in side.added_tokens_decoder.items()} for side in (ours, theirs)]
    if sides[0] != sides[1]:
        found.append("other added tokens")
    if ours.chat_template != theirs.chat_template:
        found.append("another chat template")
    for name in ("bos", "eos", "pad", "unk"):
        ids = [getattr(side, f"{name}_token_id", None) for side in (ours, theirs)]
        if ids[0] != ids[1]:
            found.append(f"its {name} token is id {ids[1]}, the teacher's {ids[0]}")
    for text in texts:
        if ours(text, verbose=False)["input_ids"] != theirs(text, verbose=False)["input_ids"]:
            found.append(f"it cuts {text[:EXCERPT_CHARACTERS]!r} into other ids")
            break
    return found


def _decoded_again(tokenizer: Any, text: str) -> str:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _plain(text: str) -> str:
    """Return a text without what a tokenizer may change: spaces, case, compatible Unicode forms."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _end_ids(config: Any) -> list[int]:
    end = getattr(config.get_text_config(), "eos_token_id", None)
    return [end] if isinstance(end, int) else list(end or [])


# What is counted ---------------------------------------------------------------------------------


@check("mask")
def mask(fixture: DoctorFixture) -> Finding:
    """Every label is the next id, and the right tokens are counted.

    These are all but the first token of a document, and what the assistant says in conversations.
    """
    tokens = counted = 0
    ends: set[int] = set()
    for example in [*fixture.validation, *fixture.examples]:
        at = example.counted
        wrong = at[(at + 1 >= len(example.input_ids))]
        if not len(wrong):
            wrong = at[example.labels[at] != example.input_ids[at + 1]]
        if len(wrong):
            t = int(wrong[0])
            says = f"{len(wrong)} of {len(at)} labels of example {example.key[:8]} are not the "
            return judged(False, f"{says}next id, first at position {t}: off by one?")
        tokens, counted = tokens + len(example.input_ids), counted + len(at)
    shown = ""
    for row in fixture.rows:
        try:
            document = tokenize.tokenize_document(
                fixture.run.tokenizer, row.values, row.layout, fixture.run.recipe.data
            )
        except RowError:
            continue  # left out and named where the data are prepared
        fault = _fault_finder(fixture, row)(fixture, row, document)
        if fault:
            return judged(False, fault)
        spoken = [int(i) for _, labels in document for i in labels if i != IGNORE]
        ends |= {run[-1] for _, labels in document for run in _runs(np.asarray(labels))}
        shown = shown or str(fixture.run.tokenizer.decode(spoken))
    text = fixture.rows[0].layout.kind == "text"
    what = "all but a text's first token" if text else "the answers"
    says = f"{counted:,} of {tokens:,} positions are counted, each label is the next id, {what}: "
    says += repr(shown[:EXCERPT_CHARACTERS])
    if not text and not ends & _specials(fixture):
        return Finding(
            "warn", f"{says}; no end of a turn is counted: the student will not learn to stop"
        )
    return judged(counted > 0, says, counted=counted, tokens=tokens)


def _specials(fixture: DoctorFixture) -> set[int]:
    """Return the ids of special and added tokens."""
    tokenizer = fixture.run.tokenizer
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}


def _fault_finder(
    fixture: DoctorFixture, row: Row
) -> Callable[[DoctorFixture, Row, TokenizedExamples], str | None]:
    if row.layout.kind == "text":
        return _fault_of_text
    if row.layout.kind == "pair" and fixture.run.tokenizer.chat_template is None:
        return _fault_of_pair
    return _fault_of_chat


def _fault_of_text(fixture: DoctorFixture, row: Row, document: TokenizedExamples) -> str | None:
    tokenizer = fixture.run.tokenizer
    ids = list(tokenizer(text_of(row.values[row.layout.columns[0]]), verbose=False)["input_ids"])
    if fixture.run.recipe.data.append_eos and ids and ids[-1] != tokenizer.eos_token_id:
        ids += [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    labels = [label for _, labels in document for label in labels if label != IGNORE]
    if labels == ids[1:]:
        return None
    return (
        f"of a document of {len(ids)} tokens {len(labels)} are counted, which are not all but the "
        f"first: {_shown(fixture, labels)}"
    )


def _fault_of_pair(fixture: DoctorFixture, row: Row, document: TokenizedExamples) -> str | None:
    """Check that, without a chat template, the answer to a prompt is counted and nothing else."""
    tokenizer = fixture.run.tokenizer
    asked, whole = tokenize.bare_pair(row.values, row.layout)
    for ids, labels in document:
        (run, *more) = _runs(np.asarray(labels))
        want = _plain(_decoded_again(tokenizer, whole[len(asked) :]))
        got = _plain(str(tokenizer.decode(run, skip_special_tokens=True)))
        cut = len(ids) == fixture.run.recipe.data.max_length
        joined = _plain(str(tokenizer.decode(run[:1])))  # may begin with the prompt's last letters
        before = got[: got.find(want)] if want in got else ""
        whole_answer = got == before + want and joined.startswith(before)
        if more or not (whole_answer or (cut and want.startswith(got.rstrip("\ufffd")))):
            excerpt = whole[len(asked) :][:EXCERPT_CHARACTERS]
            return f"where the answer is {excerpt!r}, counted is {_shown(fixture, run)}"
    return None


def _fault_of_chat(fixture: DoctorFixture, row: Row, document: TokenizedExamples) -> str | None:
    tokenizer, chat = fixture.run.tokenizer, conversation_of(row.values, row.layout)
    rendered, said = Chat(tokenizer, chat), iter(chat.learned)
    number = 0
    for ids, labels in document:
        whole = len(ids) < fixture.run.recipe.data.max_length
        runs = _runs(np.asarray(labels))
        for place, run in enumerate(runs):
            i = next(said, None)
            if i is None:
                return f"more turns are counted than the {len(chat.learned)} to learn"
            number += 1
            answer = thinking_of(chat.messages[i])[1]
            cut = not whole and place == len(runs) - 1
            before = rendered.render(i, prompt=True)
            want = _decoded_again(tokenizer, answer)
            if not _is_said(str(tokenizer.decode(run)), want, before, cut):
                excerpt = answer[:EXCERPT_CHARACTERS]
                return f"where the assistant says {excerpt!r}, counted is {_shown(fixture, run)}"
        if not whole:
            return None  # turns behind the limit are in no text
    if number < len(chat.learned):
        return f"{number} turns are counted of a conversation with {len(chat.learned)} to learn"
    return None


def _runs(labels: np.ndarray) -> list[list[int]]:
    """Return the labels of each stretch of counted positions."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], labels != IGNORE, [0]])))
    return [labels[a:b].tolist() for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _is_said(got: str, want: str, before: str, cut: bool) -> bool:
    """Return whether the counted text `got` is the message `want`.

    A template may open a turn with text of its own (tags of thoughts), but the end of the prompt
    `before` must not be counted. cut: the message was cut at the length limit.
    """
    plain_got, plain_want = _plain(got), _plain(want)
    if cut and plain_want not in plain_got:
        return plain_want.startswith(plain_got.rstrip("\ufffd")) or plain_want[:8] in plain_got
    if plain_want not in plain_got:
        return False
    start = next((got.find(w) for w in (want, want.rstrip(), want.strip()) if w in got), 0)
    return start <= 0 or not before.endswith(got[:start])


def _shown(fixture: DoctorFixture, ids: list[int]) -> str:
    text = str(fixture.run.tokenizer.decode(ids))
    return repr(
        text
        if len(text) <= 2 * EXCERPT_CHARACTERS
        else f"{text[:EXCERPT_CHARACTERS]} ... {text[-EXCERPT_CHARACTERS:]}"
    )
