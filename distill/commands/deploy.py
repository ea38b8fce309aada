"""`distill export` and `distill evaluate`: write artifacts, and measure models.

Heavy modules are imported inside the functions, so that help and errors appear at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from distill.commands.options import (
    json_option,
    message_options,
    overwrite_option,
    run_dir_option,
    set_option,
    stage_options,
)
from distill.commands.run import do_stages, exit_where_failed, open_run
from distill.commands.say import say

EXIT_UNFIT = 3  # exit status where an artifact loses more than the recipe tolerates


def check_fit(run: Any) -> None:
    """Measure a run's artifacts unless that is done; exit with 3 where one is not fit to ship."""
    from distill.report.selection import unfit_lines
    from distill.stages.report import assemble

    do_stages(run, ["evaluate"], alone=True)
    lines = unfit_lines(assemble(run))
    for line in lines:
        say(line, err=True)
    if lines:
        sys.exit(EXIT_UNFIT)


@click.command("export")
@stage_options
@click.option("--strict", is_flag=True, help="Measure too; exit 3 where one is not fit to ship.")
def export(
    recipe: str, run_dir: str | None, overrides: tuple[str, ...], strict: bool, **show: bool
) -> None:
    """Write the artifacts."""
    run = open_run(recipe, run_dir, overrides, **show)
    do_stages(run, ["export"], alone=True)
    if strict:
        check_fit(run)
    exit_where_failed(run)


@click.command("evaluate")
@click.argument("targets", nargs=-1, required=True, metavar="RECIPE | MODEL...")
@run_dir_option
@click.option("--data", multiple=True, help="Measure MODELs on this: file, folder or hub id.")
@click.option("--teacher", help="Compare MODELs with this one: KL, top-1 agreement.")
@json_option("the numbers")
@click.option(
    "--trust-remote-code",
    "trusted",
    multiple=True,
    metavar="MODEL",
    help="Run code that comes with this MODEL; repeatable.",
)
@click.option("--strict", is_flag=True, help="Of a run: exit 3 where an artifact is not fit.")
@overwrite_option
@set_option
@message_options
def evaluate(
    targets: tuple[str, ...],
    run_dir: str | None,
    data: tuple[str, ...],
    teacher: str | None,
    file: str | None,
    trusted: tuple[str, ...],
    strict: bool,
    overwrite: bool,
    overrides: tuple[str, ...],
    **show: bool,
) -> None:
    """Measure a run's models on held-out text, or any MODEL on --data.

    A MODEL is a folder, a hub id, a GGUF file or an artifact, made by attar or not; --set takes the
    keys of a recipe's `data` and `evaluate`, e.g. --set evaluate.tokens=4096.
    """
    from attar.errors import RecipeError

    if len(targets) == 1 and _is_recipe(targets[0]):
        given = {
            "--data": data, "--teacher": teacher, "--json": file, "--trust-remote-code": trusted
        }  # fmt: skip
        wrong = [name for name, value in given.items() if value]
        if wrong:
            raise RecipeError(f"{wrong[0]} is for MODELs; the recipe {targets[0]} has its own.")
        run = open_run(targets[0], run_dir, overrides, overwrite=overwrite, **show)
        do_stages(run, ["evaluate"], alone=True)
        if strict:
            check_fit(run)
        exit_where_failed(run)
        return
    of_a_run = {"--strict": strict, "--run-dir": run_dir is not None, "--overwrite": overwrite}
    if name := next((option for option, given in of_a_run.items() if given), None):
        raise RecipeError(f"{name} is for a recipe or a run folder, and {targets[0]} is neither.")
    _evaluate_models(targets, teacher, data, overrides, file, trusted, **show)


def _is_recipe(target: str) -> bool:
    path = Path(target)
    return path.suffix in (".yaml", ".yml") or (path / "recipe.yaml").is_file()


def _evaluate_models(
    models: tuple[str, ...],
    teacher: str | None,
    data: tuple[str, ...],
    overrides: tuple[str, ...],
    file: str | None,
    trusted: tuple[str, ...],
    **show: bool,
) -> None:
    from attar.files import write_json
    from distill.console import print_table, set_up_logging
    from distill.evaluate_models import evaluate_models, evaluation_config
    from distill.recipe.parse import overridden
    from distill.report.speeds import speed_notes
    from distill.report.tables import evaluation_notes, evaluation_table
    from distill.tasks.registry import TASKS

    set_up_logging(**show)
    config = evaluation_config(data, overridden({}, overrides))
    found = evaluate_models(models, teacher, config, trusted)
    report = TASKS[found["task"]].report
    print_table(evaluation_table(found, {**report.columns, **report.extra_columns}))
    for note in evaluation_notes(found):
        say(note)
    teacher_row = {"teacher": found["teacher"]} if "teacher" in found else {}
    for note in speed_notes({**teacher_row, **found["models"]}):
        say(note)
    if file:
        write_json(Path(file), found)
        say(f"Wrote {file}.")
