"""Causal families from the head check to the exported file: right, or refused in a sentence.

A row is a configuration of a family, as a tiny random model. What is computed by this package is
compared with `transformers` alone: the model's own loss, and the model with its blocks skipped.
"""

import importlib.util
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from attar.errors import UserError
from attar.models.generation import end_as_taught
from attar.models.head_check import check_head, check_head_form
from attar.models.structure import blocks_of, head_of, run_body
from attar.models.task_heads import CAUSAL
from students.artifacts.artifact import ArtifactInputs, check_family, export_artifact
from students.artifacts.gguf.architectures import context_length
from students.config import StudentConfig
from students.pruning.architectures import PRUNABLE_ARCHITECTURES
from students.pruning.block_numbers import check_block_numbers
from students.save import cut_student, save_cut
from tests.helpers.families import FAMILIES, tiny_config, tiny_family_model

IDS = torch.randint(5, 300, (2, 12), generator=torch.Generator().manual_seed(0))
KEEP = [0, 2, 3]
PRUNABLE = {kind for family in PRUNABLE_ARCHITECTURES for kind in family.model_types}
# Configurations that cannot be cut out of, and a word of the sentence that says so.
REFUSED = {
    # blocks that know their number, or of which few kinds stand in turn
    "beam": "`attn_residual_add_idx` of block 2",
    "diffllama": "`self_attn.lambda_init` of block 2",
    "gpt2, scaled by number": "`attn.scaling` of block 2",
    "recurrent_gemma": "`temporal_block.",
    "jamba": "of block 2 is 48, as block 1 does not exist",
    # a recurrence over the same blocks; encoders of another family's decoders
    "hrm_text": "blocks of HrmTextModel were not found",
    **dict.fromkeys(
        ("bart", "bigbird_pegasus", "blenderbot", "marian", "mbart", "pegasus", "whisper"),
        "DecoderWrapper were not found",
    ),
    # they see the tokens after a position
    "prophetnet": "head of ProphetNetForCausalLM is more than one linear map",
    "xlm": "looks ahead",
    "xlnet": "looks ahead",
    "bert, not a decoder": "`is_decoder: true`",
    "electra, not a decoder": "`is_decoder: true`",
}


def nll_of(model):
    """Nats a token, from the model's own logits."""
    logits_BTV = model(input_ids=IDS).logits
    return float(cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), IDS[:, 1:].flatten()))


def nll_by_head(model):
    """The same from final states and the head by itself, as students learn and are measured."""
    states_BTH = run_body(model, {"input_ids": IDS, "attention_mask": None})
    head = head_of(model, model.get_output_embeddings().weight.shape[0])
    return float(cross_entropy(head.logits(states_BTH[:, :-1]).flatten(0, 1), IDS[:, 1:].flatten()))


def logits_without(model, block):
    """The model's logits when one block gives back its input; None where it cannot run so."""

    def skip(_module, args, kwargs, output):
        given = args[0] if args else kwargs["hidden_states"]
        return (given, *output[1:]) if isinstance(output, (tuple, list)) else given

    handle = blocks_of(model)[block].register_forward_hook(skip, with_kwargs=True)
    try:
        return model(input_ids=IDS).logits
    finally:
        handle.remove()


def assert_close(found, wanted, what, share=1e-3):
    off = float((found - wanted).abs().max() / wanted.abs().max())
    assert off < share, f"{what}: off by {off:.2g} of the largest"


def cut_and_saved(teacher, values, tokenizer, folder):
    """A student that was cut out of a model, saved, checked and loaded as users load it."""
    config = StudentConfig.model_validate(values)
    student, pruning, rotation = cut_student(teacher, KEEP, config, None)
    end_as_taught(student, tokenizer, [teacher.config, teacher.generation_config])
    save_cut(student, pruning, rotation, tokenizer, folder)
    again = AutoModelForCausalLM.from_pretrained(folder).eval()
    check_head(again)
    assert_close(again(input_ids=IDS).logits, student(input_ids=IDS).logits, "reloaded", 1e-4)
    assert nll_by_head(again) == pytest.approx(nll_of(again), abs=1e-3), "the student's nll"
    return again


