"""The run that a command works on, its stages and its report; commands that need a whole run.

Heavy modules are imported inside the functions, so that help and errors appear at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from distill.commands.options import json_option, stage_options
from distill.commands.say import say


def open_run(
    recipe: str,
    run_dir: str | None,
    overrides: tuple[str, ...],
    alone: str | None = None,
    /,
    *,
    overwrite: bool = False,
    **show: bool,
) -> Any:
    """The run that a command's arguments name; alone: see `load_recipe`; overwrite: see `Run`."""
    from distill.console import set_up_logging
    from distill.run.context import Run
    from distill.run.load import load_recipe

    set_up_logging(**show)
    if Path(recipe).is_dir():  # a run folder, which holds its recipe
        recipe, run_dir = str(Path(recipe) / "recipe.yaml"), run_dir or recipe
    loaded = load_recipe(recipe, overrides, alone=alone)
    folder = Path(run_dir) if run_dir else Path("runs") / Path(recipe).stem
    return Run(loaded, folder, overwrite)


EXIT_FAILED_ARTIFACT = 4  # exit status where an artifact could not be made or run


def exit_where_failed(run: Any) -> None:
    """Exit with 4, naming them, where artifacts could not be made or run."""
    from attar.distributed import is_first_process
    from distill.stages.evaluate import failed_artifacts

    failed = failed_artifacts(run)
    if failed and is_first_process():
        names = ", ".join(failed)
        say(f"Error: not every artifact was made and run: {names} failed.", err=True)
    if failed:
        sys.exit(EXIT_FAILED_ARTIFACT)


def do_stages(run: Any, names: list[str], *, alone: bool) -> None:
    """Run stages; say so when there was nothing to do."""
    from attar.distributed import is_first_process
    from distill.pipeline import named_in_recipe, run_stages

    named = named_in_recipe(run, names)
    if not named and is_first_process():
        say(f"Nothing to do: the recipe leaves {', '.join(names)} out.")
    elif not run_stages(run, names, alone=alone) and is_first_process():
        say(f"Nothing to do: {', '.join(named)} finished before in {run.folder}.")


def print_report(folder: Path) -> None:
    """A finished run's tables, verdict and advice."""
    from distill.console import print_table
    from distill.report.selection import failed_lines
    from distill.report.speeds import report_models, speed_notes
    from distill.report.tables import artifact_table, model_table, read_report, tokenizer_notes
    from distill.tasks.registry import TASKS

    report = read_report(folder)
    of = TASKS[report["recipe"]["task"]].report
    print_table(model_table(report, of.columns))
    verdict = report["verdict"]
    notes = [*tokenizer_notes(report), *speed_notes(report_models(report))]
    special = report.get("specialize") or {}
    specialising = [special["sentence"]] if "sentence" in special else []  # from schema 8 on
    say("\n".join([*notes, verdict["sentence"], *verdict["warnings"], *specialising, ""]))
    print_table(artifact_table(report, of.artifact_columns))
    for line in [
        *speed_notes(report["artifacts"]),
        *failed_lines(report),
        *(one["sentence"] for one in report["advice"]),
    ]:
        say(line)
    say(f"Report: {folder / 'report.html'}")


@click.command("build")
@stage_options
@click.option("--repair", is_flag=True, help="Check every shard and make damaged ones again.")
def cache_build(
    recipe: str, run_dir: str | None, overrides: tuple[str, ...], repair: bool, **show: bool
) -> None:
    """Run the teacher once and store its signals."""
    opened = open_run(recipe, run_dir, overrides, **show)
    if repair:
        from distill.stages.cache import repair_cache

        for fault in repair_cache(opened):
            say(f"Damaged, will be made again: {fault}", err=True)
    do_stages(opened, ["cache"], alone=True)


@click.command("audit")
@stage_options
@click.option("--budget", type=float, help="Name the codec to use for this many bytes a token.")
@click.option("--write", is_flag=True, help="Write that codec into the recipe.")
@click.option("--tokens", default=2048, show_default=True, help="Held-out tokens to measure on.")
def cache_audit(
    recipe: str,
    run_dir: str | None,
    overrides: tuple[str, ...],
    budget: float | None,
    write: bool,
    tokens: int,
    **show: bool,
) -> None:
    """Measure what each codec would cost and lose, before any training.

    RECIPE may be a run folder. Runs teacher and student over held-out text; the student is built
    first where it is not yet. Leaves audit.json and audit.png in the run folder. Where the student
    has another tokenizer, it shows what the transport to it keeps, by number of entries.
    """
    from attar.errors import RecipeError
    from distill.cache_audit.audit import audit_run, choose, plot, short, table, write_codec
    from distill.console import print_table

    if write and Path(recipe).is_dir():
        raise RecipeError("--write needs the recipe's own file, not a run folder.")
    if write and budget is None:
        raise RecipeError("--write needs --budget: the bytes a token that the codec may take.")
    opened = open_run(recipe, run_dir, overrides, **show)
    if opened.transports:
        if budget is not None:
            raise RecipeError(
                "--budget chooses among codecs, and the student has another tokenizer, for which "
                "the entries of `topk` and `nucleus` are transported: choose `cache.codec.k` by "
                "the table that `distill cache audit` prints without it."
            )
        from distill.cache_audit.transport import audit_transport
        from distill.stages.transport_fidelity import fidelity_table

        print_table(fidelity_table(audit_transport(opened, tokens)))
        return
    found = audit_run(opened, tokens)
    print_table(table(found))
    plot(found, opened.folder.path / "audit.png")
    say(f"Picture: {opened.folder.path / 'audit.png'}")
    if budget is None:
        return
    chosen = choose(found, budget)
    say(f"For {budget:g} bytes a token: cache.codec: {short(chosen.codec)}")
    if write:
        write_codec(Path(recipe), chosen.codec)
        say(f"Wrote it into {recipe}.")


@click.command("doctor")
@stage_options
@click.option(
    "--tokens", type=click.IntRange(32), default=128, show_default=True, help="Tokens of a step."
)
@json_option("the findings")
def doctor(
    recipe: str,
    run_dir: str | None,
    overrides: tuple[str, ...],
    tokens: int,
    file: str | None,
    **show: bool,
) -> None:
    """Check that training is right on this recipe's models and data. Exit 1 if a check fails.

    The student is built first where it is not yet. Runs teacher and student over a few examples,
    and trains a copy for three steps; the run's own cache and training are not touched.
    """
    from distill.doctor.diagnose import diagnose
    from distill.doctor.findings import Checked, line_of, summary, write_findings

    def report_check(done: Checked) -> None:
        if not show["quiet"] or done.outcome in ("FAIL", "warn"):
            say(line_of(done))

    found = diagnose(open_run(recipe, run_dir, overrides, **show), tokens, report_check)
    say(summary(found))
    if file:
        write_findings(found, Path(file))
    if any(done.outcome == "FAIL" for done in found):
        sys.exit(1)
