"""Write the demo's result table into README.md from its report.json.

python benchmarks/results_table.py runs/demo
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path

from harness import processor

from attar.files import write_json
from distill.report.speeds import report_models, speed_notes
from distill.report.tables import artifact_table, model_table, read_report
from distill.tasks.registry import TASKS


def markdown(lines: list[list[str]]) -> str:
    """A table of text, header first, as Markdown."""
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    rows.insert(1, "|---|" + "---:|" * (len(lines[0]) - 1))
    return "\n".join(rows)


def main() -> None:
    """Replace what stands between the markers; keep the report beside the other results."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    report = read_report(folder)
    sentence = report["verdict"]["sentence"]
    advice = "\n".join(f"- {one['sentence']}" for one in report["advice"])
    stages = report["cost"]["stages"]
    seconds = ", ".join(f"{name} {stage['seconds']:.0f} s" for name, stage in stages.items()
                        if stage["seconds"] >= 1)  # fmt: skip
    cost = (
        f"Time: {report['cost']['seconds'] / 60:.1f} minutes on two CPU cores ({seconds}); the "
        f"cache takes {report['cost']['cache_bytes_per_token']:.0f} bytes a token."
    )
    of = TASKS[report["recipe"]["task"]].report
    tables = model_table(report, of.columns), artifact_table(report, of.artifact_columns)
    notes = [" ".join(speed_notes(one)) for one in (report_models(report), report["artifacts"])]
    parts = [markdown(tables[0]), notes[0], sentence, markdown(tables[1]), notes[1], advice, cost]
    block = "\n\n".join(filter(None, parts))
    readme = Path("README.md")
    text = readme.read_text(encoding="utf8")
    pattern = r"(<!-- demo:begin -->\n).*?(\n<!-- demo:end -->)"
    readme.write_text(re.sub(pattern, rf"\g<1>{block}\g<2>", text, flags=re.S), encoding="utf8")
    target = Path("benchmarks/results/demo")
    target.mkdir(parents=True, exist_ok=True)
    for name in ("report.json", "report.html"):
        shutil.copy(folder / name, target / name)
    measured = date.fromtimestamp((folder / "report.json").stat().st_mtime).isoformat()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=folder, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    command = "distill run examples/demo.yaml --run-dir runs/demo"
    found = {"date": measured, "machine": processor(), "commit": commit, "command": command}
    write_json(target / "record.json", found)


if __name__ == "__main__":
    main()
