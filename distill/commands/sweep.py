"""`distill sweep` tries many students from one cache.

Heavy modules are imported inside the functions, so that help and errors appear at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from distill.commands.options import recipe_options
from distill.commands.run import EXIT_FAILED_ARTIFACT
from distill.commands.say import say


@click.command("sweep")
@recipe_options
def sweep(recipe: str, run_dir: str | None, overrides: tuple[str, ...], **show: bool) -> None:
    """Try the students of the section `sweep`; train to the end those that stay ahead.

    Leaves sweep.json, sweep.html and a run folder for every student in trials/. Continues where an
    earlier sweep was stopped.
    """
    from distill.console import set_up_logging
    from distill.run.load import load_recipe
    from distill.sweep.run_sweep import sweep as run_sweep

    set_up_logging(**show)
    folder = Path(run_dir) if run_dir else Path("runs") / Path(recipe).stem
    found = run_sweep(load_recipe(recipe, overrides), folder)
    if not show["quiet"]:
        print_sweep(found, folder)
    failed = [f"{one['trial']} {one['artifact']}" for one in found["artifacts"].values()
              if "failed" in one]  # fmt: skip
    if failed:
        say(f"Error: not every artifact was made and run: {', '.join(failed)} failed.", err=True)
        sys.exit(EXIT_FAILED_ARTIFACT)


def print_sweep(found: dict[str, Any], folder: Path) -> None:
    """A finished sweep's tables and sentences."""
    from distill.console import print_table
    from distill.sweep.page import training_words
    from distill.sweep.tables import front_table, trial_table
    from distill.tasks.registry import TASKS

    print_table(trial_table(found))
    say(f"{training_words(found)}\n")
    print_table(front_table(found, TASKS[found["task"]].report.artifact_columns))
    for line in found["advice"]:
        say(line)
    say(f"Sweep: {folder / 'sweep.html'}")
