"""Whole runs that are killed or asked to stop in every stage end as if nothing had happened."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.small_disk import fill_up, small_disk
from tests.runs.test_run import digest

LEARNS = "lr: 1e-3, batch_size: 4, precision: float32, max_steps: 8, checkpoint_every: 2"
CHANGES = [
    f"teacher.adapt={{{LEARNS}}}",
    "student={target: {parameters: 70%, candidates: 2, heal_steps: 2, tokens: 20}}",
    "train.max_steps=8",
    f"specialize={{method: lora, rank: 2, {LEARNS}, objective: [{{loss: forward_kl}}]}}",
    "export.artifacts=[bf16, adapter]",
    "evaluate.agreement_prompts=1",
    "evaluate.agreement_tokens=4",
]
RUN = ["run", "recipe.yaml", "-v", *(word for change in CHANGES for word in ("--set", change))]
STAGES = ["adapt-teacher", "cache", "build", "train", "specialize", "export", "evaluate", "report"]
KILLS_A_STAGE = 3


class Commands:
    """Commands in children of a process that has imported everything; see the helper's file."""

    def __init__(self, folder):
        script = Path(__file__).parents[1] / "helpers" / "command_children.py"
        self.folder, self._started = folder, 0
        self._server = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    @property
    def out(self):
        """What the last command said."""
        return self.folder / f"said-{self._started}.txt"

    def ask(self, **order):
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def start(self, *arguments, **more):
        """The process of a command."""
        self._started += 1  # a file each: an orphan may still write into the last one
        where = {"folder": str(self.folder), "out": str(self.out)}
        return self.ask(arguments=[*map(str, arguments)], **where, **more)

    def wait(self, process):
        """The exit status of a command, and what it said."""
        return self.ask(wait=process), self.out.read_text()

    def run(self, *arguments):
        status, said = self.wait(self.start(*arguments))
        assert status == 0, said

    def close(self):
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


@pytest.fixture
def commands(workshop, tmp_path):
    made = Commands(tmp_path)
    yield made
    made.close()


def stages_begun(folder):
    log = Path(folder, "run.log")
    text = log.read_text() if log.exists() else ""
    return re.findall(r"INFO stage \d+ of \d+: ([a-z-]+) \.\.\.$", text, re.M)


def stage_under_way(folder):
    text = Path(folder, "run.log").read_text()
    return re.findall(
        r"INFO (?:stage \d+ of \d+: )?([a-z-]+)(?: \.\.\.|: done in .* s)$", text, re.M
    )[-1]


def start_until(commands, stage, folder, after, **more):
    """Start the run, and come back some seconds after a stage has begun; gives its process."""
    before = stages_begun(folder).count(stage)
    process = commands.start(*RUN, "--run-dir", folder, **more)
    deadline = time.monotonic() + 120
    while stages_begun(folder).count(stage) == before:
        time.sleep(0.002)
        assert time.monotonic() < deadline, commands.out.read_text()
    time.sleep(after)
    return process


def seconds_of(folder, stage):
    return json.loads(Path(folder, "records", f"{stage}.json").read_text())["seconds"]


def redo(folder, stage):
    Path(folder, "records", f"{stage}.json").unlink(missing_ok=True)


def check_same(one, other):
    """Assert equal weights, signals, examples and measured values."""
    assert digest(one) == digest(other)
    names = sorted(path.name for path in Path(one, "evaluation").glob("*.npz"))
    for name in names:
        ours, theirs = (np.load(Path(folder, "evaluation", name)) for folder in (one, other))
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key])
    assert len(names) == 7
    verdicts = [json.loads(Path(f, "report.json").read_text())["verdict"] for f in (one, other)]
    for verdict in verdicts:
        verdict.pop("sentence")  # it names the seconds
    assert verdicts[0] == verdicts[1]


def leftovers(folder):
    found = [path for path in Path(folder).rglob("*") if path.name != "previous"]
    return [p.name for p in found if p.suffix in (".partial", ".old") or "run.lock" in p.name]


def test_kill_9_in_every_stage_then_going_on_gives_the_same_bits(twenty_kills, commands):
    commands.run(*RUN, "--run-dir", "whole")
    dice, killed_in = random.Random(0), []
    for stage in STAGES:
        seconds = seconds_of("whole", stage)
        for i in range(KILLS_A_STAGE):
            after = seconds * (i + dice.random()) / KILLS_A_STAGE * 0.8
            redo("killed", stage)  # where an earlier kill came too late
            process = start_until(commands, stage, "killed", after)
            os.kill(process, signal.SIGKILL)
            status, _ = commands.wait(process)
            killed_in += [stage_under_way("killed")] if status == -signal.SIGKILL else []
    commands.run(*RUN, "--run-dir", "killed")
    check_same("killed", "whole")
    assert leftovers("killed") == []
    assert len(killed_in) >= twenty_kills, killed_in
    assert set(killed_in) == set(STAGES), killed_in


