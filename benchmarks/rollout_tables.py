"""The tables of text that students write, for tables.py."""

from __future__ import annotations

from typing import Any


def on_policy_block(found: dict[str, Any]) -> str:
    """A line a way: both columns, and their intervals against the control."""
    lines = [
        "| way | steps | processor s | KL on held-out text | less the control's | KL on its own "
        "| less the control's | teacher's nll there | agreement there |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found["rows"]:
        held, own = row["held-out KL - control"], row["own KL - control"]
        nll = row["teacher's nll of own"]
        lines.append(
            f"| {row['way']} | {row['steps']:,} | {row['processor s']:.0f} "
            f"| {row['held-out KL']:.4f} | {_unless_itself(held)} "
            f"| {row['own KL']:.4f} | {_unless_itself(own)} "
            f"| {nll:.3f} | {row['agreement on own']:.1%} |"
        )
    return "\n".join(lines)


def _unless_itself(interval: str) -> str:
    return "" if set(interval) <= set("+-0. to") else interval


def rloo_block(found: dict[str, Any]) -> str:
    """A line a way: rewards of held-out questions, and their change."""
    lines = [
        "| | reward of drawn answers | change | of the likeliest answer | change "
        "| on the training part |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['way']} | {row['drawn answers']:.3f} | {_unless_itself(row['change, drawn'])} "
        f"| {row['likeliest answer']:.3f} | {_unless_itself(row['change, likeliest'])} "
        f"| {row['on the training part']:.3f} |"
        for row in found["rows"]
    ]
    return "\n".join(lines)


def rollout_speed_block(found: dict[str, Any]) -> str:
    """A line a batch size: tokens a second of each side, and ratios of their times."""
    lines = [
        "| answers at once | generate, tokens/s | ours | with entries | a step "
        "| time of ours / generate | with entries / without |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found["rows"]:
        step = row["a step, tokens/s"]
        lines.append(
            f"| {row['batch']} | {row['generate, tokens/s']:.0f} "
            f"| {row['answers, tokens/s']:.0f} | {row['answers and entries, tokens/s']:.0f} "
            f"| {step if step == '' else f'{step:.0f}'} | {row['answers / generate']:.2f} "
            f"| {row['with entries / answers']:.2f} |"
        )
    return "\n".join(lines)
