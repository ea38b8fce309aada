"""What is measured of a sentence encoder: similarity to the teacher, and to human scores.

Legend: N held-out texts, M of them with which each is compared, P pairs, H width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from attar.files import read_json
from attar.models.pooling import Pooling, read_pooling
from attar.progress import tracked
from distill.data.batching import collate_texts, plan_in_order
from distill.data.examples import Example, Examples
from distill.data.scored_pairs import spearman, spearman_draws
from distill.data.tokenize import IGNORE
from distill.evaluation.bootstrap import MIN_DOCUMENTS, interval
from distill.evaluation.job import (
    Batches,
    EvaluateConfig,
    MeasureJob,
    Numbers,
    PredictionArrays,
    TaskMetrics,
)
from distill.evaluation.predictions import write_array, write_arrays
from distill.evaluation.text_speed import batches_of, measure_text_speed
from distill.evaluation.timing import Timer
from distill.runtimes.runtime import VectorRuntime

SIGNALS_FILE = "vectors.npy"
COMPARED_TEXTS = 512  # M: the first held-out texts, with which each text is compared


class EmbeddingMetrics(TaskMetrics):
    """What is measured of sentence encoders."""

    trial_value: ClassVar[str] = "similarity_error"
    trials_read_teacher: ClassVar[bool] = True

    def speed(
        self,
        runtime: VectorRuntime,
        examples: Examples,
        batches: Batches,
        job: MeasureJob,
        config: EvaluateConfig,
        timer: Timer,
    ) -> Numbers:
        """Texts a second, and seconds for one text alone."""
        pooling = _pooling(job)
        return measure_text_speed(
            lambda batch: runtime.vectors(batch, pooling), examples, batches, timer
        )

    @torch.inference_mode()
    def arrays(
        self, runtime: VectorRuntime, examples: Examples, batches: Batches, job: MeasureJob
    ) -> PredictionArrays:
        """Arrays over texts: `similarity_error`, `cosine` where teacher and model are of one width,
        `example`, `document`. The teacher's vectors are left for the models compared with it.
        """
        numbers = np.concatenate([np.asarray(batch) for batch in batches])
        pooling = _pooling(job)
        read = batches_of(examples, batches)
        shown = tracked(read, "held-out texts", "texts", lambda batch: len(batch.labels_BT))
        parts = [runtime.vectors(batch, pooling) for batch in shown]
        model_NH = torch.nn.functional.normalize(torch.cat(parts).double(), dim=-1)
        if job.signals_folder is not None:
            job.signals_folder.mkdir(parents=True, exist_ok=True)
            write_array(job.signals_folder / SIGNALS_FILE, model_NH.numpy())
        teacher_NH = (
            model_NH
            if job.compared_signals is None
            else torch.from_numpy(np.load(job.compared_signals / SIGNALS_FILE))
        )
        arrays = {"example": numbers, "document": examples.documents[numbers]}
        arrays["similarity_error"] = similarity_error(model_NH, teacher_NH).numpy()
        if model_NH.shape == teacher_NH.shape:
            arrays["cosine"] = (model_NH * teacher_NH).sum(-1).numpy()
        return arrays

    def summary(self, arrays: PredictionArrays, config: EvaluateConfig) -> Numbers:
        """Means and 95% intervals over the texts."""
        texts = len(arrays["example"])
        found: Numbers = {"texts": texts, "tokens": texts}
        for key, name in (
            ("similarity_error", "similarity_error"),
            ("cosine", "cosine_to_teacher"),
        ):
            if key in arrays:
                found[name] = float(arrays[key].mean())
                found[f"{name}_interval"] = interval(arrays, key, config.bootstrap)
        return found

    @torch.inference_mode()
    def more(
        self, runtime: VectorRuntime, examples: Examples, job: MeasureJob, config: EvaluateConfig
    ) -> Numbers:
        """Spearman's correlation of cosines with the scores of pairs, and its 95% interval."""
        if "pairs" not in job.task_inputs:
            return {}
        pairs = read_json(Path(job.task_inputs["pairs"]))
        first_PH, second_PH = (
            _embed(runtime, pairs[side], job, config.batch_size) for side in ("first", "second")
        )
        cosine_P, score_P = (first_PH * second_PH).sum(-1).numpy(), np.array(pairs["score"])
        mine = {"cosine": cosine_P, "score": score_P}
        write_arrays(pairs_file(Path(job.out)), mine)
        return {
            "spearman": spearman(cosine_P, score_P),
            "spearman_interval": spearman_interval([mine], config.bootstrap),
            "pairs": len(score_P),
        }


def similarity_error(model_NH: Tensor, teacher_NH: Tensor) -> Tensor:
    """mean_(j != i) |cos(s_i, s_j) - cos(t_i, t_j)| of every text i, over the first M texts j.

    Vectors have length 1; widths may differ.
    """
    model_NM = model_NH @ model_NH[:COMPARED_TEXTS].T
    gap_NM = (model_NM - teacher_NH @ teacher_NH[:COMPARED_TEXTS].T).abs()
    others = gap_NM.shape[1] - (torch.arange(len(gap_NM)) < gap_NM.shape[1]).long()
    return gap_NM.fill_diagonal_(0).sum(-1) / others.clamp(min=1)


def spearman_interval(
    models: Sequence[Mapping[str, np.ndarray]], resamples: int
) -> list[float] | None:
    """95% interval, over the pairs, of a model's correlation, or of one model's minus another's.

    None with fewer pairs than an interval needs documents.
    """
    if len(models[0]["score"]) < MIN_DOCUMENTS:
        return None
    draws = [spearman_draws(one["cosine"], one["score"], resamples) for one in models]
    gained = draws[0] - draws[1] if len(draws) > 1 else draws[0]
    return [float(x) for x in np.percentile(gained, [2.5, 97.5])]


def pairs_file(out: Path) -> Path:
    """The file with the cosines of pairs, beside the numbers of a model."""
    return out.with_suffix(".pairs.npz")


def _pooling(job: MeasureJob) -> Pooling:
    """How the model's files say; where a teacher's files do not, how the recipe says."""
    return read_pooling(job.model) or Pooling(**job.task_inputs["pooling"])


def _embed(
    runtime: VectorRuntime, texts: list[list[int]], job: MeasureJob, batch_size: int
) -> Tensor:
    """Vectors (P, H) of length 1, in the order of the texts."""
    pooling, order, parts = _pooling(job), [], []
    plan = plan_in_order([len(ids) for ids in texts], batch_size)
    for rows in tracked(plan, "scored pairs", "texts", len):
        chosen = [row[0] for row in rows]
        batch = collate_texts([[_unlabelled(texts[i])] for i in chosen])
        order += chosen
        parts.append(runtime.vectors(batch, pooling))
    vectors_PH = torch.nn.functional.normalize(torch.cat(parts).double(), dim=-1)
    return vectors_PH[torch.tensor(order).argsort()]


def _unlabelled(ids: list[int]) -> Example:
    """An example whose one counted position stands for the whole text."""
    labels = np.full(len(ids), IGNORE)
    labels[0] = 0
    return Example("", np.asarray(ids), labels)
