"""Write the losses into docs/reference/losses.md; `--check` exits with 1 where they are stale.

What stands outside the two markers of that page is written by hand and left as it is.

    python docs/make_losses.py
    python docs/make_losses.py --check
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from attar.errors import RecipeError
from distill.objective.losses import LOSSES, Loss
from distill.objective.terms import TERM_MODELS, check_served
from teachers.codecs.codec import CODECS

PAGE = Path(__file__).parent / "reference" / "losses.md"
READS = {
    "distribution": "the teacher's next-token distribution",
    "labels": "the text's own next token",
    "hidden": "the teacher's hidden states",
    "relation": "queries, keys and values of the teacher's attention",
    "vector": "the teacher's vector of a text (`task: embedding`)",
    "similarity": "the teacher's vectors of the texts of a micro-batch (`task: embedding`)",
}
SNIPPETS = {
    "distribution": "train:\n  objective:\n    - {{loss: {name}, weight: 1.0, temperature: 1.0}}",
    "labels": "train:\n  objective:\n    - {{loss: {name}, weight: 0.1}}",
    "hidden": "cache:\n  hidden: {{layers: [10, 20, 30]}}\ntrain:\n  objective:\n"
    "    - {{loss: forward_kl}}\n    - {{loss: {name}, weight: 0.1}}",
    "relation": "cache:\n  hidden: {{attention: [30]}}\ntrain:\n  objective:\n"
    "    - {{loss: forward_kl}}\n    - {{loss: {name}, weight: 0.1}}",
    "vector": "task: embedding\ntrain:\n  objective:\n    - {{loss: {name}}}",
    "similarity": "task: embedding\ntrain:\n  objective:\n    - {{loss: vector_mse}}\n"
    "    - {{loss: {name}}}",
}
BEGIN, END = "<!-- losses:begin -->\n", "<!-- losses:end -->\n"


def sentences(loss: Loss) -> tuple[str, str]:
    """(first sentence of the docstring: the formula; what follows it)."""
    text = " ".join((loss.function.__doc__ or "").split())
    parts = re.split(r"(?<=\.)\s+(?=[A-Z])", text, maxsplit=1)
    return parts[0].rstrip("."), parts[1] if len(parts) > 1 else ""


def parameters(loss: Loss) -> str:
    """The term's own keys with their defaults, as the recipe takes them."""
    found: dict[str, Any] = {name: default for name, (_, default) in loss.parameters().items()}
    if loss.reads == "distribution":
        found["temperature"] = 1.0
        found["tail"] = "as the codec says"
    if loss.reads != "labels":
        found["source"] = "the section's"
    if loss.reads == "hidden":
        found["layers"] = "every cached layer"
    if loss.reads == "relation":
        found.update(layers="every cached block", heads="key-value heads", relations="all three")
    return ", ".join(f"`{name}` ({default})" for name, default in found.items()) or "none"


def served(loss: Loss) -> str:
    """Which codecs of `cache.codec` have targets for it."""
    term = TERM_MODELS[loss.name].model_validate({"loss": loss.name})
    able = []
    for name, codec in CODECS.items():
        try:
            check_served(term, codec())
        except RecipeError:
            continue
        able.append(f"`{name}`")
    return ", ".join(able) + ", and `source: online`"


def section(loss: Loss) -> str:
    """One loss: formula, what it reads, keys, source, example."""
    formula, remark = sentences(loss)
    zero = "yes" if loss.reads != "labels" and loss.divergence else "no"
    rows = [
        ("reads", READS[loss.reads]),
        ("zero at the teacher", zero),
        ("keys beside `weight`", parameters(loss)),
        ("source", loss.source),
    ]
    if loss.reads == "distribution":
        rows.insert(1, ("from codecs", served(loss)))
    lines = [f"### {loss.name}", "", f"    {formula}", ""]
    lines += [remark, ""] if remark else []
    lines += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows), ""]
    snippet = SNIPPETS[loss.reads].format(name=loss.name)
    if loss.full:
        snippet = f"cache:\n  codec: final_hidden\n{snippet}"
    return "\n".join([*lines, "```yaml", snippet, "```", ""])


def page() -> str:
    """The page with one section a registered loss between its markers."""
    head, rest = PAGE.read_text(encoding="utf8").split(BEGIN)
    _, tail = rest.split(END)
    losses = [loss for _, loss in LOSSES.items()]
    names = ", ".join(f"[`{loss.name}`](#{loss.name})" for loss in losses)
    made = "\n".join(section(loss) for loss in losses)
    return f"{head}{BEGIN}{names}.\n\n{made}{END}{tail}"


def main() -> int:
    """Write the page, or check it; returns the exit status."""
    text = page()
    if "--check" in sys.argv[1:]:
        fresh = PAGE.read_text(encoding="utf8") == text
        if not fresh:
            print(f"{PAGE.name} is stale: run `make docs`.", file=sys.stderr)
        return 0 if fresh else 1
    PAGE.write_text(text, encoding="utf8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
