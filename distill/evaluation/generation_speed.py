"""The speed of a model with one stream, a sample of its text, and the agreement of generations.

Agreement of generations: after the same prompts, how many greedily chosen tokens are those of the
unquantised student, up to the end of its answer. One differing token changes all tokens after it,
so what counts is the number of tokens before the first difference.
"""

from __future__ import annotations

from typing import Any

from attar.errors import ModelError
from attar.progress import tracked
from distill.data.examples import Examples
from distill.evaluation.job import Numbers
from distill.evaluation.samples import held_out_prompts
from distill.evaluation.timing import Timer
from distill.runtimes.runtime import Runtime

GENERATION_PROMPT_TOKENS = 16  # of the timed generation's prompt


def measure_speed(
    runtime: Runtime, prompt: list[int], prefill_tokens: int, generate_tokens: int, timer: Timer
) -> Numbers:
    """Tokens a second of one forward and of greedy generation, seconds to the first token after a
    prompt of `prefill_tokens`, each with the range over all calls of the timer, and a sample; None
    where a runtime cannot do it.
    """
    length = min(prefill_tokens, (runtime.context or prefill_tokens) - 1)
    ids = (prompt * (1 + length // len(prompt)))[:length]
    prefill = timer.time("speed of a prefill", lambda: runtime.prefill(ids)).rate(length)
    rates: dict[str, Any] = {"prefill": prefill.median, "generate": None}
    ranges: dict[str, Any] = {"prefill": prefill.range, "generate": None}
    found = {"tokens_per_second": rates, "tokens_per_second_range": ranges}
    if not runtime.can_generate:
        no_first = {"seconds_to_first_token": None, "seconds_to_first_token_range": None}
        return {**found, **no_first, "sample": ""}
    start = ids[: min(GENERATION_PROMPT_TOKENS, length)]
    new = generate_tokens
    if runtime.context is not None:
        new = max(1, min(new, runtime.context - len(start)))
    produced: list[list[int]] = []
    seconds = timer.time(
        "speed of generation", lambda: produced.append(runtime.generate(start, new))
    )
    if len(produced[-1]) != new:
        raise ModelError(f"The model generated {len(produced[-1])} tokens, not {new}.")
    generate = seconds.rate(new)
    rates["generate"], ranges["generate"] = generate.median, generate.range
    first = timer.time("time to the first token", lambda: runtime.generate(ids, 1))
    return {
        **found,
        "seconds_to_first_token": first.median,
        "seconds_to_first_token_range": first.range,
        "sample": runtime.decode(start + produced[-1]),
    }


def continuations(
    runtime: Runtime, examples: Examples, prompts: int, new: int, end_ids: tuple[int, ...]
) -> list[list[int]] | None:
    """Greedy continuations of distinct held-out prompts, each up to an end, which is included, or
    `new` tokens; None where a runtime cannot generate.
    """
    if not runtime.can_generate or prompts == 0:
        return None
    found = []
    starts = [prompt.ids for prompt in held_out_prompts(examples, prompts, windows=True)]
    for start in tracked(starts, "generations to compare", "prompts"):
        room = new
        if runtime.context is not None:
            room = max(1, min(new, runtime.context - len(start)))
        found.append(runtime.generate(start, room, stop_ids=end_ids))
    return found


def agreement(mine: list[list[int]], reference: list[list[int]]) -> dict[str, float]:
    """How far answers are those of the reference, which may end before they do, or after.

    `tokens`: mean length of the reference's answers; `same_until`: mean number of tokens before the
    first difference; `same`: share of the reference's tokens that stand at the same place; `equal`:
    share of answers that are the same to the end.
    """
    pairs = list(zip(mine, reference, strict=True))
    same = [[x[i : i + 1] == [b] for i, b in enumerate(y)] for x, y in pairs]
    until = [row.index(False) if False in row else len(row) for row in same]
    tokens = sum(len(y) for y in reference)
    return {
        "prompts": len(same),
        "tokens": tokens / len(same),
        "same_until": sum(until) / len(same),
        "same": sum(map(sum, same)) / tokens,
        "equal": sum(x == y for x, y in pairs) / len(same),
    }
