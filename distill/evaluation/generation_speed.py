"""The speed of a model with one stream, a sample of its text, and the agreement of generations.

Agreement of generations: after the same prompts, how many greedily chosen tokens are those of the
unquantised student. One differing token changes all tokens after it, so what counts is the number
of tokens before the first difference.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from attar.errors import ModelError
from attar.progress import tracked
from distill.data.examples import Examples
from distill.runtimes.runtime import Runtime

GENERATION_PROMPT_TOKENS = 16  # of the timed generation's prompt, and of the compared generations'


def _timed(function: Callable[[], Any]) -> float:
    """Median seconds of three calls; the first one, which warms up, is hardly ever the median."""
    seconds = []
    for _ in tracked(range(3), "speed", "calls"):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure_speed(
    runtime: Runtime, prompt: list[int], prefill_tokens: int, generate_tokens: int
) -> dict[str, Any]:
    """Tokens a second of one forward and of greedy generation, seconds to the first token after a
    prompt of `prefill_tokens`, and a sample; None where a runtime cannot do it.
    """
    length = min(prefill_tokens, (runtime.context or prefill_tokens) - 1)
    ids = (prompt * (1 + length // len(prompt)))[:length]
    speed: dict[str, Any] = {"prefill": length / _timed(lambda: runtime.prefill(ids))}
    speed["generate"] = None
    if not runtime.can_generate:
        return {"tokens_per_second": speed, "seconds_to_first_token": None, "sample": ""}
    start = ids[: min(GENERATION_PROMPT_TOKENS, length)]
    new = generate_tokens
    if runtime.context is not None:
        new = max(1, min(new, runtime.context - len(start)))
    produced: list[list[int]] = []
    seconds = _timed(lambda: produced.append(runtime.generate(start, new)))
    if len(produced[-1]) != new:
        raise ModelError(f"The model generated {len(produced[-1])} tokens, not {new}.")
    speed["generate"] = new / seconds
    return {
        "tokens_per_second": speed,
        "seconds_to_first_token": _timed(lambda: runtime.generate(ids, 1)),
        "sample": runtime.decode(start + produced[-1]),
    }


def continuations(
    runtime: Runtime, examples: Examples, prompts: int, new: int
) -> list[list[int]] | None:
    """Greedy continuations of the first held-out examples; None where a runtime cannot generate."""
    if not runtime.can_generate or prompts == 0:
        return None
    found = []
    for i in tracked(range(min(prompts, len(examples))), "generations to compare", "prompts"):
        start = examples[i].input_ids[:GENERATION_PROMPT_TOKENS].tolist()
        room = new if runtime.context is None else min(new, runtime.context - len(start))
        found.append(runtime.generate(start, room))
    return found


def agreement(mine: list[list[int]], reference: list[list[int]]) -> dict[str, float]:
    """`same_until`: mean number of tokens before the first difference; `same`: share of positions
    with the same token; `equal`: share of generations that are the same to the end.
    """
    pairs = zip(mine, reference, strict=True)
    same = [[a == b for a, b in zip(x, y, strict=True)] for x, y in pairs]
    until = [row.index(False) if False in row else len(row) for row in same]
    positions = sum(len(row) for row in same)
    return {
        "prompts": len(same),
        "tokens": max(len(row) for row in same),
        "same_until": sum(until) / len(until),
        "same": sum(sum(row) for row in same) / positions,
        "equal": sum(all(row) for row in same) / len(same),
    }
