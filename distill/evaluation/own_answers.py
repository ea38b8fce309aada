"""How far a model is from the teacher where it goes by itself: on answers that it wrote.

KL(teacher || model) on held-out text asks about texts that others wrote. A model that answers walks
through texts of its own, and learning from its own answers (`rollouts`) improves it there, while
the first number may get worse. So the model writes an answer to each of some held-out prompts, and
both models are compared at every token of these answers; the prompts never count.

Legend: A answers, N tokens written, V vocabulary, H width, R resamples.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.device import peak_memory_bytes
from attar.distributed import free_memory
from attar.errors import ModelError
from attar.files import read_json, write_json
from attar.models.sampling import (
    Answer,
    Sampling,
    Writer,
    batches_of_prompts,
    check_can_write,
)
from attar.models.structure import logprobs_of_ids, rows_per_chunk
from attar.progress import tracked
from attar.storage_errors import naming, storage_error
from distill.data.batching import Batch, collate, plan_in_order
from distill.data.examples import Example, Examples, example_of
from distill.data.repetition import repeated_sequences
from distill.data.tokenize import answered
from distill.evaluation.bootstrap import ratio_of, statistic_interval
from distill.evaluation.fresh_process import run_in_fresh_process
from distill.evaluation.job import MeasureJob, Numbers, OwnAnswersConfig, PredictionArrays
from distill.evaluation.predictions import write_arrays
from distill.evaluation.samples import Prompt, held_out_prompts
from distill.objective.losses import reverse_kl
from distill.runtimes.hugging_face import LogitsFromStates, Transformers
from distill.runtimes.runtime import Logits

log = logging.getLogger(__name__)

KEY = "own_answers"  # in the numbers of a model


@dataclass(frozen=True)
class OwnAnswersJob:
    """A model whose own answers are measured. It must pickle.

    measured: what was measured of it before, to whose numbers these are added.
    teacher: what reads the answers; the same job where the model is the teacher.
    config: how answers are written. resamples: of the bootstrap. seed: the recipe's.
    positions: tokens that all models can read; prompts that leave no room for an answer are passed
    over. None: any number.
    """

    measured: MeasureJob
    teacher: MeasureJob
    config: OwnAnswersConfig
    resamples: int
    seed: int
    positions: int | None = None

    @property
    def arrays(self) -> Path:
        """The file with the values of each answer."""
        return answers_file(Path(self.measured.out).parent, self.measured.name)


def answers_file(folder: Path, model: str) -> Path:
    """The file with the values of each answer of a model, in the folder of an evaluation."""
    return folder / f"{model}.answers.npz"


# Writing -----------------------------------------------------------------------------------------


def prompts_to_answer(
    examples: Examples, config: OwnAnswersConfig, positions: int | None
) -> list[Prompt]:
    """The held-out prompts, the same for every model; each leaves room for an answer.

    Raises `ModelError` where there is none.
    """
    longest = None if positions is None else positions - config.new_tokens
    found = held_out_prompts(examples, config.prompts, windows=True, longest=longest)
    if not found:
        raise ModelError(
            f"no held-out prompt leaves room for {config.new_tokens} more tokens among the "
            f"{positions} positions of teacher and student; lower "
            "`evaluate.own_answers.new_tokens`."
        )
    return found


def write_answers(
    model: Any,
    prompts: Sequence[Prompt],
    config: OwnAnswersConfig,
    *,
    vocabulary: int,
    stop_ids: Sequence[int],
    seed: int,
) -> list[Answer]:
    """One answer to each prompt, in their order; batches change none but through rounding.

    vocabulary: V; only its ids are written. Raises `ModelError` for a model that cannot write.
    """
    check_can_write(model, vocabulary)
    sampling = Sampling(config.new_tokens, temperature=config.temperature)
    writer = Writer(model, sampling, vocabulary, stop_ids, f"own answers {seed}")
    starts = [np.asarray(prompt.ids, np.int64) for prompt in prompts]
    batches = batches_of_prompts([len(ids) for ids in starts], 1, config.batch_size)
    found: dict[int, Answer] = {}
    for numbers in tracked(batches, "own answers", "answers", len):
        written = writer.write([starts[i] for i in numbers])
        found.update((i, answer) for i, (answer,) in zip(numbers, written, strict=True))
    return [found[i] for i in range(len(prompts))]


def answered_text(prompt: Prompt, answer: Answer) -> Example:
    """A prompt with its answer, of which exactly the answer's ids are predicted."""
    return example_of(*answered(prompt.ids, answer.ids.tolist()))