def test_stop_signals_in_every_stage_leave_a_run_that_goes_on(twenty_kills, commands):
    """SIGTERM as a cloud sends it, to the command; the others as a terminal does, to its group."""
    commands.run(*RUN, "--run-dir", "whole")
    ways = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
    wrong = {}
    for i, stage in enumerate([*STAGES, "evaluate", "evaluate"]):
        number = ways[i % 3]
        redo("stopped", stage)
        after = 0.4 * seconds_of("whole", stage)
        process = start_until(commands, stage, "stopped", after, alone=stage == "evaluate")
        os.kill(process, number) if number == signal.SIGTERM else os.killpg(process, number)
        status, said = commands.wait(process)
        expected = (status == 128 + number, "run the same command again" in said)
        if not all(expected) or "Traceback" in said or leftovers("stopped"):
            wrong[i, stage, number] = (status, said[-2000:], leftovers("stopped"))
    assert not wrong
    commands.run(*RUN, "--run-dir", "stopped")
    check_same("stopped", "whole")


# A disk that is full, a folder that may not be written -------------------------------------------


def test_a_full_disk_in_every_stage_is_one_sentence_and_the_run_goes_on(
    twenty_kills, commands, tmp_path
):
    commands.run(*RUN, "--run-dir", "whole")
    dice = random.Random(0)
    with small_disk(tmp_path / "disk", "32m") as disk:
        for stage in STAGES:
            words = ["cache", "build"] if stage == "cache" else [stage]
            arguments = [*words, *RUN[1:], "--run-dir", disk / "out"]
            filler = fill_up(disk, leave=dice.randrange(16_000, 64_000))
            status, said = commands.wait(commands.start(*arguments))
            filler.unlink()
            lines = [line for line in said.splitlines() if line.startswith("Error: ")]
            assert status == 1, (stage, said)
            assert "Traceback" not in said, (stage, said)
            assert len(lines) == 1, (stage, said)
            assert re.match(rf"Error: The disk is full[:( ]+{disk}/out/\S+ cannot", lines[0]), said
            assert leftovers(disk / "out") == []
            commands.run(*arguments)
        check_same(disk / "out", "whole")


def test_a_run_folder_that_cannot_be_made_is_one_sentence(workshop):
    result = workshop("run", "recipe.yaml", "--run-dir", "text.jsonl/out", ok=False)
    assert result.exit_code == 1
    assert re.search(
        r"^Error: .*text\.jsonl/out\S* cannot be .*Not a directory", result.output, re.M
    )


def test_a_run_folder_on_a_disk_that_is_read_only_is_one_sentence(workshop, tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        result = workshop("run", "recipe.yaml", "--run-dir", disk / "out", ok=False)
    assert result.exit_code == 1
    said = rf"^Error: {disk}/out cannot be read or written \(Read-only file system\)"
    assert re.search(said, result.output, re.M)


# Several processes -------------------------------------------------------------------------------


def start_two(folder):
    """`distill train` in two processes, all of whose output is in one pipe."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m"]
    options = ["--set", "train.batch_size=2", "--set", "train.arms=[]"]
    command = [*launch, "distill", "train", "recipe.yaml", "--run-dir", folder, *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def process_of_rank(launcher, rank):
    """The process id of a rank."""
    pids = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    for pid in pids:
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return int(pid)
    raise AssertionError(f"no rank {rank} among {pids}")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="asks /proc for the ranks")
def test_a_lost_process_ends_the_others_with_a_sentence_and_the_run_goes_on(
    several_processes, workshop
):
    """Before the first checkpoint the second process is lost, and after it the first one."""
    options = ("--set", "train.batch_size=2", "--set", "train.arms=[]")
    for stage in (["adapt-teacher"], ["cache", "build"], ["build"]):
        workshop(*stage, "recipe.yaml", "--run-dir", "two", *options)
    last = Path("two/arms/distill/last")
    for lost in (1, 0):
        before = stages_begun("two").count("train")
        launcher = start_two("two")
        while stages_begun("two").count("train") == before or (lost == 0 and not last.exists()):
            assert launcher.poll() is None, launcher.communicate()[0]
            time.sleep(0.01)
        os.kill(process_of_rank(launcher, lost), signal.SIGKILL)
        said, _ = launcher.communicate(timeout=120)
        assert launcher.returncode == 1
        assert "StopSignal" not in said
        # torchrun may end the other one by SIGTERM before it has noticed
        assert "Another process of this command has ended" in said or "SIGTERM" in said, said
    launcher = start_two("two")
    said, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, said
    assert "going on from step" in Path("two/run.log").read_text()
