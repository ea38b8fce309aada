"""Every tuning method: what is trained, what is saved, and what it merges to.

One row a method and base: trained by the project's own step, saved, and loaded by a fresh process.
"""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from attar.errors import ModelError, RecipeError
from attar.models.peft_models import prepends
from attar.models.structure import capture_layers, head_of, run_body
from distill.data.batching import collate
from distill.objective.objective import Learner
from distill.objective.terms import TERM_MODELS
from students.save import save_student
from students.tuning.adapters import (
    adapter_bytes,
    check_adapter_fits,
    check_mergeable,
    load_adapter,
    load_base,
    merge_adapter,
    save_adapter,
)
from students.tuning.method import METHODS

V = 320
IDS = torch.randint(4, 300, (3, 12), generator=torch.Generator().manual_seed(0))
VARIANTS = {  # in addition to every method with its defaults on each of its bases
    "lora-rslora": ("lora", {"rslora": True}),
    "lora-dora": ("lora", {"dora": True}),
    "lora-pissa": ("lora", {"init": "pissa", "rank": 4}),
    "lora-pissa-rslora": ("lora", {"init": "pissa", "rank": 4, "rslora": True}),
    "lora-olora": ("lora", {"init": "olora", "rank": 4}),
    "lora-orthogonal": ("lora", {"init": "orthogonal", "rank": 4}),
    "lora-names": ("lora", {"targets": ["q_proj", "mlp.down_proj"]}),
    "lora-expression": ("lora", {"targets": r".*\.1\..*_proj"}),
    "lora-head": ("lora", {"targets": ["lm_head", "q_proj"]}),
    "lora-dora-head": ("lora", {"targets": ["lm_head"], "dora": True}),
    "qlora-dora": ("qlora", {"dora": True}),
    "prefix-projection": ("prefix", {"projection": True, "encoder_hidden_size": 8}),
    "prompt-text": ("prompt", {"init_text": "the teacher says"}),
    "p_tuning-lstm": ("p_tuning", {"encoder": "lstm"}),
    "ia3-head": ("ia3", {"targets": ["lm_head", "up_proj"], "feedforward": ["up_proj"]}),
    "full-last": ("full", {"trainable": "last:1"}),
}


def every_row():
    rows = {}
    for name, kind in METHODS.items():
        field = kind.model_fields.get("base")
        for base in get_args(field.annotation) if field is not None else (kind.base,):
            more = {} if field is None else {"base": base}
            rows[name if base == "none" else f"{name}-{base}"] = (name, more)
    return {**rows, **VARIANTS}


ROWS = every_row()
ADAPTERS = [row for row, (name, _) in ROWS.items() if METHODS[name].leaves == "adapter"]
MERGING = [row for row in ADAPTERS if METHODS[ROWS[row][0]].merges]
FRESH = """
import json, sys, torch
from pathlib import Path
from students.tuning.adapters import load_adapter, load_base
root = Path(sys.argv[1])
ids = torch.load(root / "ids.pt")
for row, (leaves, base) in json.loads((root / "rows.json").read_text()).items():
    if leaves == "weights":
        model = load_base(root / row, "none")
    else:
        student = root / "student"
        model = load_adapter(load_base(student, base), root / row, base=student)
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[:, -ids.shape[1]:].float()
    torch.save(logits, root / f"{row}.pt")
"""


def logits_of(model, ids=IDS):
    """Logits of the text's positions, by body and head separately, as in training."""
    positions = torch.arange(ids.shape[1]).expand(len(ids), -1)
    with torch.no_grad():
        hidden = run_body(
            model, {"input_ids": ids, "position_ids": positions, "attention_mask": None}
        )
        return head_of(model, V).logits(hidden.flatten(0, 1)).view(*ids.shape, V)


