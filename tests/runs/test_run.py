"""Whole runs through the command line, on a tiny teacher: what a user sees, kills and repeats."""

import hashlib
import html
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from distill.training.checkpoint import seal

EXAMPLES = Path(__file__).parents[2] / "examples"


def digest(folder):
    """SHA-256 of every weight and signal file below a folder."""
    files = sorted(f for f in Path(folder).rglob("*") if f.suffix in (".safetensors", ".arrow"))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def check_own_answers(report, page):
    """Teacher and students wrote 5 answers of 6 tokens at most, and the report has both columns."""
    arms = report["arms"]
    for name, numbers in {"teacher": report["teacher"], **arms}.items():
        own = numbers["own_answers"]
        assert own["answers"] == 5
        assert own["teacher_nll"] > 0
        assert 5 <= own["tokens"] <= 30
        assert ("reverse_kl" in own) == (name != "teacher")
        assert ("difference" in own) == (name in ("init", "finetune"))
    assert arms["distill"]["own_answers"]["reverse_kl"] > 0
    assert "own_answers" not in report["artifacts"]["bf16"]
    assert "On the answers that each wrote itself" in report["verdict"]["sentence"]
    assert "<h2>On the models&#x27; own answers</h2>" in page
    assert page.count("<th>own KL</th>") == 2, "beside the KL on held-out text, and in its section"


def test_a_run_leaves_a_student_artifacts_and_a_report_and_then_has_nothing_to_do(workshop):
    options = (
        "--set", "export.artifacts=[bf16, nf4, int8]",
        "--set", "evaluate.own_answers={prompts: 5, new_tokens: 6, batch_size: 2}",
    )  # fmt: skip
    first = workshop("run", "recipe.yaml", "--run-dir", "out", *options)
    report = json.loads(Path("out/report.json").read_text())
    assert set(report["arms"]) == {"init", "finetune", "distill"}
    assert set(report["artifacts"]) == {"bf16", "nf4", "int8"}
    for numbers in [report["teacher"], *report["arms"].values(), *report["artifacts"].values()]:
        for key in ("nll", "perplexity", "parameters", "bytes", "peak_memory_bytes"):
            assert numbers[key] > 0
        assert set(numbers["tokens_per_second"]) == {"prefill", "generate"}
        assert numbers["nll_interval"] is None, "too few held-out documents to tell"
        assert numbers["timing"]["calls"] == 5
        assert numbers["machine"]["device"] in ("cpu", "cuda")
    assert report["verdict"]["helped"] is None
    assert "cannot be told better or worse" in report["verdict"]["sentence"]
    arms = report["arms"]
    assert arms["distill"]["kl_to_teacher"] < arms["init"]["kl_to_teacher"]
    assert arms["distill"]["kl_to_teacher"] < arms["finetune"]["kl_to_teacher"]
    assert report["verdict"]["sentence"] in first.output
    cost = report["cost"]
    peaks = [cost["stages"][name]["peak_memory_bytes"] for name in ("cache", "build", "train")]
    assert min(peaks) > 0
    assert 0 < max(arm["peak_memory_bytes"] for arm in cost["arms"].values()) <= peaks[-1]
    measured = [report["teacher"], *arms.values(), *report["artifacts"].values()]
    largest = max(one["process_peak_bytes"] for one in measured)
    assert cost["stages"]["evaluate"]["peak_memory_bytes"] == largest, "not of what waits for them"
    page = Path("out/report.html").read_text()
    assert "peak memory, MB" in page
    assert f"Timed on {report['teacher']['machine']['name']}" in html.unescape(page)
    assert report["selection"]["validation_tokens"] > 0
    assert report["selection"]["sentence"] in html.unescape(page)
    assert page.count("<svg") == 4
    check_own_answers(report, page)
    assert "<h2>What the models write</h2>" in page
    for name in ("distill", "finetune"):
        assert 0 < report["training"][name]["kept_step"] <= report["training"][name]["steps"]
    assert len(report["student"]["kept"]["layers"]) == 2
    assert report["data"]["parts"]["held_out"]["documents"] > 0
    prompts = [one["prompt"] for one in report["teacher"]["samples"]]
    assert len(prompts) == 3
    assert prompts == [one["prompt"] for one in report["artifacts"]["nf4"]["samples"]]
    assert "http" not in page.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "").replace("https://matplotlib.org", "")
    card = Path("out/artifacts/nf4/README.md").read_text()
    assert "| perplexity |" in card or "| ppl |" in card

    again = workshop("run", "recipe.yaml", "--run-dir", "out", *options)
    assert "Nothing to do" in again.output

    talk = workshop("chat", "out", "--artifact", "nf4", "--prompt", "light", "--max-tokens", "4")
    assert talk.output.strip()
    student = AutoModelForCausalLM.from_pretrained("out/arms/distill/student")
    assert not any("projector" in name for name in student.state_dict())


