"""`distill compare`: ways to do a task on the same rows.

Heavy modules are imported inside the functions, so that help and errors appear at once.
"""

from __future__ import annotations

from pathlib import Path

import click

from distill.commands.options import message_options, set_option
from distill.commands.say import say


@click.command("compare")
@click.argument("recipe", type=click.Path())
@click.option(
    "--dir", "folder", type=click.Path(file_okay=False), help="Default: runs/RECIPE-comparison."
)
@click.option("--arms", help="Names of arms with commas between them; default: all that fit.")
@click.option("--budget", help="Time for all arms: seconds, or 90s, 30m, 2h.")
@set_option
@message_options
def compare(
    recipe: str, folder: str | None, arms: str | None, budget: str | None,
    overrides: tuple[str, ...], **show: bool,
) -> None:  # fmt: skip
    """Compare ways to do the recipe's task: prompts, features, tuning, adapters, distilling.

    Every arm learns from the same rows, of several numbers, and is measured on the same rows. It
    goes on where it was stopped. Leaves comparison.json and comparison.html.
    """
    from distill.comparison.advice import largest_point
    from distill.comparison.cells import Comparison
    from distill.comparison.compare import compare as run_comparison
    from distill.comparison.page import arm_table, report_lines
    from distill.console import print_table, set_up_logging
    from distill.run.load import load_recipe

    set_up_logging(**show)
    given = [f"compare.arms=[{arms}]"] if arms else []
    given += [f"compare.budget={budget}"] if budget else []
    loaded = load_recipe(recipe, (*overrides, *given))
    where = Path(folder) if folder else Path("runs") / f"{Path(recipe).stem}-comparison"
    found = run_comparison(Comparison(loaded, where))
    if not show["quiet"]:
        print_table(arm_table(found, largest_point(found)))
        for line in report_lines(found):
            say(line)
    say(f"Page: {where / 'comparison.html'}")
