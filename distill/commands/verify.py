"""`distill verify`: is everything in a run's folder as it was written?

Heavy modules are imported inside the function, so that help and errors appear at once.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from distill.commands.options import message_options
from distill.commands.run import open_run
from distill.commands.say import say


@click.command("verify")
@click.argument("folder", metavar="RUN", type=click.Path(file_okay=False))
@message_options
def verify(folder: str, **show: bool) -> None:
    """Read all files of a run folder and compare their checksums. Exit 1 where one is damaged.

    What the stages left, the data, the cache and the artifacts are checked.
    """
    from attar.errors import RunError
    from distill.console import print_table
    from distill.stages.verify import verified_rows, verify_run

    if not (Path(folder) / "recipe.yaml").is_file():
        raise RunError(f"{folder} is no run folder: it has no recipe.yaml.")
    found = verify_run(open_run(folder, None, (), **show))
    print_table(verified_rows(found))
    faults = [fault for one in found for fault in one.faults]
    for fault in faults:
        say(fault)
    if faults:
        sys.exit(1)
    say(f"All is well: {sum(one.files for one in found):,} files.")
