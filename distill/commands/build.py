"""`distill build` makes the student; `distill vocabulary` drops unused ids before a recipe is used.

Heavy modules are imported inside the functions, so that help and errors appear at once.
"""

from __future__ import annotations

from pathlib import Path

import click

from distill.commands.options import message_options, set_option, stage_options, trust_option
from distill.commands.run import do_stages, open_run
from distill.commands.say import say


@click.command("build")
@stage_options
@click.option("--dry-run", is_flag=True, help="Show the shapes to choose from, and write nothing.")
def build(
    recipe: str, run_dir: str | None, overrides: tuple[str, ...], dry_run: bool, **show: bool
) -> None:
    """Make the student: pretrained, fresh, or cut from the teacher."""
    opened = open_run(recipe, run_dir, overrides, **show)
    if not dry_run:
        do_stages(opened, ["build"], alone=True)
        return
    from distill.commands.preview import preview_shapes
    from distill.console import print_table

    print_table(preview_shapes(opened))


@click.command("vocabulary")
@click.argument("model")
@click.option("--data", multiple=True, help="Text whose ids are kept: a file, folder or dataset.")
@click.option("--out", required=True, type=click.Path(file_okay=False), help="A new folder.")
@click.option(
    "--most", type=click.IntRange(1), help="Keep at most this many ids, the most frequent first."
)
@trust_option("MODEL")
@set_option
@message_options
def vocabulary(
    model: str,
    data: tuple[str, ...],
    out: str,
    most: int | None,
    trust_remote_code: bool,
    overrides: tuple[str, ...],
    **show: bool,
) -> None:
    """Write MODEL with only the ids that --data uses, and its tokenizer, into a new folder.

    A recipe may then name it as its teacher; --set takes the keys of a recipe's `data`.
    """
    from distill.console import set_up_logging
    from distill.evaluate_models import evaluation_config
    from distill.fit_vocabulary import fit_vocabulary
    from distill.recipe.parse import overridden

    set_up_logging(**show)
    config = evaluation_config(data, overridden({}, overrides)).data
    say(fit_vocabulary(model, config, Path(out), most, trust_remote_code).sentence())
