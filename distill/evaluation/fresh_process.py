"""Run a function in a fresh process: imports are shared, memory and state are not.

A fork server imports the heavy libraries once and then forks a clean child for each call (ten
seconds of imports saved a call on a slow machine). It has run no thread and touched no device, so
its children are as good as new processes.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

from attar.models import silenced

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


def run_in_fresh_process(function: Callable[[Any], None], argument: Any) -> int:
    """Call `function(argument)` in a child; returns its exit status. Both must pickle."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(preloaded(function))
    hidden = {name: os.environ.pop(name) for name in PROCESS_GROUP_VARIABLES if name in os.environ}
    try:
        child = context.Process(target=function, args=(argument,))
        child.start()
        child.join()
    finally:
        os.environ.update(hidden)
    return int(child.exitcode or 0)
