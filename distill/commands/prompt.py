"""`distill prompt`: search a prompt for a model, in place of training it.

Heavy modules are imported inside the function, so that help and errors appear at once.
"""

from __future__ import annotations

from typing import Any

import click

from distill.commands.options import recipe_options
from distill.commands.run import open_run
from distill.commands.say import say


@click.command("prompt")
@recipe_options
def prompt(recipe: str, run_dir: str | None, overrides: tuple[str, ...], **show: bool) -> None:
    """Search instructions and demonstrations for a model (section `prompt`).

    Validation rows choose the prompt; held-out rows, which the search does not read, report it.
    """
    run = open_run(recipe, run_dir, overrides, "prompt", **show)
    from distill.prompt_search import prompt_run

    numbers, has_worked = prompt_run(run)
    folder = run.folder.prompt
    if not has_worked:
        say(f"Nothing to do: prompt finished before in {run.folder}.")
        return
    _print_rungs(folder)
    low, high = numbers["accuracy_interval"]
    say(
        f"Unseen questions: accuracy {numbers['accuracy']:.1%} ({max(0, low):.1%} to {high:.1%}, "
        f"{numbers['texts']:,} questions), nll {numbers['nll']:.3f}."
    )
    say(
        f"The questions that chose it: accuracy {numbers['dev_accuracy']:.1%} "
        f"({numbers['dev_texts']:,} questions); the best of {numbers['candidates']} prompts is "
        "better there than elsewhere."
    )
    say(
        f"The search read {numbers['model_tokens']:,} tokens in {numbers['seconds']:.0f} s; a "
        f"question takes {numbers['query_tokens']:.0f}."
    )
    say(f"Prompt: {folder / 'prompt.json'}")


def _print_rungs(folder: Any) -> None:
    """The best candidates of each rung."""
    from attar.files import read_json
    from distill.console import print_table
    from distill.prompting.search import rung_rows

    print_table(rung_rows(read_json(folder / "search.json")))
