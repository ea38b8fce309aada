"""Models that would be learned from, cut or stopped wrongly are refused before any work."""

import json
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from attar.models import structure
from distill.chat.models import OneModel
from tests.conftest import chat_tokenizer
from tests.helpers.families import tiny_config, tiny_family_model

END_OF_TEXT, END_OF_TURN = 0, 2  # ids of <|endoftext|> and <|im_end|>


def put(folder, name, tokenizer, **settings):
    """A folder with a tiny model of a family."""
    model = tiny_family_model(tiny_config(name))
    for key, value in settings.items():
        setattr(model.generation_config, key, value)
        setattr(model.config, key, value)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def refusal(workshop, *changes):
    """What `plan` and `cache build` say, alike, leaving nothing."""
    settings = [part for change in changes for part in ("--set", change)]
    said = [
        workshop(*command, "recipe.yaml", *settings, ok=False)
        for command in (("plan",), ("cache", "build", "--run-dir", "out"))
    ]
    assert {result.exit_code for result in said} == {1}
    assert not Path("out/cache").exists()
    assert not Path("out/records").exists()
    outputs = [" ".join(result.output.split()) for result in said]
    assert all("Traceback" not in output for output in outputs)
    return outputs[1]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("bert, not a decoder", "`is_decoder: true`"),
        ("gpt2, scaled by number", "compute something else when others are removed"),
    ],
)
def test_a_teacher_that_cannot_be_learned_from_or_cut(workshop, bytes_bpe, name, says):
    put("other", name, chat_tokenizer(bytes_bpe))
    changes = ["teacher.model=other", "cache.hidden.layers=[2]", "student.layers={keep: [0, 2]}"]
    assert says in refusal(workshop, *changes)


def test_a_student_whose_head_is_not_known(workshop, bytes_bpe, monkeypatch):
    monkeypatch.setattr(structure, "LOGIT_SCALES", {})
    put("other", "granite, scaled", chat_tokenizer(bytes_bpe))
    Path("recipe.yaml").write_text(
        Path("recipe.yaml").read_text().replace("from: teacher", "from: other")
    )
    assert "the head of other" in refusal(workshop, "student.layers=null").lower()


def test_a_fresh_student_with_heads_that_do_not_divide(workshop):
    fresh = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 3}
    changes = [f"student.from={json.dumps(fresh)}", "student.layers=null"]
    assert "cannot share 3 key-value heads" in refusal(workshop, *changes)


def test_a_base_student_of_an_instruct_teacher_ends_its_turns(workshop, bytes_bpe):
    """Ends of tokenizer, template and teacher are in the config and settings of what is built."""
    put("base", "llama", chat_tokenizer(bytes_bpe), eos_token_id=77)
    GenerationConfig(eos_token_id=[END_OF_TEXT, END_OF_TURN]).save_pretrained("teacher")
    changes = (
        "--set", "student.from=base", "--set", "student.layers=null",
        "--set", "cache.hidden.layers=[2]", "--set", "train.objective=[{loss: forward_kl}]",
    )  # fmt: skip
    workshop.upto_train("out", *changes)
    for folder in ("out/student", "out/arms/distill/student"):
        settings = GenerationConfig.from_pretrained(folder)
        assert settings.eos_token_id == [END_OF_TURN, END_OF_TEXT]
        assert json.loads(Path(folder, "config.json").read_text())["eos_token_id"] == [
            END_OF_TURN,
            END_OF_TEXT,
        ]


def test_chat_ends_at_the_end_of_a_turn_whatever_the_settings_say(workshop, bytes_bpe):
    model = tiny_family_model(tiny_config("llama"))
    model.generation_config.eos_token_id = model.config.eos_token_id = 77
    with torch.no_grad():  # its states are all alike, and every next token is the end of a turn
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name or "embed" in name else 0.0)
        model.lm_head.weight[END_OF_TURN] = 1.0
    model.save_pretrained("talker")
    chat_tokenizer(bytes_bpe).save_pretrained("talker")
    talker, made = OneModel("talker", False, lambda line: None), []
    generate = talker.model.generate
    talker.model.generate = lambda **settings: made.append(generate(**settings)) or made[-1]
    talker.answer("hello", 20, lambda text: None)
    start = talker.tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert made[0][0, len(start) :].tolist() == [END_OF_TURN]


def test_a_measured_model_that_looks_ahead_is_refused_before_any_is_measured(workshop, bytes_bpe):
    put("other", "bert, not a decoder", chat_tokenizer(bytes_bpe))
    result = workshop("evaluate", "teacher", "other", "--data", "text.jsonl", ok=False)
    assert result.exit_code == 1
    assert "other (BertLMHeadModel) looks ahead" in " ".join(result.output.split())


def test_positions_before_the_text_of_a_model_with_layers_before_its_map(workshop, bytes_bpe):
    put("other", "bert", chat_tokenizer(bytes_bpe))
    changes = [
        "teacher.model=other", "cache.hidden.layers=[2]", "student.layers={keep: [0, 2]}",
        "train.objective=[{loss: forward_kl}]", "export.artifacts=[adapter]",
        "specialize={method: prompt, objective: [{loss: cross_entropy}]}",
    ]  # fmt: skip
    assert "layers before its output map" in refusal(workshop, *changes)
