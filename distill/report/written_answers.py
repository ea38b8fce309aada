"""The report on answers that a model wrote: what became of them, and what learning them changed."""

from __future__ import annotations

from html import escape

from distill.evaluation.job import Numbers
from distill.report.markup import Section, as_table, explanation
from distill.report.measurements import Measurements
from distill.report.paired_difference import in_words, paired_difference
from distill.report.tables import Table
from distill.report.verdict import ACCURACY, task_differences

TITLE = "Answers that a model wrote"
GOLD = "gold"
BAR = 30  # characters of the most frequent pass rate
TERMS = {
    "answers": "written to prompts of the training part; the validation and the held-out part keep "
    "the data's own",
    "learned": "passed every rule of `data.answers.keep`",
    "pass rate": "share of a prompt's answers that are right, by the answers of the data",
    "tokens": "of all answers that were written, those that were not kept too",
    "seconds": "of writing, summed over processes and over starts of the stage",
}


def beside_gold(measured: Measurements) -> Numbers | None:
    """The arms that learned written answers against the arm `gold`, which learned the data's own:
    differences by arm, and one sentence; None without that arm.
    """
    if GOLD not in measured.controls:
        return None
    found, said = {}, []
    for arm in ("finetune", "distill"):
        if arm not in ("distill", *measured.controls):
            continue
        nll = paired_difference(measured, "nll", arm, GOLD)
        tasks = task_differences(measured.models[arm], measured.models[GOLD])
        found[arm] = {"nll": nll, "tasks": tasks}
        clauses = [f"nll {in_words(nll)}"]
        clauses += [f"accuracy on {n} {ACCURACY.in_words(one)}" for n, one in tasks.items()]
        said.append(f"arm {arm}: {'; '.join(clauses)}")
    sentence = (
        "Written answers against the data's own, which the arm `gold` learned: "
        f"{'. '.join(said)}. The held-out nll is of the data's own answers, whose words `gold` has "
        "learned; what is right or wrong, a downstream task tells."
    )
    return {"arms": found, "sentence": sentence}


def answers_section(report: Numbers) -> Section | None:
    """The section of report.html; None where no model wrote."""
    found = report.get("answers")
    if found is None:
        return None
    parts = [f"<p>{escape(found['sentence'])}</p>", as_table(_fates(found))]
    if found["pass_rates"]:
        parts.append(as_table(_rates(found["pass_rates"])))
    if found.get("beside_gold"):
        parts.append(f"<p>{escape(found['beside_gold']['sentence'])}</p>")
    return Section(TITLE, "".join(parts) + explanation(TERMS))


def _fates(found: Numbers) -> Table:
    written = found["written"]
    lines = [["answers", "number", "share"]]
    fates = {"learned": found["kept"]}
    fates |= {f"not: {reason}": number for reason, number in found["by_reason"].items()}
    for name, number in fates.items():
        lines.append([name, f"{number:,}", f"{number / written:.1%}" if written else ""])
    lines.append(["written", f"{written:,}", ""])
    if found["refused"]:
        lines.append(["refused by the writer", f"{found['refused']:,}", ""])
    if found["held_out_prompts"]:
        lines.append(["prompts that are held out, too", f"{found['held_out_prompts']:,}", ""])
    return lines


def _rates(numbers: list[int]) -> Table:
    """Prompts by their pass rate."""
    most, all_prompts = max(numbers), sum(numbers)
    lines = [["pass rate", "prompts", "share", ""]]
    for i, number in enumerate(numbers):
        bar = "#" * round(BAR * number / most)
        name = f"{i / len(numbers):.0%} to {(i + 1) / len(numbers):.0%}"
        lines.append([name, f"{number:,}", f"{number / all_prompts:.1%}", bar])
    return lines