def test_only_what_a_change_touches_is_done_again(workshop):
    workshop.finished("out")
    before = digest("out/cache"), digest("out/arms/distill/student")
    workshop("train", "recipe.yaml", "--run-dir", "out", "--set", "train.lr=3e-3")
    assert digest("out/cache") == before[0]
    assert digest("out/arms/distill/student") != before[1]


def test_a_stage_before_its_needs_names_the_command(workshop):
    result = workshop("train", "recipe.yaml", "--run-dir", "out", ok=False)
    assert result.exit_code == 1
    assert "distill cache build" in result.output


@pytest.mark.parametrize("stage", [["cache", "build"], ["train"]])
def test_kill_9_anywhere_then_the_same_command_gives_the_same_bits(workshop, stage):
    workshop.finished("whole")
    if stage == ["train"]:
        workshop.finished("killed", "build")
    watched = Path("killed/cache/shards" if stage[0] == "cache" else "killed/arms/distill/last")
    process = workshop.start(*stage, "recipe.yaml", "--run-dir", "killed", "-v")
    deadline = time.time() + 300
    while process.poll() is None and time.time() < deadline:
        if watched.exists() and any(watched.iterdir()):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    workshop.upto_train("killed")
    assert digest("killed/cache") == digest("whole/cache")
    for arm in ("distill", "finetune"):
        part = f"arms/{arm}/student"
        assert digest(f"killed/{part}") == digest(f"whole/{part}")


def test_ctrl_c_saves_and_the_same_command_goes_on(workshop):
    many = ("--set", "train.epochs=6", "--set", "train.arms=[]")
    for stage in (["adapt-teacher"], ["cache", "build"], ["build"]):
        workshop(*stage, "recipe.yaml", "--run-dir", "out", *many)
    process = workshop.start("train", "recipe.yaml", "--run-dir", "out", *many)
    state = Path("out/arms/distill/last/progress.json")
    while not state.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 130, output
    assert "run the same command again to continue" in output
    assert json.loads(state.read_text())["step"] >= 2
    result = workshop("train", "recipe.yaml", "--run-dir", "out", *many, "-v")
    assert "going on from step" in Path("out/run.log").read_text()
    assert result.exit_code == 0


def test_a_damaged_shard_is_named_and_rebuilt_on_request(workshop):
    workshop.finished("out")
    before = digest("out/cache")
    shard = next(Path("out/cache/shards").glob("*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    result = workshop(
        "train",
        "recipe.yaml",
        "--run-dir",
        "out",
        "--set",
        "seed=0",
        "--set",
        "train.lr=2e-3",
        ok=False,
    )
    assert result.exit_code == 1
    assert shard.name in result.output
    assert "--repair" in result.output
    repaired = workshop("cache", "build", "recipe.yaml", "--run-dir", "out", "--repair")
    assert shard.name in repaired.output
    assert digest("out/cache") == before


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("teacher.dtype=bfloat16", "teacher.dtype"),
        ("cache.codec.k=8", "codec.k"),
        ("data.max_length=40", "data."),
        ("cache.hidden.layers=[2, 3, 4]", "hidden.layers"),
    ],
)
def test_a_cache_made_for_something_else_is_refused_and_kept(workshop, change, field):
    workshop.finished("out", "cache build")
    before = digest("out/cache")
    arguments = ("recipe.yaml", "--run-dir", "out", "--set", change)
    workshop("adapt-teacher", *arguments)
    result = workshop("cache", "build", *arguments, ok=False)
    assert result.exit_code == 1
    assert f"made with {field}" in result.output
    assert "cache.dir" in result.output
    assert digest("out/cache") == before


def test_a_cache_of_another_teacher_is_refused(workshop, make_model):
    workshop.finished("out", "cache build")
    make_model(5, width=64, layers=4, vocabulary=320).save_pretrained("teacher")
    workshop("adapt-teacher", "recipe.yaml", "--run-dir", "out")
    result = workshop("cache", "build", "recipe.yaml", "--run-dir", "out", ok=False)
    assert result.exit_code == 1
    assert "teacher.weights" in result.output


def test_a_teacher_with_another_head_is_another_teacher(workshop):
    """Of the same size, and with all else as it was."""
    workshop.finished("out", "cache build")
    file = Path("teacher/model.safetensors")
    weights = load_file(file)
    weights["lm_head.weight"][-1, -1] += 1
    save_file(weights, file, metadata={"format": "pt"})
    workshop("adapt-teacher", "recipe.yaml", "--run-dir", "out")
    shared = ("--run-dir", "other", "--set", "cache.dir=out/cache")
    for where in (("--run-dir", "out"), shared):
        result = workshop("cache", "build", "recipe.yaml", *where, ok=False)
        assert result.exit_code == 1
        assert "teacher.weights" in result.output


