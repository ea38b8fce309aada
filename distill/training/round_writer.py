"""A round of the student's own answers: written once, by all processes together, and kept."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from attar.distributed import process_state
from attar.files import read_json, write_json
from attar.models.sampling import Writer, batches_of_prompts
from attar.progress import tracked
from distill.data.examples import Example, Examples
from distill.objective.objective import Learner
from distill.rollouts.config import RolloutsConfig
from distill.rollouts.plan import prompt_of
from distill.rollouts.rewards import Judge
from distill.rollouts.written import Round, Written, read_round, text_measures, write_round

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundWriter:
    """What writes the rounds of a training.

    examples: those whose prompts are answered. folder: where rounds are kept. stop_ids: each ends
    an answer. judge: gives the rewards of answers; None where they have none.
    """

    learner: Learner
    examples: Examples
    config: RolloutsConfig
    folder: Path
    vocabulary: int
    stop_ids: Sequence[int]
    seed: int
    judge: Judge | None = None

    def round(self, number: int, prompts: Sequence[int]) -> Round:
        """Return a round's answers to the prompts of some examples, by their numbers.

        Those that were written before a restart are read. Every process has the same.
        """
        found = read_round(self.file(number))
        process_state().wait_for_everyone()  # all have looked before one writes
        if found is not None and len(found.answers) == len(prompts):
            return found
        started = time.monotonic()
        answers = self._write(number, prompts)
        texts = [one.answer for samples in answers for one in samples]
        record: dict[str, Any] = {"round": number, **text_measures(texts)}
        rewards = [one.reward for samples in answers for one in samples if one.reward is not None]
        if rewards:
            record |= {"reward": float(np.mean(rewards)), "reward_std": float(np.std(rewards))}
        record["seconds"] = time.monotonic() - started
        found = Round(answers, record)
        if process_state().is_main_process:
            write_round(self.file(number), found)
        process_state().wait_for_everyone()
        return found

    def file(self, number: int) -> Path:
        """The file of a round."""
        return self.folder / f"{number:05d}.arrow"

    def record(self, number: int) -> dict[str, Any] | None:
        """A round's numbers with what the teacher said of it; None where that is not kept."""
        file = self.file(number).with_suffix(".json")
        return read_json(file) if file.exists() else None

    def keep_record(self, number: int, record: dict[str, Any]) -> None:
        """Keep a round's numbers, for a restart."""
        if process_state().is_main_process:
            write_json(self.file(number).with_suffix(".json"), record)

    def _write(self, number: int, prompts: Sequence[int]) -> list[list[Written]]:
        """Write, each process its batches; return all answers to each prompt."""
        if not prompts:
            return []
        examples = {i: self.examples[i] for i in set(prompts)}
        ids: list[np.ndarray] = []
        for i in prompts:
            prompt = prompt_of(examples[i], self.config)
            assert prompt is not None, "the plan has prompts that can be answered"
            ids.append(prompt)
        samples, times = self.config.samples, Counter[bytes]()
        firsts = []
        for prompt in ids:  # a prompt that comes twice has other answers
            firsts.append(samples * times[prompt.tobytes()])
            times[prompt.tobytes()] += 1
        state, mine = process_state(), dict[int, list[Written]]()
        batches = batches_of_prompts([len(one) for one in ids], samples, self.config.batch_size)
        own = batches[state.process_index :: state.num_processes]
        writer = Writer(
            self.learner.student,
            self.config.sampling,
            self.vocabulary,
            self.stop_ids,
            f"{self.seed}/rollouts/{number}",
        )
        for batch in tracked(own, f"round {number + 1}: the student writes", "batches"):
            with self.learner.autocast():
                answers = writer.write(
                    [ids[i] for i in batch], samples, first_sample=[firsts[i] for i in batch]
                )
            for i, texts in zip(batch, answers, strict=True):
                written = [Written(ids[i], text) for text in texts]
                mine[i] = self._judged(examples[prompts[i]], written)
        return [written for _, written in sorted(_gathered(mine).items())]

    def _judged(self, example: Example, written: list[Written]) -> list[Written]:
        """The answers to an example's prompt with their rewards, where something judges them."""
        if self.judge is None:
            return written
        pairs = zip(written, self.judge(example, written), strict=True)
        return [replace(one, reward=reward) for one, reward in pairs]


def _gathered(mine: dict[int, list[Written]]) -> dict[int, list[Written]]:
    """What all processes have."""
    if process_state().num_processes == 1:
        return mine
    from accelerate.utils import gather_object

    return dict(gather_object(list(mine.items())))
