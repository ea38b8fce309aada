"""What the models write: prompts of the held-out part, and what each model wrote after them."""

from __future__ import annotations

from html import escape

from attar.printable import printable
from distill.evaluation.job import Numbers
from distill.report.markup import Section, explanation

TITLE = "What the models write"
KINDS = {
    True: "the beginning of a held-out conversation or prompt, up to where the answer begins",
    False: "the beginning of a held-out text",
}
LEAD = (
    '<p class="legend"><span class="prompt">Shaded</span> is the prompt, which every model was '
    "given; in the rows below it stands only what each model wrote after it. ■: it ended there by "
    "itself; …: it was stopped there.</p>"
)
TERMS = {
    "prompt": "from the held-out part; of a conversation, marks of the chat template are part of "
    "it, and it ends where the assistant's turn begins",
    "wrote": "always its most likely token, as many tokens as all may write at most",
    "↵, ⇥, \\x1b": "a line end, a tab, another control character",
    "the data": "what follows the prompt in the held-out part",
}


def samples_section(report: Numbers) -> Section | None:
    """The section of report.html; None where no model writes."""
    models = {"teacher": report["teacher"], **report["arms"], **report["artifacts"]}
    writers = {name: one["samples"] for name, one in models.items() if one.get("samples")}
    if not writers:
        return None
    first = next(iter(writers.values()))
    parts = [LEAD, explanation(TERMS)]
    for number, sample in enumerate(first):
        written = {
            name: samples[number] for name, samples in writers.items() if number < len(samples)
        }
        parts.append(_prompt_markup(number + 1, sample, written))
    return Section(TITLE, "".join(parts))


def _prompt_markup(number: int, sample: Numbers, written: dict[str, Numbers]) -> str:
    rows = _row("the data", visible(sample["held_out"]), "data")
    for name, one in written.items():
        rows += _row(name, f"{visible(one['written'])}{' ■' if one['ended'] else '…'}", "written")
    return (
        f"<h3>Prompt {number}: {escape(KINDS[bool(sample['is_answer'])])}</h3>"
        f'<p class="prompt">{escape(visible(sample["prompt"]))}</p>'
        f'<table class="text samples"><tbody>{rows}</tbody></table>'
    )


def _row(name: str, text: str, kind: str) -> str:
    return f'<tr><th>{escape(name)}</th><td class="{kind}">{escape(text)}</td></tr>'


def visible(text: str) -> str:
    """A model's text with line ends, tabs and other control characters as visible marks."""
    return printable(text.replace("\r", "\\x0d")).replace("\t", "⇥").replace("\n", "↵\n")
