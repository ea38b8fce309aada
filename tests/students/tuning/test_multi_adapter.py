"""Several adapters in one batch: each row has the same outputs as alone with its adapter."""

import copy

import pytest
import torch
from peft import (
    CPTConfig,
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
)

from attar.errors import DataError, ModelError
from students.tuning.adapters import disable_cpu_repacking
from students.tuning.bottleneck_module import (
    BottleneckConfig,
    add_bottleneck,
    load_bottleneck,
    save_bottleneck,
)
from students.tuning.multi_adapter import MixedAdapters

TASK = {"task_type": "CAUSAL_LM"}
PEFT = {
    "lora": LoraConfig(r=4, target_modules="all-linear", **TASK),
    "lora-2": LoraConfig(r=2, target_modules=["q_proj", "down_proj"], use_rslora=True, **TASK),
    "lora-3": LoraConfig(r=4, target_modules=["embed_tokens", "lm_head"], **TASK),
    "lora-saves": LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], **TASK),
    "dora": LoraConfig(r=2, target_modules=["o_proj", "down_proj"], use_dora=True, **TASK),
    "ia3": IA3Config(**TASK),
    "prefix": PrefixTuningConfig(num_virtual_tokens=5, **TASK),
    "prefix-2": PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, **TASK),
    "prompt": PromptTuningConfig(num_virtual_tokens=4, **TASK),
    "p_tuning": PromptEncoderConfig(num_virtual_tokens=2, encoder_hidden_size=8, **TASK),
}
BOTTLENECKS = {
    "houlsby": BottleneckConfig("houlsby", size=8),
    "pfeiffer": BottleneckConfig("pfeiffer", size=8, activation="tanh"),
}
EVERY_KIND = [*PEFT, *BOTTLENECKS, None]
MIXES = {
    "three kinds": ["lora", "prefix", "houlsby", None],
    "three loras": ["lora-2", "lora", "lora-3", None],
    "one adapter twice": ["prompt", "lora", "prompt", "lora"],
    "one adapter alone": ["p_tuning"],
    "every kind": EVERY_KIND,
}
NF4 = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
)
QUANTISED = {"quantization_config": NF4, "device_map": {"": "cpu"}, "dtype": torch.float32}


class Shelf:
    """A base on disk, adapters made for it, and the outputs of each alone."""

    def __init__(self, model, folder, **loading):
        self.folder, self.loading = folder, loading
        model.save_pretrained(folder / "base")

    def base(self):
        model = AutoModelForCausalLM.from_pretrained(self.folder / "base", **self.loading).eval()
        disable_cpu_repacking(model)  # else some processors compute in bfloat16
        return model

    def make(self, name, config):
        torch.manual_seed(len(name))
        bottleneck = isinstance(config, BottleneckConfig)
        base = AutoModelForCausalLM.from_pretrained(self.folder / "base")
        if bottleneck:
            model = add_bottleneck(base, config)
        else:  # peft writes what it finds of the model into the config
            config = copy.deepcopy(config)
            if isinstance(base, GPT2LMHeadModel) and isinstance(config, LoraConfig):
                config.fan_in_fan_out = True
            model = get_peft_model(base, config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.2)
        if bottleneck:
            save_bottleneck(model, self.folder / name)
        else:
            model.save_pretrained(self.folder / name, save_embedding_layers=False)

    def mixed(self, names):
        return MixedAdapters(self.base(), {n: self.folder / n for n in names if n is not None})

    def alone(self, name):
        base = self.base()
        if name is None:
            return base
        if name in BOTTLENECKS:
            return load_bottleneck(base, self.folder / name).eval()
        return PeftModel.from_pretrained(base, self.folder / name).eval()


@pytest.fixture(scope="module", params=["plain", "nf4"])
def shelf(request, make_model, tmp_path_factory):
    """Every kind of adapter on one small Llama, loaded in full precision or quantised."""
    made = Shelf(
        make_model(1, width=64),
        tmp_path_factory.mktemp(request.param),
        **(QUANTISED if request.param == "nf4" else {}),
    )
    for name, config in {**PEFT, **BOTTLENECKS}.items():
        made.make(name, config)
    return made


def rows(count, longest=9, side="left", seed=0):
    """Ids and mask of rows of different lengths, one of them without padding."""
    dice = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(4, 97, (count, longest), generator=dice)
    lengths = 2 + 3 * torch.arange(count) % (longest - 2)
    lengths[-1] = longest
    before = torch.arange(longest) < lengths[:, None]
    return ids_BT, (before if side == "right" else before.flip(1)).long()


@torch.inference_mode()
def check_logits(shelf, names, side="left"):
    ids_BT, mask_BT = rows(len(names), side=side)
    found_BTV = shelf.mixed(names).logits(ids_BT, mask_BT, names)
    assert found_BTV.shape[:2] == ids_BT.shape
    for ids_T, mask_T, found_TV, name in zip(ids_BT, mask_BT.bool(), found_BTV, names, strict=True):
        alone_TV = shelf.alone(name)(input_ids=ids_T[mask_T][None]).logits[0]
        alone_TV = alone_TV[-int(mask_T.sum()) :]  # without the positions before the text
        torch.testing.assert_close(found_TV[mask_T], alone_TV, atol=1e-4, rtol=1e-4)


