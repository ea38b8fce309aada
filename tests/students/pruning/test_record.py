"""pruning.json through two cuts: the same as one cut of the teacher."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from students.config import StudentConfig
from students.pruning.architectures import sizes_of
from students.pruning.prune import KeptParts, cut_model
from students.pruning.record import (
    ROTATION_FILE,
    channel_map,
    compose_records,
    compose_rotations,
    copy_pruning,
    read_pruning,
)
from students.save import cut_student, save_cut

CONFIG = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=5,
    num_attention_heads=8, num_key_value_heads=4, pad_token_id=0, tie_word_embeddings=False,
)  # fmt: skip
IDS = torch.randint(3, 64, (6, 16), generator=torch.Generator().manual_seed(0))


def teacher():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG).eval()


def cut_by(model, **sections):
    config = StudentConfig.model_validate(sections)
    blocks = sections.get("layers", {}).get("keep", list(range(model.config.num_hidden_layers)))
    student, record, rotation = cut_student(model, blocks, config, IDS)
    return student, {"teacher": "t", **record}, rotation


FIRST = {"layers": {"keep": [0, 1, 3, 4]}, "heads": {"keep": 4}, "hidden": {"keep": 24}}
CUTS = [
    (FIRST, {"layers": {"keep": [0, 3]}, "feed_forward": {"keep": 32}}),
    ({"layers": {"keep": [1, 2, 4]}}, {"layers": {"keep": [0, 2]}, "hidden": {"keep": 16}}),
    ({"feed_forward": {"keep": 40}}, {"feed_forward": {"keep": 16}, "heads": {"keep": 2}}),
    (FIRST, {"hidden": {"keep": 16}, "heads": {"keep": 2}}),
]


@pytest.mark.parametrize(("first", "again"), CUTS)
def test_two_cuts_are_one_cut_of_the_teacher(first, again):
    model = teacher()
    middle, one, _ = cut_by(model, **first)
    student, two, _ = cut_by(middle, **again)
    whole = compose_records(one, two)
    kept = KeptParts(whole["kept"], whole["groups"], whole["neurons"], whole["channels"])
    expected = cut_model(model, kept).state_dict()
    for name, tensor in student.state_dict().items():
        if "norm" not in name:  # norms are rescaled in two steps
            assert torch.equal(tensor, expected[name]), name
        torch.testing.assert_close(tensor, expected[name])
    assert whole["layers"] == [*whole["kept"], 5]
    assert (whole["teacher"], whole["teacher_layers"]) == ("t", 5)
    assert whole["teacher_sizes"] == vars(sizes_of(CONFIG))


@pytest.mark.parametrize(
    "cuts",
    [
        [{"hidden": {"keep": 24, "by": "pca"}}, {"hidden": {"keep": 16, "by": "pca"}}],
        [{"hidden": {"keep": 24, "by": "pca"}}, {"hidden": {"keep": 16}}],
        [{"hidden": {"keep": 24}}, {"hidden": {"keep": 16, "by": "pca"}}],
        [{"layers": {"keep": [0, 2]}}, {"hidden": {"keep": 16, "by": "pca"}}],
        [{"hidden": {"keep": 24, "by": "pca"}}, {"layers": {"keep": [0, 2]}}],
        [FIRST, {"layers": {"keep": [0, 2]}}],
        [
            {"hidden": {"keep": 24}},
            {"layers": {"keep": [0, 2, 3]}},
            {"hidden": {"keep": 16, "by": "pca"}},
        ],
    ],
)
def test_maps_of_channels_multiply(cuts, tokenizer, tmp_path):
    student, record, whole, before = teacher(), None, torch.eye(32), None
    for number, sections in enumerate(cuts):
        width = student.config.hidden_size
        student, again, rotation = cut_by(student, **sections)
        save_cut(student, again, rotation, tokenizer, tmp_path / f"alone{number}")
        step = channel_map(tmp_path / f"alone{number}", width)
        whole = whole if step is None else whole @ step
        if record is None:
            record, through = again, rotation
        else:
            record, through = (
                compose_records(record, again),
                compose_rotations(before, rotation, again),
            )
        before = tmp_path / f"through{number}"
        save_cut(student, record, through, tokenizer, before)
    torch.testing.assert_close(channel_map(before, 32), whole)
    rotates = any(one.get("hidden", {}).get("by") == "pca" for one in cuts)
    assert (before / ROTATION_FILE).exists() == rotates
    assert record["teacher_sizes"] == vars(sizes_of(CONFIG))


def test_a_record_names_one_teacher_and_is_copied_with_the_student(tokenizer, tmp_path):
    student, record, _ = cut_by(teacher(), layers={"keep": [0, 2]})
    save_cut(student, record, None, tokenizer, tmp_path / "cut")
    (tmp_path / "trained").mkdir()
    copy_pruning(tmp_path / "cut", tmp_path / "trained")
    assert read_pruning(tmp_path / "trained", "t") == record
    assert read_pruning(tmp_path / "trained", "another") is None
    assert read_pruning("some/model-on-a-hub", "t") is None
