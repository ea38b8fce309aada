"""Blocks that know their number: carried over, or refused before any work."""

import pytest
import torch

from attar.errors import ModelError, RecipeError
from attar.models.task_heads import CAUSAL
from students.pruning.block_numbers import changed_traits, check_block_numbers
from students.pruning.depth import cut_depth
from tests.helpers.families import tiny_config, tiny_family_model

NUMBERED = ("gpt2, scaled by number", "diffllama", "beam")
CARRIED = (
    "qwen2_moe, experts in turn", "qwen3_moe, one dense", "deepseek_v3, two dense", "llama4_text",
    "minicpm3, scaled", "smollm3, positions in turn", "qwen2, a window from block 2 on",
    "gpt_neo, windows in turn", "cohere2, one in two", "bamba",
)  # fmt: skip


@pytest.mark.parametrize("name", NUMBERED)
def test_blocks_that_change_with_their_number_are_refused(name):
    config = tiny_config(name)
    for keep in ([0, 2, 3], 2):
        with pytest.raises(RecipeError, match="compute something else when others are removed"):
            check_block_numbers(config, CAUSAL, keep)
    check_block_numbers(config, CAUSAL, [0, 1])  # these keep their numbers


@pytest.mark.parametrize("name", ["diffllama", "beam"])
def test_a_cut_is_compared_with_the_model_that_skips_the_others(name):
    with pytest.raises(ModelError, match="output differs by"):
        cut_depth(tiny_family_model(tiny_config(name)), [0, 2, 3])


@pytest.mark.parametrize("name", CARRIED)
def test_what_a_config_says_of_blocks_by_number_is_carried(name):
    config = tiny_config(name)
    for keep in ([0, 2, 3], [1, 3], [2, 3]):
        assert changed_traits(config, CAUSAL, keep) == []
        cut = cut_depth(tiny_family_model(config), keep)  # which compares with skipped blocks
        with torch.inference_mode():
            assert cut(input_ids=torch.arange(5, 17)[None]).logits.isfinite().all()
