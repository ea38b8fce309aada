"""What a recipe may ask of a teacher whose student has another tokenizer: the one place that says.

The teacher's distributions are carried to the student's ids (`transport.py`): entries with one
outcome for the rest, at temperature 1. Nothing else of the teacher has a place in the student's
text, and it cannot run on the student's ids.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from attar.errors import ModelError, RecipeError
from attar.models.token_bytes import TokenBytes, check_reversible
from attar.models.tokenizers import differing_ids
from distill.evaluation.tokenizer_check import HARD_TEXTS
from distill.objective.losses import LOSSES
from distill.objective.terms import reads_from, source_of
from distill.run.context import Run
from distill.training.config import LoopConfig
from teachers.codecs.top_entries import is_bucket_codec

log = logging.getLogger(__name__)


def check_transport(run: Run) -> None:
    """Raise a `UserError` for what a student of another vocabulary cannot have of its teacher."""
    differ = differing_ids(run.teacher_tokenizer, run.tokenizer)
    i, its, own = differ[0]
    other = (
        f"The student has another vocabulary than the teacher: {len(differ):,} ids differ (first: "
        f"id {i} is {own!r} in the student, {its!r} in the teacher)"
    )
    for fault in (*_of_data(run), *_of_signals(run)):
        raise RecipeError(
            f"{other}, so {fault}. A student of the teacher's family, or one cut from it with "
            "`student.from: teacher`, has none of these limits."
        )
    for tokenizer, name in _tokenizers(run):
        TokenBytes(tokenizer, name)  # models are compared by bytes
    if run.makes_cache:
        _check_tokenizers(run)


def check_cache_transport(run: Run) -> None:
    """The same for a cache that is carried over by itself, whatever learns from it.

    The recipe says of which texts it is; its objective and what it measures do not matter.
    """
    for fault in (*_of_texts(run), *_of_cache(run)):
        raise RecipeError(f"The cache cannot be carried to another tokenizer: {fault}.")
    _check_tokenizers(run)


def _of_data(run: Run) -> Iterator[str]:
    """What asks the teacher to read, or write, in the student's ids."""
    recipe = run.recipe
    yield from _of_texts(run)
    if recipe.student.target is not None:
        yield "`student.target` cannot compare shapes with the teacher; name the shape"
    if recipe.own_answers() is not None:
        yield "`evaluate.own_answers` would have the teacher read them in other ids; set it to null"


def _of_texts(run: Run) -> Iterator[str]:
    """What makes the examples others than the rows' own texts."""
    recipe = run.recipe
    if recipe.task != "causal-lm":
        yield f"`task: {recipe.task}` cannot compare the two; name a student of one vocabulary"
    if recipe.teacher.adapt is not None:
        yield (
            "`teacher.adapt` would read the data in ids that the teacher does not have; adapt it "
            "in a run of its own, and name that run's teacher"
        )
    if recipe.teacher.prompt is not None:
        yield "`teacher.prompt` is read in the student's ids, which the teacher does not have"
    answers = recipe.data.answers
    if answers is not None:
        yield (
            "`data.answers` would be written in other ids than they are learned in; write them "
            "in a run with a student of the teacher's vocabulary, and learn from them as data"
        )


def _of_signals(run: Run) -> Iterator[str]:
    """What terms read that is not transported."""
    recipe = run.recipe
    for path, section in recipe.learning().items():
        yield from _of_section(path, section)
    if not run.makes_cache:
        return
    yield from _of_cache(run)
    if recipe.cache.unfinished and run.transports_itself:
        yield (
            "`cache.unfinished` would leave what the teacher's cache still lacks without targets; "
            "finish that cache first, and leave it out"
        )


def _of_cache(run: Run) -> Iterator[str]:
    """What a cache keeps that is not transported."""
    codec, hidden = run.recipe.cache.codec, run.recipe.cache.hidden
    if hidden.parts:
        yield (
            "`cache.hidden` keeps states at tokens that the student's text does not have; leave "
            "it out"
        )
    if not is_bucket_codec(codec):
        yield f"`cache.codec: {codec.name}` cannot be transported; use `topk` or `nucleus`"
    elif codec.temperatures != [1.0]:
        yield (
            f"`cache.codec.temperatures: {codec.temperatures}` is not known after the transport; "
            "leave it out"
        )


def _of_section(path: str, section: LoopConfig) -> Iterator[str]:
    """What the terms of one training read that is not transported."""
    teaches = any(reads_from(section, source) for source in ("cache", "online"))
    if section.rollouts is not None and teaches:
        yield f"`{path}.rollouts` would have the teacher read the student's text; leave them out"
    for i, term in enumerate(section.objective):
        where, source = f"`{path}.objective[{i}]`", source_of(term, section.source)
        reads = LOSSES[term.loss].reads
        if source == "online":
            yield f"{where} cannot ask the teacher within the step; write `source: cache`"
        elif source == "cache" and reads != "distribution":
            serve = [name for name, one in LOSSES.items() if one.reads == "distribution"]
            yield (
                f"{where} ({term.loss}) has no counterpart in the student's text; losses over "
                f"distributions have ({', '.join(serve)})"
            )


def _tokenizers(run: Run) -> list[tuple[Any, str]]:
    """Both tokenizers, and of which model each is."""
    named = str(run.recipe.student.named_tokenizer)
    return [(run.teacher_tokenizer, run.recipe.teacher.model), (run.tokenizer, named)]


def _check_tokenizers(run: Run) -> None:
    """Raise `ModelError` for a tokenizer whose ids do not give back plain text, and for a teacher's
    of whose ids the bytes are known only beside a text; warn of one that loses rare characters,
    since texts without them are carried all the same.
    """
    for tokenizer, name in _tokenizers(run):
        token_bytes = TokenBytes(tokenizer, name)
        if token_bytes.kind == "wordpiece" and tokenizer is run.teacher_tokenizer:
            raise ModelError(
                f"The tokenizer of {name} is WordPiece, which drops white space, so what its ids "
                "say cannot be carried to another tokenizer; choose another teacher, or a student "
                "of its tokenizer."
            )
        plain, *rare = HARD_TEXTS
        _check_gives_back(token_bytes, tokenizer, plain)
        try:
            for text in rare:
                _check_gives_back(token_bytes, tokenizer, text)
        except ModelError as error:
            log.warning("transport: %s Such characters get no target.", error)


def _check_gives_back(token_bytes: TokenBytes, tokenizer: Any, text: str) -> None:
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    check_reversible(token_bytes, text, found["input_ids"], found["offset_mapping"])
