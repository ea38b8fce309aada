"""`distill advise`: what to try, before anything runs.

Heavy modules are imported inside the functions, so that help and errors appear at once.
"""

from __future__ import annotations

from pathlib import Path

import click

from distill.commands.options import json_option, message_options, set_option
from distill.commands.say import say


@click.command("advise")
@click.argument("recipe", type=click.Path())
@click.option("--memory", help="Memory while learning, as in 8GB; default: the machine's.")
@click.option(
    "--comparison", type=click.Path(file_okay=False),
    help="Folder of a comparison; default: runs/RECIPE-comparison, if it is there.",
)  # fmt: skip
@json_option("all numbers and answers")
@set_option
@message_options
def advise(
    recipe: str, memory: str | None, comparison: str | None, file: str | None,
    overrides: tuple[str, ...], **show: bool,
) -> None:  # fmt: skip
    """Say which ways fit the recipe's rows, models and memory, and why; nothing is trained."""
    from attar.files import write_json
    from distill.advise.advise import (
        COMPARISON_FILE,
        arm_rows,
        distances,
        measured_rows,
        question_rows,
        reasons,
        refusals,
    )
    from distill.advise.advise import advise as find_advice
    from distill.advise.memory_limit import machine_memory, memory_of
    from distill.console import print_table, set_up_logging
    from distill.run.load import load_recipe

    set_up_logging(**show)
    limit = machine_memory() if memory is None else memory_of(memory)
    usual = Path("runs") / f"{Path(recipe).stem}-comparison"
    folder = usual if (usual / COMPARISON_FILE).is_file() else None
    found = find_advice(
        load_recipe(recipe, overrides), limit, Path(comparison) if comparison else folder
    )
    if file is not None:
        write_json(Path(file), found.numbers())
    for sentence in found.sentences():
        say(f"Compared: {sentence}")
    print_table(arm_rows(found))
    for line in refusals(found):
        say(line)
    say()
    print_table(question_rows(found), left=range(4))
    for line in reasons(found):
        say(line)
    if found.measured:
        say()
        print_table(measured_rows(found), left=(0, 1, 2, 3, 7))
        for line in distances(found):
            say(line)
