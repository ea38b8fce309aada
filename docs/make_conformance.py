"""Measure what every loss keeps and write it into docs/reference/conformance.md.

It runs tests/distill/objective/test_conformance.py and writes the errors that the tests measured;
`--check` exits with 1 where the page's losses, properties or codecs are not those registered.

    python docs/make_conformance.py
    python docs/make_conformance.py --check
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the tests are no installed package

import pytest  # noqa: E402

from tests.helpers.conformance import EXACT, LOSSES, PROPERTIES, SOURCES, refusal  # noqa: E402

PAGE = Path(__file__).parent / "reference" / "conformance.md"
TESTS = ROOT / "tests/distill/objective/test_conformance.py"
Measured = dict[tuple[str, str, str], float]  # (property, loss, source) -> error
LOSS_OF_CODEC = "cache_for_the_teacher"
HEAD = """# Conformance

What every loss and codec was seen to keep. Written by `docs/make_conformance.py` from what
`tests/distill/objective/test_conformance.py` measured, on a tiny teacher and student with random
weights, for every registered loss on tokens and on answers and every codec that serves it. A new
loss or codec is enrolled by being registered. `preference` is tried on pairs of answers, with its
default form, `rloo` on answers with rewards; losses on vectors and on rewards of whole texts have
tests of their own.

## What every loss keeps

The worst relative error, of the value or of all gradients together, over the sources that store
nothing (the teacher online, known logits of classes, the text) / over the codecs with their
defaults. n/a: the loss has no such property.

"""
MIDDLE = """
{legend}

## Which codec serves which loss

How far the step is from the same step with the teacher online: the larger of the relative errors of
the value and of the gradient of all parameters, for the codec's defaults on a few dozen tokens. Of
codecs that draw, one sample of so few tokens is mostly noise; it averages out. `online` is exact by
definition.

"""


class Collector:
    """A pytest plugin that keeps what the tests recorded."""

    def __init__(self) -> None:
        self.measured: Measured = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called by pytest after every test."""
        for name, value in report.user_properties if report.when == "call" else ():
            if name == "conformance":
                measure, loss, source, error = value
                self.measured[measure, loss, source] = error


def measure() -> Measured:
    """Run the tests; exits where one fails, since the page would say that it holds."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    collector = Collector()
    status = pytest.main(["-q", "--no-header", "--rootdir", str(ROOT), str(TESTS)], [collector])
    if status != 0:
        sys.exit("docs/reference/conformance.md was not written: its tests fail.")
    return collector.measured


def title(measure: str) -> str:
    """How a property is called."""
    return measure.replace("_", " ")


def shown(errors: list[float]) -> str:
    """The worst of some errors, in two digits."""
    return f"{max(errors):.1g}" if errors else "n/a"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def by_property(measured: Measured) -> str:
    """Losses by properties."""
    names = [measure.__name__ for measure in PROPERTIES if measure.__name__ != LOSS_OF_CODEC]
    rows = []
    for loss, found in LOSSES.items():
        if not SOURCES[found.reads]:
            continue
        row = [f"`{loss}`"]
        for name in names:
            errors = {s: e for (p, n, s), e in measured.items() if (p, n) == (name, loss)}
            exact = shown([e for source, e in errors.items() if source in EXACT])
            stored = shown([e for source, e in errors.items() if source not in EXACT])
            row.append(exact if stored == "n/a" else f"{exact} / {stored}")
        rows.append(row)
    return table(["loss", *map(title, names)], rows)


def by_codec(measured: Measured) -> str:
    """Losses by what serves them, a table for each kind of signal."""
    parts = []
    kinds = {
        tuple(SOURCES[loss.reads]): None
        for _, loss in LOSSES.items()
        if len(SOURCES[loss.reads]) > 1
    }
    for sources in kinds:
        rows = []
        for name, loss in LOSSES.items():
            if tuple(SOURCES[loss.reads]) != sources:
                continue
            cells = [cell(measured, name, source) for source in sources]
            rows.append([f"`{name}`", *cells])
        parts.append(table(["loss", *(f"`{source}`" for source in sources)], rows))
    return "\n".join(parts)


def cell(measured: Measured, name: str, source: str) -> str:
    """What a codec loses, or why it does not serve."""
    told = refusal(name, source)
    if told is not None:
        if "compares distributions" in told:
            return "refused: no distribution"
        return "refused: every id" if "compares every id" in told else "refused: not linear"
    if source == "online":
        return "exact"
    return f"{measured[LOSS_OF_CODEC, name, source]:.1g}"


def legend() -> str:
    """What each column measures, from the properties' docstrings."""
    about = ((m.__name__, " ".join((m.__doc__ or "").split())) for m in PROPERTIES)
    return "\n".join(f"- {title(name)}: {text}" for name, text in about if name != LOSS_OF_CODEC)


def page(measured: Measured) -> str:
    """The whole page."""
    middle = MIDDLE.format(legend=legend())
    return f"{HEAD}{by_property(measured)}{middle}{by_codec(measured)}"


def is_current(text: str) -> bool:
    """Whether the page has the registered losses, properties and codecs, in their order."""
    empty = page(dict.fromkeys(keys(), 0.0))
    return skeleton(text) == skeleton(empty)


def keys() -> list[tuple[str, str, str]]:
    """Everything that could be measured."""
    names = [measure.__name__ for measure in PROPERTIES]
    return [(p, n, s) for p in names for n, loss in LOSSES.items() for s in SOURCES[loss.reads]]


def skeleton(text: str) -> list[str]:
    """The tables' heads and first columns, and which cells are refusals."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    found = []
    for line in lines:
        cells = [one.strip() for one in line.strip("|").split("|")]
        whole = cells[0] == "loss"
        refused = [str(i) for i, one in enumerate(cells) if one.startswith("refused")]
        found.append(" ".join(cells if whole else [cells[0], *refused]))
    return [re.sub(r"\s+", " ", line) for line in found]


def main() -> int:
    """Write the page, or check it; returns the exit status."""
    if "--check" in sys.argv[1:]:
        fresh = PAGE.exists() and is_current(PAGE.read_text(encoding="utf8"))
        if not fresh:
            print(f"{PAGE.name} is stale: run `make docs`.", file=sys.stderr)
        return 0 if fresh else 1
    PAGE.write_text(page(measure()), encoding="utf8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
