"""What every benchmark shares: both sides in turn in one process, medians, and a dated record."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from attar.machine import processor_name


def arguments(about: str) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help="the same measure, under a minute")
    parser.add_argument("--json", metavar="FILE", help="write the record there")
    return parser


def in_turn(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each side, called in turn after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds + 1):
        for name, call in sides.items():
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def processor() -> str:
    """Name of the processor or the GPU, and how many cores are used."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads, instructions = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    return f"{processor_name()}, {threads} threads, {instructions}"


def record(rows: list[dict[str, Any]], file: str | None) -> None:
    """Print the rows as one table; with a file, write them with date, machine, versions, commit."""
    header = list(rows[0])
    cells = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]
    for line in [header, *cells]:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    if file is None:
        return
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    packages = ("torch", "transformers", "accelerate", "attar")
    found = {
        "date": date.today().isoformat(),
        "machine": processor(),
        "versions": {name: version(name) for name in packages},
        "commit": commit,
        "command": " ".join(["python", *sys.argv]),
        "rows": rows,
    }
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(json.dumps(found, indent=2) + "\n")
