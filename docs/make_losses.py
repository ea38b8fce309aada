"""Write losses and forms into docs/reference/losses.md; `--check` exits with 1 if they are stale.

What stands outside the markers of that page is written by hand and left as it is.

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
from distill.objective.preference_forms import FORMS, Form
from distill.objective.terms import NO_SIGNALS, TERM_MODELS, check_served
from teachers.codecs.codec import CODECS

PAGE = Path(__file__).parent / "reference" / "losses.md"
READS = {
    "distribution": "the teacher's next-token distribution",
    "labels": "the text's own next token",
    "sequence": "both answers of a pair, and a reference's log-probabilities of them",
    "hidden": "the teacher's hidden states",
    "relation": "queries, keys and values of the teacher's attention",
    "vector": "the teacher's vector of a text (`task: embedding`)",
    "similarity": "the teacher's vectors of the texts of a micro-batch (`task: embedding`)",
    "order": "which answer of a pair is chosen, and the data's `margin` (`task: reward`)",
    "rewards": "the teacher's rewards of both answers of a pair (`task: reward`)",
    "rollouts": "answers that the student wrote, and their rewards (`rollouts.reward`)",
}
SNIPPETS = {
    "distribution": "train:\n  objective:\n    - {{loss: {name}, weight: 1.0, temperature: 1.0}}",
    "labels": "train:\n  objective:\n    - {{loss: {name}, weight: 0.1}}",
    "sequence": "train:\n  objective:\n    - {{loss: {name}, form: sigmoid, beta: 0.1}}",
    "hidden": "cache:\n  hidden: {{layers: [10, 20, 30]}}\ntrain:\n  objective:\n"
    "    - {{loss: forward_kl}}\n    - {{loss: {name}, weight: 0.1}}",
    "relation": "cache:\n  hidden: {{attention: [30]}}\ntrain:\n  objective:\n"
    "    - {{loss: forward_kl}}\n    - {{loss: {name}, weight: 0.1}}",
    "vector": "task: embedding\ntrain:\n  objective:\n    - {{loss: {name}}}",
    "similarity": "task: embedding\ntrain:\n  objective:\n    - {{loss: vector_mse}}\n"
    "    - {{loss: {name}}}",
    "order": "task: reward\ntrain:\n  objective:\n    - {{loss: reward_kl}}\n"
    "    - {{loss: {name}}}",
    "rewards": "task: reward\ntrain:\n  objective:\n    - {{loss: {name}, weight: 1.0, "
    "temperature: 1.0}}",
    "rollouts": "train:\n  objective:\n    - {{loss: {name}}}\n"
    "  rollouts: {{samples: 4, reward: {{verifier: {{extract: number}}}}}}",
}


def sentences(text: str) -> tuple[str, str]:
    """(first sentence of a docstring: the formula; what follows it)."""
    parts = re.split(r"(?<=\.)\s+(?=[A-Z])", " ".join(text.split()), maxsplit=1)
    return parts[0].rstrip("."), parts[1] if len(parts) > 1 else ""


def parameters(loss: Loss) -> str:
    """The term's own keys with their defaults, as the recipe takes them."""
    found: dict[str, Any] = {name: default for name, (_, default) in loss.parameters().items()}
    if loss.reads in ("distribution", "rewards"):
        found["temperature"] = 1.0
    if loss.reads == "distribution":
        found["tail"] = "as the codec says"
    if loss.reads == "sequence":
        return (
            "`form` (sigmoid), `source` (reference), and those of the [form](#forms-of-preference)"
        )
    if loss.reads not in ("vector", "similarity", "order", "rewards", "rollouts"):
        found["on"] = "chosen"
    if loss.reads not in NO_SIGNALS:
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
    about = loss.function.__doc__ or ""
    if loss.reads in ("sequence", "rollouts"):  # what follows is about its function's arguments
        about = about.split("\n\n")[0]
    formula, remark = sentences(about)
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


def form_section(form: Form) -> str:
    """One form of preference: formula, when to use it, keys, source."""
    first, *others = (form.function.__doc__ or "").split("\n\n")
    formula, remark = sentences(first)
    remarks = [remark, *(" ".join(other.split()) for other in others)]
    keys = ", ".join(f"`{name}` ({default})" for name, (_, default) in form.parameters().items())
    rows = [
        ("compares", "the two answers of a pair" if form.pairs else "each answer with a baseline"),
        ("reference", "yes" if form.reference else "no"),
        ("lengths divided out", "yes" if form.per_token else _lengths(form)),
        ("keys", keys),
        ("source", form.source),
    ]
    lines = [f"### {form.name}", "", f"    {formula}", ""]
    lines += [line for remark in remarks if remark for line in (remark, "")]
    return "\n".join(
        [*lines, "| | |", "|---|---|", *(f"| {key} | {row} |" for key, row in rows), ""]
    )


def _lengths(form: Form) -> str:
    if "per_token" not in form.parameters():
        return "no"
    _, default = form.parameters()["per_token"]
    return "yes, unless `per_token: false`" if default else "with `per_token: true`"


def between_markers(text: str, what: str, names: list[str], sections: list[str]) -> str:
    """The text with a list of links and the sections between the two markers of `what`."""
    begin, end = f"<!-- {what}:begin -->\n", f"<!-- {what}:end -->\n"
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    links = ", ".join(f"[`{name}`](#{name})" for name in names)
    made = "\n".join(sections)
    return f"{head}{begin}{links}.\n\n{made}{end}{tail}"


def page() -> str:
    """The page with one section a registered loss, and one a form, between its markers."""
    text = PAGE.read_text(encoding="utf8")
    losses = [section(loss) for _, loss in LOSSES.items()]
    forms = [form_section(form) for _, form in FORMS.items()]
    text = between_markers(text, "losses", list(LOSSES), losses)
    return between_markers(text, "forms", list(FORMS), forms)


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
