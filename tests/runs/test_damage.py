"""Damage to a finished run: it is named, with its stage, by whatever reads it, and made again."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.conftest import Workshop

SMALL = {
    "train": {"max_steps": 6, "checkpoint_every": 2, "evaluate_every": 2},
    "specialize": {
        "method": "lora", "rank": 2, "max_steps": 2, "batch_size": 4, "precision": "float32",
    },
    "export": {"artifacts": ["bf16", "adapter"]},
    "evaluate": {"agreement_prompts": 0, "tokens": 80},
}  # fmt: skip

DAMAGES = {
    "flipped": lambda data: (
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
    ),
    "truncated": lambda data: data[: len(data) // 2],
    "zeroed": lambda data: bytes(len(data)),
    "deleted": None,
}
CHAT = ["--prompt", "light", "--max-tokens", "2"]
# By file: the stage that leaves it, and commands that read it and may not make it again.
READERS = {
    "student/model.safetensors": ("build", [["train"], ["export"]]),
    "student/config.json": ("build", [["train"]]),
    "student/pruning.json": ("build", [["train"]]),
    "student/tokenizer.json": ("build", [["train"]]),
    "arms/distill/student/model.safetensors": (
        "train", [["specialize"], ["evaluate"], ["chat", "--arm", "distill", *CHAT]],
    ),
    "arms/finetune/student/model.safetensors": (
        "train", [["evaluate"], ["chat", "--arm", "finetune", *CHAT]],
    ),
    "arms/distill/result.json": ("train", [["report"]]),
    "specialized/merged/model.safetensors": ("specialize", [["export"]]),
    "specialized/adapter/adapter_model.safetensors": (
        "specialize", [["export"], ["chat", "--adapter", "specialized", *CHAT]],
    ),
    "specialized/result.json": ("specialize", [["report"]]),
    "artifacts/bf16/model.safetensors": (
        "export", [["evaluate"], ["chat", "--artifact", "bf16", *CHAT]],
    ),
    "artifacts/adapter/adapter/adapter_model.safetensors": ("export", [["evaluate"]]),
    "evaluation/distill.json": ("evaluate", [["report"]]),
    "evaluation/finetune.npz": ("evaluate", [["report"]]),
    "report.json": ("report", []),
    "data/train.arrow": ("data", []),
    "data/held_out.arrow": ("data", []),
    "data/stats.json": ("data", []),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(workshop_folder, tmp_path_factory):
    """A folder with a recipe, and its finished run in `out`. Who damages it puts it right again."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(workshop_folder, folder, dirs_exist_ok=True)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    merged = {**recipe, **{k: {**recipe.get(k, {}), **v} for k, v in SMALL.items()}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(merged))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Workshop()("run", "recipe.yaml", "--run-dir", "out")
    return folder


@pytest.fixture
def finished(whole, monkeypatch, whole_stages):
    """Commands in the folder of a finished run, which they must leave as it was."""
    monkeypatch.chdir(whole)
    return Workshop()


@pytest.fixture
def copied(whole, tmp_path, monkeypatch, whole_stages):
    """Commands in a copy of that folder."""
    shutil.copytree(whole, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return Workshop()


def do_damage(file, how):
    change = DAMAGES[how]
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))


@contextmanager
def damaged(name, how):
    """The finished run with one file damaged."""
    file = Path("out", name)
    before = file.read_bytes()
    do_damage(file, how)
    try:
        yield
    finally:
        file.write_bytes(before)


def command(words):
    return [words[0], "out", *words[1:]]


def lines_of(result):
    return [line for line in result.output.splitlines() if line.strip()]


def refusal(finished, words):
    """The one line with which a command refuses."""
    result = finished(*command(words), ok=False)
    assert result.exit_code == 1, (words, result.output)
    errors = [line for line in lines_of(result) if line.startswith("Error: ")]
    assert len(errors) == 1, (words, result.output)
    assert lines_of(result)[-1] == errors[0]
    return errors[0]


def check_named(finished, name, how):
    """(command, outcome) of every command that reads a file that was damaged in this way."""
    stage, readers = READERS[name]
    outcomes = []
    with damaged(name, how):
        found = finished("verify", "out", ok=False)
        assert found.exit_code == 1, found.output
        assert name.rsplit("/", 1)[-1] in found.output, found.output
        outcomes.append(("verify", "named"))
        for words in readers:
            said = refusal(finished, words)
            assert name in said, said
            assert f"`{stage}`" in said, said
            assert f"distill {stage}" in said, said
            outcomes.append((words[0], "named"))
    assert finished("verify", "out").exit_code == 0
    return outcomes


