"""The public Python API: its page, its imports, and its two examples on a tiny run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from distill import api
from tests.test_docs import ROOT, blocks, spans, text_of

PAGE = text_of("docs/reference/python.md")
EXAMPLES = ("hf_trainer.py", "torch_loop.py")
VOCABULARY = 97


def program_of(name: str) -> str:
    """An example without its docstring."""
    return (ROOT / "examples" / name).read_text(encoding="utf8").split('"""', 2)[2].lstrip("\n")


def run_example(monkeypatch: Any, name: str, *arguments: str) -> dict[str, Any]:
    """What an example leaves in its names."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    names: dict[str, Any] = {}
    exec(program_of(name), names)
    return names


def test_the_page_names_the_whole_interface() -> None:
    named = {word for span in spans(PAGE) for word in re.findall(r"\w+", span)}
    assert set(api.__all__) - named == set()
    assert [name for name in api.__all__ if not hasattr(api, name)] == []
    public = {name for name in vars(api) if name[0] != "_"} - {"annotations", "silenced"}
    assert public == set(api.__all__)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_page_shows_the_examples_as_they_are(name: str) -> None:
    assert program_of(name) in blocks(PAGE, "python")


def test_packages_say_that_they_are_typed() -> None:
    for package in ("attar", "teachers", "students", "distill"):
        assert (ROOT / package / "py.typed").is_file()
        assert f'\n{package} = ["py.typed"]\n' in text_of("pyproject.toml")


@pytest.mark.parametrize(
    ("imports", "light"),
    [("import distill", True), ("import distill.api; from transformers import Trainer", False)],
    ids=["distill", "api"],
)
def test_importing_prints_nothing(imports: str, light: bool, child_process: None) -> None:
    program = f"{imports}; import sys; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=ROOT, text=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert done.returncode == (0 if light else 1)


# Examples --------------------------------------------------------------------------------------


def teachers_part(student: Any, batch: api.Batch, signals: api.Signals, vocabulary: int) -> float:
    """Mean KL to the teacher over a batch."""
    learner = api.Learner(
        student, [api.TERM_MODELS["forward_kl"]()], vocabulary=vocabulary, dtype=torch.float32,
        chunk=64,
    )  # fmt: skip
    with torch.no_grad():
        loss, _ = learner(batch, {"cache": signals}, 1 / batch.num_counted)
    return float(loss)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_brings_the_student_nearer_to_the_teacher(
    name: str, workshop: Any, monkeypatch: Any
) -> None:
    workshop.finished("out", "build")
    rows = ["text.jsonl"] if name == "torch_loop.py" else []
    run_example(monkeypatch, name, "out", "out/student", *rows)
    (left,) = Path("out").glob("*/student/config.json")
    cache = api.SignalCache("out/cache")
    train = api.Examples(Path("out/data/train.arrow"))
    batch = api.collate([[example] for example in train])
    signals = cache.signals(batch.keys)
    before, after = (
        teachers_part(AutoModelForCausalLM.from_pretrained(folder), batch, signals, 320)
        for folder in ("out/student", left.parent)
    )
    assert after < 0.95 * before


def test_a_loop_of_ones_own_sees_every_example_that_the_cache_holds(
    workshop: Any, monkeypatch: Any
) -> None:
    workshop.finished("out", "build")
    names = run_example(monkeypatch, "torch_loop.py", "out", "out/student", "text.jsonl")
    assert sorted(one.key for one in names["examples"]) == sorted(names["cache"].keys())


def test_a_run_is_made_and_its_report_read(workshop: Any, capsys: Any) -> None:
    (program,) = (one for one in blocks(PAGE, "python") if "run_stages(" in one)
    exec(program, {})
    report = workshop.report("runs/mine")
    printed = capsys.readouterr().out
    assert report["verdict"]["sentence"] in printed
    assert str(report["arms"]["distill"]["nll"]) in printed


def test_a_trainers_accumulated_step_is_the_step_of_all_its_examples(
    make_model: Any, make_examples: Any, make_cache: Any, tmp_path: Path
) -> None:
    examples = make_examples(6, seed=3)
    cache = make_cache(tmp_path / "cache", make_model(0), examples)

    def with_signals(some: list[api.Example]) -> dict[str, Any]:
        batch = api.collate([[one] for one in some])
        signals = {"cache": cache.signals(batch.keys)}
        return {"batch": batch, "sources": signals, "scale": 1.0, "labels": batch.labels_BT}

    def learner_of(student: Any) -> api.Learner:
        terms = [api.TERM_MODELS["forward_kl"](), api.TERM_MODELS["cross_entropy"](weight=0.1)]
        return api.Learner(
            student, terms, vocabulary=VOCABULARY, dtype=torch.float32, chunk=5
        ).train()

    trained, ours = make_model(7), make_model(7)
    trainer = Trainer(
        learner_of(trained),
        TrainingArguments(
            str(tmp_path / "out"), per_device_train_batch_size=2, gradient_accumulation_steps=3,
            max_steps=1, learning_rate=0.1, lr_scheduler_type="constant", optim="sgd",
            max_grad_norm=0, remove_unused_columns=False, dataloader_pin_memory=False,
            save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
        ),
        train_dataset=examples,
        data_collator=with_signals,
        compute_loss_func=lambda outputs, labels, num_items_in_batch: (
            outputs[0] / num_items_in_batch
        ),
    )  # fmt: skip
    trainer.train()
    inputs = with_signals(examples)
    batch, sources = inputs["batch"], inputs["sources"]
    learner_of(ours)(batch, sources, 1 / batch.num_counted)[0].backward()
    torch.optim.SGD(ours.parameters(), lr=0.1).step()
    start = make_model(7).get_parameter("lm_head.weight")
    moved = float((ours.get_parameter("lm_head.weight") - start).detach().abs().max())
    assert moved > 1e-4
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            trained.get_parameter(name), parameter, rtol=1e-4, atol=1e-4 * moved
        )
