"""What specialising did: the specialised student against the distilled one, on the same texts.

A student that learned from data of its own (`specialize.data`) is compared on the run's held-out
text all the same, since only that is measured; what it learned there shows on the validation part.
"""

from __future__ import annotations

from distill.evaluation.job import Numbers
from distill.report.measurements import Measurements
from distill.report.paired_difference import (
    UNTOLD,
    direction,
    in_words,
    negated,
    paired_difference,
)
from distill.report.verdict import ACCURACY, compare, percent

OUTCOMES = {  # by the direction of the difference of nll
    "lower": "Specialising helped",
    "higher": "Specialising made the student worse",
    "not distinguishable": "Specialising changed nothing that can be told",
    UNTOLD: "Whether specialising helped cannot be told",
}
OUTCOMES_ELSEWHERE = {
    "lower": "it made the student better",
    "higher": "it made the student worse",
    "not distinguishable": "it changed nothing that can be told",
    UNTOLD: "whether it helped cannot be told",
}
ON_ITS_BASE = "adapter on its base"  # the path of a form that is measured without a merge


def specializing_entry(
    measured: Measurements, result: Numbers, base: str, own_held_out: int | None
) -> Numbers:
    """What specialising did, for the `specialize` of report.json: differences to the distilled
    student, and one `sentence`, with what belongs to it.

    result: of the stage, with `merges` and `chosen`. base: what the adapter learned on, `none` in
    full precision. own_held_out: counted tokens of the held-out part of `specialize.data`; None
    where the run's own data was learned from.
    """
    measured = measured.of_first_seed()
    nll = paired_difference(measured, "nll", "specialized", "distill")
    # As the control of `compare`, its differences are those of the distilled student to it.
    tasks = {
        name: negated(one) for name, one in compare(measured, (), "specialized", "").tasks.items()
    }
    form = result["chosen"] or ON_ITS_BASE
    values = (
        f"perplexity {measured.models['specialized']['perplexity']:.2f} ({_form_words(form, base)})"
        f" against {measured.models['distill']['perplexity']:.2f} of the distilled student "
        f"(nll {in_words(nll)})"
    )
    before_and_after = _on_validation(result["merges"], form, base, own_held_out is not None)
    if own_held_out is None:
        sentences = [f"{OUTCOMES[direction(nll)]}: on held-out text {values}.", before_and_after]
    else:
        sentences = [
            before_and_after,
            "On the held-out text of `data`, not of `specialize.data`, "
            f"{OUTCOMES_ELSEWHERE[direction(nll)]}: {values}.",
            f"The held-out part of `specialize.data` ({own_held_out:,} tokens) was not measured.",
        ]
    sentences += [_task_sentence(measured, name, one) for name, one in tasks.items()]
    return {
        "nll": nll,
        **({"tasks": tasks} if tasks else {}),
        "unmeasured_tokens": own_held_out or 0,
        "sentence": " ".join(one for one in sentences if one),
    }


def _form_words(form: str, base: str) -> str:
    """The form of the specialised student that was measured, by its path."""
    if form == ON_ITS_BASE:
        return "the adapter on its base" if base == "none" else f"the adapter on its {base} base"
    return f"the adapter {form}" if form.startswith("merged") else "the specialised student"


def _on_validation(merges: list[Numbers], form: str, base: str, is_own_data: bool) -> str:
    """The nll of the validation part before and after: of the form that was measured, where that
    part is of data of its own, and of the adapter on a quantised base.
    """
    nll = {one["path"]: one["nll"] for one in merges}
    on_base = ("student" if base == "none" else f"{base} base", ON_ITS_BASE)
    pairs = [on_base if form == ON_ITS_BASE else ("student", form)] if is_own_data else []
    if base != "none" and on_base not in pairs:
        pairs.append(on_base)
    changes = [
        f"from {nll[before]:.4f} ({_before_words(before)}) to {nll[after]:.4f} "
        f"({_form_words(after, base)})"
        for before, after in pairs
    ]
    if not changes:
        return ""
    data = "On `specialize.data`, specialising" if is_own_data else "It"
    return (
        f"{data} changed the nll of the validation part, by which it was also chosen, "
        f"{' and '.join(changes)}."
    )


def _before_words(path: str) -> str:
    return "the distilled student" if path == "student" else f"its {path}"


def _task_sentence(measured: Measurements, name: str, difference: Numbers) -> str:
    after, before = (
        percent(measured.models[one]["tasks"][name]["accuracy"])
        for one in ("specialized", "distill")
    )
    found = ACCURACY.in_words(difference)
    return f"Accuracy on {name} went from {before} to {after} ({found})."
