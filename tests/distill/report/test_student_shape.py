"""The student beside its teacher, in sizes and sentences."""

from html import unescape

from transformers import LlamaConfig

from distill.report.student_shape import head_lines, kept_lines, shape_entry, shape_section

TEACHER = LlamaConfig(
    num_hidden_layers=6, hidden_size=64, intermediate_size=128, num_attention_heads=8,
    num_key_value_heads=4, vocab_size=100,
)  # fmt: skip
STUDENT = LlamaConfig(
    num_hidden_layers=3, hidden_size=64, intermediate_size=32, num_attention_heads=4,
    num_key_value_heads=2, vocab_size=100,
)  # fmt: skip
PRUNING = {
    "kept": [0, 1, 2], "by": "influence", "groups": [[0, 3], [1, 2], [0, 1]],
    "neurons": [[1]] * 3, "channels": None, "refit": True,
}  # fmt: skip


def test_a_cut_student_says_which_layers_heads_and_neurons_were_kept():
    entry = shape_entry(TEACHER, STUDENT, PRUNING, "parts of the teacher")
    assert entry["sizes"]["intermediate_size"] == [128, 32]
    page = unescape(shape_section({"student": entry}).markup)
    assert "The student was made of parts of the teacher." in page
    assert "Layers kept: 3 of 6 (number 0-2, counted from 0)" in page
    assert "turn the hidden states most" in page
    assert "Of 4 groups of heads in each layer the 2 most important were kept." in page
    assert "Of 128 feed-forward neurons in each layer the 32 most important were kept." in page
    assert "channels" not in kept_lines(entry["kept"], entry["sizes"])
    assert "The vocabulary is the teacher's." in page
    assert "fitted to the teacher's hidden states" in page
    assert "<li>layer 0: groups 0, 3</li>" in page
    assert "<td>width</td><td>64</td><td>64</td>" in page


def test_a_student_that_was_not_cut_has_sizes_only():
    entry = shape_entry(TEACHER, STUDENT, None, "random weights")
    assert entry["kept"] is None
    page = shape_section({"student": entry}).markup
    assert "random weights" in page
    assert "kept" not in page
    assert shape_section({"student": None}) is None


def test_layers_that_all_stay_are_not_listed():
    kept = {**PRUNING, "layers": [0, 1], "groups": None, "neurons": None, "refit": False}
    lines = kept_lines(kept, {"num_hidden_layers": [2, 2], "hidden_size": [64, 32]})
    assert lines == ["All 2 layers were kept.", "Of 64 channels, 32 are left."]


def test_heads_that_share_nothing_are_called_heads():
    kept, alone = {"layers": [2], "groups": [[1]]}, {"num_attention_heads": [2, 1]}
    assert head_lines(kept, alone) == ["layer 2: head 1"]
    assert head_lines(kept, {**alone, "num_key_value_heads": [2, 1]}) == ["layer 2: head 1"]
    assert head_lines(kept, {**alone, "num_key_value_heads": [1, 1]}) == ["layer 2: group 1"]