@pytest.mark.parametrize("name", list(READERS))
def test_one_changed_byte_is_named_by_all_that_read_it(finished, name):
    assert check_named(finished, name, "flipped")


def test_every_damage_to_every_file_is_named_by_every_command(finished, full_product, capsys):
    rows = []
    for name in READERS:
        for how in DAMAGES:
            rows += [(name, how, *outcome) for outcome in check_named(finished, name, how)]
    with capsys.disabled():
        print()
        for name, how, by, outcome in rows:
            print(f"{name:52} {how:10} {by:10} {outcome}")
    assert len(rows) == sum(1 + len(readers) for _, readers in READERS.values()) * len(DAMAGES)


def bytes_left():
    """What must come out the same: weights, adapters and examples."""
    files = [f for f in Path("out").rglob("*") if f.suffix in (".safetensors", ".arrow")]
    kept = [f for f in files if not {"evaluation", "last", "run"} & {*f.parts}]
    return {str(f): f.read_bytes() for f in kept if not f.name.startswith("best-")}


def remake(copied, name, how):
    """Damage a file and run again; what was said."""
    before = bytes_left()
    do_damage(Path("out", name), how)
    said = copied("run", "out").output + Path("out/run.log").read_text()
    assert Path(name).name in said
    assert "made again" in said
    assert bytes_left() == before
    assert "All is well" in copied("verify", "out").output
    assert "Nothing to do" in copied("run", "out").output
    return said


@pytest.mark.parametrize("number", range(len(READERS)))
def test_every_file_is_made_again_from_good_inputs(copied, number, full_product):
    remake(copied, list(READERS)[number], list(DAMAGES)[number % len(DAMAGES)])


def test_a_stage_that_leaves_the_same_bytes_again_leaves_later_ones_up_to_date(copied):
    said = remake(copied, "student/model.safetensors", "flipped")
    later = said[said.rindex("build: done in") :]
    for stage in ("train", "specialize", "export", "evaluate"):
        assert f"{stage}: up to date" in later


