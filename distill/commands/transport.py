"""`distill cache transport`: a teacher's cache for students of another tokenizer."""

from __future__ import annotations

from pathlib import Path

import click

from distill.commands.options import json_option, message_options, trust_option
from distill.commands.run import open_run
from distill.commands.say import say


@click.command("transport")
@click.argument("url", metavar="CACHE")
@click.argument("out")
@click.option("--to", required=True, metavar="MODEL", help="Whose tokenizer the new cache is for.")
@click.option(
    "--data", metavar="RECIPE", help="The recipe or run of the text; default: CACHE's own run."
)
@trust_option("MODEL")
@json_option("what the transport keeps")
@message_options
def transport(
    url: str,
    out: str,
    to: str,
    data: str | None,
    trust_remote_code: bool,
    file: str | None,
    **show: bool,
) -> None:
    """Carry a teacher's signals to the ids of another tokenizer. No model is run.

    A recipe whose student has that tokenizer may name OUT in `cache.dir`.
    """
    from attar.errors import RecipeError
    from attar.files import write_json
    from distill.console import print_table
    from distill.stages.transport_fidelity import fidelity_table
    from distill.transport_cache import transport_cache

    if data is None:
        own = Path(url).parent
        if not (own / "recipe.yaml").is_file():
            raise RecipeError(
                f"`{url}` is not in a run's folder, so its text is not known; name the recipe that "
                "it was made with by `--data`."
            )
        data = str(own)
    run = open_run(data, None, (), **show)
    numbers, found = transport_cache(run, url, to, out, trust_remote_code)
    if file:
        write_json(Path(file), [one.values() for one in found])
    print_table(fidelity_table(found))
    size = numbers["bytes"] / max(1, numbers["tokens"])
    say(
        f"{out}: {numbers['examples']:,} examples, {numbers['tokens']:,} tokens, {size:.1f} bytes "
        "a token."
    )
