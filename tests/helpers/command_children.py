"""Runs `distill` in children of its own, so that tests can kill them: `python command_children.py`.

Each line of its input is a JSON object. `{"arguments": [...], "folder": DIR, "out": FILE}` forks a
child that runs the command there and writes what it prints to FILE; the answer is its process,
which leads a group of its own, as a shell's do. `{"wait": PID}` answers its exit status. The
libraries are imported once, and the children share one fork server for evaluation, unless
`"alone"` is set: a command then takes a second, not ten.
"""

import json
import multiprocessing
import os
import signal
import sys
import traceback
from multiprocessing import forkserver

import torch

import distill.pipeline  # noqa: F401  (imports what a command needs, once)
from distill.commands.main import main as distill_command
from distill.evaluation.fresh_process import preloaded
from distill.evaluation.measure import measure_in_fresh_process


def child(order: dict) -> None:
    """Run one command."""
    os.setsid()
    out = os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(order["folder"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in order.get("ignored", []):
        signal.signal(number, signal.SIG_IGN)
    if order.get("alone"):
        forkserver._forkserver = forkserver.ForkServer()
        for name in ("ensure_running", "connect_to_new_process", "set_forkserver_preload"):
            setattr(forkserver, name, getattr(forkserver._forkserver, name))
    else:
        # The fork server is our parent's child, not ours; both names of the method lead to it.
        forkserver._forkserver.ensure_running = forkserver.ensure_running = lambda: None
    distill_command(order["arguments"], prog_name="distill")


def run(order: dict) -> int:
    """The exit status of a command, as the interpreter would give it."""
    try:
        child(order)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    torch.set_num_threads(1)  # threads do not survive a fork
    multiprocessing.set_forkserver_preload(preloaded(measure_in_fresh_process))
    forkserver.ensure_running()
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            status = run(order)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
