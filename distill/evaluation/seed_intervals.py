"""95% intervals of numbers that were measured of several seeds' models on the same documents.

Another seed, and other documents, would have given another number. Both are random and crossed:
every seed's model reads every document. With y_sg = mean + seed_s + document_g + both_sg, the mean
over S seeds and G documents has the variance

    V = A + D - I,   A = variance of the seeds' means / S,   D = variance over documents of the
    seeds' averages / G,   I = variance of what neither explains / (S G)

where A alone estimates seed/S + both/(SG), and D document/G + both/(SG), so I is counted once
(Owen, 2007, The pigeonhole bootstrap; Cameron, Gelbach and Miller, 2011, for unequal documents). A
has S - 1 degrees of freedom, a few, so its share is what makes an interval wide. Two ways to take
them into account are known, and each is too narrow where the other is not; the wider is given:

- Satterthwaite's t on A + max(D - I, 0), as Hillis (2007, Statistics in Medicine 26, 596-619) has
  it for readers (here seeds) crossed with cases (documents);
- squares of both parts added: of the interval over documents (`bootstrap.py`), and of
  t_{S-1} sqrt(max(A - I, 0)) (Zou and Donner, 2008, Statistics in Medicine 27, 1693-1702).

Simulated in tests/distill/evaluation/test_seed_intervals.py. With two seeds t is 12.7: such an
interval is wide, rightly.

Legend: S seeds, G documents, N tokens or texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from distill.evaluation.bootstrap import (
    groups_of,
    interval,
    share_difference_interval,
)
from distill.evaluation.job import Numbers
from distill.evaluation.text_bytes import are_same_tokens, difference_by_byte

ANGLES = np.linspace(0, np.pi / 2, 20001)
MOST_DEGREES = 1e4  # above it Student's t is the normal distribution


def interval_over_seeds(
    arrays: Sequence[Mapping[str, np.ndarray]], name: str, resamples: int
) -> list[float] | None:
    """95% interval of a mean over tokens or texts, over seeds and documents.

    arrays: of each seed, with `document`, in the same order. Of one seed it is over documents
    alone. None where `bootstrap.interval` gives none.
    """
    values_SN = np.stack([one[name].astype(np.float64) for one in arrays])
    return _interval(values_SN, arrays[0]["document"], resamples, shares=False)


def difference_over_seeds(
    ones: Sequence[Mapping[str, np.ndarray]],
    others: Sequence[Mapping[str, np.ndarray]],
    name: str,
    resamples: int,
    *,
    by_token: bool = False,
) -> Numbers:
    """Mean of a number of one model minus that of another, both trained with the same seeds, or one
    of them with none: `difference`, its 95% `interval` over seeds and documents, how many
    `documents`, and how many `seeds`.

    ones, others: arrays of each seed; one mapping stands for a model that no seed changes.
    by_token: of what is right or wrong, that it is of tokens, many to a document.
    """
    pairs = _paired(ones, others)
    if not all(are_same_tokens(one, other) for one, other in pairs):
        assert name == "nll", f"{name} of different tokens"
        return mean_over_seeds([difference_by_byte(*pair, resamples) for pair in pairs])
    document_N = pairs[0][0]["document"]
    values_SN = np.stack([one[name].astype(np.float64) - other[name] for one, other in pairs])
    shares = ones[0][name].dtype == bool and not by_token
    return {
        "difference": float(values_SN.mean()),
        "interval": _interval(values_SN, document_N, resamples, shares=shares),
        "documents": groups_of({"document": document_N}),
        "seeds": len(pairs),
    }


def mean_over_seeds(found: Sequence[Numbers]) -> Numbers:
    """The same from each seed's `difference`, `interval` and `documents`, for numbers that are not
    means, such as an F1. How far documents move all seeds alike is not known from these; it is
    taken for the average of their intervals, which is the most that it can be.
    """
    values_S = np.array([one["difference"] for one in found])
    inner = [one["interval"] for one in found]
    bounds = None
    if all(one is not None for one in inner):
        below, above = np.abs(np.array(inner) - values_S[:, None]).mean(0)
        bounds = _widened(
            float(values_S.mean()), below, above, _variance_of_mean(values_S), len(found)
        )
    return {
        **found[0],
        "difference": float(values_S.mean()),
        "interval": bounds,
        "seeds": len(found),
    }


def _paired(
    ones: Sequence[Mapping[str, np.ndarray]], others: Sequence[Mapping[str, np.ndarray]]
) -> list[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]]:
    seeds = max(len(ones), len(others))
    assert {len(ones), len(others)} <= {1, seeds}, "seeds are paired"
    both = [list(some) * (seeds if len(some) == 1 else 1) for some in (ones, others)]
    return list(zip(*both, strict=True))


def _interval(
    values_SN: np.ndarray, document_N: np.ndarray, resamples: int, *, shares: bool
) -> list[float] | None:
    """The interval of the mean over seeds and documents; see the module."""
    between = share_difference_interval if shares else interval
    over_documents = between({"document": document_N, "": values_SN.mean(0)}, "", resamples)
    seeds, value = len(values_SN), float(values_SN.mean())
    if seeds == 1 or over_documents is None:
        return over_documents
    means_S = values_SN.mean(1)
    _, index_N = np.unique(document_N, return_inverse=True)
    moves_SG = np.stack(
        [np.bincount(index_N, weights=own) for own in (values_SN - means_S[:, None])]
    ) / len(document_N)
    documents = moves_SG.shape[1]
    shared_G, scale = moves_SG.mean(0), documents / (documents - 1)
    by_seed = _variance_of_mean(means_S)
    by_document = scale * float((shared_G**2).sum())
    by_both = scale * float(((moves_SG - shared_G) ** 2).sum()) / (seeds - 1) / seeds
    below, above = value - over_documents[0], over_documents[1] - value
    added = _widened(value, below, above, max(by_seed - by_both, 0.0), seeds)
    whole = by_seed + max(by_document - by_both, 0.0)
    if whole == 0:
        return added
    degrees = whole**2 / (by_seed**2 / (seeds - 1) + by_document**2 / (documents - 1))
    half = t_quantile(max(degrees, 1.0)) * whole**0.5
    return [min(added[0], value - half), max(added[1], value + half)]


def _variance_of_mean(values_S: np.ndarray) -> float:
    seeds = len(values_S)
    return float(values_S.var(ddof=1)) / seeds if seeds > 1 else 0.0


def _widened(value: float, below: float, above: float, by_seed: float, seeds: int) -> list[float]:
    """An interval around a value, `below` and `above` it, widened by a variance that seeds make."""
    own = t_quantile(seeds - 1) ** 2 * by_seed if seeds > 1 else 0.0
    return [float(value - (below**2 + own) ** 0.5), float(value + (above**2 + own) ** 0.5)]


def t_quantile(degrees: float) -> float:
    """The 97.5% point of Student's t with at least one degree of freedom.

    With t = sqrt(degrees) tan(a), the probability within +-t is the share of the integral of
    cos(a)^(degrees - 1) that is below a.
    """
    degrees = min(degrees, MOST_DEGREES)
    density = np.cos(ANGLES) ** (degrees - 1)
    within = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    angle = np.interp(0.95 * within[-1], within, ANGLES)
    return float(degrees**0.5 * np.tan(angle))