def test_adapting_the_teacher_and_qlora_from_the_cache(workshop):
    more = []
    for change in (
        "teacher.adapt={lr: 1e-3, batch_size: 4, precision: float32, keep_checkpoints: true}",
        "specialize={method: qlora, rank: 4, lr: 1e-3, objective: [{loss: forward_kl}]}",
        "train.arms=[]",
    ):
        more += ["--set", change]
    workshop("run", "recipe.yaml", "--run-dir", "out", *more)
    report = json.loads(Path("out/report.json").read_text())
    assert "specialized" in report["arms"]
    assert "unknown" in report["verdict"]["sentence"]
    assert Path("out/specialized/adapter/adapter_model.safetensors").exists()
    history = json.loads(Path("out/arms/teacher/last/progress.json").read_text())["history"]
    assert history[-1]["nll"] < history[0]["nll"]
    assert not Path("out/specialized/run/last").exists()


def test_a_fresh_and_a_pretrained_student(workshop, make_model, tokenizer):
    narrow = "student={from: {num_hidden_layers: 2, hidden_size: 32, intermediate_size: 64}}"
    arms = ("--set", "train.arms=[]")
    workshop.upto_train("fresh", "--set", narrow, *arms)
    model = AutoModelForCausalLM.from_pretrained("fresh/arms/distill/student")
    assert model.config.hidden_size == 32
    make_model(7, width=64, layers=1, vocabulary=320).save_pretrained("small")
    tokenizer.save_pretrained("small")
    only = "train.objective=[{loss: reverse_kl}, {loss: hidden_cosine, layers: [[1, 4]]}]"
    workshop.upto_train("pretrained", "--set", "student={from: small}", "--set", only, *arms)


def test_two_processes_train_the_same_student(workshop, several_processes):
    workshop.upto_train("one", "--set", "train.batch_size=2", "--set", "train.accumulate=2")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "-m",
        "distill",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for stage in (["adapt-teacher"], ["cache", "build"], ["build"], ["train"]):
        arguments = [*stage, "recipe.yaml", "--run-dir", "two", "--set", "train.batch_size=2"]
        done = subprocess.run([*command, *arguments], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert digest("one/cache") == digest("two/cache")
    students = [
        AutoModelForCausalLM.from_pretrained(f"{name}/arms/distill/student").state_dict()
        for name in ("one", "two")
    ]
    for name, tensor in students[0].items():
        assert (tensor - students[1][name]).abs().max() < 1e-4, name


# tests/distill/tasks/sequence_classification/test_runs.py, test_instruct.py and
# test_comparisons.py run these
ELSEWHERE = {"classification.yaml", "compare.yaml", "instruct.yaml"}


@pytest.mark.parametrize("example", sorted({p.name for p in EXAMPLES.glob("*.yaml")} - ELSEWHERE))
def test_every_example_runs_from_end_to_end(workshop, example):
    """With a tiny teacher and little text in the place of its own; all else as it stands."""
    stand_ins = {
        "teacher.model": "teacher",
        "data.train": "text.jsonl",
        "data.name": "null",
        "data.held_out": "0.2",
        "data.max_length": "48",
        "data.train_tokens": "1500",
        "student.layers.keep": "2",
        "student.layers.calibration_tokens": "64",
        "evaluate.tokens": "200",
        "evaluate.prefill_tokens": "32",
        "evaluate.generate_tokens": "4",
    }
    changes = [word for key, value in stand_ins.items() for word in ("--set", f"{key}={value}")]
    workshop("run", EXAMPLES / example, "--run-dir", "out", *changes)
    assert json.loads(Path("out/report.json").read_text())["verdict"]["sentence"]


def test_a_cache_that_was_deleted_is_built_again(workshop):
    import shutil

    workshop.finished("out")
    before = digest("out/cache")
    shutil.rmtree("out/cache")
    workshop("cache", "build", "recipe.yaml", "--run-dir", "out")
    assert digest("out/cache") == before


def test_another_way_of_adapting_makes_another_teacher(workshop):
    adapt = "teacher.adapt={{lr: {}, batch_size: 4, precision: float32}}"
    teachers = []
    for lr in ("1e-3", "3e-3"):
        change = ("--set", adapt.format(lr), "--overwrite")
        workshop("adapt-teacher", "recipe.yaml", "--run-dir", "out", *change)
        assert not Path("out/arms/teacher/last").exists()
        teachers.append(digest("out/teacher"))
    assert teachers[0] != teachers[1]


def test_a_run_stopped_on_other_processes_is_not_mixed_up(workshop):
    workshop.finished("out", "train", "--set", "train.keep_checkpoints=true")
    state = Path("out/arms/distill/last/progress.json")
    state.write_text(json.dumps({**json.loads(state.read_text()), "world": 2}))
    seal(state.parent, state.parents[1])
    Path("out/arms/distill/result.json").unlink()
    Path("out/records/train.json").unlink()
    result = workshop("train", "recipe.yaml", "--run-dir", "out", ok=False)
    assert result.exit_code == 1
    assert "2 processes" in result.output
