"""Questions that decide between ways to do a task, each answered for one recipe.

Every answer says why and how sure it is: measured here, measured on similar shapes, in the
literature, or plain arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from distill.advise.arm_costs import ArmCost
from distill.advise.measured import shown_size
from distill.advise.subject import KIND_WORDS, Subject

Sure = Literal["measured here", "measured on similar", "literature", "plain arithmetic"]
FEW, SOME = 64, 512  # labels: up to the first prompts lead, from the second on tuning does
MANY_TASKS = 20
LARGER = 1.5  # times the student's parameters, from where on a teacher is larger
NF4_BYTES, BF16_BYTES = 0.6, 2.0  # a parameter when served
THIN = ("lora", "qlora", "adapter", "prefix", "prompt-tuning")
ADDED = {  # by a larger teacher, as benchmarks/classification.md and benchmarks/answers.md have it
    "classes": (
        "on sst2 every distilled classifier was 1.3 to 6.6 points better than its twin on labels, "
        "on banking77 0.4 at most: it adds what the labels leave open"
    ),
    "text": (
        "on gsm8k a small student of signals stayed closer to its teacher (KL 0.17 against 0.28), "
        "and the one of labels had the lower nll of the data's own answers (2.64 against 2.71)"
    ),
}
BY_KIND: dict[str, tuple[tuple[str, ...], str]] = {
    "classes": (
        ("tf-idf", "features", "full", "distill"),
        "a class needs no text written: linear baselines cost seconds and say what a network adds",
    ),
    "choices": (("few-shot", "lora", "full"), "choices are scored, not written, by any of them"),
    "exact": (
        ("few-shot", "full", "distill-answers"),
        "what is exact can be verified, so a teacher's answers can be kept when they are right",
    ),
    "pairs": (("preference", "full"), "the better answer is learned against the worse one"),
    "text": (("full", "lora", "distill"), "the form of the answers is what is learned"),
}


@dataclass(frozen=True)
class Answer:
    """A question, what it is for this recipe, which arms follow, why, and how sure that is."""

    question: str
    answer: str
    arms: list[str]
    why: str
    sure: Sure


@dataclass(frozen=True)
class Known:
    """What the answers are made from. comparison: of comparison.json, where there is one."""

    subject: Subject
    costs: dict[str, ArmCost]
    limit: float | None
    comparison: dict[str, Any] | None = None

    def open(self, names: Sequence[str]) -> list[str]:
        """Those of some arms that fit the recipe and the memory."""
        return [
            name
            for name in names
            if (cost := self.costs.get(name)) is not None
            and cost.refused is None
            and cost.fits is not False
        ]


Ask = Callable[[Known], Answer]


def answers_of(known: Known) -> list[Answer]:
    """All questions, answered."""
    return [ask(known) for ask in QUESTIONS]


def kind_of_task(known: Known) -> Answer:
    """Classes, choices, exact answers, pairs or free text."""
    kind = known.subject.kind
    arms, why = BY_KIND[kind]
    words = KIND_WORDS[kind]
    if kind == "classes":
        words = f"{words}, {known.subject.classes} of them"
    sure: Sure = "plain arithmetic" if kind == "classes" else "literature"
    return Answer("What kind of task is it?", words, known.open(arms), why, sure)


def number_of_labels(known: Known) -> Answer:
    """Few labels favour prompts and what is frozen, many favour tuning."""
    labels = known.subject.labels
    if (found := _compared(known)) is not None:
        return Answer("How many labels are there?", f"{labels:,}", found[0], found[1],
                      "measured here")  # fmt: skip
    arms: tuple[str, ...]
    if labels <= FEW:
        arms = ("prompt", "few-shot", "features", "lora")
        why = (
            "words of a language model are worth hundreds of labels against a new head (Le Scao "
            "and Rush 2021, 2103.08493); a linear classifier on features learns from few"
        )
    elif labels < SOME:
        arms = ("lora", "features", "prompt", "full")
        why = (
            "adapters beat prompts of the same few labels, at less a query (Liu et al. 2022, "
            "2205.05638); where the curves of a small student cross has to be measured"
        )
    else:
        arms = ("full", "lora", "distill")
        why = "with many labels tuning leads; a teacher adds most where the student is small"
    return Answer("How many labels are there?", f"{labels:,}", known.open(arms), why, "literature")


def _compared(known: Known) -> tuple[list[str], str] | None:
    """(the arm that a comparison recommends for about as many labels, in words), or None."""
    if known.comparison is None:
        return None
    points = known.comparison["points"]
    labels = min(points, key=lambda one: abs(int(one) - known.subject.labels))
    best = points[labels].get("recommended")
    return None if best is None else ([best], f"the comparison recommends it with {labels} labels")


def number_of_tasks(known: Known) -> Answer:
    """One more task costs what does not share the base."""
    thin = known.open(THIN)
    full = known.costs.get("full")
    whole = None if full is None else full.task_bytes
    if thin and whole is not None:
        least = min(thin, key=lambda name: known.costs[name].task_bytes or 0.0)
        size = known.costs[least].task_bytes or 0.0
        why = (
            f"{MANY_TASKS} tasks take {shown_bytes(MANY_TASKS * size)} beside one base as {least}, "
            f"{shown_bytes(MANY_TASKS * whole)} as whole students"
        )
    else:
        why = "every further task is a whole student, or a classifier on shared features"
    arms = [*thin, *known.open(("features", "head"))]
    answer = f"one here; with {MANY_TASKS}, what shares a base"
    return Answer("How many tasks will there be?", answer, arms, why, "plain arithmetic")


def memory_to_learn(known: Known) -> Answer:
    """What fits while it learns."""
    fitting = [one for one in known.costs.values() if one.refused is None and one.fits is not False]
    gone = [one.arm for one in known.costs.values() if one.fits is False]
    limit = "no limit is known" if known.limit is None else shown_bytes(known.limit)
    trained = [one for one in fitting if one.trained and one.memory and one.family == "tuning"]
    trained.sort(key=lambda one: one.memory or 0.0)
    why = "; ".join(f"{one.arm} {shown_bytes(one.memory or 0.0)}" for one in trained) or "none fits"
    if gone:
        why += f"; too large: {', '.join(gone)}"
    arms = [one.arm for one in trained]
    return Answer("How much memory is there to learn?", limit, arms, why, "plain arithmetic")


def serving(known: Known) -> Answer:
    """Bytes and speed of student and teacher when they answer."""
    student, teacher = known.subject.student, known.subject.teacher
    ratio = (teacher.body + teacher.head) / max(1, student.body + student.head)
    answer = (
        f"{shown_bytes(BF16_BYTES * student.total)} in bfloat16, about "
        f"{shown_bytes(NF4_BYTES * student.total)} in 4 bits"
    )
    why = (
        f"the student has {shown_size(student.total)} parameters, its teacher "
        f"{shown_size(teacher.total)}: about {ratio:.1f} times the work a token"
    )
    arms = known.open(("distill", "full", "features", "tf-idf"))
    return Answer("What may serving take?", answer, arms, why, "plain arithmetic")


def latency(known: Known) -> Answer:
    """Tokens that a prompt adds to every query."""
    plain = known.subject.lengths.query
    shown = known.costs.get("few-shot")
    if shown is None or shown.query_tokens is None:
        why, answer = "the student cannot be asked in words", f"{plain:,.0f} tokens a query"
    else:
        times = shown.query_tokens / plain
        answer = f"{plain:,.0f} tokens a query, {shown.query_tokens:,.0f} with demonstrations"
        why = (
            f"reading takes {times:.1f} times as long unless the prompt's keys and values are "
            "kept; what is learned needs no demonstrations"
        )
    arms = known.open(("full", "lora", "distill", "zero-shot"))
    return Answer("Do long prompts cost too much time?", answer, arms, why, "plain arithmetic")


def old_abilities(known: Known) -> Answer:
    """What must stay as it was."""
    section = known.subject.comparison.config.forget
    answer = "not measured: name `compare.forget`" if section is None else "`compare.forget` asks"
    why = (
        "adapters can be left off, and learn and forget less than full tuning (Biderman et al. "
        "2024, 2405.09673); prompts change nothing"
    )
    arms = known.open(("lora", "prefix", "prompt", "features"))
    return Answer("Must old abilities stay?", answer, arms, why, "literature")


def larger_teacher(known: Known) -> Answer:
    """Whether there is a teacher that is larger than the student."""
    student, teacher = known.subject.student, known.subject.teacher
    ratio = teacher.total / student.total
    where = "on a server" if known.subject.recipe.teacher.server is not None else "here"
    if ratio >= LARGER:
        answer = f"yes, {where}: {ratio:.1f} times the student's parameters"
        why = ADDED["classes" if known.subject.kind == "classes" else "text"]
        fitting = known.open(("distill", "distill-answers"))
        if not fitting:
            why += "; learning from it does not fit the memory"
        return Answer("Is a larger teacher there?", answer, fitting, why, "measured on similar")
    answer = f"no: it has {ratio:.1f} times the student's parameters"
    why = "learning from it costs its time beside the student's; what it adds is to be measured"
    return Answer("Is a larger teacher there?", answer, known.open(("full", "lora")), why,
                  "plain arithmetic")  # fmt: skip


def judged_pairs(known: Known) -> Answer:
    """Whether rows say which of two answers is better."""
    if known.subject.kind == "pairs":
        why = (
            "with 400 pairs a small model ranked 70% right on pref_truthfulqa, 63% before, and 46% "
            "on pref_sentiment, 45% before; the intervals overlap"
        )
        return Answer("Are there judged pairs?", "yes", known.open(("preference", "full")), why,
                      "measured on similar")  # fmt: skip
    why = "preferences need `chosen` and `rejected`; without them learn the answers themselves"
    return Answer("Are there judged pairs?", "no", [], why, "plain arithmetic")


def text_without_labels(known: Known) -> Answer:
    """Whether there is text that only a teacher can label."""
    number = known.subject.unlabelled
    if known.subject.comparison.labelled:
        answer = f"{number:,} rows" if number else "no rows in the data"
        why = (
            "a teacher can label them first, and students learn from its labels (Turc et al. 2019, "
            "1908.08962); the arms here leave rows without a class out"
        )
    else:
        answer, why = (
            "a teacher can write answers to prompts",
            "`data.answers` has the teacher answer prompts that have none, or more than one",
        )
    arms = known.open(("distill", "distill-answers"))
    return Answer("Is there text without labels?", answer, arms, why, "literature")


QUESTIONS: list[Ask] = [
    kind_of_task, number_of_labels, number_of_tasks, memory_to_learn, serving, latency,
    old_abilities, larger_teacher, judged_pairs, text_without_labels,
]  # fmt: skip


def shown_bytes(size: float) -> str:
    """An amount of bytes in words."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= limit:
            return f"{size / limit:,.1f} {unit}"
    return f"{size:,.0f} B"