def check_generations(shelf, names, tokens=10):
    ids_BT, mask_BT = rows(len(names), seed=1)
    prompts = [ids_T[mask_T].tolist() for ids_T, mask_T in zip(ids_BT, mask_BT.bool(), strict=True)]
    together = shelf.mixed(names).generate(prompts, names, tokens, stop_ids=set())
    for prompt, name, found in zip(prompts, names, together, strict=True):
        assert found == shelf.mixed([name]).generate([prompt], [name], tokens, set())[0]
        assert found == continued(shelf.alone(name), prompt, tokens)
    return together


@torch.inference_mode()
def continued(model, prompt, tokens):
    """The greedy continuation, computed without a cache."""
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mix", MIXES)
def test_each_row_has_the_logits_of_its_own_adapter(shelf, mix, side):
    check_logits(shelf, MIXES[mix], side)


@pytest.mark.parametrize("mix", ["three kinds", "three loras", "every kind"])
def test_each_row_continues_as_it_does_alone(shelf, mix):
    together = check_generations(shelf, MIXES[mix])
    assert len({tuple(answer) for answer in together}) > 2


def test_the_adapters_give_clearly_different_outputs(shelf):
    mixed = shelf.mixed(EVERY_KIND)
    ids_BT = rows(1)[0].expand(len(EVERY_KIND), -1)
    last_BV = mixed.logits(ids_BT, torch.ones_like(ids_BT), EVERY_KIND)[:, -1]
    differ_BB = torch.cdist(last_BV.float(), last_BV.float())
    assert differ_BB[~torch.eye(len(EVERY_KIND), dtype=torch.bool)].min() > 0.01


def test_a_batch_does_not_depend_on_the_one_before(shelf):
    mixed = shelf.mixed(EVERY_KIND)
    ids_BT, mask_BT = rows(2)
    first = mixed.logits(ids_BT, mask_BT, ["dora", "prompt"])
    mixed.generate([[5, 6], [7]], ["prefix", None], 3, set())
    mixed.logits(*rows(3), ["lora", "houlsby", "ia3"])
    assert torch.equal(mixed.logits(ids_BT, mask_BT, ["dora", "prompt"]), first)


def test_a_row_stops_at_its_stop_id_and_others_continue(shelf):
    names = ["lora", "prefix", None]
    prompts = [[5, 6, 7], [8, 9], [10]]
    mixed = shelf.mixed(names)
    free = mixed.generate(prompts, names, 8, set())
    stop = free[1][3]
    stopped = mixed.generate(prompts, names, 8, {stop})
    for before, after in zip(free, stopped, strict=True):
        assert after == (before[: before.index(stop)] if stop in before else before)


# Other models ----------------------------------------------------------------------------------


def small(**more):
    return {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, **more,
    }  # fmt: skip


def other_model(family):
    torch.manual_seed(0)
    if family == "gpt2":  # learned positions, transposed linear layers
        return GPT2LMHeadModel(
            GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=97, initializer_range=0.2)
        )
    if family == "gemma2":  # scaled embeddings, every other layer with a window of 64
        config = Gemma2Config(**small(head_dim=8, sliding_window=64, query_pre_attn_scalar=8))
        return Gemma2ForCausalLM(config)
    return MistralForCausalLM(MistralConfig(**small(sliding_window=8)))


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mistral"])
def test_other_families_mix_too(family, tmp_path):
    shelf = Shelf(other_model(family), tmp_path)
    names = ["lora", "prefix", "prompt", "houlsby", None]
    for name in names[:-1]:
        shelf.make(name, {**PEFT, **BOTTLENECKS}[name])
    check_logits(shelf, names)
    check_logits(shelf, names, side="right")
    check_generations(shelf, names)


# Bad input -------------------------------------------------------------------------------------


@pytest.fixture
def plain(make_model, tmp_path):
    return Shelf(make_model(1, width=64), tmp_path)


def test_an_unknown_name_names_the_nearest(plain):
    plain.make("lora", PEFT["lora"])
    with pytest.raises(ModelError, match="Did you mean `lora`"):
        plain.mixed(["lora"]).generate([[5]], ["loda"], 1, set())


def test_a_prompt_without_tokens_is_refused(plain):
    with pytest.raises(DataError, match="no tokens"):
        plain.mixed([]).generate([[5], []], [None, None], 1, set())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (LoraConfig(r=2, init_lora_weights="pissa", **TASK), "`pissa` had changed"),
        (LoraConfig(r=2, bias="all", **TASK), "biases"),
        (CPTConfig(cpt_token_ids=[5, 6], cpt_mask=[1, 1], cpt_tokens_type_mask=[1, 1], **TASK),
         "its kind, CPT"),
    ],
)  # fmt: skip
def test_an_adapter_that_changes_the_base_is_refused_by_name(plain, config, says):
    config.save_pretrained(plain.folder / "odd")
    with pytest.raises(ModelError, match=f"`odd`.*cannot share a base.*{says}"):
        plain.mixed(["odd"])


def test_a_folder_without_an_adapter_is_refused(plain):
    with pytest.raises(ModelError, match="holds no adapter"):
        plain.mixed(["base"])


@pytest.mark.parametrize("name", ["lora", "dora", "prefix", "houlsby"])
def test_an_adapter_of_another_width_is_refused(plain, make_model, tmp_path, name):
    plain.make(name, {**PEFT, **BOTTLENECKS}[name])
    other = Shelf(make_model(2, width=32), tmp_path / "other")
    with pytest.raises(ModelError, match=r"does not fit|made for another"):
        MixedAdapters(other.base(), {name: plain.folder / name}).logits(*rows(1), [name])
