"""A session of `distill chat`: prompts, what is typed, and commands in between."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from attar.errors import RunError, UserError, nearest
from distill.chat.history import Write
from distill.chat.models import Conversation, open_conversation
from distill.chat.prompted import PromptedConversation
from distill.chat.speaker import Speaker, adapters_line, find_adapters, find_speaker
from distill.chat.system_message import system_message_of
from distill.run.folder import is_run

Ask = Callable[[], str | None]  # the next text that a user types; None at the end
RESET, SYSTEM, EXIT, HELP = ("/reset", "/clear"), "/system", ("/exit", "/quit", "/bye"), "/help"
NO_SYSTEM = '""'  # behind /system
COMMANDS = (*RESET, SYSTEM, *EXIT, HELP)
COMMAND_HELP = """\
/reset, /clear   start again, with the same system message
/system          show the system message
/system TEXT     start again with this system message; /system "": without one
/exit, Ctrl-D    leave
"""
IS_COMMAND = re.compile(r"/[a-z?]+(\s|$)")  # not a path such as /etc/hosts


def choose_speaker(
    run_or_model: str,
    artifacts: Sequence[str] = (),
    arms: Sequence[str] = (),
    adapters: Sequence[str] = (),
) -> Speaker:
    """Who answers, by the options of the command. Raises `RunError` where several are named:
    adapters alone answer side by side.
    """
    given = {"--artifact": artifacts, "--arm": arms, "--adapter": adapters}
    if len(named := [option for option, value in given.items() if value]) > 1:
        raise RunError(f"Give either {named[0]} or {named[1]}: one of them answers.")
    for option in ("--artifact", "--arm"):
        if len(given[option]) > 1:
            raise RunError(
                f"{option} is given {len(given[option])} times ({', '.join(given[option])}), and "
                "one answers; give one of them (several --adapter answer side by side)."
            )
    if adapters:
        base, found = find_adapters(run_or_model, adapters)
        return Speaker(base, found, adapters_line(base, found))
    artifact, arm = (names[0] if names else None for names in (artifacts, arms))
    return find_speaker(run_or_model, artifact, arm)


def first_system_message(run_or_model: str, given: str | None) -> tuple[str | None, str]:
    """The system message to begin with, and a line on it where the user did not give one.

    Without one given, it is that of the run's training data, if all of their first rows have the
    same: a model that was taught with it answers otherwise without it.
    """
    if given is not None or not is_run(Path(run_or_model)):
        return given, ""
    found = system_message_of(Path(run_or_model))
    if found is None:
        return None, ""
    start = " ".join(found.split())
    start = start if len(start) <= 60 else start[:59] + "\u2026"
    return found, f'System message of the training data: "{start}" (another: --system TEXT).'


def chat(
    speaker: Speaker,
    *,
    system: str | None,
    about_system: str = "",
    prompts: Sequence[str],
    max_tokens: int,
    trust_remote_code: bool,
    ask: Ask,
    write: Write,
    remark: Write,
    prompt_file: Path | None = None,
) -> None:
    """Answer the prompts; without prompts, every text that `ask` gives until it gives None.

    about_system: a line on the system message. write: takes answers, and what commands of a session
    say; remark: lines on who speaks, and on a conversation that grew too long. prompt_file: a file
    of `distill prompt`, by which every text is asked by itself.
    """
    conversation: Conversation
    if prompt_file is not None:
        conversation = PromptedConversation(speaker, prompt_file, trust_remote_code)
    else:
        conversation = open_conversation(speaker, trust_remote_code, remark)
    for line in (speaker.why, about_system):
        if line:
            remark(f"{line}\n")
    conversation.begin(system)
    for text in prompts:
        conversation.answer(text, max_tokens, write)
    if not prompts:
        _talk(conversation, system, max_tokens, ask, write)


def _talk(
    conversation: Conversation, system: str | None, max_tokens: int, ask: Ask, write: Write
) -> None:
    """Answer what is typed, and do commands. A turn that fails does not end the session."""
    while (text := ask()) is not None:
        command, _, rest = text.strip().partition(" ")
        if command in EXIT:
            return
        if command in RESET:
            conversation.begin(system)
            write("(A new conversation.)\n")
        elif command == SYSTEM and not rest.strip():
            write(f"(The system message is: {system})\n" if system else "(No system message.)\n")
        elif command == SYSTEM:
            system = rest.strip() if rest.strip() != NO_SYSTEM else None
            conversation.begin(system)
            kept = "with this" if system else "without a"
            write(f"(A new conversation, {kept} system message.)\n")
        elif command == HELP:
            write(COMMAND_HELP)
        elif IS_COMMAND.match(text.strip()):
            write(f"There is no command {command}; /help lists them.{nearest(command, COMMANDS)}\n")
        else:
            try:
                conversation.answer(text, max_tokens, write)
            except UserError as error:
                write(f"Error: {error}\n")