@pytest.mark.parametrize("damage", ["flipped", "deleted"])
def test_a_training_does_not_go_on_from_other_than_its_best_weights(copied, damage):
    """The last weights must not pass for the best."""
    shutil.rmtree("out/arms")
    copied("train", "out", "--set", "train.keep_checkpoints=true")
    before = bytes_left()
    file = Path("out/arms/distill/best.safetensors")
    found = bytearray(file.read_bytes())
    found[len(found) // 2] ^= 1
    file.unlink() if damage == "deleted" else file.write_bytes(found)
    shutil.rmtree("out/arms/distill/student")
    copied("train", "out", "--set", "train.keep_checkpoints=true")
    assert "starts anew" in Path("out/run.log").read_text()
    assert bytes_left() == before


def test_a_student_whose_checkpoints_are_gone_is_trained_again_from_the_start(copied):
    said = remake(copied, "arms/distill/student/model.safetensors", "flipped")
    assert "arms/distill: this training was finished and its checkpoints deleted" in said
    assert "arms/finetune: this training" not in said


def test_an_artifact_that_is_exported_again_is_measured_again(copied):
    shutil.rmtree("out/artifacts/bf16")
    copied("export", "out")
    assert "Not measured yet" in Path("out/artifacts/bf16/README.md").read_text()
    copied("run", "out")
    assert "| ppl |" in Path("out/artifacts/bf16/README.md").read_text()
    assert "Nothing to do" in copied("run", "out").output


def test_a_card_may_be_edited_but_not_emptied(copied):
    card = Path("out/artifacts/bf16/README.md")
    card.write_text(card.read_text() + "\nWords of its user.\n")
    assert "Nothing to do" in copied("run", "out").output
    card.write_text("")
    plan = copied("plan", "out").output
    assert "evaluate" in plan


# What a message says to delete -------------------------------------------------------------------

WRONG = {"cut": "{", "list": "[]", "empty": "{}", "string": '"x"', "bytes": "\x00\xff\xfe"}
MARKS = (
    *(f"records/{s}.json" for s in ("cache", "build", "train", "specialize", "export", "evaluate")),
    "records/report.json",
)


def refused_record(run, file, wrong):
    """Spoil a record and see that it is named, with what to do."""
    found = json.loads(file.read_text())
    values = {"newer": {**found, "later": 1}, "types": {**found, "seconds": "long"}}
    text = json.dumps(values[wrong]) if wrong in values else WRONG[wrong]
    file.write_text(text, encoding="latin1")
    said = refusal(run, ["run"])
    assert f"{file}" in said
    assert "delete it and run again" in said


@pytest.mark.parametrize(
    ("mark", "wrong"),
    [
        *(("records/train.json", wrong) for wrong in [*WRONG, "newer", "types"]),
        *((mark, "empty") for mark in MARKS),
    ],
)
def test_a_record_that_is_none_is_one_sentence(finished, mark, wrong):
    file = Path("out", mark)
    before = file.read_text()
    try:
        refused_record(finished, file, wrong)
    finally:
        file.write_text(before)


def mended_by_deleting(copied, mark):
    before = bytes_left()
    refused_record(copied, Path("out", mark), "cut")
    Path("out", mark).unlink()
    copied("run", "out")
    assert bytes_left() == before
    assert "All is well" in copied("verify", "out").output


@pytest.mark.parametrize("mark", ["records/build.json", "records/train.json"])
def test_deleting_a_record_as_the_message_says_mends_the_run(copied, mark):
    mended_by_deleting(copied, mark)


@pytest.mark.parametrize("mark", MARKS)
def test_deleting_any_record_mends_the_run(copied, mark, full_product):
    mended_by_deleting(copied, mark)


CACHE_FILES = ("manifest.json", "assets.safetensors", "shards/00000.arrow", "shards/00000.json")


@pytest.mark.parametrize("name", CACHE_FILES)
@pytest.mark.parametrize("how", ["flipped", "truncated", "deleted"])
def test_a_damaged_cache_is_named(finished, name, how):
    with damaged(f"cache/{name}", how):
        found = finished("verify", "out", ok=False)
        assert found.exit_code == 1
        assert f"cache/{name}" in found.output or "missing: 00000" in found.output
        if name == "shards/00000.arrow" and how != "flipped":  # found without reading any shard
            said = refusal(finished, ["run"])
            assert f"cache/{name}" in said
            assert "--repair" in said


def test_a_cache_may_be_deleted_once_all_is_trained(copied):
    shutil.rmtree("out/cache")
    copied("export", "out")
    assert "All is well" in copied("verify", "out").output


def test_another_version_of_a_library_makes_stages_stale(finished, monkeypatch):
    assert finished("plan", "out").output.count("done;") >= 4
    monkeypatch.setattr("attar.libraries.version", lambda name: "99.1.0")
    # The same examples come out, so the cache, which is checked against them, serves.
    done = [
        line.split()[0] for line in finished("plan", "out").output.splitlines() if "done;" in line
    ]
    assert done == ["cache"]


def test_models_of_other_runs_are_checked(finished):
    """As a teacher, as what a student is cut out of, and where any model is measured."""
    student = "out/arms/distill/student"
    with damaged("arms/distill/student/model.safetensors", "flipped"):
        for change in (f"student={{from: {student}}}", f"teacher.model={student}"):
            found = finished("plan", "recipe.yaml", "--run-dir", "new", "--set", change, ok=False)
            assert found.exit_code == 1
            assert f"{student}/model.safetensors, which `train` made, was changed" in found.output
        found = finished("evaluate", student, "--data", "text.jsonl", ok=False)
        assert found.exit_code == 1
        assert "run `distill train" in found.output


def test_an_artifact_outside_its_run_is_checked_by_its_manifest(finished, tmp_path):
    shutil.copytree("out/artifacts/bf16", tmp_path / "bf16")
    file = tmp_path / "bf16/model.safetensors"
    do_damage(file, "flipped")
    for words in (["chat", tmp_path / "bf16", *CHAT],
                  ["evaluate", tmp_path / "bf16", "--data", "text.jsonl"]):  # fmt: skip
        found = finished(*words, ok=False)
        assert found.exit_code == 1
        assert f"{file} was changed" in found.output


def test_a_run_of_another_kind_of_folder_is_not_verified(finished):
    result = finished("verify", "teacher", ok=False)
    assert result.exit_code == 1
    assert result.output == "Error: teacher is no run folder: it has no recipe.yaml.\n"
