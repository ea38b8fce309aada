"""What the stage `specialize` leaves, method by method, and what it says of each way of merging."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from students.tuning.adapters import check_adapter_fits, load_adapter, load_base

IDS = torch.randint(4, 300, (2, 10), generator=torch.Generator().manual_seed(0))
SHORT = ("--set", "train.arms=[]", "--set", "train.max_steps=4", "--set", "export.artifacts=[]")
STUDENT, LEFT = Path("out/arms/distill/student"), Path("out/specialized")


def specialize(workshop, section, folder="out", **more):
    change = ("--set", f"specialize={section}")
    return workshop("specialize", "recipe.yaml", "--run-dir", folder, *SHORT, *change, **more)


def left():
    """(names of what the stage left, nll by path, the path that was chosen)."""
    result = json.loads((LEFT / "result.json").read_text())
    names = {path.name for path in LEFT.iterdir()} - {"run", "result.json"}
    return names, {way["path"]: way["nll"] for way in result["merges"]}, result["chosen"]


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS).logits[:, -IDS.shape[1] :].float()


def test_each_method_leaves_what_it_can_and_measures_every_way(workshop):
    workshop.upto_train("out", *SHORT)
    result = specialize(workshop, "{method: qlora, rank: 4, lr: 5e-3}")
    names, nll, chosen = left()
    assert "of 123,200 parameters learn" in result.output
    assert names == {"adapter", "merged"}
    assert list(nll) == [
        "student", "nf4 base", "adapter on its base", "merged into the student",
        "merged into the dequantised nf4 base",
    ]  # fmt: skip
    assert nll["adapter on its base"] < nll["nf4 base"] - 0.1
    assert nll["merged into the dequantised nf4 base"] == pytest.approx(
        nll["adapter on its base"], abs=0.02
    )
    assert nll[chosen] == min(nll["merged into the student"], list(nll.values())[-1])
    check_adapter_fits(LEFT / "adapter", STUDENT)
    merged = AutoModelForCausalLM.from_pretrained(LEFT / "merged")
    assert (logits(merged) - logits(load_base(STUDENT, "none"))).abs().max() > 0.1

    result = specialize(
        workshop,
        "{method: prompt, virtual_tokens: 4, lr: 1e-2, objective: "
        "[{loss: forward_kl}, {loss: hidden_mse}]}",
    )
    names, nll, chosen = left()
    assert "nothing is packed" in result.output
    assert (names, list(nll), chosen) == ({"adapter"}, ["student", "adapter on its base"], None)
    loaded = load_adapter(load_base(STUDENT, "none"), LEFT / "adapter", base=STUDENT)
    assert (logits(loaded) - logits(load_base(STUDENT, "none"))).abs().max() > 1e-3

    specialize(workshop, "{method: full, trainable: last:1, lr: 1e-3}")
    names, nll, chosen = left()
    assert (names, list(nll)) == ({"merged"}, ["student", "specialized"])
    assert nll[chosen] < nll["student"]
    again = specialize(workshop, "{method: full, trainable: last:1, lr: 1e-3}")
    assert "Nothing to do" in again.output


def test_a_killed_specialising_goes_on_to_the_same_bits(workshop):
    section = "{method: p_tuning, encoder: lstm, virtual_tokens: 3, checkpoint_every: 1}"
    workshop.upto_train("out", *SHORT)
    shutil.copytree("out", "killed")
    specialize(workshop, section)
    change = (*SHORT, "--set", f"specialize={section}")
    process = workshop.start("specialize", "recipe.yaml", "--run-dir", "killed", *change)
    deadline = time.time() + 300
    state = Path("killed/specialized/run/last/progress.json")
    while process.poll() is None and time.time() < deadline and not state.exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    specialize(workshop, section, folder="killed")
    assert "going on from step" in Path("killed/run.log").read_text()
    name = "specialized/adapter/adapter_model.safetensors"
    assert Path("killed", name).read_bytes() == Path("out", name).read_bytes()


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("{method: lora, targets: [query]}", "`query` fits no linear layer.*k_proj"),
        ("{method: full, trainable: 'last:3'}", "the model has 2 blocks"),
        ("{method: prompt, virtual_tokens: 100}", r"is 100 before texts of up to 48 .* 128 pos"),
        ("{method: lora, init: pissa, rank: 50}", "`specialize.rank` is 50"),
    ],
)
def test_what_the_student_cannot_learn_is_refused_before_any_work(workshop, section, says):
    change = ("--set", f"specialize={section}")
    result = workshop(
        "cache", "build", "recipe.yaml", "--run-dir", "out", *SHORT, *change, ok=False
    )
    assert result.exit_code == 1
    assert re.search(says, " ".join(result.output.split()))
    assert not Path("out/cache").exists()