def exported(student, folder, tokenizer):
    """Names of the artifacts that give the student's logits."""
    given = ArtifactInputs(student=folder, merged=folder)
    export_artifact("bf16", given, folder / "bf16", "")
    read = AutoModelForCausalLM.from_pretrained(folder / "bf16", dtype=torch.bfloat16).eval()
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, read.state_dict()[key]), f"{key} changed in bf16"
    off = read(input_ids=IDS).logits.float() - whole(input_ids=IDS).logits.float()
    spread = student(input_ids=IDS).logits.std()  # a token may meet other experts in 16 bits
    assert off.abs().mean() < 0.05 * spread, f"bf16: off by {float(off.abs().mean() / spread):.2g}"
    end = tokenizer.eos_token_id
    assert end in np.atleast_1d(read.generation_config.eos_token_id), "its settings do not end"
    assert end in np.atleast_1d(read.config.eos_token_id), "its config does not end"
    if any(importlib.util.find_spec(name) is None for name in ("gguf", "xllamacpp")):
        return "bf16"
    try:
        check_family("gguf-f16", student.config)
    except UserError:
        return "bf16"
    from attar.llama_cpp import GGUFModel

    export_artifact("gguf-f16", given, folder / "gguf", "")
    loaded = GGUFModel(folder / "gguf" / "model.gguf")
    ids = IDS[0].tolist()[: context_length(student.config)]
    loaded.start(len(ids))
    found = torch.from_numpy(loaded.extend(ids, np.ones(len(ids), bool)))
    loaded.close()
    whole = AutoModelForCausalLM.from_pretrained(folder)(input_ids=IDS).logits[0]
    assert_close(found, whole[: len(ids)], "gguf", 0.02)
    return "bf16, gguf-f16"


@torch.no_grad()
def way_of(name, tokenizer, folder):
    """What became of a configuration, in words."""
    config = tiny_config(name)
    form = check_head_form(config, CAUSAL)
    teacher = tiny_family_model(config)
    check_head(teacher)
    assert nll_by_head(teacher) == pytest.approx(nll_of(teacher), abs=1e-3), "the teacher's nll"
    check_block_numbers(config, CAUSAL, KEEP)
    student = cut_and_saved(teacher, {"layers": {"keep": KEEP}}, tokenizer, folder / "depth")
    try:
        wanted = logits_without(teacher, 1)
    except (TypeError, IndexError, AttributeError, ValueError):
        wanted = None
    if wanted is not None:
        assert_close(student(input_ids=IDS).logits, wanted, "cut")
    made = exported(student, folder / "depth", tokenizer)
    width = ""
    if config.model_type in PRUNABLE:
        half = {"feed_forward": {"keep": 0.5, "by": "even"}}
        values = {"layers": {"keep": KEEP}, **half}
        student = cut_and_saved(teacher, values, tokenizer, folder / "width")
        exported(student, folder / "width", tokenizer)
        width = ", width"
    return f"depth{width}; {made}{'' if form else '; head seen by weights only'}"


@pytest.mark.filterwarnings("ignore")
def test_every_configuration_is_right_or_refused(full_product, tokenizer, tmp_path, capsys):
    assert len(FAMILIES) >= 60
    rows = {}
    for number, name in enumerate(FAMILIES):
        start = time.perf_counter()
        try:
            found = SimpleNamespace(
                kind="right", says=way_of(name, tokenizer, tmp_path / str(number))
            )
        except UserError as error:
            found = SimpleNamespace(kind="refused", says=str(error))
        except Exception as error:  # the table shows what went wrong
            says = " ".join(str(error).split())[:200]
            found = SimpleNamespace(kind="WRONG", says=f"{type(error).__name__}: {says}")
        found.seconds = time.perf_counter() - start
        rows[name] = found
    with capsys.disabled():
        print()
        for name, found in rows.items():
            print(f"{name:42} {found.kind:8} {found.seconds:4.1f} s  {found.says}")
        kinds = [found.kind for found in rows.values()]
        print(f"{len(rows)} configurations:", {kind: kinds.count(kind) for kind in set(kinds)})
    assert [name for name, found in rows.items() if found.kind == "WRONG"] == []
    assert all("\n" not in found.says for found in rows.values() if found.kind == "refused")
    assert {name for name, found in rows.items() if found.kind == "refused"} == REFUSED.keys()
    for name, word in REFUSED.items():
        assert word in rows[name].says, (name, rows[name].says)
