"""The processes of a group exit cleanly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = """
import atexit, os, pathlib
import torch.distributed
said = pathlib.Path(__file__).with_name(os.environ["RANK"])
atexit.register(lambda: said.write_text(f"{work} {torch.distributed.is_initialized()}"))
from attar.distributed import process_state
work = process_state().num_processes
"""


def test_a_process_leaves_its_group_before_it_ends(tmp_path, several_processes):
    # A group left to the interpreter's end aborts one run in four ("terminate called").
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(script)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = [(tmp_path / rank).read_text() for rank in "01"]
    assert said == ["2 False"] * 2, "two in a group at work, none at exit"
