"""`distill tune` searches the keys of each arm's training.

Heavy modules are imported inside the functions, so that help and errors appear at once.
"""

from __future__ import annotations

from pathlib import Path

import click

from distill.commands.options import recipe_options
from distill.commands.say import say


@click.command("tune")
@recipe_options
@click.option(
    "--write",
    "file",
    type=click.Path(dir_okay=False),
    help="Write the recipe with the best keys into this new file.",
)
def tune(
    recipe: str, run_dir: str | None, overrides: tuple[str, ...], file: str | None, **show: bool
) -> None:
    """Search the keys of the section `tune` for each arm, on the validation part.

    Leaves tune.json and a run folder for every trial in trials/. Continues where an earlier search
    was stopped.
    """
    from distill.console import print_table, set_up_logging
    from distill.run.load import load_recipe
    from distill.tune.outcome import check_new, printed, trial_table, write_tuned
    from distill.tune.search import tune as search

    set_up_logging(**show)
    if file is not None:
        check_new(Path(file))
    folder = Path(run_dir) if run_dir else Path("runs") / f"{Path(recipe).stem}-tune"
    found = search(load_recipe(recipe, overrides), folder)
    if not show["quiet"]:
        print_table(trial_table(found))
        for one in found["arms"].values():
            for warning in one["warnings"]:
                say(f"Warning: {warning}")
        say(f"The best keys, for the recipe:\n\n{printed(found)}\n")
    if file is not None:
        write_tuned(recipe, found, Path(file))
        say(f"Wrote {file}; then: distill run {file}")