def take_steps(model, method, examples, steps=2):
    """Train on the same batch by the loop's own step; return the names that had gradients."""
    dtype = torch.float32 if method.base == "none" else torch.bfloat16
    terms = [TERM_MODELS["cross_entropy"](loss="cross_entropy")]
    learner = Learner(model, terms, vocabulary=V, dtype=dtype, chunk=64).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    batch = collate([[example] for example in examples])
    for _ in range(steps):
        optimizer.zero_grad()
        loss, _ = learner(batch, {}, 1 / batch.num_counted)
        loss.backward()
        optimizer.step()
    model.eval()
    return {name for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def shop(tmp_path_factory, make_model, make_examples, bytes_bpe):
    """A student on disk; each method trained, saved, with logits here and in a new process."""
    from transformers import PreTrainedTokenizerFast

    root = tmp_path_factory.mktemp("tuning")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_bpe, eos_token="<|im_end|>")
    save_student(make_model(1, width=64, vocabulary=V), tokenizer, root / "student")
    examples = make_examples(3, vocabulary=V)
    found, rows = {}, {}
    for row, (name, keys) in ROWS.items():
        method = METHODS[name](**keys)
        base = load_base(root / "student", method.base)
        own = {name for name, _ in base.named_parameters()}
        method.check(base.config)
        model = method.attach(base, 0)
        learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
        start = logits_of(model)
        touched = take_steps(model, method, examples)
        if method.leaves == "weights":
            save_student(model, tokenizer, root / row)
        else:
            save_adapter(model, root / row, root / "student", method.base)
        rows[row] = (method.leaves, method.base)
        found[row] = {
            "method": method, "model": model, "learning": learning, "touched": touched,
            "start": start, "logits": logits_of(model), "base": own,
        }  # fmt: skip
    torch.save(IDS, root / "ids.pt")
    (root / "rows.json").write_text(json.dumps(rows))
    subprocess.run([sys.executable, "-c", FRESH, str(root)], check=True, capture_output=True)
    return root, found


@pytest.mark.parametrize("row", ROWS)
def test_only_what_the_method_adds_or_chooses_learns(row, shop):
    found = shop[1][row]
    assert found["touched"] == set(found["learning"])
    assert {p.dtype for p in found["learning"].values()} == {torch.float32}
    assert (found["logits"] - found["start"]).abs().max() > 1e-3
    if found["method"].leaves == "adapter":
        assert not set(found["learning"]) & found["base"]


@pytest.mark.parametrize("row", ROWS)
def test_a_new_process_gives_the_same_logits(row, shop):
    root, found = shop
    fresh = torch.load(root / f"{row}.pt")
    near = 1e-4 if found[row]["method"].base == "none" else 0.05  # bfloat16 rounds
    torch.testing.assert_close(fresh, found[row]["logits"], atol=near, rtol=0)


@pytest.mark.parametrize("row", [row for row in ADAPTERS if "adapter" not in row])
def test_peft_alone_loads_the_folder(row, shop):
    """On the student in full precision, for every base it was trained on."""
    root, _ = shop
    student = AutoModelForCausalLM.from_pretrained(root / "student")
    with torch.inference_mode():
        theirs = PeftModel.from_pretrained(student, root / row)(input_ids=IDS).logits
    ours = load_adapter(load_base(root / "student", "none"), root / row)
    torch.testing.assert_close(theirs[:, -12:], logits_of(ours), atol=1e-4, rtol=0)


@pytest.mark.parametrize("row", MERGING)
def test_a_merge_gives_the_logits_of_the_adapter(row, shop):
    root, found = shop
    merged = merge_adapter(root / "student", root / row)
    ours = load_adapter(load_base(root / "student", "none"), root / row)
    torch.testing.assert_close(logits_of(merged), logits_of(ours), atol=1e-4, rtol=1e-4)
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    assert set(merged.state_dict()) == set(load_base(root / "student", "none").state_dict())
    if found[row]["method"].base == "none":
        torch.testing.assert_close(logits_of(merged), found[row]["logits"], atol=1e-4, rtol=1e-4)
        return
    into = merge_adapter(root / "student", root / row, into="dequantized")
    trained = found[row]["logits"]  # on the quantised base, in bfloat16
    away = {name: (logits_of(m) - trained).norm() for name, m in (("s", merged), ("d", into))}
    assert away["d"] < 0.03 * trained.norm()
    if found[row]["method"].base != "int8":
        assert away["d"] < away["s"] / 2


@pytest.mark.parametrize("row", [row for row in ADAPTERS if row not in MERGING])
def test_what_cannot_be_merged_says_why(row, shop):
    root, _ = shop
    with pytest.raises(ModelError, match=r"cannot be merged: .*; deploy it as an adapter"):
        merge_adapter(root / "student", root / row)


