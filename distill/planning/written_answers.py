"""The plan of written answers: what writing takes, and how many are then learned."""

from __future__ import annotations

from dataclasses import replace

from distill.data.answers_config import AnswersConfig
from distill.data.examples import Examples
from distill.planning.data_counts import DataCounts
from distill.planning.quantities import WRITING, Quantities
from distill.run.context import Run
from distill.stages.status import is_current


def with_answers(run: Run, counts: DataCounts) -> DataCounts:
    """The counts of what is learned: of the written answers where they are there, else of as many
    as may be kept, each as long as the data's own.
    """
    config = run.recipe.data.answers
    if config is None:
        return counts
    if is_current(run, "answer"):
        train = Examples(run.folder.written_part)
        length, counted = float(train.lengths.mean()), float(train.counts.mean())
        return replace(counts, train=len(train), length=length, counted=counted, kept=counted)
    return replace(counts, train=counts.train * (config.keep.per_prompt or config.samples))


def written_tokens(config: AnswersConfig, prompts: int, each: float) -> int:
    """Tokens that will be written; each: of an answer, as long as the data's own."""
    requests = min(prompts * config.samples, config.max_requests or prompts * config.samples)
    tokens = int(requests * min(each, config.new_tokens))
    return min(tokens, config.max_tokens or tokens)


def writing_seconds(config: AnswersConfig, known: Quantities, prompts: int, tokens: int) -> float:
    """Time of reading the prompts and of writing that many tokens, by the teacher's size."""
    read = prompts * max(0.0, known.counts.length - known.counts.counted)
    return (known.teacher.forward(read) + WRITING * known.teacher.forward(tokens)) / known.speed
