"""The guide's way through TRL: a student is rewarded, measured, and made into artifacts."""

from __future__ import annotations

import json
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tests.test_docs import ROOT, blocks, text_of

SECTION = text_of("docs/guides/preferences.md").split("\n## Rewards: RLOO and GRPO\n")[1]
STUDENT = Path("runs/mine/arms/distill/student")
# Its configuration warns of its own default, and of the name that older transformers know it by.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing` is deprecated:FutureWarning"
)
LOADS = """
import sys
for package in ("attar", "distill", "students", "teachers", "trl"):
    sys.modules[package] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("rewarded")
model = AutoModelForCausalLM.from_pretrained("rewarded")
written = model.generate(**tokenizer("3+1=", return_tensors="pt"), max_new_tokens=1)
print(written.shape[1])
"""


def command(start: str) -> list[str]:
    """The arguments of the section's command that starts so."""
    (line,) = re.findall(rf"^    {re.escape(start)} (.*)$", SECTION, flags=re.M)
    return shlex.split(line)


@pytest.fixture
def asked(workshop: Any, make_model: Any) -> list[dict[str, str]]:
    """Questions, and a student that answers each by some digit, which is right now and then."""
    rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(4) for b in range(3)]
    for name in ("questions.jsonl", "held_out.jsonl"):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    tokenizer = AutoTokenizer.from_pretrained("teacher")
    dice = random.Random(0)
    texts = [f"{row['prompt']}{dice.randint(0, 5)}<|im_end|>" for row in rows * 4]
    ids_BT = torch.tensor(tokenizer(texts)["input_ids"])
    student = make_model(0, vocabulary=320, spread=1.0).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    for _ in range(30):
        student(ids_BT, labels=ids_BT).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    student.config.eos_token_id = student.generation_config.eos_token_id = tokenizer.eos_token_id
    student.save_pretrained(STUDENT)
    tokenizer.save_pretrained(STUDENT)
    return rows


def reward(monkeypatch: Any, *more: str) -> dict[str, Any]:
    """The names that the example leaves after three steps of the guide's command."""
    pytest.importorskip("trl")
    arguments = [*command("python examples/trl_grpo.py"), "--steps", "3", "--group", "4"]
    arguments += ["--batch", "4", "--new-tokens", "4", "--lr", "1e-3", *more]
    monkeypatch.setattr(sys, "argv", ["trl_grpo.py", *arguments])
    names: dict[str, Any] = {}
    exec((ROOT / "examples/trl_grpo.py").read_text("utf8"), names)
    return names


def rewards_of(names: dict[str, Any]) -> list[float]:
    return [row["reward"] for row in names["trainer"].state.log_history if "reward" in row]


def changed(one: Path, other: Path) -> set[str]:
    """Names of the tensors in which two checkpoints differ."""
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert mine.keys() == theirs.keys()
    return {name for name in mine if not torch.equal(mine[name], theirs[name])}


def test_the_guides_commands_reward_measure_and_ship_a_student(
    asked: Any, workshop: Any, monkeypatch: Any, child_process: None
) -> None:
    rewards = rewards_of(reward(monkeypatch))
    assert len(rewards) == 3
    assert all(0 <= one <= 1 for one in rewards)
    assert any(0 < one < 1 for one in rewards)
    assert len(changed(STUDENT, Path("rewarded"))) > 10
    before, after = (json.loads((folder / "config.json").read_text("utf8"))
                     for folder in (STUDENT, Path("rewarded")))  # fmt: skip
    assert after["use_cache"] == before["use_cache"]
    done = subprocess.run([sys.executable, "-c", LOADS], capture_output=True, text=True)
    assert done.stdout == "5\n", done.stderr

    shown = workshop("evaluate", *command("distill evaluate")).output
    assert "sums" in shown
    found = json.loads(Path("numbers.json").read_text("utf8"))["models"]
    assert {name: one["tasks"]["sums"]["examples"] for name, one in found.items()} == {
        str(STUDENT): len(asked), "rewarded": len(asked)
    }  # fmt: skip

    (recipe,) = blocks(SECTION, "yaml")
    Path("rewarded.yaml").write_text(recipe, "utf8")
    workshop("run", *command("distill run"))
    assert changed(Path("rewarded"), Path("runs/rewarded/arms/distill/student")) == set()
    artifacts = workshop.report("runs/rewarded")["artifacts"]
    assert artifacts.keys() == {"bf16", "gguf-q8_0"}
    accuracy = found["rewarded"]["tasks"]["sums"]["accuracy"]
    assert artifacts["bf16"]["tasks"]["sums"]["accuracy"] == accuracy
    assert artifacts["bf16"]["kl_to_teacher"] < 1e-3


@pytest.mark.parametrize(
    "more",
    [
        ["--method", "rloo", "--beta", "0.1"],
        ["--chat", "--beta", "0.1"],
        ["--prompt", "Q: {prompt}"],
    ],
    ids=["rloo", "chat", "prompt"],
)
def test_every_way_of_asking_trains(asked: Any, monkeypatch: Any, more: list[str]) -> None:
    names = reward(monkeypatch, *more)
    assert len(rewards_of(names)) == 3
    if "--beta" in more:  # the first step's KL is to the very student that it starts from
        kls = [row["kl"] for row in names["trainer"].state.log_history if "kl" in row]
        assert kls[0] == pytest.approx(0, abs=1e-6)
    one = names["asked"][0]
    prompt = names["trainer"].train_dataset[0]["prompt"]
    assert prompt == ([{"role": "user", "content": "0+0="}] if "--chat" in more else one.prompt)


def test_what_is_rewarded_is_what_the_task_calls_right(asked: Any, monkeypatch: Any) -> None:
    right = reward(monkeypatch)["right"]
    texts = ["7", " It is 7.", "7.0", "7\n\n9", "9 or 7", "7 or 9", "seven", ""]
    assert right(texts, ["7"] * len(texts)) == [1, 1, 1, 1, 1, 0, 0, 0]
