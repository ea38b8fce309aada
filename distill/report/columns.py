"""Columns of tables on measured models: a title, the key it needs, how it is shown, its meaning.

The same columns stand in report.html and in what the commands print; report.html explains each one
under its table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from attar.word_lists import listed
from distill.evaluation.job import Numbers
from distill.report.speeds import timed

Show = Callable[[Numbers], str]


class Column(NamedTuple):
    """One column of a table whose rows are models.

    key: the number of a model that the column needs; its cell is empty without it. show: the cell's
    text. meaning: what the column holds, as one clause. interval: [low, high] of the number, in the
    unit of `bound`, which shows one end; absent where `show` has it, or there is none. optional:
    left out of a table in which no model has the number.
    """

    key: str
    show: Show
    meaning: str
    interval: Callable[[Numbers], list[float] | None] | None = None
    bound: Callable[[float], str] = "{:.3f}".format
    optional: bool = False


TableColumns = dict[str, Column]  # by title
A_TOKEN = ("nll", "perplexity")  # keys of what is a mean over a model's own tokens
BY_TEACHERS_TOKENS = ("kl_to_teacher", "top1_agreement")
STUDENTS = "The students"  # in sentences
OF_OTHER_TOKENS = "-"  # in the place of these for a model that has another tokenizer


def _speed(number: Callable[[float], str], key: str, kind: str | None = None) -> Show:
    """What was timed with its range, or that it is withheld; empty where it was not timed."""

    def show(row: Numbers) -> str:
        found = timed(row, key, kind)
        return "" if found is None else found.show(number)

    return show


def _rate(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _perplexity_interval(row: Numbers) -> list[float] | None:
    bounds = row.get("nll_interval")
    return None if bounds is None else [math.exp(min(bound, 700.0)) for bound in bounds]


def lost_interval(row: Numbers) -> list[float] | None:
    """The interval of what an artifact loses against its reference."""
    bounds: list[float] | None = row["fit"].get("lost_interval")
    return bounds


def _millions(number: float) -> str:
    return f"{number / 1e6:.1f}" if number >= 5e4 else f"{number / 1e6:.2g}"


def _greedy_match(row: Numbers) -> str:
    match = row["generation_agreement"]
    return f"{match['same_until']:.0f}/{match['tokens']:.0f}"


def _fit(row: Numbers) -> str:
    fit = row["fit"]
    certain = "" if fit.get("certain", True) else "?"
    beaten = f", but below {fit['below'][0]}" if fit["ships"] and fit.get("below") else ""
    return ("yes" if fit["ships"] else "NO") + certain + beaten


def _pareto(row: Numbers) -> str:
    return ", ".join(name for name, is_on_it in row["pareto"].items() if is_on_it)


def _own_kl(row: Numbers) -> str:
    """Empty for the teacher, and where the model's own answers could not be measured."""
    found = row["own_answers"].get("reverse_kl")
    return "" if found is None else f"{found:.3f}"


def _bytes_a_token(row: Numbers) -> str:
    return f"{row['text_bytes'] / row['tokens']:.2f}"


