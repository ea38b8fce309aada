"""Candidates of the arms: which of them the validation part chose, and whether that was fair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attar.word_lists import counted, listed
from distill.evaluation.job import Numbers
from distill.report.markup import Section, table_section
from distill.report.tables import Table
from distill.training.arms import DISTILL

TITLE = "Candidates of the arms"
TERMS = {
    "own keys": "of `train`, in which the candidate differs from the recipe",
    "validation objective": "of the arm on the validation part, the mean over seeds where there "
    "are several; arms learn from different objectives, so it compares candidates of one arm alone",
    "chosen": "the lowest: this student stands for its arm in every comparison; the others were "
    "never measured on the held-out part",
}


def tuning_entry(arms: Mapping[str, Sequence[Numbers]], chosen: Mapping[str, str]) -> Numbers:
    """The `tuning` of report.json: the candidates of each arm, a sentence on what was chosen, and
    warnings where the comparison is not fair or the best setting may not have been tried.

    arms: of each candidate its `name`, own `keys`, `lr` and `validation`, by arm. chosen: names.
    """
    found: Numbers = {
        arm: {"chosen": chosen[arm], "candidates": list(candidates)}
        for arm, candidates in arms.items()
    }
    said = [_choice(arm, one["candidates"], one["chosen"]) for arm, one in found.items()]
    return {
        "arms": found,
        "sentence": f"Chosen by the validation part: {listed(said)}.",
        "warnings": [*_unequal(arms), *_at_the_edge(arms, chosen)],
    }


def _choice(arm: str, candidates: Sequence[Numbers], name: str) -> str:
    best = next(one for one in candidates if one["name"] == name)
    called = "" if name == arm else f" (`{name}`)"
    return f"{arm} at lr {best['lr']:g}{called}, of {counted(len(candidates), 'candidate')}"


def _unequal(arms: Mapping[str, Sequence[Numbers]]) -> list[str]:
    """A sentence where the distilled student was chosen among more or fewer than a control."""
    found, mine = [], len(arms[DISTILL])
    for arm, candidates in arms.items():
        its = len(candidates)
        if arm == DISTILL or its == mine:
            continue
        more, fewer = (DISTILL, arm) if mine > its else (arm, DISTILL)
        found.append(
            f"The tuning was unequal: `{more}` was chosen among "
            f"{counted(max(mine, its), 'candidate')}, `{fewer}` "
            f"{'was not tuned' if min(mine, its) == 1 else f'among {min(mine, its)}'}, which "
            f"favours `{more}`; give `{fewer}` as many (`train.arms`)."
        )
    return found


def _at_the_edge(arms: Mapping[str, Sequence[Numbers]], chosen: Mapping[str, str]) -> list[str]:
    """A sentence for each arm whose best learning rate is the lowest or highest of several."""
    found = []
    for arm, candidates in arms.items():
        rates = sorted({one["lr"] for one in candidates})
        best = next(one["lr"] for one in candidates if one["name"] == chosen[arm])
        if len(rates) > 1 and best in (rates[0], rates[-1]):
            end, further = ("lowest", "lower") if best == rates[0] else ("highest", "higher")
            found.append(
                f"The best learning rate of `{arm}`, {best:g}, is the {end} that was tried; a "
                f"{further} one may be better."
            )
    return found


def tuning_section(report: Numbers) -> Section | None:
    """Every candidate with its objective; None where arms have none but themselves."""
    entry = report.get("tuning")
    if entry is None:
        return None
    lines: Table = [["", "arm", "own keys", "lr", "validation objective", "chosen"]]
    for arm, one in entry["arms"].items():
        for candidate in one["candidates"]:
            keys = ", ".join(f"{key} {value}" for key, value in candidate["keys"].items())
            value = candidate["validation"]
            is_chosen = candidate["name"] == one["chosen"]
            lines.append(
                [
                    candidate["name"], arm, keys, f"{candidate['lr']:g}",
                    "" if value is None else f"{value:.4f}", "yes" if is_chosen else "",
                ]
            )  # fmt: skip
    return table_section(TITLE, lines, TERMS, lead=entry["sentence"])
