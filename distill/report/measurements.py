"""What a run measured, as its report reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from distill.evaluation.job import Numbers
from distill.report.data_parts import DataParts
from distill.report.selection import Tolerance


@dataclass(frozen=True)
class Measurements:
    """What a run measured, as its report reads it.

    models: numbers of teacher, arms and artifacts, by name.
    folder: where the values by token or by text are, in one NAME.npz a model.
    resamples: of the bootstrap behind each interval.
    controls: names of the arms that were trained beside the distilled one.
    costs: the `cost` of report.json.
    tolerance: how much an artifact may lose.
    quantized_base: the base that the specialised student learned on, where that base is quantised,
    it learned on the run's own data, and a merge into full precision was measured; else None.
    baselines: what each measured baseline is, in words, by its name.
    start: the teacher in words, where the students of all arms were made of it, so that those that
    learn without it have its knowledge, too; else empty.
    preferences: names of the models that learned from preferences.
    reads_teacher: whether the distilled student's objective reads anything of the teacher.
    seeds: by arm, the names of the models of its seeds, the first of which is the arm's own; none
    where there is one seed. firsts: where `models` has means over seeds, what the first's numbers
    are. parts: the parts of the data that chose and that were measured; None leaves them unsaid.
    """

    models: dict[str, Numbers]
    folder: Path
    resamples: int
    controls: Sequence[str]
    costs: Numbers
    tolerance: Tolerance
    quantized_base: str | None = None
    parts: DataParts | None = None
    baselines: Mapping[str, str] = field(default_factory=dict)
    start: str = ""
    preferences: Sequence[str] = ()
    reads_teacher: bool = True
    seeds: Mapping[str, Sequence[str]] = field(default_factory=dict)
    firsts: Mapping[str, Numbers] = field(default_factory=dict)

    def pairs(self, a: str, b: str) -> list[tuple[str, str]]:
        """Names of the models that are compared where `a` is compared with `b`: of each seed, where
        either has several.
        """
        ones, others = (list(self.seeds.get(name, [name])) for name in (a, b))
        number = max(len(ones), len(others))
        both = [names * (number if len(names) == 1 else 1) for names in (ones, others)]
        return list(zip(*both, strict=True))

    def of_first_seed(self) -> Measurements:
        """The same of the first seed alone, whose student was specialised and exported."""
        return replace(self, models={**self.models, **self.firsts}, seeds={}, firsts={})
