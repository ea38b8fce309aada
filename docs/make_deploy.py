"""Write the tables of artifacts and of tuning methods from their registries into
docs/reference/artifacts.md and docs/guides/specialize.md; `--check` exits with 1 where one is
stale.

What stands outside the markers of those pages is written by hand and left as it is.

    python docs/make_deploy.py
    python docs/make_deploy.py --check
"""

from __future__ import annotations

import sys
from pathlib import Path

from students.artifacts.artifact import ARTIFACTS
from students.tuning.method import METHODS

HERE = Path(__file__).parent
MADE_OF = {
    "student": "the distilled student",
    "merged": "the student, with what was specialised merged in",
    "adapter": "the adapter and its base",
}


def first_sentences(doc: str | None) -> str:
    """A docstring on one line, without its references."""
    return " ".join((doc or "").split()).rstrip(".")


def artifacts() -> str:
    """One row a registered artifact."""
    rows = ["| artifact | what it is | made of | run by | needs |", "|---|---|---|---|---|"]
    for name, found in ARTIFACTS.items():
        needs = f"`attar[{found.extra}]`" if found.extra else ""
        about, made_of = found.about.rstrip("."), MADE_OF[found.made_from]
        rows.append(f"| `{name}` | {about} | {made_of} | {found.runtime} | {needs} |")
    return "\n".join(rows)


def methods() -> str:
    """One row a registered method."""
    rows = ["| method | what it is | leaves | merges | own keys |", "|---|---|---|---|---|"]
    for name, kind in METHODS.items():
        keys = ", ".join(f"`{key}`" for key in kind.model_fields if key != "method")
        merges = "yes" if kind.merges or kind.leaves == "weights" else "no"
        about = first_sentences(kind.__doc__)
        rows.append(f"| `{name}` | {about} | {kind.leaves} | {merges} | {keys} |")
    return "\n".join(rows)


PAGES = {
    "reference/artifacts.md": ("artifacts", artifacts),
    "guides/specialize.md": ("methods", methods),
}


def page(name: str) -> str:
    """A page with its table between its markers."""
    marker, make = PAGES[name]
    text = (HERE / name).read_text(encoding="utf8")
    begin, end = f"<!-- {marker}:begin -->\n", f"<!-- {marker}:end -->"
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    return f"{head}{begin}{make()}\n{end}{tail}"


def main() -> int:
    """Write the pages, or check them; returns the exit status."""
    stale = [name for name in PAGES if page(name) != (HERE / name).read_text(encoding="utf8")]
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"{name} is stale: run `make docs`.", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        (HERE / name).write_text(page(name), encoding="utf8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
