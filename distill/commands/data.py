"""`distill data`: what will be learned, before anything is."""

from __future__ import annotations

import click

from distill.commands.options import recipe_options
from distill.commands.run import open_run
from distill.commands.say import say


@click.command("data")
@recipe_options
@click.option(
    "--rows", type=click.IntRange(0), default=3, show_default=True,
    help="Show what is learned of the first rows of each source.",
)  # fmt: skip
def data(
    recipe: str, run_dir: str | None, overrides: tuple[str, ...], rows: int, **show: bool
) -> None:
    """Show what will be learned: parts, classes, lengths, what is left out, and some rows.

    The data are prepared as the run does it: in the run folder where there is one, else nothing
    stays. In the rows, what is learned stands in marks.
    """
    from distill.commands.preview import MARKS, preview_rows
    from distill.console import print_table
    from distill.planning.data_summary import data_sections, summary
    from distill.planning.prepared import prepared
    from distill.stages.preflight import check_data_files, check_task

    run = open_run(recipe, run_dir, overrides, **show)
    for check in (check_data_files, check_task):
        check(run)
    with prepared(run) as ready:
        for config in data_sections(ready):
            found = summary(ready, config)
            say(f"{config.section}:")
            for table in (found.parts, found.classes, found.lengths):
                if table:
                    print_table(table)
            for remark in found.remarks:
                say(f"- {remark}.".replace("..", ".").replace("?.", "?"))
            if rows:
                say(f"The first rows; what is learned stands in {MARKS[0]} {MARKS[1]}:")
            for line in preview_rows(ready, config, rows):
                say(line)
