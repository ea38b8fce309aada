"""Specialising, artifacts and their test by the commands, as a user runs them."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

QLORA = (
    "specialize={method: qlora, rank: 2, lr: 1e-3, batch_size: 4, objective: [{loss: forward_kl}]}"
)
FEW = ("--set", "evaluate.agreement_prompts=1", "--set", "evaluate.agreement_tokens=4")


def test_a_specialised_run_measures_every_artifact_and_says_which_to_ship(workshop):
    artifacts = "export.artifacts=[adapter, nf4, merged-requantized-nf4, gguf-q8_0]"
    learned = "export.recover={max_steps: 2, batch_size: 4, precision: float32}"
    options = ("--set", QLORA, "--set", artifacts, "--set", learned, *FEW)
    first = workshop("run", "recipe.yaml", "--run-dir", "out", *options)
    report = json.loads(Path("out/report.json").read_text())
    assert list(report["artifacts"]) == ["adapter", "nf4", "merged-requantized-nf4", "gguf-q8_0"]
    for numbers in report["artifacts"].values():
        assert numbers["kl_to_teacher"] > 0
        assert numbers["generation_agreement"]["tokens"] <= 4
        assert set(numbers["pareto"]) == {"bytes", "speed"}
    references = {name: one["fit"]["reference"] for name, one in report["artifacts"].items()}
    assert references == {
        "adapter": "specialized", "nf4": "distill", "merged-requantized-nf4": "specialized",
        "gguf-q8_0": "specialized",
    }  # fmt: skip
    assert report["artifacts"]["gguf-q8_0"]["runtime"] == "llama.cpp"
    paths = [one["path"] for one in report["specialize"]["merges"]]
    assert paths == [
        "student", "nf4 base", "adapter on its base", "merged into the student",
        "merged into the dequantised nf4 base",
    ]  # fmt: skip
    assert report["specialize"]["chosen"] in paths
    assert report["specialize"]["sentence"] in first.output
    assert report["advice"]
    assert all(one["sentence"] in first.output for one in report["advice"])
    page = Path("out/report.html").read_text()
    assert page.count("<svg") == 4
    assert "merged into the dequantised nf4 base" in page
    recovered = sorted(path.name for path in Path("out/recovered/nf4").iterdir())
    assert recovered == ["inputs.json"], "a finished training keeps no checkpoints"
    again = workshop("run", "recipe.yaml", "--run-dir", "out", *options)
    assert "Nothing to do" in again.output

    strict = ("--strict", "--run-dir", "out", *options, "--set")
    found = workshop("export", "recipe.yaml", *strict, "export.tolerance.perplexity=0", ok=False)
    assert found.exit_code == 3
    assert "is not fit to ship: its perplexity is" in found.output
    workshop("export", "recipe.yaml", *strict, "export.tolerance.perplexity=9")

    said = workshop("chat", "out", "--prompt", "light", "--max-tokens", "2").stderr
    name = re.match(r"`(\S+)` speaks: it is fit to ship, and advised for (?:a|the) .*\.", said)[1]
    assert name in ("adapter", "merged-requantized-nf4", "gguf-q8_0"), "nf4 lacks the last stage"
    assert "--artifact" in said
    assert "|nf4" in said
    shown = workshop("push", "out", "me/small", "--dry-run").output
    assert f"out/artifacts/{name} would go to me/small (private)" in shown
    assert workshop("push", "out/artifacts/gguf-q8_0", "me/small", "--dry-run").exit_code == 0
    Path("out/records/evaluate.json").unlink()
    said = workshop("chat", "out", "--prompt", "light", "--max-tokens", "2").stderr
    assert said.startswith("The specialised student speaks: nothing was measured yet")
    refused = workshop("push", "out", "me/small", "--dry-run", ok=False).output
    assert "Nothing of out was measured as it is now" in refused


def test_what_cannot_be_merged_is_shipped_as_an_adapter(workshop):
    prefix = "specialize={method: prefix, virtual_tokens: 3, lr: 1e-2, batch_size: 4}"
    own = ("--set", prefix, "--set", "export.artifacts=null", *FEW)
    workshop("run", "recipe.yaml", "--run-dir", "out", *own)
    report = json.loads(Path("out/report.json").read_text())
    assert list(report["artifacts"]) == ["adapter"]
    assert report["artifacts"]["adapter"]["fit"]["ships"]
    assert not Path("out/specialized/merged").exists()


def test_models_made_elsewhere_are_measured_without_a_recipe(workshop):
    from students.artifacts.gguf.writer import write_gguf

    write_gguf(Path("teacher"), Path("same.gguf"), "f16")
    keys = ("evaluate.tokens=120", "evaluate.prefill_tokens=16", "evaluate.generate_tokens=3",
            "data.max_length=32")  # fmt: skip
    options = [part for key in keys for part in ("--set", key)]
    found = workshop(
        "evaluate", "same.gguf", "teacher", "--teacher", "teacher", "--data", "text.jsonl",
        "--json", "found.json", *options,
    )  # fmt: skip
    assert "same.gguf" in found.output
    numbers = json.loads(Path("found.json").read_text())
    gguf, folder = (numbers["models"][name] for name in ("same.gguf", "teacher"))
    assert gguf["runtime"] == "llama.cpp"
    assert folder["kl_to_teacher"] == pytest.approx(0, abs=1e-6)
    assert gguf["kl_to_teacher"] == pytest.approx(0, abs=1e-3)
    assert gguf["nll"] == pytest.approx(numbers["teacher"]["nll"], abs=1e-2)
    alone = workshop("evaluate", "teacher", "--data", "text.jsonl", *options)
    assert "KL" in alone.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["evaluate", "teacher"], r"add `--data FILE`"),
        (["evaluate", "teacher", "--data", "txt.jsonl"], r"text\.jsonl"),
        (["evaluate", "teacher", "--data", "text.jsonl", "--set", "evaluate.token=3"], "token"),
        (["evaluate", "teacher", "--strict", "--data", "text.jsonl"], "--strict is for a recipe"),
        (["evaluate", "recipe.yaml", "--teacher", "teacher"], "--teacher is for MODELs"),
        (["plan", "recipe.yaml", "--set", "export.artifacts=[adapter]"], "does not specialise"),
        (
            ["plan", "recipe.yaml", "--set", "specialize={method: prefix}",
             "--set", "export.artifacts=[gguf-q8_0]"],
            "cannot be merged into weights; use `adapter`",
        ),
        (
            ["plan", "recipe.yaml", "--set", "specialize={method: head}",
             "--set", "export.artifacts=[adapter]"],
            "leaves weights and no adapter",
        ),
        (["plan", "recipe.yaml", "--set", "export.artifacts=[gguf-q8]"], "gguf-q8_0"),
        (["plan", "recipe.yaml", "--set", "export.recover={}"], "`export.recover` has no effect"),
        (["plan", "recipe.yaml", "--set", "export.artifacts=[gguf-q4_k_m]"], "K-quants"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_sentence_before_any_work(workshop, arguments, says):
    found = workshop(*arguments, ok=False)
    assert found.exit_code == 1
    assert found.output.startswith("Error: ")
    assert len(found.output.strip().splitlines()) == 1
    import re

    assert re.search(says, found.output), found.output
