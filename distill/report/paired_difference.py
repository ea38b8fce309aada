"""Two models of a run compared prediction by prediction, and the comparison in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from distill.evaluation.bootstrap import (
    MIN_DOCUMENTS,
    groups_of,
    interval,
    share_difference_interval,
)
from distill.evaluation.job import Numbers
from distill.evaluation.seed_intervals import difference_over_seeds, mean_over_seeds
from distill.evaluation.text_bytes import are_same_tokens, difference_by_byte
from distill.report.columns import have_one_tokenizer
from distill.report.measurements import Measurements

UNTOLD = "cannot be told"
CLOSENESS = {  # of a student, by the direction of the difference of its KL to the teacher
    "lower": "closer to the teacher",
    "higher": "further from the teacher",
    "not distinguishable": "as close to the teacher",
}


def paired_difference(
    measured: Measurements, name: str, a: str, b: str, *, by_token: bool = False
) -> Numbers:
    """Mean of a number of model `a` minus that of `b`, by token or text: `difference`, its 95%
    `interval` (None where there are too few documents), and over how many `documents`. The nll of
    models with different tokenizers is compared by byte, paired by document. Of arms with several
    seeds it is over these, too, and says over how many `seeds`.

    by_token: of what is right or wrong, that it is of tokens, many to a document.
    """
    pairs = measured.pairs(a, b)
    arrays = [[np.load(measured.folder / f"{one}.npz") for one in pair] for pair in pairs]
    if len(pairs) == 1:
        ((one, other),) = arrays
        return difference_of(one, other, name, measured.resamples, by_token=by_token)
    ones, others = zip(*arrays, strict=True)
    return difference_over_seeds(ones, others, name, measured.resamples, by_token=by_token)


def difference_by_seed(
    measured: Measurements, a: str, b: str, difference: Callable[[str, str], Numbers]
) -> Numbers:
    """A difference of two models that is no mean of paired values; over seeds, where an arm has
    several. difference: of two models of one seed.
    """
    found = [difference(*pair) for pair in measured.pairs(a, b)]
    return found[0] if len(found) == 1 else mean_over_seeds(found)


def difference_of(
    one: Mapping[str, np.ndarray],
    other: Mapping[str, np.ndarray],
    name: str,
    resamples: int,
    *,
    by_token: bool = False,
) -> Numbers:
    """The same of the arrays of two models."""
    if not are_same_tokens(one, other):
        assert name == "nll", f"{name} of different tokens"
        return difference_by_byte(one, other, resamples)
    shares = one[name].dtype == bool and not by_token
    values = one[name].astype(np.float64) - other[name]
    between = share_difference_interval if shares else interval
    found = {"document": one["document"], name: values}
    return {
        "difference": float(values.mean()),
        "interval": between(found, name, resamples),
        "documents": groups_of(one),
    }


def has_lower_nll(one: Numbers, other: Numbers) -> bool:
    """Whether a model has a lower nll than another: a token, or a byte if their tokens differ."""
    key = "nll" if have_one_tokenizer([one, other]) else "nats_per_byte"
    return bool(one[key] < other[key])


def negated(difference: Numbers) -> Numbers:
    """A difference the other way round."""
    bounds = difference["interval"]
    turned = None if bounds is None else [-bounds[1], -bounds[0]]
    return {**difference, "difference": -difference["difference"], "interval": turned}


def perplexity_lost(nll: Numbers) -> Numbers:
    """By which share a perplexity is higher, from a difference of nll."""
    bounds = nll["interval"]
    shares = None if bounds is None else [float(np.expm1(bound)) for bound in bounds]
    return {**nll, "difference": float(np.expm1(nll["difference"])), "interval": shares}


def direction(difference: Numbers) -> str:
    """Whether a difference is `lower` or `higher` than zero, `not distinguishable` from it, or
    `cannot be told`, because there are too few documents.
    """
    if difference["interval"] is None:
        return UNTOLD
    low, high = difference["interval"]
    return "lower" if high < 0 else "higher" if low > 0 else "not distinguishable"


def against_fine_tuning(difference: Numbers, better: str) -> str:
    """How distilling did against plain fine-tuning; `better`: the direction that is good."""
    found = direction(difference)
    if found == UNTOLD:
        return "cannot be told better or worse than plain fine-tuning"
    if found == "not distinguishable":
        return "cannot be distinguished from plain fine-tuning"
    return f"{'beat' if found == better else 'did worse than'} plain fine-tuning"


def closeness(difference: Numbers, values: str) -> str:
    """A clause on how close the student is to the teacher; `values`: the two KL, in words."""
    found = direction(difference)
    if found == UNTOLD:
        return f"nor can its closeness to the teacher ({values})"
    return f"and the student is {CLOSENESS[found]} ({values})"


def in_words(difference: Numbers, digits: int = 4, scale: float = 1.0, unit: str = "") -> str:
    """A difference and its interval; where there is none, why. digits: after the point."""
    value = signed(scale * difference["difference"], digits)
    return f"{value}{unit}, {_interval_words(difference, digits, scale)}"


def signed(value: float, digits: int) -> str:
    """A number with its sign, which rounding does not hide."""
    return f"{value:+.1e}" if 0 < abs(value) < 5 * 10.0**-digits else f"{value:+.{digits}f}"


def _interval_words(difference: Numbers, digits: int, scale: float) -> str:
    if difference["interval"] is not None:
        low, high = (signed(scale * bound, digits) for bound in difference["interval"])
        return f"95% interval {low} to {high}{_over(difference)}"
    if "pairs" in difference:
        return f"no interval: {difference['pairs']} pairs, and it takes {MIN_DOCUMENTS}"
    number = difference["documents"]
    if number >= MIN_DOCUMENTS:
        return "no interval: values are not finite, or too few documents differ at all"
    return (
        f"no interval: the held-out part has {number} document{'s' * (number != 1)}, and fewer "
        f"than {MIN_DOCUMENTS} say nothing of others"
    )


def _over(difference: Numbers) -> str:
    """Over what an interval is, where it is not over texts alone."""
    if "seeds" not in difference:
        return ""
    many = {"documents": "texts", "pairs": "pairs", "examples": "questions"}
    over = next(f"{difference[key]:,} {what}" for key, what in many.items() if key in difference)
    return f" over {difference['seeds']} seeds and {over}"


def untold_warnings(difference: Numbers) -> list[str]:
    """What to do where a difference cannot be told for lack of documents."""
    if difference.get("documents", MIN_DOCUMENTS) >= MIN_DOCUMENTS:
        return []
    return [
        f"The verdict needs at least {MIN_DOCUMENTS} documents in the held-out part: hold out more "
        "(`data.held_out`), or write one long text as several rows of a jsonl file."
    ]


def at_counts(measured: Measurements, unit: str) -> str:
    """How much the distilled and the fine-tuned student learned from, by their own counts; and
    that both were made of the teacher, where they were.
    """
    arms = measured.costs["arms"]
    mine, other = (arms[arm]["tokens"] for arm in ("distill", "finetune"))
    counts = f"the same {mine:,} {unit}" if mine == other else f"{mine:,} {unit} against {other:,}"
    start = f" and from the same start, which was made of {measured.start}"
    return f"at {counts}{start if measured.start else ''}"
