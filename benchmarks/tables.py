"""Write what the benchmarks found into their pages; --check: fail where one is stale.

python benchmarks/tables.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from answer_tables import answer_blocks
from codec_tables import codecs_block, layers_block, students_block
from compare_tables import compare_blocks
from instruct_tables import instruct_block
from plan_table import plan_block
from preference_tables import preference_quality_block, preference_steps_block
from prompt_tables import prompt_block, prompt_results
from remote_table import kills_block, remote_block
from rollout_tables import on_policy_block, rloo_block, rollout_speed_block
from sweep_tables import sweep_blocks
from transport_tables import transport_blocks

from attar.files import read_json

HERE = Path(__file__).parent
RESULTS = HERE / "results"
CHOOSING = HERE.parent / "docs" / "guides" / "choose.md"


def steps_block(*found: dict[str, Any]) -> str:
    """A line a side and shape: seconds and peak memory, and both by the plain step's."""
    lines = [
        "| shape | side | seconds | of `hf` | peak MiB | of `hf` |",
        "|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['shape']} | {row['side']} | {_number(row['seconds'], 2)} "
        f"| {_number(row['time / hf'], 3)} | {row['peak MiB']:,} | {_number(row['peak / hf'], 3)} |"
        for one in found
        for row in one["rows"]
    ]
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None or value != value else f"{value:.{digits}f}"


def gradients_block(found: dict[str, Any]) -> str:
    """Relative error of the gradients at hidden states and at the head's weight."""
    rows = found["rows"]
    names = [name for name in rows[0] if name not in ("seconds",)]
    lines = ["| " + " | ".join(names) + " |", "|---" * 3 + "|---:" * (len(names) - 3) + "|"]
    for row in rows:
        cells = (f"{v:.1e}" if isinstance(v, float) else str(v) for v in row.values())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def trainable_block(found: dict[str, Any]) -> str:
    """A line a choice of what learns: numbers, how far down gradients go, time and memory."""
    lines = [
        "| `trainable` | learn | gradients down to | seconds a step | of `all` "
        "| peak MiB | of `all` |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| `{row['trainable']}` | {row['learn']:,} | {row['down to']} | {row['seconds']:.2f} "
        f"| {row['time / all']:.2f} | {row['peak MiB']:,} | {row['peak / all']:.2f} |"
        for row in found["rows"]
    ]
    return "\n".join(lines)


def memory_block(found: dict[str, Any]) -> str:
    """A line a choice: what the plan said and what a training step took."""
    lines = ["| choice | planned MiB | measured MiB |", "|---|---:|---:|"]
    for row in found["rows"]:
        choice = f"{row['method']}, {row['optimizer']}"
        choice += ", gradient checkpointing" if row["checkpointing"] else ""
        lines.append(f"| {choice} | {row['planned MiB']:,} | {row['measured MiB']:,} |")
    return "\n".join(lines)


def deploy_block(found: dict[str, Any]) -> str:
    """A line a model: quality, what it keeps of what the adapter recovers, size and speed."""
    lines = [
        "| model | perplexity | KL | of the adapter's gain | MB | generated tokens/s |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['model']} | {row['perplexity']:.2f} | {row['KL']:.3f} | {row['recovered']} "
        f"| {row['MB']:.0f} | {row['generate t/s']:.1f} |"
        for row in found["rows"]
    ]
    return "\n".join(lines)


def _result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = read_json(RESULTS / f"{name}.json")
    return found


