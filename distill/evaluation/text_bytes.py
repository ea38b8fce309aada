"""Nats a byte: the nll of models whose tokenizers cut a text into different tokens.

A mean a token is over other units for every tokenizer; the bytes of the text are the same for all.

Legend: V vocabulary, N tokens counted, G documents.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from attar.errors import ModelError
from attar.models.token_bytes import TokenBytes
from distill.evaluation.bootstrap import groups_of, ratio_of, statistic_interval
from distill.evaluation.job import Numbers, PredictionArrays

log = logging.getLogger(__name__)
NATS_PER_BYTE = ratio_of("nll", "bytes")


def byte_sizes(bytes_of: TokenBytes) -> np.ndarray:
    """Bytes of UTF-8 that each id stands for, int32 (V,); 0 of special tokens."""
    return np.asarray([len(one) for one in bytes_of.bytes_of], np.int32)


def write_byte_sizes(file: Path, tokenizer: Any, name: str) -> Path:
    """Write the `byte_sizes` of a tokenizer. Raises `ModelError` where they are not known."""
    np.save(file, byte_sizes(TokenBytes(tokenizer, name)))
    return file


def known_byte_sizes(file: Path, tokenizer: Any, name: str) -> dict[str, str]:
    """The key `byte_sizes` of a `MeasureJob`; without it, which is logged, where the bytes of a
    tokenizer's ids are not known.
    """
    try:
        return {"byte_sizes": str(write_byte_sizes(file, tokenizer, name))}
    except ModelError as error:
        log.info("evaluate: no nats a byte are measured. %s", error)
        return {}


def read_byte_sizes(file: str) -> np.ndarray:
    """What `write_byte_sizes` left."""
    found: np.ndarray = np.load(file)
    return found


def nats_per_byte(arrays: PredictionArrays, resamples: int) -> Numbers:
    """`nats_per_byte` with its 95% interval, and `text_bytes`, how many bytes the counted tokens
    stand for; nothing where they are not known.
    """
    if "bytes" not in arrays or not (total := int(arrays["bytes"].sum())):
        return {}
    return {
        "nats_per_byte": float(arrays["nll"].sum(dtype=np.float64)) / total,
        "nats_per_byte_interval": _interval(arrays, resamples=resamples),
        "text_bytes": total,
    }


def are_same_tokens(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    """Whether the arrays of two models are over the same tokens; else only over the same text."""
    known = [name for name in ("document", "bytes") if name in one and name in other]
    return all(np.array_equal(one[name], other[name]) for name in known)


def difference_by_byte(
    one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], resamples: int
) -> Numbers:
    """Nats a byte of one model minus that of another that reads the same documents as other tokens:
    `difference`, its 95% `interval`, paired by document, and over how many `documents`.
    """
    shared = np.intersect1d(one["document"], other["document"])
    sums = [_by_document(arrays, shared) for arrays in (one, other)]
    return {
        "difference": NATS_PER_BYTE.of(sums[0]) - NATS_PER_BYTE.of(sums[1]),
        "interval": _interval(*sums, resamples=resamples),
        "documents": groups_of(sums[0]),
    }


def _by_document(arrays: Mapping[str, np.ndarray], documents_G: np.ndarray) -> PredictionArrays:
    """Sums of nll and bytes over the tokens of each document."""
    kept = np.isin(arrays["document"], documents_G)
    place = np.searchsorted(documents_G, arrays["document"][kept])
    sums = {
        name: np.bincount(place, weights=arrays[name][kept], minlength=len(documents_G))
        for name in ("nll", "bytes")
    }
    return {"document": documents_G, **sums}


def _interval(*models: Mapping[str, np.ndarray], resamples: int) -> list[float] | None:
    if not all(np.isfinite(arrays["nll"]).all() for arrays in models):
        return None
    return statistic_interval(NATS_PER_BYTE, models, resamples)
