"""What commands print: text of models, data and files cannot command the terminal."""

from __future__ import annotations

import click

from attar.printable import printable


def say(text: str = "", *, nl: bool = True, err: bool = False) -> None:
    """Print text on the terminal, control characters as visible codes; err: on stderr."""
    click.echo(printable(text), nl=nl, err=err)