# Reading -----------------------------------------------------------------------------------------


def states_of(runtime: Transformers, batches: Sequence[Batch]) -> list[LogitsFromStates]:
    """What a model gives at the counted tokens of each batch: final states, and its head."""
    head = runtime.head  # once, as a head with an adapter is a copy
    return [
        LogitsFromStates(runtime.hidden(batch), head)
        for batch in tracked(batches, "reading own answers", "batches")
    ]


@torch.inference_mode()
def compare_at(student: Logits, teacher: Logits, written_N: Tensor) -> dict[str, np.ndarray]:
    """Of each written id, (N,): `kl`, KL(student || teacher) over all V ids, and `nll`, -log p of
    the id under the teacher, both at temperature 1 in nats; `agree`, whether both models have the
    same most likely id.

    A part of the positions at a time, so that not all logits exist at once.
    """
    found: dict[str, list[Tensor]] = {"kl": [], "nll": [], "agree": []}
    size = rows_per_chunk(student.piece(slice(0, 1)).shape[-1], written_N.device)
    for start in range(0, len(written_N), size):
        rows = slice(start, start + size)
        mine_NV = student.piece(rows).log_softmax(-1)
        its_NV = teacher.piece(rows).to(mine_NV.device).log_softmax(-1)
        ids_N = written_N[rows].to(mine_NV.device)
        found["kl"].append(reverse_kl(mine_NV, its_NV))
        found["nll"].append(-logprobs_of_ids(its_NV, ids_N))
        found["agree"].append((mine_NV.argmax(-1) == its_NV.argmax(-1)).float())
    return {name: torch.cat(parts).double().cpu().numpy() for name, parts in found.items()}


def values_by_answer(
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    compared: Sequence[tuple[Sequence[int], Mapping[str, np.ndarray]]],
) -> PredictionArrays:
    """Arrays over A answers: sums over their tokens `kl`, `nll` and `agree`, and `tokens`; whether
    each `ended`; `repeated` of its `sequences` of 4 ids; its `document`.

    compared: by batch, the numbers of its answers and what `compare_at` gives of their tokens.
    """
    tokens = np.asarray([len(answer.ids) for answer in answers], np.int64)
    sums = {name: np.zeros(len(answers)) for name in ("kl", "nll", "agree")}
    for numbers, values in compared:
        of_token = np.repeat(numbers, tokens[list(numbers)])
        for name, values_N in values.items():
            np.add.at(sums[name], of_token, values_N)
    repeats = np.asarray([repeated_sequences(answer.ids.tolist()) for answer in answers], np.int64)
    return {
        **sums,
        "tokens": tokens,
        "ended": np.asarray([answer.ended for answer in answers]),
        "repeated": repeats[:, 0],
        "sequences": repeats[:, 1],
        "document": np.asarray([prompt.document for prompt in prompts], np.int64),
    }


# Numbers -----------------------------------------------------------------------------------------


# Means over tokens of what is kept as a sum over each answer's tokens.
REVERSE_KL, TEACHER_NLL = ratio_of("kl", "tokens"), ratio_of("nll", "tokens")
AGREEMENT = ratio_of("agree", "tokens")


def summary(arrays: PredictionArrays, resamples: int, *, is_teacher: bool = False) -> Numbers:
    """The numbers of a model's own answers, with 95% intervals over the documents of the prompts.

    is_teacher: then it is not compared with itself.
    """
    compared = {"reverse_kl": REVERSE_KL, "top1_agreement": AGREEMENT} if not is_teacher else {}
    found: Numbers = {"answers": len(arrays["tokens"]), "tokens": int(arrays["tokens"].sum())}
    for name, statistic in {**compared, "teacher_nll": TEACHER_NLL}.items():
        found[name] = statistic.of(arrays)
        found[f"{name}_interval"] = statistic_interval(statistic, [arrays], resamples)
    sequences = int(arrays["sequences"].sum())
    return {
        **found,
        "length": float(arrays["tokens"].mean()),
        "ended": float(arrays["ended"].mean()),
        "repeated": float(arrays["repeated"].sum() / sequences) if sequences else None,
    }


