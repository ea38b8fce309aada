"""Bottleneck adapters: their places, what is trained, and loading them without this package."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    BitsAndBytesConfig,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    RobertaConfig,
    RobertaModel,
)

import students.tuning.bottleneck_module
from attar.errors import ModelError, RecipeError
from students.tuning.bottleneck import BottleneckAdapter
from students.tuning.bottleneck_module import (
    BottleneckConfig,
    adapted_linears,
    add_bottleneck,
    bottlenecks,
    load_bottleneck,
    remove_bottleneck,
    save_bottleneck,
)

IDS = torch.randint(4, 90, (2, 10), generator=torch.Generator().manual_seed(0))
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64, "vocab_size": 97}  # fmt: skip
FAMILIES = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=97)),
    "bert": lambda: BertForSequenceClassification(BertConfig(**SMALL)),
    "roberta": lambda: RobertaModel(RobertaConfig(**SMALL)),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=97)
    ),
}


@pytest.fixture
def base(make_model, tmp_path):
    """A folder with a small Llama, and how to load it."""
    make_model(1, width=64).save_pretrained(tmp_path / "base")
    return lambda **more: AutoModelForCausalLM.from_pretrained(tmp_path / "base", **more)


def taught(model, config=None, seed=3):
    """The model with an adapter that is no longer the identity."""
    model = add_bottleneck(model, config or BottleneckConfig(size=8), seed)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@torch.inference_mode()
def outputs(model):
    return model(input_ids=IDS)[0]


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
def test_a_new_adapter_changes_nothing_and_only_it_is_trainable(base, placement):
    plain = outputs(base())
    model = add_bottleneck(base(), BottleneckConfig(placement, size=8))
    torch.testing.assert_close(outputs(model), plain)
    model(input_ids=IDS, labels=IDS).loss.backward()
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == learning
    places = {"houlsby": ["self_attn.o_proj", "mlp.down_proj"], "pfeiffer": ["mlp.down_proj"]}
    assert learning == {
        f"model.layers.{layer}.{place}.{part}.{kind}"
        for layer in range(2) for place in places[placement]
        for part in ("down", "up") for kind in ("weight", "bias")
    }  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_get_two_adapters_a_block_and_are_the_same_at_first(family):
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    plain = outputs(model)
    assert (
        len(adapted_linears(model, "houlsby")) == 2 * len(adapted_linears(model, "pfeiffer")) == 4
    )
    model = add_bottleneck(model, BottleneckConfig("houlsby"))
    assert torch.equal(outputs(model), plain)
    with torch.no_grad():
        for adapter in bottlenecks(model).values():
            adapter.up.bias.normal_()
    assert (outputs(model) - plain).abs().max() > 0.01
    assert torch.equal(outputs(remove_bottleneck(model)), plain)


def test_the_adapter_is_the_papers_formula(base):
    model = taught(base(), BottleneckConfig(size=8, activation="tanh", scale=0.5))
    adapter = model.model.layers[0].mlp.down_proj
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(1))
    h = adapter.linear(x).double()
    down, up = adapter.down.double(), adapter.up.double()
    expected = h + 0.5 * (torch.tanh(h @ down.weight.T + down.bias) @ up.weight.T + up.bias)
    adapter.float()
    torch.testing.assert_close(adapter(x), expected.float())


def test_the_same_seed_starts_the_same_adapter(base):
    def start(seed):
        model = add_bottleneck(base(), BottleneckConfig(size=8), seed)
        return model.model.layers[1].mlp.down_proj.down.weight

    assert torch.equal(start(0), start(0))
    assert not torch.equal(start(0), start(1))


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
def test_saved_and_loaded_it_gives_the_same_logits(base, placement, tmp_path):
    model = taught(base(), BottleneckConfig(placement, reduction=4, activation="silu", scale=2.0))
    save_bottleneck(model, tmp_path / "adapter")
    described = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert described["peft_type"] == "BOTTLENECK"
    assert described["placement"] == placement
    again = load_bottleneck(base(), tmp_path / "adapter")
    torch.testing.assert_close(outputs(again), outputs(model))
    assert not any(p.requires_grad for p in again.parameters())


def test_removing_the_adapter_restores_the_base(base, tmp_path):
    model = remove_bottleneck(taught(base()))
    model.save_pretrained(tmp_path / "again")
    first, second = (tmp_path / f / "model.safetensors" for f in ("base", "again"))
    assert len({hashlib.sha256(f.read_bytes()).hexdigest() for f in (first, second)}) == 1


def test_the_one_file_beside_an_adapter_loads_it_without_this_package(
    base, tmp_path, child_process
):
    model = taught(base(), BottleneckConfig("houlsby", size=8))
    save_bottleneck(model, tmp_path / "shipped")
    shutil.copy(students.tuning.bottleneck_module.__file__, tmp_path / "shipped" / "bottleneck.py")
    script = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM\n"
        "from bottleneck import load_bottleneck\n"
        f"base = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'base')!r})\n"
        "model = load_bottleneck(base, '.')\n"
        "assert not {'attar', 'students', 'distill'} & set(sys.modules)\n"
        f"torch.save(model(input_ids=torch.tensor({IDS.tolist()})).logits.detach(), 'out.pt')\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path / "shipped", check=True)
    torch.testing.assert_close(torch.load(tmp_path / "shipped/out.pt"), outputs(model))


@pytest.mark.parametrize("bits", [4, 8])
def test_it_learns_on_a_quantised_base_and_reloads(base, bits, tmp_path):
    def quantised():
        config = BitsAndBytesConfig(
            load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_quant_type="nf4"
        )
        return base(quantization_config=config, device_map={"": "cpu"})

    plain = outputs(quantised())
    model = taught(quantised())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learning = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in learning} == {torch.float32}
    optimizer = torch.optim.SGD(learning, lr=0.1)
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all(".down." in name or ".up." in name for name in changed)
    save_bottleneck(model.eval(), tmp_path / "adapter")
    again = load_bottleneck(quantised(), tmp_path / "adapter")
    torch.testing.assert_close(outputs(again), outputs(model))
    assert (outputs(again) - plain).abs().max() > 0.01


def test_an_adapter_of_another_model_is_refused_and_leaves_the_model_plain(
    base, make_model, tmp_path
):
    save_bottleneck(taught(base()), tmp_path / "adapter")
    for other in (make_model(2, width=32), make_model(2, width=64, layers=3)):
        plain = outputs(other)
        with pytest.raises(ValueError, match="made for another model"):
            load_bottleneck(other, tmp_path / "adapter")
        assert torch.equal(outputs(other), plain)


def test_a_folder_of_another_kind_is_refused(base, tmp_path):
    save_bottleneck(taught(base()), tmp_path / "adapter")
    (tmp_path / "adapter/adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ValueError, match="LORA"):
        load_bottleneck(base(), tmp_path / "adapter")


def test_a_second_adapter_is_refused(base):
    with pytest.raises(ValueError, match="already"):
        add_bottleneck(taught(base()), BottleneckConfig())


# The method of the recipe ----------------------------------------------------------------------


def test_the_method_refuses_what_cannot_work_before_any_weights(make_model):
    config = make_model(width=32).config
    BottleneckAdapter(placement="houlsby").check(config)
    with pytest.raises(RecipeError, match="reduction: 64"):
        BottleneckAdapter(reduction=64).check(config)
    mamba = MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=97, state_size=4)
    with pytest.raises(RecipeError, match=r"MambaForCausalLM.*self_attn\.o_proj"):
        BottleneckAdapter().check(mamba)
    with pytest.raises(ModelError, match="MambaForCausalLM"):
        BottleneckAdapter().attach(MambaForCausalLM(mamba), 0)


def test_reduction_and_size_together_are_refused():
    with pytest.raises(ValueError, match="leave one of them out"):
        BottleneckAdapter(reduction=8, size=4)
    assert BottleneckAdapter(size=4).layout.size_for(1000) == 4


def test_the_file_imports_only_torch_and_safetensors():
    lines = Path(students.tuning.bottleneck_module.__file__).read_text().splitlines()
    roots = {
        line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))
    }
    standard = {"__future__", "collections", "json", "dataclasses", "pathlib", "typing"}
    example = {"bottleneck"}  # in the docstring
    assert roots <= standard | example | {"torch", "safetensors"}
