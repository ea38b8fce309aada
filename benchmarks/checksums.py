"""What checksums cost: the share of each stage's time that reading and comparing its files takes.

python benchmarks/checksums.py --run runs/demo --json benchmarks/results/checksums.json

Of each finished stage of a run: its own files, and with them all files of the stages before it,
which a command of that stage alone compares first. Every byte is read; processor seconds, the
median of rounds. Most of the bytes are in memory, as when a stage has just written them.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from harness import arguments, record

from attar.checksums import faults_of
from distill.run.folder import RunFolder
from distill.stages.stage import STAGES


def seconds_to_read(folder: RunFolder, stages: list[str], rounds: int) -> float:
    """Median processor seconds to compare all files that some stages left."""
    records = [found for stage in stages if (found := folder.record(stage)) is not None]
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        for one in records:
            assert not faults_of(one.files, folder.path, every_byte=True)
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def before(stage: str) -> list[str]:
    """A stage and all that it needs."""
    found = [stage]
    for need in STAGES[stage].needs:
        found += [one for one in before(need) if one not in found]
    return found


def main() -> None:
    """Measure the stages of one run."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--run", default="runs/demo", help="a finished run")
    options = parser.parse_args()
    folder = RunFolder(Path(options.run))
    rows = []
    for stage in STAGES:
        found = folder.record(stage)
        if found is None or not found.files:
            continue
        rounds = 1 if options.quick else 5
        own, whole = (seconds_to_read(folder, names, rounds) for names in ([stage], before(stage)))
        rows.append(
            {
                "stage": stage,
                "stage_seconds": found.seconds,
                "MB": sum(int(size) for size, _ in found.files.values()) / 1e6,
                "own_percent": 100 * own / found.seconds,
                "with_needs_percent": 100 * whole / found.seconds,
            }
        )
    if rows:
        record(rows, options.json)
    else:
        print(f"{folder} is no finished run; `make demo` makes runs/demo.")


if __name__ == "__main__":
    main()
