"""Stage `answer`: a model writes the answers that are learned, where the recipe says so.

    answers/requests/     every finished request, appended as it comes; none is asked twice
    answers/train.arrow   the training part of the answers that are kept
    answers/answers.jsonl each written answer with its fate, to be read
    answers/result.json  the numbers that the report shows

What is kept is decided again each time, from all that was written; so other rules of keeping cost
no writing.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attar.distributed import free_memory, is_alone, process_state
from attar.errors import DataError, RunError
from attar.files import clear, read_json, write_json, write_text
from attar.progress import progress
from distill.answers.keep import Candidate, Kept, choose, geometric_mean
from distill.answers.numbers import answer_numbers, refused_words
from distill.answers.prompts import Prompt, answer_text, prompts_of
from distill.answers.system_text import place_of, with_system
from distill.answers.written_part import example_of_answer, write_part
from distill.data.held_out_prompts import read_held_out_prompts
from distill.data.verifier import has_answer
from distill.run.context import Run
from distill.run.folder import StageRecord, on_first_process
from distill.stages.answer_writers import (
    answers_of,
    codec_name,
    make_writer,
    writer_identity,
    writer_settings,
)
from distill.stages.cache import add_signals, label_logprobs_under_teacher
from distill.stages.fingerprints import data_inputs, teacher_inputs
from distill.stages.stage import ANSWER, work
from teachers.cache.growing import held_tokens
from teachers.cache.store import SignalStore
from teachers.server_config import ASKING
from teachers.writing.ask import Asked, ask, lacking
from teachers.writing.known_signals import KnownSignals
from teachers.writing.request import Failed, WriteRequest, Written, request_key
from teachers.writing.store import RequestStore, StoreWriter

log = logging.getLogger(__name__)
WITHOUT_EFFECT: dict[str, Any] = {  # on which answers are written
    "batch_size": True,
    "from_": {"server": ASKING},
}


def _inputs(run: Run) -> list[Any]:
    if run.recipe.data.answers is None:
        return []
    config = answers_of(run)
    values = config.model_dump(exclude=WITHOUT_EFFECT)
    other = None if config.from_ == "teacher" else writer_identity(run)
    return [data_inputs(run), teacher_inputs(run), values, other, codec_name(run)]


@work(
    ANSWER,
    inputs=_inputs,
    outputs=lambda run: [run.folder.written_part, run.folder.answers / "result.json"],
    skipped=lambda run: run.recipe.data.answers is None,
)
def answer(run: Run, inputs: str) -> StageRecord:
    """Ask for what is not written yet, and keep what the rules let pass."""
    prompts = prompts_to_answer(run)
    requests = _requests(run, prompts)
    _write(run, [request for _, request in requests])
    with on_first_process() as first:
        if first:
            _keep(run, prompts, requests)
    if codec_name(run) is not None:
        _keep_signals(run, requests)
    notes = read_json(run.folder.answers / "result.json")
    return StageRecord(ANSWER.name, tokens=notes["tokens"], notes=notes)


def prompts_to_answer(run: Run) -> list[Prompt]:
    """The prompts of the training part; the data are prepared.

    Raises `DataError` where none may be answered, and where no right answer can be found.
    """
    keep = answers_of(run).keep
    held_out = read_held_out_prompts(run.folder.data())
    examples = run.data(gold=True)[0]
    prompts = prompts_of(examples, run.tokenizer, held_out, run.recipe.data.max_length)
    targets = [target for prompt in prompts for target in prompt.targets]
    right = keep.right
    if right is not None and not any(has_answer(right, target) for target in targets):
        shown = repr(targets[0][:80]) if targets else "none is whole"
        raise DataError(
            f"`data.answers.keep.right: {right.extract or 'true'}` finds nothing to compare with "
            f"in any answer of the data (the first: {shown}); write another rule, or leave it out."
        )
    if keep.contaminated == "drop" and all(prompt.held_out for prompt in prompts):
        raise DataError(
            "Every prompt of the training part also stands in the held-out part, so none is "
            "answered; hold out other prompts (`data.held_out`), or write "
            "`data.answers.keep.contaminated: keep`."
        )
    _add_system(run, prompts)
    return prompts


def _add_system(run: Run, prompts: Sequence[Prompt]) -> None:
    """Put the system text before what the writer reads of each prompt.

    Raises `DataError` where no prompt takes it, or has room for an answer then.
    """
    system, max_length = answers_of(run).system, run.recipe.data.max_length
    if system is None:
        return
    place, own = place_of(run.tokenizer, system), 0
    for prompt in prompts:
        prompt.asked = with_system(run.tokenizer, place, prompt.ids)
        own += prompt.asked is None
    if own and own == len(prompts):
        raise DataError(
            "`data.answers.system` has no effect: every prompt begins with a system text of its "
            f"own ({run.tokenizer.decode(prompts[0].ids)[:60]!r}); leave it out, or take that out "
            "of the rows."
        )
    if own:
        log.info("answer: %d prompts have a system text of their own, and keep it", own)
    full = sum(len(prompt.asked) >= max_length for prompt in prompts if prompt.asked is not None)
    if full == len(prompts):
        raise DataError(
            f"`data.answers.system` and a prompt fill `data.max_length: {max_length}`, so that no "
            "token of an answer is left; shorten it, or raise that."
        )
    if full:
        log.warning("answer: %d prompts are too long beside `data.answers.system`", full)


def _requests(run: Run, prompts: Sequence[Prompt]) -> list[tuple[int, WriteRequest]]:
    """Every request with the number of its prompt; first the first answer to each prompt.

    Prompts that are held out are not among them.
    """
    config, settings = answers_of(run), writer_settings(run)
    max_length = run.recipe.data.max_length
    found = []
    for sample in range(config.samples):
        for number, prompt in enumerate(prompts):
            if prompt.held_out and config.keep.contaminated == "drop":
                continue
            asked = prompt.ids if prompt.asked is None else prompt.asked
            limit = min(config.new_tokens, max_length - len(asked))
            if limit > 0:
                key = request_key(settings, asked, sample, limit)
                found.append((number, WriteRequest(key, asked, sample, limit)))
    return found[: config.max_requests]


def _write(run: Run, requests: Sequence[WriteRequest]) -> None:
    """Ask for the answers that are not there yet, in all processes, each for its share.

    Raises `RunError` where some failed; those that are there are kept.
    """
    config, codec = answers_of(run), codec_name(run)
    state = None if is_alone() else process_state()
    rank, world = (state.process_index, state.num_processes) if state else (0, 1)
    folder = run.folder.answers / "requests"
    store = RequestStore(folder)
    wanted = lacking(store, requests)
    left = _tokens_left(config.max_tokens, store, requests) / world
    if state is not None:
        state.wait_for_everyone()  # all have read the store before one adds to it
    asked = Asked()
    with progress("answers", len(requests), "answers") as shown:
        shown.skip(len(requests) - len(wanted))
        if wanted and left > 0:
            writer = make_writer(run)
            with StoreWriter(folder, rank, codec or "") as storing:
                asked = ask(
                    writer,
                    wanted,
                    storing,
                    part=(rank, world),
                    max_tokens=left,
                    on_done=lambda request, tokens: shown.advance(world),
                )
            del writer
            free_memory()
    if asked.stopped or (wanted and left <= 0):
        log.warning("answer: `max_tokens: %s` is spent; the rest is not asked", config.max_tokens)
    everyone = _of_all_processes(asked)
    failed = sum((one.failed for one in everyone), Counter[str]())
    if failed:
        reason, number = failed.most_common(1)[0]
        rest = "the rest was not asked for; " if any(one.gave_up for one in everyone) else ""
        raise RunError(
            f"{failed.total()} answers could not be written ({number}: {reason}); {rest}"
            f"{sum(one.written for one in everyone)} were, and are kept in {folder}: run again to "
            "ask for the others."
        )


def _of_all_processes(asked: Asked) -> list[Asked]:
    """What became of the requests of each process; all wait here for one another."""
    if is_alone():
        return [asked]
    from accelerate.utils import gather_object

    found: list[Asked] = gather_object([asked])
    return found


def _tokens_left(
    budget: int | None, store: RequestStore, requests: Sequence[WriteRequest]
) -> float:
    """How many tokens may still be written."""
    if budget is None:
        return float("inf")
    wanted = {request.key for request in requests}
    written = (
        len(one.ids) for key, one in store.read() if key in wanted and isinstance(one, Written)
    )
    return max(0, budget - sum(written))


# What is kept ------------------------------------------------------------------------------------


def _keep(
    run: Run, prompts: Sequence[Prompt], requests: Sequence[tuple[int, WriteRequest]]
) -> None:
    """Decide what is kept, and write the training part and the numbers.

    Raises `DataError` where nothing is.
    """
    config, max_length = answers_of(run), run.recipe.data.max_length
    written, refused = _finished(run, requests)
    kept = choose(_candidates(run, prompts, written), config.keep)
    _write_readable(run, prompts, written, kept)
    if not kept.answers:
        reasons = "; ".join(f"{number} {reason}" for reason, number in kept.by_reason().items())
        reasons = (reasons or "none was written") + refused_words(refused)
        raise DataError(
            f"None of {len(written)} written answers is kept ({reasons}); "
            f"see {run.folder.answers / 'answers.jsonl'}; loosen `data.answers.keep`, raise "
            "`data.answers.new_tokens`, or take another writer."
        )
    part = write_part(run.folder.written_part, prompts, kept.answers, max_length)
    numbers = answer_numbers(config, prompts, [one for *_, one in written], kept, refused, part)
    write_json(run.folder.answers / "result.json", numbers)
    log.info("answer: %s", numbers["sentence"])


Finished = list[tuple[int, WriteRequest, Written]]


def _finished(run: Run, requests: Sequence[tuple[int, WriteRequest]]) -> tuple[Finished, list[str]]:
    """(number of the prompt, request, answer) of what is written; why others were refused."""
    store = RequestStore(run.folder.answers / "requests")
    outcomes = dict(store.read())
    found: Finished = []
    for number, request in requests:
        outcome = outcomes.get(request.key)
        if isinstance(outcome, Written):
            found.append((number, request, outcome))
    others = (outcomes.get(request.key) for _, request in requests)
    return found, [one.reason for one in others if isinstance(one, Failed)]


def _candidates(run: Run, prompts: Sequence[Prompt], written: Finished) -> list[Candidate]:
    """The written answers as the rules ask of them."""
    config = answers_of(run)
    means = [geometric_mean(one.logprobs) for *_, one in written]
    if config.keep.likely is not None and config.from_ != "teacher":
        means = _means_under_teacher(run, prompts, written)
    return [
        Candidate(
            number,
            request.sample,
            tuple(one.ids.tolist()),
            one.ended,
            answer_text(run.tokenizer, one.ids),
            prompts[number].targets,
            mean,
        )
        for (number, request, one), mean in zip(written, means, strict=True)
    ]


def _means_under_teacher(
    run: Run, prompts: Sequence[Prompt], written: Finished
) -> list[float | None]:
    """The geometric mean of what the teacher gives the tokens of another writer's answers."""
    max_length = run.recipe.data.max_length
    examples = [
        example_of_answer(prompts[number].ids, one.ids.tolist(), max_length)
        for number, _, one in written
    ]
    found = label_logprobs_under_teacher(run, examples)
    return [geometric_mean(logprobs) for logprobs in found]


