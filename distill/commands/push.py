"""`distill push`: send an artifact with its card to a repository of the hub.

Heavy modules are imported inside the functions, so that help and errors appear at once.
"""

from __future__ import annotations

from typing import Any

import click

from distill.commands.options import message_options
from distill.commands.say import say

CARD_LINES = 16  # of a card that a dry run shows


@click.command("push")
@click.argument("run_or_artifact")
@click.argument("repository", metavar="REPO")
@click.option("--artifact", help="An artifact of the run; default: the one that is fit to ship.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent; the hub is not asked.")
@click.option(
    "--private/--public", default=True, show_default=True, help="Who can read the repository."
)
@click.option("--revision", metavar="BRANCH", help="Send to this branch, made where it is missing.")
@click.option("--message", help="Of the commit.")
@click.option("--force", is_flag=True, help="Send it although unfit, not measured or damaged.")
@message_options
def push(
    run_or_artifact: str,
    repository: str,
    artifact: str | None,
    dry_run: bool,
    private: bool,
    revision: str | None,
    message: str | None,
    force: bool,
    **show: bool,
) -> None:
    """Send an artifact of a run, with its model card, to a repository of the Hugging Face hub.

    REPO is NAME or OWNER/NAME. The token is that of `hf auth login`, or HF_TOKEN.
    """
    from distill.console import set_up_logging
    from distill.push import check_allowed, check_repository, prepare_package
    from distill.push import push as send

    set_up_logging(**show)
    check_repository(repository)
    package = prepare_package(run_or_artifact, artifact)
    if dry_run:
        _show(package, repository, private, revision)
    if not force:
        check_allowed(package)
    for objection in package.objections:
        say(f"Warning: `{package.name}`: {objection}.", err=True)
    if dry_run:
        return
    message = message or f"Add the artifact {package.name}"
    address = send(package, repository, private=private, revision=revision, message=message)
    say(f"Pushed {package.name}, {len(package.files)} files, to {address}")


def _show(package: Any, repository: str, private: bool, revision: str | None) -> None:
    """Where an artifact would go, its files with sizes, and the start of its card."""
    from distill.console import print_table

    branch = f", branch {revision}" if revision is not None else ""
    seen = "private" if private else "public"
    say(f"{package.folder} would go to {repository} ({seen}{branch}):")
    rows = [[name, f"{size:,}"] for name, size in package.files.items()]
    total = ["total", f"{sum(package.files.values()):,}"]
    print_table([["file", "bytes"], *rows, total])
    say(f"Its card, {package.folder / 'README.md'}:")
    for line in package.card.splitlines()[:CARD_LINES]:
        say(f"    {line}")
