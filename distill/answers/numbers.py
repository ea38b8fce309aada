"""What a run says of its written answers: how many, kept or why not, how often right, the cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from attar.word_lists import counted
from distill.answers.keep import Kept
from distill.answers.prompts import Prompt
from distill.data.answers_config import AnswersConfig
from teachers.writing.request import Written

RATE_BINS = 10  # of the histogram of pass rates


def answer_numbers(
    config: AnswersConfig,
    prompts: Sequence[Prompt],
    written: Sequence[Written],
    kept: Kept,
    refused: Sequence[str],
    part: dict[str, int],
) -> dict[str, Any]:
    """The `answers` of report.json.

    refused: why, of each request that the writer refuses. part: examples and tokens that are
    learned from. seconds: of writing, summed over processes and starts.
    """
    with_answer = {answer.prompt for answer in kept.answers}
    found = {
        "writer": config.writer,
        "samples": config.samples,
        "prompts": len(prompts),
        "held_out_prompts": sum(prompt.held_out for prompt in prompts),
        "written": len(written),
        "refused": len(refused),
        "kept": len(kept.answers),
        "kept_prompts": len(with_answer),
        "kept_tokens": part["tokens"],
        "by_reason": kept.by_reason(),
        "pass_rates": pass_rate_histogram(kept),
        "tokens": sum(len(one.ids) for one in written),
        "seconds": sum(one.seconds for one in written),
    }
    return {**found, "sentence": _sentence(found, refused)}


def pass_rate_histogram(kept: Kept) -> list[int]:
    """How many prompts have a pass rate in each tenth from 0 to 1; empty without `right`."""
    if not kept.rates:
        return []
    counts, _ = np.histogram(list(kept.rates.values()), bins=RATE_BINS, range=(0, 1))
    return [int(count) for count in counts]


def refused_words(reasons: Sequence[str]) -> str:
    """What is added to a sentence where the writer refused requests; nothing where it did not."""
    if not reasons:
        return ""
    return f"; {counted(len(reasons), 'request')} refused, the first: {reasons[0].rstrip('.')}"


def _sentence(found: dict[str, Any], refused: Sequence[str]) -> str:
    reasons = "; ".join(f"{number:,} {reason}" for reason, number in found["by_reason"].items())
    return (
        f"{counted(found['written'], 'answer')} to {counted(found['prompts'], 'prompt')} by "
        f"`{found['writer']}`, of which {found['kept']:,} (to {found['kept_prompts']:,} prompts) "
        f"are learned from{f' (not: {reasons})' if reasons else ''}; "
        f"{found['tokens']:,} tokens in {found['seconds']:,.0f} s of writing"
        f"{refused_words(refused)}."
    )
