"""`distill export` and `distill evaluate`: make what is deployed, and measure it.

Heavy modules are imported inside the functions, so that help and mistakes answer at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from distill.commands.run import do_stages, open_run, recipe_options

UNFIT = 3  # exit status where an artifact loses more than the recipe tolerates


def check_fit(run: Any) -> None:
    """Measure a run's artifacts unless they are; exit with 3 where one is not fit to ship."""
    from distill.report.selection import unfit
    from distill.stages.report import assemble

    do_stages(run, ["evaluate"], alone=True)
    lines = unfit(assemble(run))
    for line in lines:
        click.echo(line, err=True)
    if lines:
        sys.exit(UNFIT)


@click.command("export")
@recipe_options
@click.option("--strict", is_flag=True, help="Measure too; exit 3 where one is not fit to ship.")
def export(
    recipe: str, run_dir: str | None, overrides: tuple[str, ...], strict: bool, **show: bool
) -> None:
    """Write the artifacts that are deployed."""
    run = open_run(recipe, run_dir, overrides, **show)
    do_stages(run, ["export"], alone=True)
    if strict:
        check_fit(run)


@click.command("evaluate")
@click.argument("targets", nargs=-1, required=True, metavar="RECIPE | MODEL...")
@click.option("--run-dir", type=click.Path(file_okay=False), help="Default: runs/RECIPE.")
@click.option("--data", multiple=True, help="Measure MODELs on this: file, folder or hub id.")
@click.option("--teacher", help="Compare MODELs with it: KL, top-1 agreement.")
@click.option("--json", "file", type=click.Path(dir_okay=False), help="Write the numbers there.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with a MODEL.")
@click.option("--strict", is_flag=True, help="Of a run: exit 3 where an artifact is not fit.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override.")
@click.option("-v", "--verbose", is_flag=True, help="More messages.")
@click.option("--quiet", is_flag=True, help="Warnings only.")
def evaluate(
    targets: tuple[str, ...],
    run_dir: str | None,
    data: tuple[str, ...],
    teacher: str | None,
    file: str | None,
    trust_remote_code: bool,
    strict: bool,
    overrides: tuple[str, ...],
    **show: bool,
) -> None:
    """Measure a run's models on held-out text, or any MODEL on --data.

    A MODEL is a folder, a hub id, a GGUF file or an artifact, made by attar or not; --set takes the
    keys of a recipe's `data` and `evaluate`, e.g. --set evaluate.tokens=4096.
    """
    from attar.errors import RecipeError

    if len(targets) == 1 and _is_recipe(targets[0]):
        wrong = [n for n, v in (("--data", data), ("--teacher", teacher), ("--json", file)) if v]
        if wrong:
            raise RecipeError(f"{wrong[0]} is for MODELs; the recipe {targets[0]} says what it is.")
        run = open_run(targets[0], run_dir, overrides, **show)
        do_stages(run, ["evaluate"], alone=True)
        if strict:
            check_fit(run)
        return
    if strict or run_dir is not None:
        name = "--strict" if strict else "--run-dir"
        raise RecipeError(f"{name} is for a recipe or a run folder, and {targets[0]} is neither.")
    _evaluate_models(targets, teacher, data, overrides, file, trust_remote_code, **show)


def _is_recipe(target: str) -> bool:
    path = Path(target)
    return path.suffix in (".yaml", ".yml") or (path / "recipe.yaml").is_file()


def _evaluate_models(
    models: tuple[str, ...],
    teacher: str | None,
    data: tuple[str, ...],
    overrides: tuple[str, ...],
    file: str | None,
    trust_remote_code: bool,
    **show: bool,
) -> None:
    from attar.files import write_json
    from distill.console import print_table, set_up_logging
    from distill.evaluate_models import evaluate_any, measure_config
    from distill.recipe.parse import overridden
    from distill.report.tables import measured_table
    from distill.tasks.registry import TASKS

    set_up_logging(**show)
    config = measure_config(data, overridden({}, overrides))
    found = evaluate_any(models, teacher, config, trust_remote_code)
    print_table(measured_table(found, TASKS[found["task"]].report))
    if file:
        write_json(Path(file), found)
        click.echo(f"Wrote {file}.")