# Of language models; tasks on whole texts use some of them.
MODEL_COLUMNS: TableColumns = {
    "nll": Column(
        "nll",
        lambda r: f"{r['nll']:.3f}",
        "mean of -log p(token), nats a token; lower is better",
        lambda r: r.get("nll_interval"),
    ),
    "ppl": Column(
        "perplexity",
        lambda r: f"{r['perplexity']:,.2f}",
        "perplexity, exp(nll): among how many equally likely tokens it would be as unsure",
        _perplexity_interval,
        "{:,.2f}".format,
    ),
    "nats/byte": Column(
        "nats_per_byte",
        lambda r: f"{r['nats_per_byte']:.4f}",
        "sum of -log p(token) over the bytes of the text, nats a byte; it compares models whatever "
        "their tokenizers; lower is better",
        lambda r: r.get("nats_per_byte_interval"),
        "{:.4f}".format,
        optional=True,
    ),
    "bytes/token": Column(
        "tokenizer",
        _bytes_a_token,
        "bytes of text that a token of the model's own tokenizer stands for, of those measured",
        optional=True,
    ),
    "KL": Column(
        "kl_to_teacher",
        lambda r: f"{r['kl_to_teacher']:.3f}",
        "KL(teacher || model) over the full vocabulary, nats a token; 0 where the model is as the "
        "teacher",
        lambda r: r.get("kl_interval"),
    ),
    "own KL": Column(
        "own_answers",
        _own_kl,
        "KL(model || teacher) over the full vocabulary on answers that the model itself wrote to "
        "held-out prompts, nats a token; it and the KL on held-out text may move apart",
        lambda r: r["own_answers"].get("reverse_kl_interval"),
        optional=True,
    ),
    "top-1": Column(
        "top1_agreement",
        lambda r: f"{r['top1_agreement']:.3f}",
        "share of tokens whose most likely token is the teacher's most likely one",
    ),
    "greedy text": Column(
        "greedy_text",
        lambda r: f"{r['greedy_text']['same']:.3f}",
        "share of the characters of the teacher's greedy text, after the same held-out prompts, "
        "that the model's own begins with, up to the first difference; an end counts as one",
        optional=True,
    ),
    "M params": Column("parameters", lambda r: _millions(r["parameters"]), "million parameters"),
    "MB": Column("bytes", lambda r: _millions(r["bytes"]), "weights on disk"),
    "prefill t/s": Column(
        "tokens_per_second",
        _speed(_rate, "tokens_per_second", "prefill"),
        "tokens a second of one forward over a prompt",
    ),
    "gen t/s": Column(
        "tokens_per_second",
        _speed(_rate, "tokens_per_second", "generate"),
        "tokens a second of greedy generation, one stream",
    ),
    "peak MB": Column(
        "peak_memory_bytes",
        lambda r: f"{r['peak_memory_bytes'] / 1e6:,.0f}",
        "peak memory of a process that loads the model and runs it",
    ),
}
FIRST_TOKEN_COLUMN: TableColumns = {
    "first token ms": Column(
        "seconds_to_first_token",
        _speed(lambda value: f"{1000 * value:,.0f}", "seconds_to_first_token"),
        "time from a prompt to its first generated token",
    ),
}
RUNTIME_COLUMN: TableColumns = {
    "run by": Column("runtime", lambda r: str(r["runtime"]), "what loaded it from disk and ran it"),
}
PPL_CHANGE_COLUMN: TableColumns = {
    "ppl change": Column(
        "fit",
        lambda r: f"{r['fit']['perplexity_change']:+.1%}",
        "change of the perplexity against the same student unquantised; a rise is a loss",
        lost_interval,
        "{:+.1%}".format,
    ),
}
SELECTION_COLUMNS: TableColumns = {
    "Pareto": Column(
        "pareto",
        _pareto,
        "`bytes` where no artifact that is no larger is as good, `speed` where none that is no "
        "slower is; differences that cannot be told from chance or from the spread of timed calls "
        "do not count; the advice does count those in quality, so it may name one without a mark",
    ),
    "fit to ship": Column(
        "fit",
        _fit,
        "whether it stays within the recipe's `export.tolerance`, which judges only what this form "
        "lost against the same student in full precision, not how good that student is; `?` where "
        "the held-out part is too small to be certain; `but below` names a baseline that is "
        "significantly better",
    ),
}
ARTIFACT_COLUMNS: TableColumns = {
    **RUNTIME_COLUMN,
    **{title: MODEL_COLUMNS[title] for title in ("ppl", "KL", "top-1")},
    **PPL_CHANGE_COLUMN,
    "greedy match": Column(
        "generation_agreement",
        _greedy_match,
        "tokens of a greedy answer before it first differs from the unquantised student's, of the "
        "tokens of that answer, its end included",
    ),
    **{title: MODEL_COLUMNS[title] for title in ("MB", "prefill t/s", "gen t/s")},
    **FIRST_TOKEN_COLUMN,
    "peak MB": MODEL_COLUMNS["peak MB"],
    **SELECTION_COLUMNS,
}

