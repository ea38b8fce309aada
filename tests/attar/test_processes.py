"""Processes started together leave together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import atexit
import torch.distributed
atexit.register(lambda: print("in a group at exit:", torch.distributed.is_initialized()))
from attar.processes import process_state
print("in a group at work:", process_state().num_processes)
"""


@pytest.mark.slow
def test_a_process_leaves_its_group_before_it_ends(tmp_path):
    # A group left to the interpreter's end aborts one run in four ("terminate called").
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(script)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("in a group at work: 2") == 2
    assert done.stdout.count("in a group at exit: False") == 2
