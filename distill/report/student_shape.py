"""The student beside its teacher: sizes of both, and which parts of the teacher were kept."""

from __future__ import annotations

from html import escape
from typing import Any

from attar.word_lists import number_ranges
from distill.evaluation.job import Numbers
from distill.report.markup import Section, as_table, explanation

TITLE = "The student beside its teacher"
SIZES = {  # by the key of `PretrainedConfig`
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "num_attention_heads": "attention heads",
    "num_key_value_heads": "key-value heads",
    "intermediate_size": "feed-forward neurons",
    "vocab_size": "vocabulary",
}
TERMS = {
    "layers": "blocks of attention and feed-forward, one after another",
    "width": "channels of the hidden states between them",
    "key-value heads": "groups of attention heads that share keys and values",
    "feed-forward neurons": "in each layer",
    "vocabulary": "rows of the embedding: ids, and rows that only fill it up",
}
RANKINGS = {
    "greedy": "those whose removal raises the loss least were removed, one after another",
    "influence": "those that turn the hidden states most were kept",
    "even": "evenly spaced ones were kept",
}


def shape_entry(teacher: Any, student: Any, pruning: Numbers | None, source: str) -> Numbers:
    """The `student` of report.json.

    teacher, student: their `PretrainedConfig`. pruning: what pruning.json says, None where nothing
    was cut. source: what the student was made of, in words.
    """
    configs = [one.get_text_config() for one in (teacher, student)]
    sizes = {
        key: [getattr(config, key, None) for config in configs]
        for key in SIZES
        if all(isinstance(getattr(config, key, None), int) for config in configs)
    }
    kept = None
    if pruning is not None:
        kept = {
            "layers": pruning["kept"],
            "by": pruning.get("by"),
            **{key: pruning.get(key) for key in ("groups", "neurons", "channels")},
            "refit": bool(pruning.get("refit")),
        }
    return {"source": source, "sizes": sizes, "kept": kept}


def shape_section(report: Numbers) -> Section | None:
    """The section of report.html on the student's shape."""
    entry = report.get("student")
    if entry is None:
        return None
    table = [["", "teacher", "student"]]
    for key, sizes in entry["sizes"].items():
        table.append([SIZES[key], *(f"{size:,}" for size in sizes)])
    lines = [f"The student was made of {entry['source']}."]
    lines += [] if entry["kept"] is None else kept_lines(entry["kept"], entry["sizes"])
    text = "".join(f"<p>{escape(line)}</p>" for line in lines)
    heads = [] if entry["kept"] is None else head_lines(entry["kept"], entry["sizes"])
    folded = ""
    if heads:
        items = "".join(f"<li>{escape(line)}</li>" for line in heads)
        folded = f"<details><summary>Heads kept, layer by layer</summary><ul>{items}</ul></details>"
    terms = {name: text for name, text in TERMS.items() if name in {row[0] for row in table}}
    return Section(TITLE, f"{text}{as_table(table)}{explanation(terms)}{folded}")


def kept_lines(kept: Numbers, sizes: Numbers) -> list[str]:
    """Sentences on what was kept of the teacher: layers, heads, neurons, channels, vocabulary."""
    before, after = sizes.get("num_hidden_layers", [None, len(kept["layers"])])
    lines = []
    if before == after:
        lines.append(f"All {after} layers were kept.")
    else:
        how = f": {RANKINGS[kept['by']]}" if kept["by"] in RANKINGS else ""
        of = f" of {before}" if before is not None else ""
        numbers = f"number {number_ranges(kept['layers'])}, counted from 0"
        lines.append(f"Layers kept: {after}{of} ({numbers}){how}.")
    cut = {
        "groups": ("groups of heads", "num_key_value_heads"),
        "neurons": ("feed-forward neurons", "intermediate_size"),
        "channels": ("channels", "hidden_size"),
    }
    for key, (name, size) in cut.items():
        if size not in sizes or sizes[size][0] == sizes[size][1]:
            continue
        if kept[key] is None:
            lines.append(f"Of {sizes[size][0]:,} {name}, {sizes[size][1]:,} are left.")
            continue
        where = "" if key == "channels" else " in each layer"
        lines.append(
            f"Of {sizes[size][0]:,} {name}{where} the {sizes[size][1]:,} most important were kept."
        )
    if "vocab_size" in sizes and sizes["vocab_size"][0] == sizes["vocab_size"][1]:
        lines.append("The vocabulary is the teacher's.")
    if kept["refit"]:
        lines.append("Output projections were then fitted to the teacher's hidden states.")
    return lines


def head_lines(kept: Numbers, sizes: Numbers) -> list[str]:
    """A line a layer: the heads that were kept there, or the groups of heads that share keys and
    values; none where all were.
    """
    if not kept["groups"]:
        return []
    heads, shared = (sizes.get(key) for key in ("num_attention_heads", "num_key_value_heads"))
    name = "head" if shared is None or shared == heads else "group"
    layers = zip(kept["layers"], kept["groups"], strict=True)
    return [
        f"layer {layer}: {name}{'s' * (len(groups) != 1)} {number_ranges(groups)}"
        for layer, groups in layers
    ]
