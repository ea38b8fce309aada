"""What a teacher on a server cannot give, and whether the server gives what the cache needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from distill.objective.terms import reads_from
from distill.recipe.answers import keeps_signals
from distill.run.context import Run
from distill.run.teacher_side import TeacherSide
from distill.stages.answer_writers import check_other_server
from distill.stages.stage import ANSWER, BUILD, CACHE, EVALUATE, EXPORT, SPECIALIZE, TRAIN
from distill.stages.status import is_done
from teachers.cache.config import HiddenStatesConfig
from teachers.codecs.label import Label
from teachers.load import check_has_weights
from teachers.remote.client import Client
from teachers.remote.probe import connect

STAGE_OF = {"train": TRAIN, "specialize": SPECIALIZE, "export.recover": EXPORT}


def check_server(run: Run, names: Sequence[str]) -> None:
    """Raise an error for the first thing that these stages need and a server does not give: of a
    teacher its weights, where they are not in `teacher.model` as well, and signals and answers as
    they must be, for which the server is probed; of another writer the teacher's ids.
    """
    todo = [name for name in names if not is_done(run, name)]
    answers, written = run.recipe.data.answers, (run.folder.answers / "requests").exists()
    if ANSWER.name in todo and answers is not None and not written:
        check_other_server(run)  # later only where there is still something to ask
    if run.recipe.teacher.server is None:
        return
    for stage, what in _readers_of_weights(run):
        if stage in todo:
            check_has_weights(run.recipe.teacher, what)
    if CACHE.name in todo and run.makes_cache and not run.recipe.cache.unfinished:
        if run.transports_itself:
            run.task.runner(TeacherSide(run))
        elif not run.transports:
            run.task.runner(run)
    elif ANSWER.name in todo and writes_answers(run):
        _probe_writer(run)


def writes_answers(run: Run) -> bool:
    """Whether the teacher writes the answers that are learned."""
    answers = run.recipe.data.answers
    return answers is not None and answers.from_ == "teacher"


def _probe_writer(run: Run) -> None:
    """Probe the server for what writing needs: its signals too where they are kept."""
    server, config = run.recipe.teacher.server, run.recipe.cache
    assert server is not None
    if not keeps_signals(run.recipe):
        config = config.model_copy(update={"codec": Label(), "hidden": HiddenStatesConfig()})
    longest = run.recipe.data.max_length
    connect(Client(server), run.tokenizer, run.vocabulary, config, longest)


def _readers_of_weights(run: Run) -> Iterator[tuple[str, str]]:
    """(stage, what of the recipe reads the teacher's weights in it)."""
    if run.recipe.student.from_ == "teacher":
        yield BUILD.name, "`student.from: teacher`"
    for path, section in run.recipe.learning().items():
        if reads_from(section, "online"):
            yield STAGE_OF[path].name, f"`{path}`, which learns from the teacher itself (`online`),"
    measuring = (
        "stage `evaluate`, which measures the teacher (the stages before it can be run one by one: "
        "`distill cache build`, `distill build`, `distill train`, `distill export`),"
    )
    yield EVALUATE.name, measuring
