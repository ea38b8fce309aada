"""Pieces of report.html that every section is made of: tables, figures, explanations of terms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from distill.report.tables import Table

Figure = tuple[str, str]  # inline SVG and its caption
VALUE_AND_INTERVAL = re.compile(r"^(\S+) \((\S+ to \S+)\)$")


@dataclass(frozen=True)
class Section:
    """A heading, and HTML below it that is safe to show."""

    title: str
    markup: str


def table_section(
    title: str, table: Table, terms: Mapping[str, str], *, text: bool = False, lead: str = ""
) -> Section:
    """A section with a table and its terms below it. `text`: whether its cells are sentences."""
    above = f"<p>{escape(lead)}</p>" if lead else ""
    return Section(title, f"{above}{as_table(table, text=text)}{explanation(terms)}")


def as_section(section: Section) -> str:
    """A section with its heading."""
    return f"<h2>{escape(section.title)}</h2>{section.markup}"


def as_table(lines: Table, *, text: bool = False) -> str:
    """Rows as a table, header first; a line is drawn above the first arm. `text`: align left.

    Of a cell with a value and its interval, the interval stands below the value.
    """
    head = "".join(f"<th>{escape(cell)}</th>" for cell in lines[0])
    body, seen_arm = "", False
    for line in lines[1:]:
        is_arm = line[0].startswith("arm ")
        mark = ' class="arm"' if is_arm and not seen_arm else ""
        seen_arm = seen_arm or is_arm
        body += f"<tr{mark}>" + "".join(f"<td>{_cell(cell)}</td>" for cell in line) + "</tr>"
    kind = ' class="text"' if text else ""
    return (
        f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    found = VALUE_AND_INTERVAL.match(text)
    if found is None:
        return escape(text)
    value, interval = (escape(part) for part in found.groups())
    return f"{value} <small>({interval})</small>"


def as_figures(figures: list[Figure]) -> str:
    """Plots side by side, each with its caption."""
    return "".join(
        f"<figure>{svg}<figcaption>{escape(text)}</figcaption></figure>" for svg, text in figures
    )


def explanation(terms: Mapping[str, str]) -> str:
    """The terms of a table, to be unfolded, behind a line that names them; empty without terms."""
    if not terms:
        return ""
    summary = f"What these words mean: {', '.join(terms)}"
    items = "".join(f"<li>{escape(f'{name}: {text}')}.</li>" for name, text in terms.items())
    return f'<details class="legend"><summary>{escape(summary)}</summary><ul>{items}</ul></details>'


def as_list(lead: str, lines: list[str]) -> str:
    """Sentences below a line that leads to them; empty without sentences."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<p>{escape(lead)}</p><ul>{items}</ul>" if lines else ""