@pytest.mark.parametrize("row", ADAPTERS)
def test_the_bytes_of_an_adapter_are_known_before_it_is_saved(row, shop):
    root, found = shop
    size = (root / row / "adapter_model.safetensors").stat().st_size
    assert 0 <= size - adapter_bytes(found[row]["model"]) < 200 + 200 * 64  # names and shapes


@pytest.mark.parametrize("row", ROWS)
def test_the_same_seed_gives_the_same_initial_weights(row, shop):
    root, found = shop
    method = found[row]["method"]
    again = method.attach(load_base(root / "student", method.base), 0)
    torch.testing.assert_close(logits_of(again.eval()), found[row]["start"])


@pytest.mark.parametrize("row", ["lora", "qlora-nf4", "lora-dora", "ia3", "lora-pissa"])
def test_a_weight_adapter_changes_nothing_at_first(row, shop):
    root, found = shop
    plain = logits_of(load_base(root / "student", found[row]["method"].base))
    torch.testing.assert_close(found[row]["start"], plain, atol=1e-4, rtol=1e-4)


def test_every_method_has_its_table_of_keys():
    page = (Path(__file__).parents[3] / "docs/reference/recipe.md").read_text(encoding="utf8")
    tables = set(re.findall(r"^### `specialize\.(\w+)`$", page, flags=re.M))
    assert tables == set(METHODS) - {"head"}


# Learned positions -------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [r for r, (n, _) in ROWS.items() if METHODS[n].prepends])
def test_body_and_head_give_the_logits_of_peft_at_every_position(row, shop, make_examples):
    """Rows of different lengths, padded on the right, each at positions from 0, without a mask."""
    model = shop[1][row]["model"]
    assert prepends(model)
    examples = make_examples(4, seed=3, vocabulary=V)
    batch = collate([[example] for example in examples])
    # On a quantised base products are in bfloat16, whose rounding depends on the rows together; a
    # token at a wrong position, or one that sees padding, is off by far more.
    near = 1e-6 if shop[1][row]["method"].base == "none" else 2**-6
    with torch.no_grad():
        hidden = run_body(model, batch.model_inputs())
        together = head_of(model, V).logits(hidden.flatten(0, 1)).view(*hidden.shape[:2], V)
        for b, example in enumerate(examples):
            ids = torch.from_numpy(example.input_ids).unsqueeze(0)
            alone = model(input_ids=ids).logits[0, -len(example.input_ids) :].float()
            mine = together[b, : len(example.input_ids)]
            assert float((mine - alone).norm() / alone.norm()) < near


@pytest.mark.parametrize("row", ["prefix", "prompt", "p_tuning"])
def test_layers_hold_only_the_positions_of_the_text(row, shop):
    """The last block's output, cut to the text and normed, is the final hidden state."""
    model = shop[1][row]["model"]
    positions = torch.arange(12).expand(3, -1)
    batch = {"input_ids": IDS, "position_ids": positions, "attention_mask": None}
    with torch.no_grad(), capture_layers(model, [2]) as captured:
        hidden = run_body(model, batch)
        last = captured.layers[2][:, -hidden.shape[1] :]
        torch.testing.assert_close(model.get_base_model().model.norm(last), hidden)


# Heads -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dora", [False, True])
def test_a_tied_head_is_untied_by_a_merge(dora, make_model, tokenizer, make_examples, tmp_path):
    tied = make_model(1, width=64, vocabulary=V, tie_word_embeddings=True)
    save_student(tied, tokenizer, tmp_path / "student")
    method = METHODS["lora"](targets=["lm_head"], dora=dora)
    model = method.attach(load_base(tmp_path / "student", "none"), 0)
    take_steps(model, method, make_examples(3, vocabulary=V))
    save_adapter(model, tmp_path / "adapter", tmp_path / "student")
    save_student(
        merge_adapter(tmp_path / "student", tmp_path / "adapter"), tokenizer, tmp_path / "merged"
    )
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_of(merged), logits_of(model), atol=1e-4, rtol=1e-4)
    assert torch.equal(merged.get_input_embeddings().weight, tied.get_input_embeddings().weight)


# Mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "keys", "says"),
    [
        ("lora", {"targets": ["query"]}, r"`query` fits no linear layer.*k_proj, .*q_proj"),
        ("lora", {"targets": ["q_proj", "k_porj"]}, r"`k_porj` fits.*Did you mean `k_proj`"),
        ("lora", {"targets": "query.*"}, r"`query\.\*` fits no linear layer"),
        ("lora", {"targets": "(q_proj"}, "not a regular expression"),
        ("lora", {"init": "pissa", "rank": 40}, r"`specialize.rank` is 40; .*32 singular"),
        ("lora", {"targets": ["lm_head"], "dropout": 0.1}, "no effect on the head"),
        ("qlora", {"targets": ["norm"]}, "`norm` fits no linear layer"),
        ("ia3", {"targets": ["key"]}, "`key` fits no linear layer"),
        ("prefix", {"virtual_tokens": 128}, "128 positions, and the text needs some"),
        ("full", {"trainable": "re:experts"}, r"`specialize\.trainable: re:experts` matches no"),
        ("full", {"trainable": "last:3"}, "the model has 2 blocks"),
    ],
)
def test_a_method_that_does_not_fit_is_refused_by_the_config_alone(name, keys, says, make_model):
    config = make_model(1, width=64, vocabulary=V).config
    with pytest.raises(RecipeError, match=says):
        METHODS[name](**keys).check(config)


def test_a_family_unknown_to_ia3_must_name_its_targets(make_model):
    config = make_model(1, width=64, vocabulary=V).config
    config.model_type = "olmo"
    with pytest.raises(RecipeError, match=r"`specialize\.targets` must be given.*olmo"):
        METHODS["ia3"]().check(config)


@pytest.mark.parametrize(
    ("name", "keys", "says"),
    [
        ("qlora", {"init": "pissa"}, "decomposes the weights, which an nf4 base"),
        ("qlora", {"init": "pissa", "base": "int8"}, "an int8 base"),
        ("qlora", {"dora": True, "base": "int8"}, "loses the scales of an int8 base"),
        ("lora", {"init": "pissa", "dora": True}, "use only one"),
        ("lora", {"init": "orthogonal", "rank": 3}, "even `rank`"),
        ("prefix", {"encoder_hidden_size": 8}, "no effect without `projection: true`"),
        ("ia3", {"targets": ["up_proj"], "feedforward": ["down_proj"]}, "names down_proj"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(name, keys, says):
    with pytest.raises(ValueError, match=says):
        METHODS[name](**keys)


@pytest.fixture
def adapter(make_model, tokenizer, tmp_path):
    """A student's folder and that of an adapter for it."""
    folder = tmp_path / "student"
    save_student(make_model(1, width=64, vocabulary=V), tokenizer, folder)
    model = METHODS["lora"](rank=2).attach(load_base(folder, "none"), 0)
    save_adapter(model, tmp_path / "lora", folder)
    return folder, tmp_path / "lora"


def test_an_adapter_of_another_base_names_both(adapter, make_model, tokenizer, tmp_path):
    student, lora = adapter
    save_student(make_model(2, width=64, vocabulary=V), tokenizer, tmp_path / "other")
    says = rf"made for {student} \(weights .*\), not for {tmp_path / 'other'}"
    other = load_base(tmp_path / "other", "none")
    for use in (
        partial(check_adapter_fits, lora, tmp_path / "other"),
        partial(load_adapter, other, lora, base=tmp_path / "other"),
        partial(merge_adapter, tmp_path / "other", lora),
    ):
        with pytest.raises(ModelError, match=says):
            use()
    check_adapter_fits(lora, student)


def test_an_adapter_that_does_not_fit_the_model_is_refused(adapter, make_model):
    with pytest.raises(ModelError, match=r"lora does not fit the model"):
        load_adapter(make_model(1, width=32, vocabulary=V), adapter[1])


def test_a_base_that_was_never_quantised_is_not_dequantised(adapter):
    with pytest.raises(ModelError, match="not trained on a quantised base"):
        merge_adapter(*adapter, into="dequantized")


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(ModelError, match="holds no adapter"):
        check_mergeable(tmp_path)
