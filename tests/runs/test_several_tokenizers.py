"""Models of several tokenizers measured side by side, by the command and in a run."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import distill.stages.evaluate as stage
from distill.data.prepare import prepare
from distill.evaluation.same_text import HeldOut
from distill.evaluation.text_bytes import difference_by_byte
from tests.helpers.other_tokenizers import in_other_ids, space_before_text

KEYS = (
    "evaluate.tokens=400", "evaluate.prefill_tokens=16", "evaluate.generate_tokens=3",
    "evaluate.agreement_prompts=3", "evaluate.agreement_tokens=12", "data.max_length=32",
)  # fmt: skip
OPTIONS = [part for key in KEYS for part in ("--set", key)]


@pytest.fixture
def twin(workshop):
    """A folder with the teacher in other ids; the other ids' tokenizer."""
    model = AutoModelForCausalLM.from_pretrained("teacher")
    other, tokenizer = in_other_ids(model, AutoTokenizer.from_pretrained("teacher"))
    other.save_pretrained("twin")
    tokenizer.save_pretrained("twin")
    return tokenizer


def test_models_of_other_tokenizers_stand_side_by_side(workshop, twin, make_model):
    tokenizer = space_before_text()
    make_model(3, vocabulary=len(tokenizer)).save_pretrained("other")
    tokenizer.save_pretrained("other")
    shown = workshop(
        "evaluate", "twin", "other", "teacher", "--teacher", "teacher", "--data", "text.jsonl",
        "--json", "n.json", *OPTIONS,
    ).output  # fmt: skip
    found = json.loads(Path("n.json").read_text())
    teacher, models = found["teacher"], found["models"]
    assert models["twin"]["nats_per_byte"] == pytest.approx(teacher["nats_per_byte"], rel=1e-4)
    assert models["twin"]["text_bytes"] == teacher["text_bytes"]
    assert models["twin"]["greedy_text"]["same"] == 1.0
    assert models["teacher"]["kl_to_teacher"] == pytest.approx(0, abs=1e-6)
    assert models["other"]["text_bytes"] == pytest.approx(teacher["text_bytes"], rel=0.02)
    assert models["other"]["nats_per_byte"] != pytest.approx(teacher["nats_per_byte"], rel=1e-3)
    assert [models[name].get("tokenizer") for name in models] == ["twin", "other", "teacher"]
    for name in ("twin", "other"):
        assert not {"kl_to_teacher", "top1_agreement"} & set(models[name])
    title = next(line for line in shown.splitlines() if "nats/byte" in line)
    assert "greedy text" in title
    assert "ppl" not in title
    assert "nll" not in title
    row = next(line for line in shown.splitlines() if line.split()[:1] == ["twin"])
    assert " - " in row
    assert "twin and other read the same text as other tokens than the teacher" in shown


def test_models_of_one_tokenizer_are_measured_as_ever(workshop):
    shown = workshop("evaluate", "teacher", "--data", "text.jsonl", "--json", "n.json", *OPTIONS)
    numbers = json.loads(Path("n.json").read_text())["models"]["teacher"]
    assert numbers["nats_per_byte"] == pytest.approx(
        numbers["nll"] * numbers["tokens"] / numbers["text_bytes"]
    )
    assert "ppl" in shown.output
    assert "tokenizer" not in numbers
    assert "greedy_text" not in numbers


def test_a_model_that_cannot_read_the_data_is_named_before_any_is_measured(workshop, make_model):
    tokenizer = space_before_text()
    make_model(3, vocabulary=len(tokenizer)).save_pretrained("other")
    tokenizer.save_pretrained("other")
    said = [{"role": "user", "content": "light"}, {"role": "assistant", "content": "falls"}]
    Path("talk.jsonl").write_text(json.dumps({"messages": said}) + "\n")
    shown = workshop("evaluate", "teacher", "other", "--data", "talk.jsonl", ok=False).output
    assert "`other` has a tokenizer of its own. The data are conversations, and" in shown
    assert "held-out text" not in shown


def test_a_gguf_file_of_another_tokenizer_is_measured_by_its_own(workshop, twin):
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    from students.artifacts.gguf.writer import write_gguf

    write_gguf(Path("twin"), Path("twin.gguf"), "f16")
    workshop(
        "evaluate", "twin.gguf", "--teacher", "teacher", "--data", "text.jsonl",
        "--json", "n.json", *OPTIONS,
    )  # fmt: skip
    found = json.loads(Path("n.json").read_text())
    numbers = found["models"]["twin.gguf"]
    assert numbers["runtime"] == "llama.cpp"
    assert numbers["nats_per_byte"] == pytest.approx(found["teacher"]["nats_per_byte"], rel=1e-2)
    assert "kl_to_teacher" not in numbers


def test_a_run_whose_teacher_has_another_tokenizer(workshop, twin, monkeypatch):
    """The teacher in other ids stands for one; students are compared with it by bytes and text."""
    whole = [
        "run", "recipe.yaml", "--run-dir", "out", "--set", "train.arms=[finetune]",
        "--set", "evaluate.agreement_tokens=12",
    ]  # fmt: skip
    workshop(*whole)
    plain = workshop.report("out")

    def teachers_held_out(run):
        folder = Path("held")
        if not folder.exists():
            prepare(run.recipe.data, twin, "twin", run.recipe.seed, folder)
        return HeldOut(folder / "held_out.arrow", twin, "twin")

    made = stage._teacher_job
    monkeypatch.setattr(stage, "teachers_held_out", teachers_held_out)
    monkeypatch.setattr(
        stage, "_teacher_job", lambda run, shared: stage.replace(made(run, shared), model="twin")
    )
    Path("out/records/evaluate.json").unlink()
    shown = workshop(*whole).output
    report = workshop.report("out")
    for name in ("init", "finetune", "distill"):
        before, after = plain["arms"][name], report["arms"][name]
        assert after["nats_per_byte"] == pytest.approx(before["nats_per_byte"], rel=1e-3)
        assert "kl_to_teacher" not in after
        assert 0 <= after["greedy_text"]["same"] <= 1
    assert report["teacher"]["nats_per_byte"] == pytest.approx(
        plain["teacher"]["nats_per_byte"], rel=1e-3
    )
    assert report["verdict"]["teacher_is_better"] == plain["verdict"]["teacher_is_better"]
    assert "kl_to_teacher" not in report["verdict"]
    assert report["verdict"]["nll"]["difference"] == pytest.approx(
        plain["verdict"]["nll"]["difference"], abs=1e-3
    )
    page = Path("out/report.html").read_text()
    assert "The students read the same text as other tokens than the teacher" in page
    assert "The students read the same text as other tokens than the teacher" in shown
    before_artifacts = page.split("<h2>Artifacts</h2>")[0]
    for title in ("ppl", "nll", "KL", "top-1"):
        assert f"<th>{title}</th>" not in before_artifacts.split("Distilling against")[0]
    assert "<th>KL</th>" not in page
    arrays = []
    for name in ("distill", "teacher"):
        with np.load(f"out/evaluation/{name}.npz") as opened:
            arrays.append(dict(opened))
    found = difference_by_byte(*arrays, 200)
    wanted = report["arms"]["distill"]["nats_per_byte"] - report["teacher"]["nats_per_byte"]
    assert found["difference"] == pytest.approx(wanted, rel=1e-3)
