"""The behaviour of a group of commands: a user's error is one line and exit 1, Ctrl-C exit 130."""

from __future__ import annotations

import sys
from typing import Any

import click

from distill.commands.say import say


class Group(click.Group):
    """Turns an error that a user can correct into one line and exit 1, and Ctrl-C into exit 130.

    So are errors of the machine: a full disk, a missing right, a process that was lost. SIGTERM
    and SIGHUP stop a command as Ctrl-C does.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; only a bug of this program shows a traceback."""
        from attar.stop_signals import exit_status, stopped_as_by_ctrl_c

        try:
            with stopped_as_by_ctrl_c():
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            say("Stopped; run the same command again to continue.", err=True)
            sys.exit(exit_status(stop))
        except Exception as error:
            sentence = _sentence(error)
            if sentence is None:
                raise
            say(f"Error: {sentence}", err=True)
            sys.exit(1)


def _sentence(error: Exception) -> str | None:
    """What a user can do about an error; None for a bug, and for what click itself shows."""
    from attar.distributed import lost_process
    from attar.errors import UserError
    from attar.storage_errors import storage_error, storage_sentence

    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, click.exceptions.Exit | click.ClickException | click.Abort):
        return None
    found = storage_error(error)
    return storage_sentence(found) if found is not None else lost_process(error)
