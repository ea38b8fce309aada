"""The arithmetic of the cache stage's memory, and of a greedy removal's operations and trials."""

from dataclasses import replace

import pytest
import torch

from distill.planning import cache_memory
from distill.planning.build_time import LOADING_SECONDS, build_note, build_seconds
from distill.planning.cache_memory import CacheWork
from distill.planning.data_counts import DataCounts
from distill.planning.model_cost import ModelCost
from students.config import StudentConfig
from students.pruning.depth import keep_greedily
from teachers.cache.config import CacheConfig

H, V, BLOCKS = 512, 32_000, 8
COST = ModelCost(body=8_000_000, head=V * H, total=24_400_000, width=H, depth=BLOCKS)
COUNTS = DataCounts(10_000, 100, 100, 256.0, 255.0, 255.0, None, "counted", 100)
WORK = CacheWork(COST, 4.0 * COST.total, 0.0, torch.float32, COUNTS, V)


@pytest.fixture(autouse=True)
def _no_libraries(monkeypatch):
    monkeypatch.setattr(cache_memory, "libraries", lambda: 0.0)


def cache_of(**section):
    return CacheConfig.model_validate(section)


def peak(work=WORK, **section):
    return work.peak(cache_of(**section))


def test_what_is_held_at_once_is_in_the_peak():
    plain = peak(codec="topk")
    logits = 4 * V * ((64 << 20) // (4 * V))
    assert plain > WORK.weights + logits
    assert peak(codec="topk", batch_tokens=16_384) > plain
    wide = replace(WORK, outcomes=150_000)
    assert peak(wide, codec="hybrid") - peak(wide, codec="topk") > 150e6, "probabilities of 256"


def test_layers_are_held_for_a_whole_shard_and_written_from_copies():
    plain, layers = peak(codec="topk"), {"layers": [2, 5, 8], "codec": "bf16"}
    more = peak(codec="topk", hidden=layers) - plain
    whole = 32_768 * 3 * 2 * H
    assert whole < more < 5 * whole
    assert peak(codec="topk", hidden=layers, shard_tokens=4096) - plain < more / 2
    few = replace(WORK, counts=replace(COUNTS, train=10, validation=0))
    assert peak(few, codec="topk", hidden=layers) - peak(few, codec="topk") < more / 2


def test_final_hidden_holds_the_head_and_no_logits():
    cache = cache_of(codec="final_hidden")
    assert WORK.logits(cache) == 0
    assert WORK.assets(cache) == 4 * V * H
    assert WORK.peak(cache) >= WORK.weights + cache_memory.HEAD_COPIES * 4 * V * H
    assert WORK.assets(cache_of(codec="topk")) == 0


def test_a_checkpoint_of_another_dtype_lies_beside_the_weights_until_they_are_loaded():
    large = replace(WORK, file=2e9)
    assert peak(large, codec="topk") == WORK.weights + 2e9


def test_a_shard_of_final_states_is_two_bytes_a_channel_in_memory():
    memory, disk = WORK.shard(cache_of(codec="final_hidden", shard_tokens=1000))
    assert memory == pytest.approx(2 * H * (1000 + 256))
    assert disk < memory


@pytest.mark.parametrize("codec", ["topk", "final_hidden"])
def test_labels_beside_a_codec_are_four_bytes_a_token_and_a_copy_of_logits(codec):
    plain, labelled = (cache_of(codec=codec, labels=labels) for labels in (False, True))
    for one, other in zip(WORK.shard(plain), WORK.shard(labelled), strict=True):
        assert other - one == pytest.approx(4.0 * (32_768 + 256))
    logits = 4.0 * V * ((64 << 20) // (4 * V))
    assert WORK.logits(labelled) == 2 * logits


def student_of(**layers):
    return StudentConfig.model_validate({"layers": layers})


def test_a_greedy_removal_takes_its_trials_and_passes():
    """2 of 8 blocks: 8 trials of 3.5 to 4 blocks, 3 later ones, and all blocks three times."""
    student = student_of(keep=6, by="greedy", calibration_tokens=1000)
    seconds = build_seconds(student, COST, speed=1e9) - LOADING_SECONDS
    left = 7 / 8
    body, head = 8 * 0.5 + (3 * 0.5 + 2) * left + 1, 8 + 3 + 2 + 1
    assert seconds == pytest.approx(2.0 * 1000 * (body * COST.body + head * COST.head) / 1e9)
    assert build_note(student, COST) == "; 2 blocks removed greedily by about 11 trials"


def test_a_search_only_tries_to_remove_blocks():
    student = StudentConfig.model_validate({"target": {"parameters": "97%"}})
    note = build_note(student, COST)
    assert note.startswith("; a search, which tries to remove up to 1 block greedily by about 8 ")


@pytest.mark.parametrize("layers", [{"keep": 6, "by": "even"}, {"keep": [0, 1]}, {"keep": 8}])
def test_blocks_that_are_not_tried_take_no_trials(layers):
    assert build_note(student_of(**layers), COST) == ""
    assert build_seconds(student_of(**layers), COST, speed=1e9) == LOADING_SECONDS


def test_the_operations_of_a_removal_are_near_those_that_are_made(make_model):
    """Counted by hooks, of the first block that goes: how often later trials repeat is known only
    about.
    """
    model, ran = make_model(1, layers=6), []
    for block in model.model.layers:
        block.register_forward_hook(lambda *_: ran.append(1))
    ids_BT = torch.arange(24).reshape(2, 12)

    def loss_of(cut):
        return float(cut(input_ids=ids_BT).logits.logsumexp(-1).mean())

    keep_greedily(model, loss_of, 5)
    small = ModelCost(body=600, head=0, total=600, width=1, depth=6)
    student = student_of(keep=5, by="greedy", calibration_tokens=2)
    planned = (build_seconds(student, small, speed=1.0) - LOADING_SECONDS) / (2.0 * 2 * 100)
    assert planned == pytest.approx(len(ran), rel=0.4)
