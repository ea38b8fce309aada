"""Search prompts for one model: candidates, rungs, the winner, and what it does on unseen text."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attar.errors import RecipeError
from attar.progress import progress
from distill.prompting.asking import Asker
from distill.prompting.candidate import Candidate, candidates_of, ways_of, without_search
from distill.prompting.config import PromptConfig
from distill.prompting.demonstrations import Demonstrations, gives_vectors, mean_vectors
from distill.prompting.halving import Rung, halve
from distill.prompting.prompt import Wording
from distill.prompting.question_set import QuestionPart, QuestionSet, in_own_order
from distill.prompting.scorer import AnswerScorer
from distill.runtimes.runtime import Runtime

log = logging.getLogger(__name__)
SHOWN = 3  # candidates of a rung in the table


@dataclass
class SearchResult:
    """The winner, and how it was found. tokens: ids that the model read in the search."""

    winner: Candidate
    candidates: list[Candidate]
    rungs: list[Rung]
    tokens: int


def prepare_asker(
    runtime: Runtime,
    scorer: AnswerScorer,
    questions: QuestionSet,
    config: PromptConfig,
    wordings: Sequence[Wording],
    seed: int,
    *,
    calibrates: bool,
) -> Asker:
    """What asks the questions of a set, with demonstrations from its training part."""
    asker = Asker(
        runtime,
        scorer,
        questions.kind,
        chat=config.chat,
        verifier=config.verifier,
        new_tokens=config.new_tokens,
        calibrates=calibrates,
    )

    def vectors(texts: Sequence[str]) -> np.ndarray:
        scorer.tokens_read += sum(len(runtime.encode(text)) for text in texts)
        return mean_vectors(runtime, texts)

    plain = Candidate(wordings[0])
    asker.demonstrations = Demonstrations(
        pool_of(questions, config).questions,
        seed,
        vectors if gives_vectors(runtime) else None,
        lambda pool: asker.hardness(plain, pool),
    )
    return asker


def pool_of(questions: QuestionSet, config: PromptConfig) -> QuestionPart:
    """The training questions that demonstrations are chosen from."""
    order = in_own_order(questions.train.questions)
    return questions.train.some(sorted(order[: config.pool]))


def dev_of(questions: QuestionSet, config: PromptConfig, seed: int) -> QuestionPart:
    """The questions that choose, in an order drawn from the seed and from what they are."""
    order = in_own_order(questions.dev.questions)
    random.Random(seed).shuffle(order)
    return questions.dev.some(order[: config.dev])


def check_ways(config: PromptConfig, runtime_name: str) -> None:
    """Raise `RecipeError` where `nearest` is asked of a runtime that gives no vectors."""
    if runtime_name != "transformers" and "nearest" in (config.demonstrations or []):
        raise RecipeError(
            f"`prompt.demonstrations: nearest` compares the model's hidden states, which "
            f"{runtime_name} does not give; use `random`, `balanced` or `hardest`."
        )


def choose_prompt(
    asker: Asker,
    dev: QuestionPart,
    config: PromptConfig,
    wordings: Sequence[Wording],
    seed: int,
    *,
    search: bool,
) -> SearchResult:
    """The prompt to use: the best of all candidates on the dev questions, or the plain one."""
    ways = ways_of(config, asker.kind, gives_vectors(asker.runtime))
    if not search:
        only = without_search(config, asker.kind, wordings, ways)
        return SearchResult(only, [only], [], asker.scorer.tokens_read)
    candidates = candidates_of(config, asker.kind, wordings, ways, seed)
    measure = _measure(asker, dev, candidates)

    reads = list(dict.fromkeys(one.read for one in candidates))
    groups = [reads.index(one.read) for one in candidates]

    def on_rung(rung: Rung, going: list[int]) -> None:
        best = rung.standings[0]
        log.info(
            "prompt: %d candidates on %d questions, best accuracy %.3f: %s",
            len(rung.standings), rung.questions, best.accuracy,
            candidates[best.number].describe(),
        )  # fmt: skip
        for read in set(reads) - {candidates[number].read for number in going}:
            asker.forget(read)

    with progress("prompt", len(reads), "prompts") as work:
        done: set[Candidate] = set()

        def counted(number: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            found = measure(number, size)
            if candidates[number].read not in done:
                done.add(candidates[number].read)
                work.advance(1)
            return found

        rungs = halve(len(candidates), len(dev), counted, groups, (0,), on_rung)
    winner = candidates[rungs[-1].standings[0].number]
    return SearchResult(winner, candidates, rungs, asker.scorer.tokens_read)


def _measure(
    asker: Asker, dev: QuestionPart, candidates: Sequence[Candidate]
) -> Callable[[int, int], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    def measure(number: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = asker.ask(candidates[number], dev.questions[:size])
        return found.correct, found.nll, found.ids

    return measure


def rung_rows(record: dict[str, Any]) -> list[list[str]]:
    """The best candidates of each rung of search.json as a table of text, header first."""
    rows = [["best prompts", "questions", "candidates", "accuracy", "nll", "tokens"]]
    for rung in record["rungs"]:
        for one in rung["standings"][:SHOWN]:
            rows.append([
                record["candidates"][one["candidate"]]["short"], f"{rung['questions']}",
                f"{len(rung['standings'])}", f"{one['accuracy']:.3f}", f"{one['nll']:.3f}",
                f"{one['tokens']:.0f}",
            ])  # fmt: skip
    return rows


def search_record(result: SearchResult) -> dict[str, Any]:
    """search.json: every candidate, and the rungs with the place of each."""
    return {
        "candidates": [
            {
                "instruction": one.wording.instruction,
                "wrapping": one.wording.wrapping,
                "shots": one.shots,
                "demonstrations": one.way,
                "draw": one.draw,
                "calibrated": one.calibrated,
                "short": one.describe(),
            }
            for one in result.candidates
        ],
        "rungs": [
            {
                "questions": rung.questions,
                "standings": [
                    {
                        "candidate": one.number,
                        "accuracy": one.accuracy,
                        "nll": one.nll,
                        "tokens": one.tokens,
                    }
                    for one in rung.standings
                ],
            }
            for rung in result.rungs
        ],
        "model_tokens": result.tokens,
    }
