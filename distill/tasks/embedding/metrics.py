"""What is measured of a sentence encoder: likeness to the teacher, and to what people say.

Legend: N held-out texts, M of them that all are compared with, P pairs, H width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.files import read_json
from attar.models.pooling import Pooling, read_pooling
from distill.data.batching import collate_texts, plan_in_order
from distill.data.examples import Example, Examples
from distill.data.scored_pairs import spearman, spearman_draws
from distill.data.tokenize import IGNORE
from distill.evaluation.bootstrap import interval
from distill.evaluation.job import (
    Arrays,
    Batches,
    EvaluateConfig,
    Measured,
    MeasureJob,
    TaskMetrics,
)
from distill.evaluation.text_speed import batches_of, measure_text_speed
from distill.runtimes.runtime import VectorRuntime

SIGNALS = "vectors.npy"
OTHERS = 512  # M: first held-out texts, to which the likeness of each is compared


def _pooling(job: MeasureJob) -> Pooling:
    """As the model's files say; of a teacher whose files say nothing, as the recipe does."""
    return read_pooling(job.model) or Pooling(**job.about["pooling"])


def speed(
    runtime: VectorRuntime,
    examples: Examples,
    batches: Batches,
    job: MeasureJob,
    config: EvaluateConfig,
) -> Measured:
    """Texts a second, and seconds for one text alone."""
    pooling = _pooling(job)
    return measure_text_speed(lambda batch: runtime.vectors(batch, pooling), examples, batches)


@torch.inference_mode()
def compared(
    runtime: VectorRuntime, examples: Examples, batches: Batches, job: MeasureJob
) -> Arrays:
    """Arrays over texts: `similarity_error`, `cosine` where teacher and model are of one width,
    `example`, `document`. The teacher's vectors are left for the others.
    """
    numbers = np.concatenate([np.asarray(batch) for batch in batches])
    pooling = _pooling(job)
    parts = [runtime.vectors(batch, pooling) for batch in batches_of(examples, batches)]
    mine_NH = torch.nn.functional.normalize(torch.cat(parts).double(), dim=-1)
    if job.signals_folder is not None:
        job.signals_folder.mkdir(parents=True, exist_ok=True)
        np.save(job.signals_folder / SIGNALS, mine_NH.numpy())
    told_NH = (
        mine_NH
        if job.compared_signals is None
        else torch.from_numpy(np.load(job.compared_signals / SIGNALS))
    )
    arrays = {"example": numbers, "document": examples.documents[numbers]}
    arrays["similarity_error"] = similarity_error(mine_NH, told_NH).numpy()
    if mine_NH.shape == told_NH.shape:
        arrays["cosine"] = (mine_NH * told_NH).sum(-1).numpy()
    return arrays


def similarity_error(mine_NH: Tensor, told_NH: Tensor) -> Tensor:
    """mean_(j != i) |cos(s_i, s_j) - cos(t_i, t_j)| of every text i, over the first M texts j.

    Vectors have length 1; widths may differ.
    """
    gap_NM = (mine_NH @ mine_NH[:OTHERS].T - told_NH @ told_NH[:OTHERS].T).abs()
    others = gap_NM.shape[1] - (torch.arange(len(gap_NM)) < gap_NM.shape[1]).long()
    return gap_NM.fill_diagonal_(0).sum(-1) / others.clamp(min=1)


def summarise(arrays: Arrays, config: EvaluateConfig) -> Measured:
    """Means and 95% intervals over the texts."""
    texts = len(arrays["example"])
    found: Measured = {"texts": texts, "tokens": texts}
    for key, name in (("similarity_error", "similarity_error"), ("cosine", "cosine_to_teacher")):
        if key in arrays:
            found[name] = float(arrays[key].mean())
            found[f"{name}_interval"] = interval(arrays, key, config.bootstrap)
    return found


# Pairs -----------------------------------------------------------------------------------------


@torch.inference_mode()
def scored(
    runtime: VectorRuntime, examples: Examples, job: MeasureJob, config: EvaluateConfig
) -> Measured:
    """Spearman's correlation of cosines with the scores of pairs, and its 95% interval."""
    if "pairs" not in job.about:
        return {}
    pairs = read_json(Path(job.about["pairs"]))
    sides = [_embed(runtime, pairs[s], job, config.batch_size) for s in ("first", "second")]
    cosine_P, score_P = (sides[0] * sides[1]).sum(-1).numpy(), np.array(pairs["score"])
    np.savez_compressed(pairs_file(Path(job.out)), cosine=cosine_P, score=score_P)
    draws = spearman_draws(cosine_P, score_P, config.bootstrap)
    return {
        "spearman": spearman(cosine_P, score_P),
        "spearman_interval": [float(x) for x in np.percentile(draws, [2.5, 97.5])],
        "pairs": len(score_P),
    }


def pairs_file(out: Path) -> Path:
    """Where cosines of pairs lie beside the numbers of a model."""
    return out.with_suffix(".pairs.npz")


def _embed(
    runtime: VectorRuntime, texts: list[list[int]], job: MeasureJob, batch_size: int
) -> Tensor:
    """Vectors (P, H) of length 1, in the order of the texts."""
    pooling, order, parts = _pooling(job), [], []
    for rows in plan_in_order([len(ids) for ids in texts], batch_size):
        chosen = [row[0] for row in rows]
        batch = collate_texts([[_example(texts[i])] for i in chosen])
        order += chosen
        parts.append(runtime.vectors(batch, pooling))
    found_PH = torch.nn.functional.normalize(torch.cat(parts).double(), dim=-1)
    return found_PH[torch.tensor(order).argsort()]


def _example(ids: list[int]) -> Example:
    labels = np.full(len(ids), IGNORE)
    labels[0] = 0
    return Example("", np.asarray(ids), labels)


class EmbeddingMetrics(TaskMetrics):
    """What is measured of sentence encoders."""

    def speed(
        self,
        runtime: Any,
        examples: Examples,
        batches: Batches,
        job: MeasureJob,
        config: EvaluateConfig,
    ) -> Measured:
        """Texts a second."""
        return speed(runtime, examples, batches, job, config)

    def arrays(self, runtime: Any, examples: Examples, batches: Batches, job: MeasureJob) -> Arrays:
        """Error of each text's cosines."""
        return compared(runtime, examples, batches, job)

    def summary(self, arrays: Arrays, config: EvaluateConfig) -> Measured:
        """Means and 95% intervals."""
        return summarise(arrays, config)

    def more(
        self, runtime: Any, examples: Examples, job: MeasureJob, config: EvaluateConfig
    ) -> Measured:
        """Correlation with the scores of pairs."""
        return scored(runtime, examples, job, config)


METRICS = EmbeddingMetrics()
