"""How a group of commands behaves: a user's mistake is one line and exit 1, Ctrl-C exit 130."""

from __future__ import annotations

import sys
from typing import Any

import click


class Group(click.Group):
    """Turns what a user can mend into one line and exit 1, and Ctrl-C into 130."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; let only our own bugs show a traceback."""
        from attar.errors import UserError

        try:
            return super().invoke(ctx)
        except UserError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("Stopped; the same command goes on from here.", err=True)
            sys.exit(130)
