"""One sentence a constraint, from what comparison.json holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distill.evaluation.job import Numbers

SMALL_BYTES = 200e6  # of weights: what a laptop or a telephone takes easily
MANY_TASKS = 20
Price = Callable[[Numbers], float | None]


def advice_of(found: Numbers) -> list[Numbers]:
    """Advice by constraint; those that no arm answers are left out."""
    largest = largest_point(found)
    advice: list[Numbers] = []
    for labels in map(str, found["sizes"]):
        point = found["points"][labels]
        if point["recommended"] is not None:
            advice.append(_best_at(found, labels, point))
    point = found["points"][largest]
    known = _measured(found, point)
    constraints: list[tuple[str, Callable[[Numbers], bool]]] = [
        (
            f"under {SMALL_BYTES / 1e6:.0f} MB",
            lambda arm: (arm["serving"].get("bytes") or 1e18) < SMALL_BYTES,
        ),
        ("without training", lambda arm: arm["cost"]["trained"] == 0),
        (
            f"for {MANY_TASKS} tasks on one loaded model",
            lambda arm: bool(arm["shares_base"]),
        ),
    ]
    for words, fits in constraints:
        names = [name for name, arm in known.items() if fits(arm)]
        if names:
            best = min(names, key=lambda name: -known[name]["selection"]["value"])
            advice.append(_sentence(found, words, best, known[best]))
    for words, price in (
        ("the least time of learning", lambda arm: arm["cost"]["seconds"]),
        ("the fewest tokens a query", lambda arm: arm["query_tokens"]),
        ("the fastest answer to one text", lambda arm: arm["serving"].get("seconds_a_text")),
    ):
        if (cheap := _cheapest_tied(known, point["leader"], price)) is not None:
            advice.append(
                _sentence(found, f"as good as the best, with {words}", cheap, known[cheap])
            )
    return advice


def largest_point(found: Numbers) -> str:
    """The largest number of rows at which any arm was measured, as `points` names it; the smallest
    of all where none was.
    """
    points = found["points"]
    measured = [n for n in found["sizes"] if points[str(n)]["recommended"] is not None]
    return str(measured[-1] if measured else found["sizes"][0])


def _measured(found: Numbers, point: Numbers) -> dict[str, Any]:
    """The arms that can be recommended and were measured."""
    return {
        name: arm
        for name, arm in point["arms"].items()
        if "test" in arm and found["families"][name] != "ceiling"
    }


def _cheapest_tied(known: dict[str, Any], best: str | None, price: Price) -> str | None:
    """The cheapest of the arms that cannot be told from the best by selection; None where it is
    the best, or a price is not known.
    """
    if best is None:
        return None
    tied = [best]
    for name, arm in known.items():
        interval = arm.get("against_leader", {}).get("selection", {}).get("interval")
        if name != best and (interval is None or interval[1] >= 0):
            tied.append(name)
    priced = {name: price(known[name]) for name in tied}
    rated = {name: value for name, value in priced.items() if value is not None}
    return min(rated, key=lambda name: rated[name]) if rated else None


def _best_at(found: Numbers, labels: str, point: Numbers) -> Numbers:
    name = point["recommended"]
    entry = _sentence(found, f"with {int(labels):,} labels", name, point["arms"][name])
    if (best := point["best_on_test"]) != name:
        its = shown_quality(found, point["arms"][best]["test"])
        word = "cannot be told from" if point["within_interval"] else "is below"
        entry["sentence"] += f" On the test rows it {word} {best} ({its})."
    return entry


def _sentence(found: Numbers, words: str, name: str, arm: Numbers) -> Numbers:
    quality = shown_quality(found, arm["test"])
    cost = f"{arm['cost']['seconds']:,.0f} s of learning"
    size = arm["task_bytes"]
    kept = "" if size is None else f", {shown_bytes(size)} a task"
    return {
        "constraint": words,
        "arm": name,
        "sentence": f"{words[:1].upper()}{words[1:]}: {name} ({quality}, {cost}{kept}).",
    }


def shown_quality(found: Numbers, quality: Numbers) -> str:
    """A quality in words: accuracy in percent, or nll, with its interval."""
    scale, digits, unit = (100.0, 1, "%") if found["measure"] == "accuracy" else (-1.0, 3, "")
    value = f"{scale * quality['value']:.{digits}f}{unit}"
    name = "accuracy" if unit else "nll"
    if quality["interval"] is None:
        return f"{name} {value}"
    low, high = sorted(scale * bound for bound in quality["interval"])
    return f"{name} {value}, {low:.{digits}f} to {high:.{digits}f}"


def shown_bytes(size: float) -> str:
    """A size in words."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= limit:
            return f"{size / limit:,.1f} {unit}"
    return f"{size:,.0f} bytes"
