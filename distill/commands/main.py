"""The command line: one command a stage, without logic. A user's error is one line and exit 1."""

from __future__ import annotations

import json
from pathlib import Path

import click

from distill.commands.advise import advise
from distill.commands.build import build, vocabulary
from distill.commands.cache import cache
from distill.commands.chat import chat
from distill.commands.compare import compare
from distill.commands.data import data
from distill.commands.deploy import evaluate, export
from distill.commands.features import features
from distill.commands.group import Group
from distill.commands.options import recipe_options, stage_options
from distill.commands.prompt import prompt
from distill.commands.push import push
from distill.commands.run import (
    cache_audit,
    cache_build,
    do_stages,
    doctor,
    exit_where_failed,
    open_run,
    print_report,
)
from distill.commands.say import say
from distill.commands.sweep import sweep
from distill.commands.transport import transport
from distill.commands.tune import tune
from distill.commands.verify import verify
from distill.stages.stage import ADAPT_TEACHER, ANSWER, REPORT, SPECIALIZE, STAGES, TRAIN, Stage


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="attar", prog_name="distill")
def main() -> None:
    """Turn a large teacher into a small, quantised, tested student, by one recipe."""


@main.command()
@click.argument("path", type=click.Path(dir_okay=False), default="recipe.yaml")
@click.option("--template", default="causal-lm", help="The name of a task.")
def init(path: str, template: str) -> None:
    """Write a commented starter recipe."""
    from distill.tasks.starter import write_starter

    write_starter(Path(path), template)
    say(f"Wrote {path}; edit it, then: distill plan {path}")


@main.command()
def schema() -> None:
    """Print the recipe's JSON schema, for editors."""
    from distill.run.load import recipe_schema

    say(json.dumps(recipe_schema(), indent=2))


@main.command()
@recipe_options
@click.option("--choices", is_flag=True, help="Show the memory of other ways to specialise too.")
def plan(
    recipe: str,
    run_dir: str | None,
    overrides: tuple[str, ...],
    choices: bool,
    **show: bool,
) -> None:
    """Estimate the steps, disk, memory and time of a run, without running it."""
    from distill.console import print_table
    from distill.planning.estimate import (
        choice_rows,
        estimates,
        plan_rows,
        plan_warnings,
        unit_of,
    )
    from distill.stages.other_recipe import refusal_of
    from distill.stages.preflight import check_before_work

    run = open_run(recipe, run_dir, overrides, **show)
    check_before_work(run)
    lines = estimates(run)
    print_table(plan_rows(lines, unit_of(run)))
    for warning in plan_warnings(lines):
        say(f"Warning: {warning}")
    if refusal := refusal_of(run):
        say(f"`distill run` will refuse: {refusal}")
    if choices:
        print_table(choice_rows(run))


@main.command()
@stage_options
def run(recipe: str, run_dir: str | None, overrides: tuple[str, ...], **show: bool) -> None:
    """Run all stages; continues where an earlier run was stopped."""
    opened = open_run(recipe, run_dir, overrides, **show)
    do_stages(opened, list(STAGES), alone=False)
    from attar.distributed import is_first_process

    if not show["quiet"] and is_first_process():
        print_report(opened.folder.path)
    exit_where_failed(opened)


def add_stage(stage: Stage) -> None:
    """Add a command that runs one stage."""

    @main.command(stage.name, help=stage.help)
    @stage_options
    def _stage(recipe: str, run_dir: str | None, overrides: tuple[str, ...], **show: bool) -> None:
        do_stages(open_run(recipe, run_dir, overrides, **show), [stage.name], alone=True)


for one in (ADAPT_TEACHER, ANSWER, TRAIN, SPECIALIZE, REPORT):  # the others' commands take options
    add_stage(one)


main.add_command(data)
main.add_command(advise)
main.add_command(compare)
main.add_command(build)
main.add_command(export)
main.add_command(evaluate)
main.add_command(features)
main.add_command(tune)
main.add_command(vocabulary)
main.add_command(cache)
main.add_command(doctor)
main.add_command(verify)
main.add_command(chat)
main.add_command(prompt)
main.add_command(push)
main.add_command(sweep)
cache.add_command(cache_build)
cache.add_command(cache_audit)
cache.add_command(transport)
