"""What is often said of these ways, and how it came out here: each with the numbers for or against.

A claim is judged at every number of rows that has what it compares, by paired differences on the
test rows, and `holds` where the interval says so, `fails` where it says the opposite, is `open`
where it holds 0, and `not measured` where an arm is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from distill.comparison.arms import ARMS_COMPARED, Family
from distill.comparison.race import Race
from distill.comparison.standing import Standing
from distill.evaluation.job import Numbers
from distill.report.paired_difference import direction, in_words

Verdict = Literal["holds", "fails", "open", "not measured"]
TEST = "test"
FULL = ("full", "instruction")
THIN = ("lora", "qlora", "adapter", "prefix", "prompt-tuning")
SAID: dict[str, Verdict] = {
    "higher": "holds",
    "lower": "fails",
    "not distinguishable": "open",
    "cannot be told": "open",
}


@dataclass(frozen=True)
class Evidence:
    """What one number of rows says of a claim."""

    verdict: Verdict
    words: str


Judge = Callable[[Standing], Evidence]


def claims_of(race: Race) -> list[Numbers]:
    """Every claim with its verdict at each number of rows, the largest last."""
    found = []
    for claim, judge in CLAIMS:
        points = []
        for labels in race.comparison.sizes:
            evidence = judge(race.standing(labels))
            points.append({"labels": labels, "verdict": evidence.verdict, "words": evidence.words})
        found.append({"claim": claim, "points": points})
    return found


def _best(standing: Standing, names: Sequence[str]) -> str | None:
    """The best by selection of some arms, as a user would choose it."""
    return standing.leader(names=names)


def _of_family(standing: Standing, *families: Family) -> list[str]:
    return [name for name in standing.candidates if ARMS_COMPARED[name].family in families]


def _missing(one: str | None, what: str, other: str | None, against: str) -> Evidence | None:
    gone = [words for name, words in ((one, what), (other, against)) if name is None]
    return Evidence("not measured", f"there is no {' and no '.join(gone)} here") if gone else None


def _better(
    standing: Standing,
    one: Sequence[str],
    other: Sequence[str],
    words: tuple[str, str],
    part: str = TEST,
) -> Evidence:
    """Whether the best of some arms is better than the best of others, on a part's rows."""
    mine, its = _best(standing, one), _best(standing, other)
    if missing := _missing(mine, words[0], its, words[1]):
        return missing
    assert mine is not None, "none is missing"
    assert its is not None, "none is missing"
    found = standing.difference(mine, its, part)
    scale, unit = (100.0, " points") if standing.comparison.labelled else (1.0, " nats")
    shown = in_words(found, 2, scale, unit)
    return Evidence(SAID[direction(found)], f"{mine} against {its}: {shown}")


def tuning_beats_prompting(standing: Standing) -> Evidence:
    """The best of tuned arms against the best prompt."""
    prompts = _of_family(standing, "prompting")
    tuned = _of_family(standing, "tuning")
    return _better(standing, tuned, prompts, ("tuned student", "prompt"))


def shots_help(standing: Standing) -> Evidence:
    """Demonstrations against an instruction alone."""
    return _better(standing, ["few-shot"], ["zero-shot"], ("few-shot arm", "zero-shot arm"))


def search_helps(standing: Standing) -> Evidence:
    """A searched prompt against a plain one."""
    plain = ["zero-shot", "few-shot"]
    return _better(standing, ["prompt"], plain, ("searched prompt", "plain prompt"))


def features_suffice(standing: Standing) -> Evidence:
    """Classifiers on what is frozen against tuned students: holds unless those are better."""
    features, tuned = _of_family(standing, "features"), _of_family(standing, "tuning")
    found = _better(standing, tuned, features, ("tuned student", "classifier on features"))
    turned: dict[Verdict, Verdict] = {"holds": "fails", "fails": "holds", "open": "holds"}
    return Evidence(turned.get(found.verdict, found.verdict), found.words)


def thin_keeps_quality(standing: Standing) -> Evidence:
    """Parameter-efficient arms against all parameters: holds unless the latter are better."""
    found = _better(standing, FULL, THIN, ("fully tuned student", "adapter"))
    turned: dict[Verdict, Verdict] = {"holds": "fails", "fails": "holds", "open": "holds"}
    return Evidence(turned.get(found.verdict, found.verdict), found.words)


def distilling_helps(standing: Standing) -> Evidence:
    """A distilled student against the tuned ones."""
    distilled, tuned = _of_family(standing, "distilling"), _of_family(standing, "tuning")
    return _better(standing, distilled, tuned, ("distilled student", "tuned student"))


def prefix_is_smaller(standing: Standing) -> Evidence:
    """Parameters of a prefix against those of LoRA, beside their difference of quality."""
    both = [name for name in ("prefix", "lora") if name in standing.whole]
    if len(both) < 2:
        return Evidence("not measured", "there are not both a prefix and a LoRA here")
    numbers = [standing.whole[name][0].trained for name in both]
    quality = _better(standing, ["prefix"], ["lora"], ("prefix", "LoRA"))
    verdict: Verdict = "holds" if numbers[0] < numbers[1] else "fails"
    return Evidence(
        verdict,
        f"{numbers[0]:,} parameters against {numbers[1]:,}; in quality {quality.words}",
    )


def adapters_mix(standing: Standing) -> Evidence:
    """Adapters of several tasks served in one batch: how fast, where it was measured."""
    shown, faster = [], []
    for name in THIN:
        for one in standing.whole.get(name, [])[:1]:
            found = one.serving.get("mixed_batch")
            if found is not None and "ratio" in found:  # else only why rows cannot be mixed
                shown.append(f"{name}: {found['ratio']:.2f} times the texts a second")
                faster.append(found["ratio"] > 1)
    if not shown:
        return Evidence("not measured", "no adapter was served in a mixed batch here")
    return Evidence("fails" if all(faster) else "open", "; ".join(shown))


def thin_travels_better(standing: Standing) -> Evidence:
    """Adapters against full tuning, on rows from elsewhere."""
    if standing.comparison.config.elsewhere is None:
        return Evidence("not measured", "`compare.elsewhere` names no rows")
    return _better(standing, THIN, FULL, ("adapter", "fully tuned student"), "elsewhere")


CLAIMS: list[tuple[str, Judge]] = [
    ("Tuning the student beats prompting it.", tuning_beats_prompting),
    ("Demonstrations beat an instruction alone.", shots_help),
    ("A search for the prompt beats a plain one.", search_helps),
    ("Frozen features with a linear classifier are enough.", features_suffice),
    ("Adapters are as good as tuning all of the student.", thin_keeps_quality),
    ("Distilling beats tuning on the labels.", distilling_helps),
    ("A prefix needs fewer parameters than LoRA.", prefix_is_smaller),
    ("Adapters of several tasks cannot share a batch.", adapters_mix),
    ("Adapters do better than full tuning on rows from elsewhere.", thin_travels_better),
]
