"""Options that several commands take, each declared once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

Decorator = Callable[[Any], Any]
CODEC_HELP = "A codec and its parameters, as in `topk:k=16` or `{name: topk, k: 16}`."


def _together(options: Sequence[Decorator]) -> Decorator:
    """Several options as one decorator, in the order in which help shows them."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


message_options = _together(
    [
        click.option("-v", "--verbose", is_flag=True, help="More messages."),
        click.option("--quiet", is_flag=True, help="Warnings only."),
    ]
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key; repeatable."
)
run_dir_option = click.option(
    "--run-dir", type=click.Path(file_okay=False), help="Default: runs/RECIPE."
)
recipe_options = _together(
    [click.argument("recipe", type=click.Path()), run_dir_option, set_option, message_options]
)
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace the models of another run in the run folder."
)
stage_options = _together([recipe_options, overwrite_option])


def trust_option(model: str = "the model") -> Decorator:
    """`--trust-remote-code`; `model`: whose code it is, as help says it."""
    return click.option(
        "--trust-remote-code", is_flag=True, help=f"Run code that comes with {model}."
    )


def json_option(content: str) -> Decorator:
    """`--json FILE`, the argument `file`; `content`: what is written there."""
    return click.option(
        "--json", "file", type=click.Path(dir_okay=False), help=f"Write {content} into this file."
    )


def codec_option(*, required: bool = False) -> Decorator:
    """`--codec`, which `codec_argument.codec_of` reads."""
    return click.option("--codec", metavar="CODEC", required=required, help=CODEC_HELP)