def difference_by_prompt(
    one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], resamples: int
) -> Numbers:
    """KL(model || teacher) a token on its own answers of one model minus that of another, on
    answers to the same prompts: `difference`, its 95% `interval`, over how many `documents`.
    """
    return {
        "difference": REVERSE_KL.of(one) - REVERSE_KL.of(other),
        "interval": statistic_interval(REVERSE_KL, [one, other], resamples),
        "documents": len(np.unique(one["document"])),
    }


# A model -----------------------------------------------------------------------------------------


def measure_own_answers(job: OwnAnswersJob) -> tuple[Numbers, PredictionArrays]:
    """(numbers, values by answer) of a model's own answers.

    Model and teacher are loaded one after the other: beside the teacher, only the model's head and
    its final states at the tokens that it wrote are in memory. Raises `ModelError` for a model that
    cannot write answers.
    """
    config, is_teacher = job.config, job.measured.is_teacher
    examples = Examples(Path(job.measured.held_out)).preferred()
    prompts = prompts_to_answer(examples, config, job.positions)
    runtime: Transformers | None = Transformers(job.measured.source)
    assert runtime is not None
    answers = write_answers(
        runtime.model,
        prompts,
        config,
        vocabulary=runtime.vocabulary,
        stop_ids=runtime.end_ids,
        seed=job.seed,
    )
    texts = [answered_text(*both) for both in zip(prompts, answers, strict=True)]
    plan = plan_in_order([len(text.input_ids) for text in texts], config.batch_size)
    batches = [collate([[texts[i] for i in row] for row in rows]) for rows in plan]
    mine = states_of(runtime, batches)
    runtime = None
    free_memory()
    its = mine if is_teacher else states_of(Transformers(job.teacher.source), batches)
    compared = []
    for rows, batch, student, teacher in zip(plan, batches, mine, its, strict=True):
        written_N = batch.labels_BT[batch.labels_BT >= 0]
        numbers = [i for row in rows for i in row]
        compared.append((numbers, compare_at(student, teacher, written_N)))
    arrays = values_by_answer(prompts, answers, compared)
    return summary(arrays, job.resamples, is_teacher=is_teacher), arrays


def add_own_answers(job: OwnAnswersJob) -> Numbers:
    """Measure the own answers of a model in a fresh process; gives all numbers of the model.

    Its JSON file gets the key `own_answers`. Where they cannot be measured, that has only the
    `reason`, which is logged.
    """
    out = Path(job.measured.out)
    job.arrays.unlink(missing_ok=True)  # of an earlier measurement
    run_in_fresh_process(_measure_to_file, job)
    numbers: Numbers = read_json(out)
    if KEY not in numbers:
        numbers[KEY] = {"reason": "its process died, perhaps for lack of memory."}
        write_json(out, numbers)
    if "reason" in numbers[KEY]:
        name, reason = job.measured.name, numbers[KEY]["reason"]
        log.warning("evaluate: the own answers of `%s` are not measured: %s", name, reason)
    return numbers


def _measure_to_file(job: OwnAnswersJob) -> None:
    torch.set_grad_enabled(False)
    out = Path(job.measured.out)
    numbers: Numbers = read_json(out)
    try:
        with naming(out):
            numbers[KEY], arrays = measure_own_answers(job)
            write_arrays(job.arrays, arrays)
    except Exception as error:  # what else was measured of the model stays
        if storage_error(error) is not None:
            raise
        if not isinstance(error, ModelError):
            log.exception("own answers of %s", job.measured.name)
        kind = "" if isinstance(error, ModelError) else f"{type(error).__name__}: "
        numbers[KEY] = {"reason": f"{kind}{error}"}
    peak = max(numbers.get("process_peak_bytes", 0), peak_memory_bytes())
    write_json(out, {**numbers, "process_peak_bytes": peak})
