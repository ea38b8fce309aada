"""How a reward model ranks held-out pairs of answers, against the teacher's rewards.

Legend: S texts, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from attar.errors import ModelError
from attar.progress import tracked
from distill.data.examples import Examples
from distill.evaluation.bootstrap import interval
from distill.evaluation.calibration_error import calibration_error, calibration_interval
from distill.evaluation.job import (
    Batches,
    EvaluateConfig,
    MeasureJob,
    Numbers,
    PredictionArrays,
    TaskMetrics,
)
from distill.evaluation.predictions import held_out_batches, write_array
from distill.evaluation.text_speed import batches_of, measure_text_speed
from distill.evaluation.timing import Timer
from distill.runtimes.runtime import ClassRuntime
from students.pruning.output_change import kl, pair_logprobs

SIGNALS_FILE = "rewards.npy"
MEANS = {  # of arrays over pairs, by their names in the numbers
    "accuracy": "correct", "nll": "nll", "chosen_reward": "chosen_reward",
    "rejected_reward": "rejected_reward", "reward_margin": "difference",
}  # fmt: skip


class RewardMetrics(TaskMetrics):
    """What is measured of reward models."""

    def measured(self, examples: Examples) -> Examples:
        """The pairs: both answers of each are read."""
        return examples.numbered(np.flatnonzero(examples.num_texts == 2))

    def speed(
        self,
        runtime: ClassRuntime,
        examples: Examples,
        batches: Batches,
        job: MeasureJob,
        config: EvaluateConfig,
        timer: Timer,
    ) -> Numbers:
        """Texts a second in batches of all lengths, and seconds for one text alone."""
        texts, of_texts = texts_of(examples, batches)
        return measure_text_speed(runtime.classes, texts, of_texts, timer)

    def arrays(
        self, runtime: ClassRuntime, examples: Examples, batches: Batches, job: MeasureJob
    ) -> PredictionArrays:
        """The arrays of `compare_rewards` over pairs, with `example` and `document`.

        The teacher's rewards are left for the models compared with it.
        """
        numbers = numbers_of(batches)
        rewards_P2 = read_rewards(runtime, *texts_of(examples, batches))
        if job.signals_folder is not None:
            job.signals_folder.mkdir(parents=True, exist_ok=True)
            write_array(job.signals_folder / SIGNALS_FILE, rewards_P2.numpy())
        teacher_P2 = None
        if job.compared_signals is not None:
            teacher_P2 = torch.from_numpy(np.load(job.compared_signals / SIGNALS_FILE))
        arrays = {"example": numbers, "document": examples.documents[numbers]}
        return {**arrays, **compare_rewards(rewards_P2, teacher_P2)}

    def summary(self, arrays: PredictionArrays, config: EvaluateConfig) -> Numbers:
        """Accuracy of pairs, nll, calibration error and mean rewards, and with a teacher KL and
        agreement, with 95% intervals over prompts.
        """
        pairs, resamples = len(arrays["correct"]), config.bootstrap
        numbers: Numbers = {"pairs": pairs, "texts": 2 * pairs, "tokens": 2 * pairs}
        for name, array in MEANS.items():
            numbers[name] = float(arrays[array].mean())
            numbers[f"{name}_interval"] = interval(arrays, array, resamples)
        numbers["ties"] = int((arrays["difference"] == 0).sum())
        numbers["calibration_error"] = calibration_error(arrays["confidence"], arrays["correct"])
        numbers["calibration_error_interval"] = calibration_interval([arrays], resamples)
        if "kl" in arrays:
            numbers["kl_to_teacher"] = float(arrays["kl"].mean())
            numbers["kl_interval"] = interval(arrays, "kl", resamples)
            numbers["top1_agreement"] = float(arrays["agree"].mean())
        return numbers


def numbers_of(batches: Batches) -> np.ndarray:
    """Numbers of the pairs of some batches, in order of their number."""
    return np.sort(np.concatenate([np.asarray(batch, np.int64) for batch in batches]))


def texts_of(examples: Examples, batches: Batches) -> tuple[Examples, list[list[int]]]:
    """(the texts of the pairs of `numbers_of`, chosen and rejected in turns, their batches).

    A batch has as many texts as the given ones have pairs.
    """
    texts = examples.numbered(numbers_of(batches)).by_text()
    return texts, held_out_batches(texts, texts.num_tokens, max(map(len, batches)))


@torch.inference_mode()
def read_rewards(
    runtime: ClassRuntime, texts: Examples, batches: Sequence[Sequence[int]]
) -> Tensor:
    """Float32 rewards (P, 2) of the texts of pairs, the chosen answer's first.

    Raises `ModelError` for a model that gives a text several numbers.
    """
    rewards_S = torch.zeros(len(texts))
    read = list(zip(batches_of(texts, batches), batches, strict=True))
    for batch, numbers in tracked(read, "held-out texts", "texts", lambda one: len(one[1])):
        logits_BC = runtime.classes(batch)
        if logits_BC.shape[1] != 1:
            raise ModelError(
                f"It gives {logits_BC.shape[1]} numbers for a text; a reward model gives one."
            )
        rewards_S[list(numbers)] = logits_BC[:, 0]
    return rewards_S.reshape(-1, 2)


@torch.inference_mode()
def compare_rewards(rewards_P2: Tensor, teacher_P2: Tensor | None = None) -> PredictionArrays:
    """Arrays over pairs: `chosen_reward`, `rejected_reward`, their `difference`, `correct` (whether
    it is above 0), `confidence` (of the better answer, by the logistic function of it) and `nll`;
    with the teacher's rewards `kl` of the two distributions over which is better, and `agree`. nll
    and kl in nats.
    """
    rewards_P2 = rewards_P2.double()
    gap_P = rewards_P2[:, 0] - rewards_P2[:, 1]
    values = {
        "chosen_reward": rewards_P2[:, 0],
        "rejected_reward": rewards_P2[:, 1],
        "difference": gap_P,
        "correct": gap_P > 0,
        "confidence": torch.sigmoid(gap_P.abs()),
        "nll": -logsigmoid(gap_P),
    }
    if teacher_P2 is not None:
        teacher_P = teacher_P2.double()[:, 0] - teacher_P2.double()[:, 1]
        values["kl"] = kl(pair_logprobs(teacher_P), pair_logprobs(gap_P))
        values["agree"] = torch.sign(gap_P) == torch.sign(teacher_P)
    return {name: value.numpy() for name, value in values.items()}
