"""Which examples of which step have the student's own answer, and which round wrote it.

All follows from the seed, so it is the same on every process and after a restart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from distill.data.batching import MicroBatch
from distill.data.examples import ALONE, Example, Examples
from distill.rollouts.config import RolloutsConfig


@dataclass(frozen=True)
class Source:
    """Where an example of a step gets its answers from: the index-th prompt of a round."""

    round: int
    index: int


class RolloutPlan:
    """The rounds of a training: round r writes for the steps from r x `every` on.

    numbers: of each step, the numbers of its examples in their order. writable: whether an example
    has a prompt that leaves room for an answer; others keep what the data say.
    """

    def __init__(
        self,
        steps: Sequence[Sequence[MicroBatch]],
        writable: np.ndarray,
        config: RolloutsConfig,
        seed: int,
    ) -> None:
        self.numbers = [[i for rows in step for row in rows for i in row] for step in steps]
        self._writable, self._config, self._seed = writable, config, seed

    @property
    def num_rounds(self) -> int:
        """How many rounds there are."""
        return -(-len(self.numbers) // self._config.every)

    def round_of(self, step: int) -> int:
        """The round that a step learns from first."""
        return step // self._config.every

    def steps_of(self, number: int) -> range:
        """The steps of a round."""
        first = number * self._config.every
        return range(first, min(first + self._config.every, len(self.numbers)))

    def prompts(self, number: int) -> list[int]:
        """Numbers of the examples whose prompts a round answers, in order."""
        return self._rounds[number][0]

    def sources(self, step: int) -> dict[int, Source]:
        """By place in a step's order: where the examples with answers of the student get them."""
        return self._rounds[self.round_of(step)][1][step]

    @cached_property
    def _rounds(self) -> list[tuple[list[int], dict[int, dict[int, Source]]]]:
        """Of each round: the prompts it answers, and the sources of its steps."""
        found: list[tuple[list[int], dict[int, dict[int, Source]]]] = []
        for number in range(self.num_rounds):
            prompts: list[int] = []
            sources: dict[int, dict[int, Source]] = {}
            slots = 0
            for step in self.steps_of(number):
                sources[step] = {}
                for place, example in enumerate(self.numbers[step]):
                    if not self._is_written(step, place, example):
                        continue
                    age = slots % self._config.keep
                    older = found[number - age][0] if 0 < age <= number else []
                    if older:
                        index = (slots // self._config.keep) % len(older)
                        sources[step][place] = Source(number - age, index)
                    else:
                        sources[step][place] = Source(number, len(prompts))
                        prompts.append(example)
                    slots += 1
            found.append((prompts, sources))
        return found

    def _is_written(self, step: int, place: int, example: int) -> bool:
        if not self._writable[example]:
            return False
        text = f"{self._seed}/rollouts/{step}/{place}".encode()
        drawn = int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "little")
        return drawn < self._config.share * (1 << 56)


def prompt_of(example: Example, config: RolloutsConfig) -> np.ndarray | None:
    """The ids that the student continues: those before the first answer, or the beginning of a text
    all of which counts; None where there is none, or of judged answers.
    """
    if example.role != ALONE or example.rejected is not None or not len(example.counted):
        return None
    first = int(example.counted[0])
    if first > 0:
        return example.prompt
    if config.prompt_tokens is None or len(example.input_ids) <= config.prompt_tokens:
        return None
    prompt: np.ndarray = example.input_ids[: config.prompt_tokens]
    return prompt


def leaves_room(
    example: Example,
    config: RolloutsConfig,
    max_length: int,
    teacher_positions: int | None = None,
) -> bool | None:
    """Whether a prompt leaves `new_tokens` of `max_length`, and the teacher's own of its positions;
    None where there is no prompt.
    """
    prompt, of_teacher = prompt_of(example, config), example.teacher_prompt
    if prompt is None:
        return None
    room = len(prompt) + config.new_tokens <= max_length
    if of_teacher is not None and teacher_positions is not None:
        more = len(prompt) - len(example.prompt)  # of a text that is continued
        room &= len(of_teacher) + more + config.new_tokens <= teacher_positions
    return room


def writable_examples(
    examples: Examples,
    numbers: Iterable[int],
    config: RolloutsConfig,
    max_length: int,
    teacher_positions: int | None = None,
) -> tuple[np.ndarray, int]:
    """(whether the student can answer each example, how many have a prompt that is too long).

    numbers: of the examples that are asked; the others are not answered. A prompt is too long where
    it leaves fewer than `new_tokens` of `max_length`; the teacher's own, of its positions.
    """
    writable, long = np.zeros(len(examples), bool), 0
    for i in numbers:
        room = leaves_room(examples[i], config, max_length, teacher_positions)
        writable[i], long = bool(room), long + (room is False)
    return writable, long
