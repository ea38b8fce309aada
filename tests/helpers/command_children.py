"""Runs `distill` in children of its own, so that tests can kill them: `python command_children.py`.

Each line of its input is a JSON object. `{"arguments": [...], "folder": DIR, "out": FILE}` forks a
child that runs the command there and writes what it prints to FILE; the answer is its process.
`{"wait": PID}` answers its exit status. The libraries are imported once, and the fork server of
the evaluation is shared, so a command takes a second, not ten.
"""

import json
import multiprocessing
import os
import signal
import sys
from multiprocessing import forkserver

import torch

import distill.evaluation.fresh_process as fresh
from distill.commands.main import main as distill
from distill.evaluation.measure import measure_in_fresh_process
from distill.stages import status  # noqa: F401  (imports the stages)


def child(order: dict) -> None:
    """Run one command, in a process group of its own as a shell would start it."""
    os.setsid()
    out = os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(order["folder"])
    os.environ.update(order.get("environment", {}))
    forkserver._forkserver.ensure_running = lambda: None  # it is our parent's child, not ours
    distill(order["arguments"], prog_name="distill")


def main() -> None:
    torch.set_num_threads(1)  # threads do not survive a fork
    multiprocessing.set_forkserver_preload(fresh.preloaded(measure_in_fresh_process))
    forkserver.ensure_running()
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                child(order)
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code or 0)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
