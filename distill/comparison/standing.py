"""How arms stand against each other at a number of rows: means, intervals, who is dropped.

Every arm is compared with the leader, row by row and seed by seed. What chooses is the selection
part; the test part only reports. Quality is higher where an arm is better: 1 for a right answer, or
minus the nll of the right one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from distill.comparison.arms import ARMS_COMPARED
from distill.comparison.cells import Cell, Comparison
from distill.comparison.outcome import QUALITY, Outcome, on_same_rows, read_rows_of_quality
from distill.evaluation.bootstrap import proportion_interval
from distill.evaluation.job import Numbers
from distill.evaluation.seed_intervals import difference_over_seeds, interval_over_seeds
from distill.report.paired_difference import direction

RESAMPLES = 1000
QUANTILE = 1.96  # standard errors from the middle of a 95% interval to its end
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Standing:
    """The arms that were measured with some number of training rows, every seed of each.

    outcomes: by arm, one a seed, in the order of the seeds. Fronts, claims and advice ask for the
    same qualities and differences, so these are taken once.
    """

    comparison: Comparison
    labels: int
    outcomes: dict[str, list[Outcome]]
    _known: dict[tuple[str, ...], Numbers] = field(default_factory=dict)

    @cached_property
    def whole(self) -> dict[str, list[Outcome]]:
        """The arms that were measured with every seed."""
        seeds = len(self.comparison.config.seeds)
        return {
            name: found
            for name, found in self.outcomes.items()
            if len(found) == seeds and not any(one.failed for one in found)
        }

    def arrays(self, arm: str, part: str) -> list[Arrays]:
        """Values by row, of each seed."""
        found = []
        for one in self.whole[arm]:
            folder = self.comparison.cell_folder(Cell(one.labels, one.seed), arm)
            found.append(read_rows_of_quality(folder, part))
        return found

    def quality(self, arm: str, part: str) -> Numbers:
        """Mean quality over rows and seeds, `value`, and its 95% `interval`."""
        if (arm, part) not in self._known:
            self._known[arm, part] = self._quality(arm, part)
        return self._known[arm, part]

    def _quality(self, arm: str, part: str) -> Numbers:
        arrays = self.arrays(arm, part)
        value = float(np.mean([one[QUALITY].mean() for one in arrays]))
        if len(arrays) == 1 and self.comparison.labelled:
            values = arrays[0][QUALITY]
            bounds: list[float] | None = list(proportion_interval(int(values.sum()), len(values)))
        else:
            bounds = interval_over_seeds(_shared(arrays), QUALITY, RESAMPLES)
            if bounds is not None and self.comparison.labelled:
                bounds = [max(0.0, bounds[0]), min(1.0, bounds[1])]
        return {"value": value, "interval": bounds, "rows": len(arrays[0][QUALITY])}

    def difference(self, one: str, other: str, part: str) -> Numbers:
        """Quality of one arm minus that of another on the same rows, over rows and seeds."""
        if (one, other, part) not in self._known:
            self._known[one, other, part] = self._difference(one, other, part)
        return self._known[one, other, part]

    def _difference(self, one: str, other: str, part: str) -> Numbers:
        pairs = [
            on_same_rows(a, b)
            for a, b in zip(self.arrays(one, part), self.arrays(other, part), strict=True)
        ]
        if self.comparison.labelled:  # shares, whose intervals hold with few rows that differ
            pairs = [tuple({**a, QUALITY: a[QUALITY] > 0.5} for a in pair) for pair in pairs]  # type: ignore[misc]
        mine, its = ([pair[i] for pair in pairs] for i in (0, 1))
        return difference_over_seeds(mine, its, QUALITY, RESAMPLES)

    @property
    def candidates(self) -> list[str]:
        """The arms that can be recommended: all but the ceilings."""
        return [name for name in self.whole if ARMS_COMPARED[name].family != "ceiling"]

    def leader(self, part: str = "selection", names: Sequence[str] | None = None) -> str | None:
        """The arm of the highest quality; of equals the one that costs least to learn."""
        found = self.candidates if names is None else [n for n in names if n in self.whole]
        return min(
            found,
            key=lambda name: (-round(self.quality(name, part)["value"], 9), *self.prices(name)),
            default=None,
        )

    def recommended(self) -> str | None:
        """The cheapest to learn of the arms that are within one standard error of the leader, row
        by row (the rule of one standard error: Breiman et al. 1984, section 3.4.3).
        """
        leader = self.leader()
        if leader is None:
            return None
        near = [name for name in self.candidates if self._is_near(name, leader)]
        return min(near, key=self.prices)

    def _is_near(self, name: str, leader: str) -> bool:
        if name == leader:
            return True
        found = self.difference(name, leader, "selection")
        if found["interval"] is None:
            return bool(found["difference"] >= 0)
        low, high = found["interval"]
        return bool(found["difference"] >= -(high - low) / (2 * QUANTILE))

    def prices(self, arm: str) -> tuple[float, float, str]:
        """What ties are broken by: seconds of learning, tokens a query, the name."""
        query = [one.query_tokens or 0.0 for one in self.whole[arm]]
        return self.cost(arm), float(np.mean(query)), arm

    def cost(self, arm: str) -> float:
        """Mean seconds of learning."""
        return float(np.mean([one.seconds for one in self.whole[arm]]))

    def below(self, leader: str, part: str = "selection") -> dict[str, Numbers]:
        """The arms whose difference from the leader is distinguishably negative, and it."""
        found = {}
        for name in self.whole:
            if name != leader:
                difference = self.difference(name, leader, part)
                if direction(difference) == "lower":
                    found[name] = difference
        return found


def _shared(arrays: list[Arrays]) -> list[Arrays]:
    """Arrays on the rows that all seeds have."""
    rows = arrays[0]["document"]
    for one in arrays[1:]:
        rows = np.intersect1d(rows, one["document"])
    return [
        {name: values[np.isin(one["document"], rows)] for name, values in one.items()}
        for one in arrays
    ]
