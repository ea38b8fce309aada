"""`distill doctor`: a healthy recipe passes, and every bug broken in on purpose has its check."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from attar.models.structure import head_of
from distill.data import tokenize
from distill.data.batching import Batch
from distill.data.counted import every_unit
from distill.data.tokenize import IGNORE
from distill.doctor.diagnose import diagnose
from distill.objective import model_outputs
from distill.objective.losses import LOSSES
from distill.objective.objective import Learner
from distill.training.batch_source import Plan
from distill.training.checkpoint import Checkpoint
from teachers.cache.reader import SignalCache, Signals
from teachers.load import load_teacher
from tests.helpers.chatting import CHAT_ROWS, FORGETTING, STRIPPING, chat_data


def caught(found, says=""):
    """That a check failed for the reason it should."""
    assert found.outcome == "FAIL", found.says
    assert says in found.says
    return True


# On a healthy recipe -----------------------------------------------------------------------------


EVERYTHING_ELSE = (
    "train.objective=[{loss: forward_kl, temperature: 2, source: online}, {loss: relation}, "
    "{loss: hidden_cosine, weight: {schedule: linear, from: 1, to: 0.2}}, "
    "{loss: tvd, source: online}, {loss: forward_kl}]",
    "cache.codec={name: sampled, draws: 30}",
    "cache.hidden={layers: [2], attention: [3], codec: basis}",
    "student={from: {hidden_size: 32, num_hidden_layers: 1}}",
    "train.precision=bfloat16",
)


def test_a_student_of_another_width_with_every_kind_of_term(open_run):
    """Projectors, relations, schedules, a teacher in the step, bfloat16."""
    found = diagnose(open_run(*EVERYTHING_ELSE), 96, lambda done: None)
    others = {one.name: one.says for one in found if one.outcome in ("FAIL", "n.a.")}
    assert others == {"own answers": "the student writes nothing (`train.rollouts`)"}


@pytest.mark.parametrize(
    "changes",
    [
        ("cache.codec={name: hybrid, k: 32}",),
        ("cache.codec={name: sampled, draws: 20}",),
        ("cache.codec=label", "train.objective=[{loss: hidden_mse}, {loss: cross_entropy}]"),
        ("cache.codec={name: final_hidden, kl: 1e-2}",),
        ("cache.codec={name: nucleus, k: 8}", "teacher.dtype=bfloat16"),
        ("train.objective=[{loss: forward_kl, tail: renormalize}, {loss: jsd}]",),
        ("train.objective=[{loss: reverse_kl}, {loss: logit_mse, source: online}]",),
    ],
)
def test_what_a_codec_rounds_draws_or_leaves_out_is_no_fault(finding, changes):
    for name in ("zero at teacher", "cache"):
        assert finding(name, *changes).outcome == "pass"


def test_conversations(finding):
    """What counts is what the assistant says, in every turn, and where it stops."""
    found = finding("mask", *chat_data())
    assert found.outcome == "pass", found.says
    assert "the teacher says nobody learns" in found.says
    assert finding("tokenizer", *chat_data()).outcome == "pass"
    assert finding("padding", *chat_data()).outcome == "pass"


@pytest.mark.parametrize("template", [STRIPPING, FORGETTING])
def test_conversations_whose_turns_are_learned_one_by_one(finding, tokenizer, template):
    """Templates that drop earlier thinking: several texts a row, and a row that is left out."""
    tokenizer.chat_template = template
    tokenizer.save_pretrained("teacher")
    thought = {"user": {}, "assistant": {"reasoning_content": "light"}}
    rows = [
        {"messages": [{**m, **thought[m["role"]]} for m in row["messages"]]} for row in CHAT_ROWS
    ]
    rows[0] = {"messages": [{"role": "bot", "content": "x"}]}
    Path("chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = finding("mask", "data.train=chat.jsonl", "data.max_length=128")
    assert found.outcome == "pass", found.says
    assert "light\\n</think>" in found.says


def pair_data(tokenizer):
    """Prompts with answers, and a teacher whose tokenizer has no chat template."""
    Path("teacher/chat_template.jinja").unlink()
    tokenizer.chat_template = None
    tokenizer.save_pretrained("teacher")
    rows = [{"prompt": f"who says {i}? ", "completion": f"the teacher {i}"} for i in range(40)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ("data.train=pairs.jsonl", "data.max_length=96")


def test_prompts_with_answers_without_a_chat_template(finding, tokenizer):
    found = finding("mask", *pair_data(tokenizer))
    assert found.outcome == "pass", found.says
    assert "' the teacher " in found.says  # one token of the two sides


def test_what_does_not_apply_says_why(finding):
    plain = "train.objective=[{loss: cross_entropy}]"
    for name in ("zero at teacher", "cache", "frozen teacher"):
        assert finding(name, plain).outcome == "n.a."
    found = finding("packing", "data.packing=false")
    assert found.outcome == "n.a."
    assert "does not pack" in found.says


def test_a_teacher_that_knows_less_is_a_warning(finding, make_model, tokenizer):
    assert finding("fitness").outcome == "warn"  # of random weights, as the student
    make_model(3, width=64, layers=4, vocabulary=320, spread=0.01).save_pretrained("teacher")
    student = "student={from: {hidden_size: 32, num_hidden_layers: 1, initializer_range: 0.5}}"
    found = finding("fitness", student)
    assert found.numbers["teacher"] < found.numbers["student"]
    assert found.outcome == "pass"


# Broken on purpose -------------------------------------------------------------------------------


def test_a_window_whose_labels_are_not_shifted(finding, monkeypatch):
    def unshifted(ids, max_length, first=None):
        for start in range(0, max(1, len(ids) - 1), max_length - 1):
            piece = ids[start : start + max_length]
            if len(piece) >= 2:
                yield piece, [*piece[:-1], IGNORE]

    monkeypatch.setattr(tokenize, "windows", unshifted)
    caught(finding("mask"), "off by one")
    caught(finding("normaliser"))


@pytest.mark.parametrize("late", [1, -1])
def test_a_mask_of_conversations_one_token_off(finding, monkeypatch, late):
    """Labels that are the next ids, but counted where the token itself was said (DistillKit)."""
    right = tokenize.tokenize_learned

    def shifted(tokenizer, text, max_length):
        ids, labels, cut = right(tokenizer, text, max_length)
        counted = [label != IGNORE for label in labels]
        counted = [False, *counted[:-1]] if late > 0 else [*counted[1:], False]
        following = [*ids[1:], None]
        pairs = zip(following, counted, strict=True)
        return ids, [i if c and i is not None else IGNORE for i, c in pairs], cut

    monkeypatch.setattr(tokenize, "tokenize_learned", shifted)
    caught(finding("mask", *chat_data()), "where the assistant says")


def test_a_prompt_that_counts_with_its_answer(finding, tokenizer, monkeypatch):
    right = tokenize.tokenize_pair

    def all_of_it(tokenizer, prompt, text, max_length, *, append_eos):
        return right(tokenizer, "", text, max_length, append_eos=append_eos)

    monkeypatch.setattr(tokenize, "tokenize_pair", all_of_it)
    caught(finding("mask", *pair_data(tokenizer)), "where the answer is")


def test_an_end_of_turn_that_does_not_count(finding, monkeypatch):
    """pad == eos, and padding is masked by id: the student never learns to stop."""
    right = tokenize.tokenize_learned

    def without_end(tokenizer, text, max_length):
        ids, labels, cut = right(tokenizer, text, max_length)
        return ids, [IGNORE if i == tokenizer.eos_token_id else i for i in labels], cut

    monkeypatch.setattr(tokenize, "tokenize_learned", without_end)
    assert finding("mask", *chat_data()).outcome == "warn"


def test_a_document_whose_end_does_not_count(finding, monkeypatch):
    right = tokenize.windows

    def without_end(ids, max_length, first=None):
        yield from right(ids[:-1], max_length, first)

    monkeypatch.setattr(tokenize, "windows", without_end)
    caught(finding("mask"), "not all but the first")


def test_an_objective_that_is_divided_twice(finding, monkeypatch):
    right = Learner.forward

    def twice(self, batch, given, scale, terms=None):
        scales = scale if isinstance(scale, dict) else every_unit(scale)
        less = {unit: value / batch.num_counted for unit, value in scales.items()}
        return right(self, batch, given, less, terms)

    monkeypatch.setattr(Learner, "forward", twice)
    caught(finding("normaliser"), "plain model")


def test_a_loop_that_counts_tokens_twice(finding, monkeypatch):
    right = Plan.__init__

    def twice(self, *arguments, **options):
        right(self, *arguments, **options)
        self.counted = [count + count for count in self.counted]

    monkeypatch.setattr(Plan, "__init__", twice)
    caught(finding("normaliser"), "plain model")


def test_a_mean_of_means(finding, monkeypatch):
    right = Learner.forward

    def of_its_own(self, batch, given, scale, terms=None):
        return right(self, batch, given, 1 / (6 * batch.num_counted), terms)

    monkeypatch.setattr(Learner, "forward", of_its_own)
    caught(finding("accumulation"))


def test_padding_that_attention_sees(finding, monkeypatch):
    right = Batch.model_inputs

    def all_see_all(self):
        rows, length = self.input_ids_BT.shape
        return {**right(self), "attention_mask": torch.zeros(rows, 1, length, length)}

    monkeypatch.setattr(Batch, "model_inputs", all_see_all)
    caught(finding("padding"), "more columns of padding")


def test_packed_examples_that_see_each_other(finding, monkeypatch):
    right = Batch.model_inputs

    def positions_go_on(self):
        return {**right(self), "position_ids": None}

    monkeypatch.setattr(Batch, "model_inputs", positions_go_on)
    caught(finding("packing"))
    found = finding("packing", "data.packing=false")
    assert found.outcome == "n.a."
    assert "leave it so" in found.says


def test_chunks_that_overlap(finding, monkeypatch):
    right = model_outputs.head_losses

    def by_chunk(hidden_NH, head, labels_N, terms, *, chunk, dtype):
        total, sums = right(hidden_NH, head, labels_N, terms, chunk=chunk, dtype=dtype)
        return total * (1 + 0.1 / chunk), sums

    monkeypatch.setattr(model_outputs, "head_losses", by_chunk)
    caught(finding("chunk"))


def test_a_divergence_that_is_not_zero_at_the_teacher(finding, monkeypatch):
    """Cross-entropy under the name of a divergence (torchtune's ForwardKL)."""

    def entropy_too(student_NO, teacher_NO, *, beta=0.5):
        return -(teacher_NO.exp() * student_NO.clamp(min=-1e4)).sum(-1)

    wrong = replace(LOSSES["jsd"], function=entropy_too)
    monkeypatch.setitem(LOSSES._things, "jsd", wrong)
    caught(finding("zero at teacher", "train.objective=[{loss: jsd}]"), "teacher itself")


def test_signals_of_the_neighbouring_token(finding, monkeypatch):
    """A cache read one token late."""
    right = Signals.distribution

    def late(self, temperature):
        found = right(self, temperature)
        rolled = {
            name: getattr(found, name).roll(1, 0) for name in ("ids_NK", "logprobs_NK", "tail_N")
            if getattr(found, name) is not None
        }  # fmt: skip
        return replace(found, **rolled)

    monkeypatch.setattr(Signals, "distribution", late)
    for codec in ("{name: topk, k: 16}", "{name: hybrid, k: 32}"):
        caught(finding("cache", f"cache.codec={codec}"), "not these tokens")


def test_layers_of_another_example(finding, monkeypatch):
    right = SignalCache.signals
    monkeypatch.setattr(SignalCache, "signals", lambda self, keys: right(self, keys[::-1]))
    caught(finding("cache", "train.objective=[{loss: hidden_mse}]"), "hidden_mse")


def test_columns_without_a_token_that_count(finding, monkeypatch):
    def all_rows(model, vocabulary, dtype=None):
        return head_of(model, model.get_output_embeddings().weight.shape[0], dtype)

    monkeypatch.setattr(model_outputs, "head_of", all_rows)
    caught(finding("vocabulary"), "made large")


def test_a_teacher_that_learns(finding, monkeypatch):
    monkeypatch.setattr(
        "distill.doctor.fixture.load_teacher",
        lambda config: load_teacher(config).requires_grad_(True),
    )
    caught(finding("frozen teacher"), "would learn")


def test_a_precision_that_loses_the_gradient(finding, monkeypatch):
    right = model_outputs.head_losses

    def noisy(hidden_NH, *rest, dtype, **more):
        spread = 2.0 * hidden_NH.detach().std() * (dtype == torch.bfloat16)
        hidden_NH = hidden_NH + spread * torch.randn_like(hidden_NH)
        return right(hidden_NH, *rest, dtype=dtype, **more)

    monkeypatch.setattr(model_outputs, "head_losses", noisy)
    caught(finding("precision", "train.precision=bfloat16"), "bfloat16")


@pytest.mark.parametrize("what", ["weights", "step"])
def test_a_resume_that_forgets(finding, monkeypatch, what):
    if what == "weights":
        monkeypatch.setattr(
            Checkpoint, "_load_weights", lambda self, models, folder: models.clear()
        )
    else:
        monkeypatch.setattr(Checkpoint, "find", lambda self, name, why_useless: None)
    caught(finding("resume"), "steps more" if what == "step" else "after a kill")


def test_a_projector_in_the_checkpoint(finding):
    def add(fixture):
        fixture.student.add_module("projector", nn.Linear(2, 2))

    caught(finding("checkpoint", prepare=add), "projector")


def test_a_hook_that_stays(finding):
    def hook(fixture):
        fixture.student.model.norm.register_forward_hook(lambda *_: None)

    caught(finding("checkpoint", prepare=hook), "hook")


def test_a_tokenizer_that_loses_text(finding, monkeypatch):
    monkeypatch.setattr(
        "distill.doctor.data_checks._decoded_again", lambda tokenizer, text: text.replace("t", "?")
    )
    caught(finding("tokenizer"), "come back changed")
