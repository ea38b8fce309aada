"""Run a function in a fresh process: imports are shared, memory and state are not.

A fork server imports the heavy libraries once and then forks a clean child for each call (ten
seconds of imports saved a call on a slow machine). It has run no thread and touched no device, so
children are as good as new processes.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

PRELOAD = [
    "distill.evaluation.measure",
    "datasets",
    "transformers.generation",
    "transformers.modeling_utils",
    "transformers.models.llama.modeling_llama",
]
ONE_OF_MANY = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def run_apart(function: Callable[[Any], None], argument: Any) -> int:
    """Call `function(argument)` in a child; returns its exit status. Both must pickle."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(PRELOAD)
    hidden = {name: os.environ.pop(name) for name in ONE_OF_MANY if name in os.environ}
    try:
        child = context.Process(target=function, args=(argument,))
        child.start()
        child.join()
    finally:
        os.environ.update(hidden)
    return int(child.exitcode or 0)
