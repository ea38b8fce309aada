"""Comparisons whose arms are planted: each is right on rows that a test chooses, at a set cost."""

import numpy as np

from distill.comparison import claims, race, standing, summary
from distill.comparison.outcome import write_rows_of_quality
from distill.comparison.race import Race
from tests.helpers.compared_folder import open_comparison

LIMITS = {"test": 40, "selection": 40, "validation": 8}


def planted(right, seconds=1.0, family="tuning", fails=None):
    """An arm that is right on a share of the rows; `right`: by number of training rows, or one."""

    class Planted:
        about, passes = "planted", seconds

        def refusal(self, comparison):
            return None

        def work(self, work):
            if fails is not None:
                raise fails
            shares = right if isinstance(right, dict) else {work.cell.labels: right}
            share = shares[work.cell.labels]
            outcome = work.outcome()
            outcome.seconds, outcome.query_tokens, outcome.task_bytes = seconds, 10.0, 1000
            outcome.trained = 100 if family == "tuning" else 0
            outcome.serving = {"seconds_a_text": seconds / 100, "bytes": 1e6}
            first = 0
            for part, rows in work.comparison.measured_parts.items():
                number = len(rows)
                correct = np.arange(number) >= round((1 - share) * number)
                arrays = {"label": correct, "correct": correct, "nll": 1.0 - correct}
                write_rows_of_quality(work.folder, part, arrays, first + np.arange(number))
                outcome.parts[part] = {"accuracy": float(correct.mean())}
                first += number
            return outcome

    Planted.family = family
    return Planted


def plant(monkeypatch, arms):
    """Put planted arms in the place of all others."""
    for module in (race, standing, claims):
        monkeypatch.setattr(module, "ARMS_COMPARED", arms)
    return summary


def race_of(folder, arms, estimate=lambda arm, cell: 1.0, **section):
    """A race of planted arms that has been run."""
    changes = {"labels": [4, 8], "least_steps": 1, **LIMITS, **section}
    comparison = open_comparison(folder, compare=changes)
    found = Race(comparison, list(arms), estimate)
    found.run()
    return found
