"""Run a function in a fresh process: imports are shared, memory and state are not.

A fork server imports the heavy libraries once and then forks a clean child for each call (ten
seconds of imports saved a call on a slow machine). It has run no thread and touched no device, so
its children are as good as new processes.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import QueueHandler
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, cast

from attar.errors import ModelError
from attar.files import read_json
from attar.models import silenced
from attar.progress import Relay, Replay, set_listener
from attar.storage_errors import storage_error
from distill.console import PACKAGES

SILENCER = silenced.__name__
# Imported by the fork server beside the module of the first function that is run.
PRELOADED_LIBRARIES = (
    "datasets",
    "transformers.generation",
    "transformers.modeling_utils",
    "transformers.models.llama.modeling_llama",
)
# Set by torchrun; a child that saw them would wait for other processes.
PROCESS_GROUP_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def preloaded(function: Callable[[Any], None]) -> list[str]:
    """Names of the modules that the fork server imports before it runs a function."""
    return [SILENCER, function.__module__, *PRELOADED_LIBRARIES]


def numbers_from_fresh_process(
    function: Callable[[Any], None], argument: Any, out: Path, failure: str
) -> dict[str, Any]:
    """What `function(argument)` writes into the JSON file `out`, called in a child.

    failure: the beginning of the sentence on a child that failed. Raises `ModelError` where it left
    nothing, or an object with an `error`, whose file is deleted.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    run_in_fresh_process(function, argument)
    if not out.exists():
        raise ModelError(f"{failure}: its process died.")
    found: dict[str, Any] = read_json(out)
    if "error" in found:
        out.unlink()
        raise ModelError(f"{failure}: {found['error']}")
    return found


def run_in_fresh_process(function: Callable[[Any], None], argument: Any) -> int:
    """Call `function(argument)` in a child; returns its exit status. Both must pickle.

    Raises the `OSError` of a full disk or a missing right that ended it. The child ends with this
    process, whatever ends that.
    """
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(preloaded(function))
    answer, answers = context.Pipe(duplex=False)
    hidden = {name: os.environ.pop(name) for name in PROCESS_GROUP_VARIABLES if name in os.environ}
    try:
        child = context.Process(target=_call, args=(function, argument, answers))
        _start(child, method)
    finally:
        os.environ.update(hidden)
    answers.close()
    replay = Replay()
    try:
        with answer:
            error = _hear_out(child, answer, replay)
        child.join()
    except BaseException:  # Ctrl-C or a stop signal
        child.kill()
        child.join()
        raise
    finally:
        replay.close()
    if error is not None:
        raise error
    return int(child.exitcode or 0)


def _hear_out(child: Any, answer: Any, replay: Replay) -> Exception | None:
    """Repeat what the child logs and how far it is until it ends; gives the error that ended it."""
    error = None
    while True:
        ready = wait([answer, child.sentinel])
        if answer not in ready:
            return error  # it ended, and everything that it sent was read
        try:
            message = answer.recv()
        except (EOFError, ConnectionError):  # it closed its end
            return error
        if isinstance(message, logging.LogRecord):
            logging.getLogger(message.name).handle(message)
        elif isinstance(message, Exception):
            error = message
        else:
            replay.take(message)


def _start(child: Any, method: str) -> None:
    """Start a child that no signal of the terminal reaches, nor its fork server.

    Children inherit what the server blocks. A stop is heard while the server imports.
    """
    if method != "forkserver":
        with _terminal_signals_blocked():
            child.start()
        return
    from multiprocessing import forkserver

    with _terminal_signals_blocked():
        forkserver.ensure_running()
    child.start()


@contextmanager
def _terminal_signals_blocked() -> Iterator[None]:
    """Block what a terminal sends to all its processes; those that are started here keep it so.

    This process gets such a signal too, after the block, and ends the others without their words.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which unblocks SIGINT, if it is started further down
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _call(function: Callable[[Any], None], argument: Any, answers: Any) -> None:
    """In the child: call the function; send the error of a disk or a right."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sender = _Sender(answers)
    for name in PACKAGES:  # what it logs would be written over the parent's live display
        logging.getLogger(name).addHandler(QueueHandler(cast(Any, sender)))
    set_listener(Relay(sender.put_nowait))
    try:
        function(argument)
    except Exception as error:
        found = storage_error(error)
        if found is None:
            raise
        sender.put_nowait(found)


class _Sender:
    """A pipe to the parent for several threads, as the queue that `QueueHandler` expects."""

    def __init__(self, answers: Any) -> None:
        self._answers, self._lock = answers, threading.Lock()

    def put_nowait(self, message: Any) -> None:
        """Send a record, an error or a message of `Relay`."""
        with self._lock:
            self._answers.send(message)


def _end_with_parent() -> None:
    """A killed parent must not leave a child behind that writes into the folder of the next run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
