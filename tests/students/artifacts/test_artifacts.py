"""Artifacts: each loads from its folder without this package, and is complete."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from attar.errors import ModelError, RecipeError
from attar.models.generation import end_as_taught
from distill.data.batching import collate
from distill.data.examples import Example
from distill.runtimes.runtime import ModelSource, open_runtime
from students.artifacts.artifact import (
    ARTIFACTS,
    ArtifactInputs,
    check_family,
    check_installed,
    check_whole,
    export_artifact,
    write_card,
)
from students.artifacts.checkpoint import usage
from students.artifacts.model_card import model_card
from students.save import save_student
from students.tuning.adapters import load_base, save_adapter
from students.tuning.bottleneck_module import BottleneckConfig, add_bottleneck

pytestmark = pytest.mark.usefixtures("saved_models")

IDS = torch.randint(4, 270, (2, 12), generator=torch.Generator().manual_seed(0))
TRANSFORMERS = ("bf16", "nf4", "int8", "merged-requantized-nf4", "merged-requantized-int8")
MADE_ELSEWHERE = ("gguf-q4_k_m", "gguf-q5_k_m", "gguf-q6_k")  # by the user's llama.cpp
LOSSES = {"bf16": 0.02, "onnx": 1e-4, "gguf-f16": 0.01}  # of the logits' spread; others 0.6


def export(name, given, folder):
    card = model_card(
        name=name,
        given=given,
        recipe="seed: 0",
        teacher="t",
        data=["d"],
        license=None,
        measured="-",
    )
    export_artifact(name, given, folder, card)


@pytest.fixture(scope="module")
def student(make_model, bytes_bpe, tmp_path_factory):
    """A student whose sizes are multiples of all blocks, with a chat template."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_bpe, eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    folder = tmp_path_factory.mktemp("student") / "student"
    save_student(make_model(1, width=64, vocabulary=len(tokenizer)), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def given(student):
    return ArtifactInputs(student, student, calibration=lambda: IDS)


@pytest.fixture(scope="module")
def adapted(student, tmp_path_factory):
    """The student with a LoRA adapter of a visible effect, trained on an NF4 base."""
    model = get_peft_model(
        load_base(student, "nf4"), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    save_adapter(model, folder, student, "nf4")
    return ArtifactInputs(student, None, folder, "nf4"), model.eval()


@pytest.mark.parametrize("name", [name for name in ARTIFACTS if name != "adapter"])
def test_every_artifact_is_close_to_its_student_in_its_own_runtime(
    name, given, tmp_path, graph_export
):
    if name in MADE_ELSEWHERE:
        with pytest.raises(ModelError, match=r"K-quants|llama"):
            check_family(name, AutoModelForCausalLM.from_pretrained(given.student).config)
        return
    check_installed(name)
    export(name, given, tmp_path / name)
    runtime = open_runtime(ModelSource(str(tmp_path / name)))
    assert check_whole(tmp_path / name)["runtime"] == ARTIFACTS[name].runtime
    original = AutoModelForCausalLM.from_pretrained(given.student)
    with torch.inference_mode():
        expected = original(input_ids=IDS[:1]).logits[0, :, : runtime.vocabulary]
    found = runtime.logits(IDS[0].tolist())
    off = (found - expected).norm() / (expected - expected.mean(-1, keepdim=True)).norm()
    assert off < LOSSES.get(name, 0.6)
    examples = [Example(str(i), row.numpy(), row.roll(-1).numpy()) for i, row in enumerate(IDS)]
    read = runtime.read(collate([[example] for example in examples]))
    assert len(read) == IDS.numel()
    assert torch.allclose(read.piece(slice(0, 12)), found, atol=0.05 * float(expected.std()))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_artifacts_of_transformers_load_and_generate_by_their_card(name, given, tmp_path):
    export(name, given, tmp_path / name)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
    assert AutoTokenizer.from_pretrained(tmp_path / name).chat_template
    assert model.generate(IDS, max_new_tokens=4, min_new_tokens=4).shape == (2, 16)
    card = (tmp_path / name / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers")
    assert 'from_pretrained("PATH")' in card


def test_quantised_artifacts_are_smaller(given, tmp_path):
    sizes = {}
    for name in ("bf16", "int8", "nf4"):
        export(name, given, tmp_path / name)
        sizes[name] = (tmp_path / name / "model.safetensors").stat().st_size
    assert sizes["nf4"] < sizes["int8"] < sizes["bf16"]


def test_an_adapter_is_saved_with_its_quantised_base_and_loads_by_its_card(
    adapted, tmp_path, child_process
):
    given, model = adapted
    export("adapter", given, tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("PATH", str(tmp_path / "adapter"))
    code += "\nimport torch\n"
    code += f"torch.save(model(input_ids=torch.tensor({IDS.tolist()})).logits, 'logits.pt')\n"
    env = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=env)
    with torch.inference_mode():
        expected = model(input_ids=IDS).logits.float()
    found = torch.load(tmp_path / "logits.pt").float()
    assert (found - expected).norm() / expected.norm() < 0.05  # bfloat16 there
    runtime = open_runtime(ModelSource(str(tmp_path / "adapter")))
    ours = runtime.logits(IDS[0].tolist())
    assert (ours - expected[0, :, : runtime.vocabulary]).norm() / expected[0].norm() < 0.05


def test_a_bottleneck_adapter_brings_its_own_code(student, tmp_path):
    model = add_bottleneck(load_base(student, "none"), BottleneckConfig(size=4), seed=0)
    for name, parameter in model.named_parameters():
        if ".up." in name:
            torch.nn.init.normal_(parameter, std=0.5)
    save_adapter(model, tmp_path / "learned", student)
    given = ArtifactInputs(student, None, tmp_path / "learned")
    export("adapter", given, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter" / "bottleneck.py").exists()
    assert "load_bottleneck" in (tmp_path / "adapter" / "README.md").read_text()
    runtime = open_runtime(ModelSource(str(tmp_path / "adapter")))
    with torch.inference_mode():
        expected = model.eval()(input_ids=IDS[:1]).logits[0, :, : runtime.vocabulary]
    found = runtime.logits(IDS[0].tolist())
    assert (found - expected).norm() / expected.norm() < 0.05


def test_compensated_rounding_stays_closer_than_nearest(given, student, tmp_path):
    """On the text that it was calibrated on."""
    original = AutoModelForCausalLM.from_pretrained(student)
    errors = {}
    for rounding in ("nearest", "compensated"):
        changed = ArtifactInputs(student, student, calibration=lambda: IDS, rounding=rounding)
        export("merged-requantized-nf4", changed, tmp_path / rounding)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / rounding)
        with torch.inference_mode():
            difference = model(input_ids=IDS).logits.float() - original(input_ids=IDS).logits
        errors[rounding] = float(difference.norm())
    assert errors["compensated"] < 0.8 * errors["nearest"]


def test_scales_and_norms_trained_after_rounding_are_saved(given, student, tmp_path):
    """The artifact holds the scales and norms that `recover` changed."""

    def double_the_last_norm(number_format, model):
        assert number_format == "nf4"
        with torch.no_grad():
            model.model.norm.weight.mul_(2)

    changed = ArtifactInputs(
        student, student, calibration=lambda: IDS, recover=double_the_last_norm
    )
    export("merged-requantized-nf4", changed, tmp_path / "learned")
    export("merged-requantized-nf4", given, tmp_path / "plain")
    norms = [
        AutoModelForCausalLM.from_pretrained(tmp_path / name).model.norm.weight
        for name in ("learned", "plain")
    ]
    assert torch.equal(norms[0], 2 * norms[1])


def test_a_changed_file_and_a_missing_one_are_named(given, tmp_path):
    folder = tmp_path / "bf16"
    export("bf16", given, folder)
    write_card(folder, "bf16", "another card")
    assert check_whole(folder)["artifact"] == "bf16"
    config = folder / "config.json"
    text = config.read_text()
    config.write_text(text.replace("1", "2", 1))
    with pytest.raises(ModelError, match=r"config\.json was changed after the export"):
        check_whole(folder)
    config.unlink()
    with pytest.raises(ModelError, match=r"lacks config\.json"):
        check_whole(folder)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    found = __import__("importlib.util", fromlist=["util"]).find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == "gguf" else found(name, *a)
    )
    with pytest.raises(RecipeError, match=r'gguf-q8_0` needs gguf.*pip install "attar\[gguf\]"'):
        check_installed("gguf-q8_0")


def test_every_card_says_how_to_load_it_without_this_package(given, adapted):
    for name in ARTIFACTS:
        mine = adapted[0] if name == "adapter" else given
        card = model_card(
            name=name, given=mine, recipe="seed: 0", teacher="t", data=["d"], license="mit",
            measured="-",
        )  # fmt: skip
        usage = card.split("## Use")[1].split("## Measured")[0]
        assert "PATH" in usage
        assert "import attar" not in usage
        assert "license: mit" in card
        assert json.dumps(ARTIFACTS[name].runtime)


def test_the_example_of_a_card_stops_where_the_student_was_taught_to(
    make_model, tokenizer, tmp_path, capsys
):
    """Of a student whose every next token is the end of a turn: the example says nothing more."""
    model = make_model(0, width=64, vocabulary=320)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name or "embed" in name else 0.0)
        model.lm_head.weight[tokenizer.eos_token_id] = 1.0
    end_as_taught(model, tokenizer, [])
    save_student(model, tokenizer, tmp_path / "student")
    given = ArtifactInputs(tmp_path / "student", tmp_path / "student")
    export_artifact("bf16", given, tmp_path / "bf16", "")
    example = usage(given).replace("PATH", str(tmp_path / "bf16"))
    found = {}
    exec(example.split("```")[1].removeprefix("python\n"), found)
    assert found["answer"].tolist() == [tokenizer.eos_token_id]
    assert capsys.readouterr().out.strip() == ""


def test_the_card_of_a_model_without_a_template_continues_a_text(student, tmp_path):
    assert "apply_chat_template" in usage(ArtifactInputs(student, student))
    bare = tmp_path / "bare"
    shutil.copytree(student, bare, ignore=shutil.ignore_patterns("chat_template.jinja"))
    assert "Once upon a time" in usage(ArtifactInputs(bare, bare))
    beside = ArtifactInputs(student, None, adapter_of(tmp_path / "lora", "LORA"))
    assert "apply_chat_template" in ARTIFACTS["adapter"].usage(beside)
    behind = ArtifactInputs(student, None, adapter_of(tmp_path / "behind", "BOTTLENECK"))
    assert "apply_chat_template" in ARTIFACTS["adapter"].usage(behind)
    plain = ArtifactInputs(bare, None, adapter_of(tmp_path / "plain", "LORA"))
    assert "Once upon a time" in ARTIFACTS["adapter"].usage(plain)


def adapter_of(folder, kind):
    """The folder of an adapter of that kind, by its settings alone."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    return folder


def test_a_card_names_the_data_that_its_specialisation_learned_from(student):
    def provenance(name, given):
        card = model_card(
            name=name, given=given, recipe="seed: 0", teacher="t", data=["a", "b"], license=None,
            measured="-", specialized_on=["c"],
        )  # fmt: skip
        return " ".join(card.split("## Use")[0].split())

    given = ArtifactInputs(student, student.parent / "merged")
    assert "from `t` on `a`, `b`, then specialised on `c`, with attar" in provenance("bf16", given)
    assert "from `t` on `a`, `b` with attar" in provenance("nf4", given)
