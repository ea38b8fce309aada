"""`distill chat`: talk to what a run would ship, or to any model.

Heavy modules are imported inside the function, so that help and errors appear at once.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from distill.commands.options import trust_option
from distill.commands.say import say

ADAPTER_HELP = (
    "`specialized` of a run, NAME=FOLDER, or a folder; repeat it and all answer in one batch."
)


@click.command("chat")
@click.argument("run_or_model")
@click.option(
    "--artifact",
    "artifacts",
    metavar="NAME",
    multiple=True,
    help="An artifact of the run; default: the one that is fit to ship.",
)
@click.option(
    "--arm",
    "arms",
    metavar="NAME",
    multiple=True,
    help="An arm of the run, such as `distill`; also `specialized`.",
)
@click.option("--adapter", "adapters", metavar="NAME", multiple=True, help=ADAPTER_HELP)
@click.option("--system", metavar="TEXT", help="System message; default: the training data's.")
@click.option(
    "--prompt", "prompts", multiple=True, help="Send this instead of asking for input; repeatable."
)
@click.option(
    "--prompt-file",
    type=click.Path(dir_okay=False),
    help="Ask each text with this prompt.json of `distill prompt`.",
)
@click.option("--max-tokens", type=click.IntRange(1), default=128, show_default=True)
@trust_option()
def chat(
    run_or_model: str,
    artifacts: tuple[str, ...],
    arms: tuple[str, ...],
    adapters: tuple[str, ...],
    system: str | None,
    prompts: tuple[str, ...],
    prompt_file: str | None,
    max_tokens: int,
    trust_remote_code: bool,
) -> None:
    """Talk to what a run would ship, to any model folder or id, or to adapters on one of them.

    What is piped into the command is one prompt. At the terminal, /help lists commands.
    """
    from distill.chat.session import chat as start_chat
    from distill.chat.session import choose_speaker, first_system_message

    if prompt_file is not None and system is not None:
        from attar.errors import RunError

        raise RunError("Give either --prompt-file or --system: a prompt has its own instruction.")
    speaker = choose_speaker(run_or_model, artifacts, arms, adapters)
    if not prompts and not sys.stdin.isatty():
        prompts = (_piped(),)
    about_system = ""
    if prompt_file is None:
        system, about_system = first_system_message(run_or_model, system)
    start_chat(
        speaker, system=system, about_system=about_system, prompts=prompts, max_tokens=max_tokens,
        trust_remote_code=trust_remote_code, ask=_typed, write=lambda text: say(text, nl=False),
        remark=lambda text: say(text, nl=False, err=True),
        prompt_file=Path(prompt_file) if prompt_file is not None else None,
    )  # fmt: skip


def _piped() -> str:
    """All of standard input. Raises `RunError` where it is empty."""
    from attar.errors import RunError

    text = sys.stdin.buffer.read().decode("utf8", "replace").strip()
    if not text:
        raise RunError("There is no prompt: standard input is empty; give --prompt TEXT.")
    return text


def _typed() -> str | None:
    """The next line that the user types; None at the end of the input."""
    try:
        return str(click.prompt("you", prompt_suffix="> "))
    except click.Abort:
        return None