def classification_block(*found: dict[str, Any]) -> str:
    """A line a data set and student: what is kept of the teacher, mean and range over seeds. Of
    students that several records hold, the last one's.
    """
    lines = [
        "| texts | student | parameters | fewer in blocks | texts/s | one text "
        "| distilled keeps | fine-tuned keeps |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in found:
        keys = [(row["data"], row["student"]) for row in record["rows"]]
        groups |= {key: [] for key in keys}
        for key, row in zip(keys, record["rows"], strict=True):
            groups[key].append(row)
    for (name, student), mine in groups.items():
        one = mine[0]
        kept, tuned = (
            _mean_and_range([row[key] for row in mine]) for key in ("kept", "kept, fine-tuned")
        )
        lines.append(
            f"| {name} | {student} | {one['parameters'] / 1e6:.1f} M "
            f"| x {one['fewer in blocks, x']:.1f} | x {one['faster, x']:.1f} "
            f"| x {one['one text, x']:.1f} | {kept} | {tuned} |"
        )
    return "\n".join(lines)


def weak_teacher_block(*found: dict[str, Any]) -> str:
    """A line a data set and setting: means over seeds, of macro-F1 with the range."""
    lines = [
        "| texts | learns from | seeds | accuracy | macro-F1 | rare class found "
        "| calibration error | nll |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in (row for one in found for row in one["rows"]):
        groups.setdefault((row["data"], row["setting"]), []).append(row)
    for (name, setting), mine in groups.items():
        means = {
            key: sum(row[key] for row in mine) / len(mine)
            for key in ("accuracy", "macro_f1", "rare recall", "calibration_error", "nll")
        }
        low, high = (pick(row["macro_f1"] for row in mine) for pick in (min, max))
        spread = f" ({low:.3f} to {high:.3f})" if len(mine) > 1 else ""
        lines.append(
            f"| {name} | {setting} | {len(mine)} | {means['accuracy']:.1%} "
            f"| {means['macro_f1']:.3f}{spread} | {means['rare recall']:.0%} "
            f"| {means['calibration_error']:.3f} | {means['nll']:.3f} |"
        )
    return "\n".join(lines)


def pruning_block(*found: dict[str, Any]) -> str:
    """A line a student and state: perplexity by the teacher's and KL, on both texts."""
    lines = [
        "| student | blocks x heads x neurons x channels | parameters | state | lm_wiki89 | KL "
        "| WikiText-2 | KL |",
        "|---|---|---:|---|---:|---:|---:|---:|",
    ]
    rows = {(row["student"], row["state"]): row for one in found for row in one["rows"]}
    order = {student: i for i, student in enumerate(dict.fromkeys(key[0] for key in rows))}
    lines += [
        f"| {row['student']} | {row.get('shape', '')} | {row['parameters'] / 1e6:.1f} M "
        f"| {row['state']} | x {row['wiki ratio']:.2f} | {row['wiki KL']:.3f} "
        f"| x {row['WikiText-2 ratio']:.2f} | {row['WikiText-2 KL']:.3f} |"
        for row in sorted(rows.values(), key=lambda row: order[row["student"]])
    ]
    return "\n".join(lines)


# What docs/guides/choose.md shows of them ------------------------------------------------------


def choose_students_block(*found: dict[str, Any]) -> str:
    """Perplexity by the teacher's: a line a size, way of cutting and healing."""
    lines = [
        "| parameters | cut along | trained on | on text like the training's | on other text |",
        "|---|---|---|---:|---:|",
    ]
    ways = {"depth": "blocks", "width": "heads, neurons, channels", "search": "all (`target`)"}
    rows = {}
    for row in (row for one in found for row in one["rows"]):
        parsed = re.fullmatch(r"(\d+)% less, (\w+): healed on ([\d,]+)", _kind(row))
        if parsed is not None:
            less, way, tokens = parsed.groups()
            rows[int(less), list(ways).index(way), int(tokens.replace(",", ""))] = row
    for (less, way, tokens), row in sorted(rows.items()):
        lines.append(
            f"| {less}% fewer | {list(ways.values())[way]} | {tokens:,} tokens "
            f"| x {row['wiki ratio']:.2f} | x {row['WikiText-2 ratio']:.2f} |"
        )
    return "\n".join(lines)


def _kind(row: dict[str, Any]) -> str:
    return f"{row['student']}: {row['state']}"


USE_OF_CODECS = {
    "hybrid k=32": "`forward_kl`, disk is short",
    "hybrid k=64": "`forward_kl`: take this one",
    "nucleus mass=0.95 k=64": "other divergences, other temperatures",
    "topk k=64": "the same; simplest to read from other programs",
    "final_hidden kl=0.0025": "any divergence at any temperature, `logit_mse`",
}


def choose_codecs_block(found: dict[str, Any], labels: dict[str, Any]) -> str:
    """A line a codec worth choosing: when, bytes a token, error of a batch's gradient."""
    size = next(row["bytes/token"] for row in labels["rows"] if row["format"] == "float32")
    rows = {row["codec"]: row for row in found["rows"][::-1]}
    lines = [
        "| codec | when | bytes a token | 10 million tokens | error of a batch's gradient |",
        "|---|---|---:|---:|---:|",
    ]
    lines += [
        f"| `{name}` | {use} | {rows[name]['bytes/token']:.0f} "
        f"| {rows[name]['bytes/token'] / 100:.1f} GB | {rows[name]['summed error']:.1%} |"
        for name, use in USE_OF_CODECS.items()
    ]
    lines.append(
        "| `label` | the text's own tokens alone: the reference of a preference loss, a filter for "
        f"answers, perplexity | {size:.0f} | {size / 100:.2f} GB | no distribution |"
    )
    return "\n".join(lines)


def choose_artifacts_block(found: dict[str, Any]) -> str:
    """A line an artifact: size, perplexity by the unquantised student's, speed."""
    lines = [
        "| artifact | MB | perplexity, of the unquantised | generated tokens/s |",
        "|---|---:|---:|---:|",
    ]
    arms = ("init", "finetune", "distill", "specialized")
    lines += [
        f"| `{row['model']}` | {row['MB']:.0f} | {row['of unquantised'] - 1:+.1%} "
        f"| {row['generate t/s']:.0f} |"
        for row in found["rows"]
        if row["model"] not in arms and "nearest" not in row["model"]
    ]
    return "\n".join(lines)


def labels_block(found: dict[str, Any]) -> str:
    """A line a format: bytes, errors of a token, of sums, and of a preference margin."""
    sums = [key for key in found["rows"][0] if key.startswith("sum")]
    lines = [
        f"| format | bytes/token | a token | {' | '.join(sums)} | margin of 500, worst |",
        f"|---|---:|---:|{'---:|' * len(sums)}---:|",
    ]
    for row in found["rows"]:
        errors = " | ".join(f"{row[key]:.1e}" for key in ("token", *sums, "margin"))
        size = f"{row['bytes/token']:.1f}" if row["bytes/token"] else ""
        lines.append(f"| {row['format']} | {size} | {errors} |")
    return "\n".join(lines)


def _mean_and_range(values: list[float]) -> str:
    return f"{sum(values) / len(values):.1%} ({min(values):.1%} to {max(values):.1%})"


def pages() -> dict[Path, str]:
    """The pages as the results want them."""
    blocks = {
        "codecs.md": {
            "codecs": codecs_block(_result("cache_codecs")),
            "labels": labels_block(_result("label_precision")),
            "layers": layers_block(_result("layer_codecs")),
            "students": students_block(_result("cache_students")),
        },
        "classification.md": {
            "students": classification_block(
                _result("classification"), _result("classification_narrow")
            ),
            "weight of the labels": weak_teacher_block(_result("weak_teacher_weights")),
            "weak teacher": weak_teacher_block(
                _result("weak_teacher"), _result("weak_teacher_sms")
            ),
        },
        "speed.md": {
            "remote": remote_block(_result("remote")),
            "kills": kills_block(_result("kills")),
            "steps": steps_block(_result("step"), _result("step_8x1024")),
            "memory": steps_block(_result("step_memory_bf16")),
            "gradients": gradients_block(_result("gradients")),
        },
        "pruning.md": {
            "pruning": pruning_block(
                *map(_result, ("pruning", "pruning_heal", "soup_shrink", "soup_heal"))
            )
        },
        "transfer.md": {"trainable": trainable_block(_result("trainable"))},
        "specialize.md": {"memory": memory_block(_result("memory"))},
        "deploy.md": {"deploy": deploy_block(_result("deploy"))},
        "instruct.md": {"instruct": instruct_block(_result("instruct_tiny"), _result("instruct"))},
        "on_policy.md": {
            "on-policy": on_policy_block(_result("on_policy")),
            "rloo": rloo_block(_result("rloo")),
            "speed": rollout_speed_block(_result("rollout_speed")),
        },
        "answers.md": answer_blocks(tiny=_result("answers_tiny")),
        "plan.md": {"plan": plan_block(_result("planned"))},
        "prompting.md": {"search": prompt_block(*prompt_results(RESULTS))},
        "transport.md": transport_blocks(RESULTS),
        "sweep.md": sweep_blocks(RESULTS),
        "compare.md": compare_blocks(RESULTS),
        "preferences.md": {
            "steps": preference_steps_block(_result("preferences")),
            "quality": preference_quality_block(RESULTS),
        },
    }
    made = {HERE / name: _filled(HERE / name, own) for name, own in blocks.items()}
    guide = {
        "choose students": choose_students_block(_result("pruning"), _result("pruning_heal")),
        "choose codecs": choose_codecs_block(_result("cache_codecs"), _result("label_precision")),
        "choose methods": memory_block(_result("memory")),
        "choose artifacts": choose_artifacts_block(_result("deploy")),
    }
    return {**made, CHOOSING: _filled(CHOOSING, guide)}


def _filled(page: Path, blocks: dict[str, str]) -> str:
    text = page.read_text(encoding="utf8")
    for name, block in blocks.items():
        pattern = rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)"
        assert re.search(pattern, text, re.S), f"{page.name} has no place for {name}"
        text = re.sub(pattern, rf"\g<1>{block}\n\g<2>", text, flags=re.S)
    return text


def main() -> None:
    """Write or check."""
    for page, wanted in pages().items():
        if "--check" not in sys.argv:
            page.write_text(wanted, encoding="utf8")
        elif wanted != page.read_text(encoding="utf8"):
            sys.exit(
                f"{page.parent.name}/{page.name} is stale: python benchmarks/tables.py writes it."
            )


if __name__ == "__main__":
    main()
