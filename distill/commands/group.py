"""The behaviour of a group of commands: a user's error is one line and exit 1, Ctrl-C exit 130."""

from __future__ import annotations

import sys
from typing import Any

import click

from distill.commands.say import say


class Group(click.Group):
    """Turns an error that a user can correct into one line and exit 1, and Ctrl-C into exit 130."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; only a bug of this program shows a traceback."""
        from attar.errors import UserError

        try:
            return super().invoke(ctx)
        except UserError as error:
            say(f"Error: {error}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            say("Stopped; run the same command again to continue.", err=True)
            sys.exit(130)