def _write_readable(run: Run, prompts: Sequence[Prompt], written: Finished, kept: Kept) -> None:
    """Write each answer, its prompt and its fate as text."""
    lines = []
    for number, request, one in written:
        line = {
            "prompt": run.tokenizer.decode(prompts[number].ids),
            "sample": request.sample,
            "answer": answer_text(run.tokenizer, one.ids),
            "tokens": len(one.ids),
            "kept": kept.fates[number, request.sample] is None,
            "reason": kept.fates[number, request.sample],
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_text(run.folder.answers / "answers.jsonl", "".join(lines))


def _clear_cache_of_others(run: Run) -> None:
    """Delete the run's own cache where it holds nothing of what is learned now, but answers that
    were written otherwise: it could not grow.
    """
    if run.recipe.cache.dir is not None:
        return
    with on_first_process() as first:
        store = SignalStore(run.cache_url)
        if not first or store.manifest() is None:
            return
        held = held_tokens(store.entries(growing=True))
        wanted = {key for examples in run.cached_examples() for key in examples.by_text().keys}
        if held and not wanted & held.keys():
            log.info("answer: %s holds none of these answers; it begins again", store.url)
            clear(Path(store.url))


def _keep_signals(run: Run, requests: Sequence[tuple[int, WriteRequest]]) -> None:
    """Put the signals of the kept answers into the run's cache."""
    codec = codec_name(run)
    assert codec is not None
    store, max_length = RequestStore(run.folder.answers / "requests"), run.recipe.data.max_length
    known, index = store.has_signals(codec), store.index()
    kept = set(run.training_examples().keys)
    outcomes = {key: one for key, one in store.read() if key in known and isinstance(one, Written)}
    examples, lines = {}, {}
    for _, request in requests:
        if (one := outcomes.get(request.key)) is None:
            continue
        example = example_of_answer(request.prompt, one.ids.tolist(), max_length)
        if example.key in kept:
            examples[example.key], lines[example.key] = example, index[request.key]
    _clear_cache_of_others(run)
    cache = run.recipe.cache
    known_signals = KnownSignals(store, lines, cache.codec, run.vocabulary, cache.labels)
    add_signals(run, list(examples.values()), lambda: known_signals)