# Of models that read whole texts.
TEXT_SPEED_COLUMNS: TableColumns = {
    "texts/s": Column(
        "texts_per_second",
        _speed("{:,.0f}".format, "texts_per_second"),
        "texts a second in batches",
    ),
    "ms a text": Column(
        "seconds_a_text",
        _speed(lambda value: f"{1000 * value:.1f}", "seconds_a_text"),
        "time for one text alone",
    ),
    "peak MB": MODEL_COLUMNS["peak MB"],
}


def cells(
    numbers: Numbers,
    columns: TableColumns,
    *,
    intervals: bool = False,
    teacher: Numbers | None = None,
) -> list[str]:
    """The text of each column for one model, empty where the model has no such number.

    intervals: with the 95% intervals of columns that have one. teacher: the numbers of the teacher;
    what a model cannot have because its tokenizer is another one is marked. Of an artifact that
    could not be made or run, the first cell says so.
    """
    if "failed" in numbers:
        return ["failed", *("" for _ in list(columns)[1:])]
    marked = BY_TEACHERS_TOKENS if not have_one_tokenizer([numbers, teacher or numbers]) else ()
    return [
        _cell(column, numbers, intervals)
        if numbers.get(column.key) is not None
        else (OF_OTHER_TOKENS if column.key in marked else "")
        for column in columns.values()
    ]


def _cell(column: Column, numbers: Numbers, intervals: bool) -> str:
    text = column.show(numbers)
    bounds = column.interval(numbers) if intervals and column.interval is not None else None
    if bounds is None:
        return text
    low, high = (column.bound(bound + 0.0) for bound in bounds)  # 0.0 makes 0 of a negative 0
    return f"{text} ({low} to {high})"


def shown_columns(
    columns: TableColumns, models: Iterable[Numbers], teacher: Numbers | None = None
) -> TableColumns:
    """The columns of a table of these models: without optional ones that none of them fills.

    Where the models have several tokenizers, numbers a token do not stand side by side; where
    none has the teacher's, nothing is compared with its tokens.
    """
    rows = [row for row in models if "failed" not in row]
    with_teacher = rows if teacher is None else [*rows, teacher]
    optional = () if have_one_tokenizer(with_teacher) else BY_TEACHERS_TOKENS
    left_out = () if have_one_tokenizer(rows) else A_TOKEN
    return {
        title: column
        for title, column in columns.items()
        if column.key not in left_out
        and (
            not (column.optional or column.key in optional)
            or any(cells(row, {title: column})[0] for row in rows)
        )
    }


# Tokenizers --------------------------------------------------------------------------------------


def have_one_tokenizer(models: Iterable[Numbers]) -> bool:
    """Whether models were measured on the same tokens; else on the same text."""
    return len({numbers.get("tokenizer") for numbers in models}) < 2


def tokenizer_note(first: str, others: Sequence[str], kl: str) -> str:
    """Why a table of models with several tokenizers lacks numbers, as one sentence.

    kl: what became of KL and top-1, as in "are left out"; empty where there is no teacher.
    """
    many = len(others) > 1 or others[0] == STUDENTS
    compared = f"KL and top-1, which need the teacher's tokens, {kl}, " if kl else ""
    return (
        f"{listed(others)} {'read' if many else 'reads'} the same text as other tokens than "
        f"{first}: nll and perplexity a token are not shown side by side, {compared}and tokens a "
        "second are of each model's own tokens."
    )


def terms(columns: TableColumns, models: Iterable[Numbers]) -> dict[str, str]:
    """The meaning of every column that has a value for at least one of the models."""
    rows = [cells(numbers, columns) for numbers in models]
    filled = [any(column) for column in zip(*rows, strict=True)] if rows else []
    shown = [title for title, has_value in zip(columns, filled, strict=False) if has_value]
    return {title: columns[title].meaning for title in shown}
