"""The pace of a training: rates that fall with depth, and blocks that learn later than others."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from attar.errors import RecipeError
from attar.models.structure import blocks_of, capture_layers, run_body
from distill.training.config import LoopConfig
from distill.training.layerwise_lr import Unfreeze, how_much_learns, layerwise_rates, learning_table
from distill.training.loop import train
from distill.training.optimizers import make_optimizer, set_rate
from distill.training.state import TrainingState
from students.save import save_student
from students.tuning.trainable import choose_trainable
from tests.helpers.training import attached, job_of, learned, prepared, train_until

STEPS = 6
WORDS = ["teacher", "says", "what", "student", "learns", "light", "falls", "water"]


@pytest.fixture
def student(make_model, tokenizer, tmp_path, training_loop):
    model = make_model(1, width=32, layers=4, vocabulary=320)
    save_student(model, tokenizer, tmp_path / "student")
    return tmp_path / "student"


@pytest.fixture
def examples(tokenizer, tmp_path):
    dice = random.Random(0)
    rows = [{"text": " ".join(dice.choices(WORDS, k=30))} for _ in range(40)]
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepared(tokenizer, tmp_path / "data", file)


def names_of(model, parameters):
    by_id = {id(p): name for name, p in model.named_parameters()}
    return {by_id[p] for p in parameters}


def unfreezing(**keys):
    return Unfreeze.model_validate(keys)


# Rates -------------------------------------------------------------------------------------------


def test_each_block_learns_slower_than_the_one_above(make_model):
    model = make_model(layers=3, tie_word_embeddings=False)
    factors = layerwise_rates(model, 0.5, None, 10, "").factors
    named = {name: factors[id(p)] for name, p in model.named_parameters()}
    assert named["lm_head.weight"] == named["model.norm.weight"] == 1
    assert named["model.layers.2.mlp.up_proj.weight"] == 1
    assert named["model.layers.1.input_layernorm.weight"] == 0.5
    assert named["model.layers.0.self_attn.q_proj.weight"] == 0.25
    assert named["model.embed_tokens.weight"] == 0.125


def test_a_tied_matrix_learns_as_slowly_as_the_embedding(make_model):
    model = make_model(layers=2, tie_word_embeddings=True)
    factors = layerwise_rates(model, 0.5, None, 10, "").factors
    assert factors[id(model.lm_head.weight)] == 0.25


def test_groups_get_their_rate_and_decay_stays_on_matrices(make_model):
    model = make_model(layers=2)
    pace = layerwise_rates(model, 0.5, None, 10, "")
    made = make_optimizer(model, "adamw", 1.0, (0.9, 0.95), 0.1, pace.factors)
    set_rate(made, 4e-3)
    seen = set()
    for group in made.param_groups:
        for parameter in group["params"]:
            assert group["lr"] == 4e-3 * pace.factors[id(parameter)]
            assert group["weight_decay"] == (0.1 if parameter.ndim >= 2 else 0)
            seen.add(id(parameter))
    assert seen == {id(p) for p in model.parameters()}
    assert len({group["lr"] for group in made.param_groups}) == 3


def test_a_first_step_is_as_long_as_the_rate_of_its_block(student, examples, tmp_path):
    """AdamW's first step is the rate in every number that has a gradient."""
    keys = {"max_steps": 1, "weight_decay": 0.0, "warmup": 0, "layer_lr_decay": 0.5}
    job = job_of(attached(student, "full"), examples, tmp_path / "run", **keys)
    before = learned(job)
    train(job)
    for name, tensor in learned(job).items():
        if "layers" in name:
            step = (tensor - before[name]).abs()
            rate = 2e-3 * 0.5 ** (3 - int(name.split(".")[3]))
            assert float(step.median()) == pytest.approx(rate, rel=0.02), name


# Unfreezing --------------------------------------------------------------------------------------


def test_blocks_begin_from_the_top_and_the_embeddings_last(make_model):
    model = make_model(layers=3, tie_word_embeddings=False)
    starts = layerwise_rates(model, 1.0, unfreezing(every=0.1), 100, "").starts
    named = {name: starts[id(p)] for name, p in model.named_parameters()}
    assert named["lm_head.weight"] == named["model.norm.weight"] == 0
    assert [named[f"model.layers.{i}.mlp.up_proj.weight"] for i in (2, 1, 0)] == [0, 10, 20]
    assert named["model.embed_tokens.weight"] == 30


def test_or_from_the_bottom_and_several_at_a_time(make_model):
    model = make_model(layers=3, tie_word_embeddings=False)
    choose_trainable(model, ["-layers:1"])
    plan = unfreezing(every=5, blocks=2, **{"from": "bottom"})
    starts = layerwise_rates(model, 1.0, plan, 100, "").starts
    named = {n: starts.get(id(p)) for n, p in model.named_parameters() if p.requires_grad}
    assert named["model.embed_tokens.weight"] == named["model.layers.0.mlp.up_proj.weight"] == 0
    assert named["model.layers.2.mlp.up_proj.weight"] == 5
    assert named["lm_head.weight"] == 0


def test_what_does_not_learn_yet_stays_gets_no_gradient_and_no_state(student, examples, tmp_path):
    keys = {"max_steps": STEPS, "unfreeze": {"every": 2, "blocks": 2}, "keep": "last"}
    job = job_of(attached(student, "full"), examples, tmp_path / "run", **keys)
    run, before = TrainingState(job), learned(job)
    states = {}
    for step in range(STEPS):
        run.step(step)
        optimizer = run.optimizer.optimizer
        states[step] = names_of(job.learner, {id(p) for p in optimizer.state})
    changed = {n for n, t in learned(job).items() if not t.equal(before[n])}
    assert changed == set(before)
    job.source.close()
    blocks = {s: {n.split(".")[3] for n in names if "layers" in n} for s, names in states.items()}
    assert blocks[0] == blocks[1] == {"2", "3"}
    assert blocks[2] == blocks[3] == {"0", "1", "2", "3"}
    tied = "student.model.embed_tokens.weight"
    assert tied not in states[3]
    assert tied in states[4]
    assert all(p.requires_grad for p in job.learner.parameters())


def test_stopped_while_thawing_ends_bit_for_bit_as_uninterrupted(student, examples, tmp_path):
    def job(folder):
        return job_of(
            attached(student, "full"), examples, tmp_path / folder,
            max_steps=STEPS, checkpoint_every=100, evaluate_every=100,
            layer_lr_decay=0.8, unfreeze={"every": 1},
        )  # fmt: skip

    whole = job("whole")
    train(whole)
    train_until(job("stopped"), 3)
    resumed = job("stopped")
    train(resumed)
    expected, found = learned(whole), learned(resumed)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


ALONE = """
import sys
from tests.distill.training.test_layerwise_lr import train_apart
train_apart(sys.argv[1])
"""


def train_apart(folder):
    """A training with thawing blocks, alone or as one of several processes."""
    from distill.data.examples import Examples

    folder = Path(folder)
    data = Examples(folder / "data" / "train.arrow"), Examples(folder / "data" / "held_out.arrow")
    world = int(os.environ.get("WORLD_SIZE", 1))
    job = job_of(
        attached(folder / "student", "full"), data, folder / f"of {world}", max_steps=STEPS,
        unfreeze={"every": 1}, batch_size=2, accumulate=4 // world, keep="last",
    )  # fmt: skip
    train(job)
    if int(os.environ.get("RANK", 0)) == 0:
        job.learner.student.save_pretrained(folder / f"of {world}" / "student")


def test_two_processes_thaw_as_one(student, examples, tmp_path, several_processes):
    (tmp_path / "alone.py").write_text(ALONE)
    own = [str(tmp_path / "alone.py"), str(tmp_path)]
    paths = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    for launch in ([], ["-m", "torch.distributed.run", "--nproc_per_node", "2"]):
        done = subprocess.run([sys.executable, *launch, *own], env=env, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
    sides = [
        AutoModelForCausalLM.from_pretrained(tmp_path / f"of {n}" / "student").state_dict()
        for n in (1, 2)
    ]
    for name, tensor in sides[0].items():
        assert (tensor - sides[1][name]).abs().max() < 1e-4, name


# Nothing below the lowest ------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_below_the_lowest_that_learns_there_is_no_graph(student, examples, tmp_path, checkpointing):
    model = attached(student, "full", trainable="last:2")
    keys = {"gradient_checkpointing": checkpointing, "max_steps": 1}
    job = job_of(model, examples, tmp_path / "run", **keys)
    TrainingState(job)
    learner = job.learner.train()
    batch = job.source.batches(0)[0].batch
    with capture_layers(model, [0, 1, 2, 3, 4]) as captured:
        loss, _ = learner(batch, {}, 1.0)
    assert [captured.layers[i].requires_grad for i in range(5)] == [False] * 3 + [True] * 2
    loss.backward()
    job.source.close()
    for i, block in enumerate(blocks_of(model)):
        assert all((p.grad is None) == (i < 2) for p in block.parameters())
    assert model.get_input_embeddings().weight.grad is None


def test_a_frozen_body_keeps_nothing_for_a_backward(make_model):
    model = make_model(layers=4)
    kept = {}
    for part in ("all", "last:1"):
        choose_trainable(model, part)
        sizes = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            run_body(model, {"input_ids": torch.arange(32)[None], "attention_mask": None})
        kept[part] = sum(sizes)
    assert kept["last:1"] < 0.3 * kept["all"]


def test_frozen_parts_are_not_in_checkpoints(student, examples, tmp_path):
    from safetensors.torch import load_file

    model = attached(student, "full", trainable=["last:1", "-norms"])
    train(job_of(model, examples, tmp_path / "run", max_steps=1))
    stored = load_file(str(tmp_path / "run" / "last" / "learned.safetensors"))
    assert set(stored) == {
        f"student.{name}"
        for name, _ in model.named_parameters()
        if name.startswith("model.layers.3.") and "norm" not in name
    }


# What is said, and what is refused ---------------------------------------------------------------


def test_the_table_says_what_learns_how_fast_and_from_when(make_model):
    model = make_model(layers=6, tie_word_embeddings=False)
    choose_trainable(model, ["-embeddings", "-first:2"])
    of_a_block = sum(p.numel() for p in model.model.layers[0].parameters())
    lines = learning_table(
        model, layerwise_rates(model, 0.9, unfreezing(every=0.2, blocks=2), 10, "")
    )
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    embeddings = f"{97 * 32:,}"
    assert cells[0] == ["parameters", "that learn", "lr x", "from step"]
    assert cells[1] == ["embeddings", embeddings, "-", "-", "-"]
    assert cells[2] == ["blocks 0 to 1", f"{2 * of_a_block:,}", "-", "-", "-"]
    assert cells[3] == ["block 2", f"{of_a_block:,}", f"{of_a_block:,}", "0.729", "3"]
    assert cells[6] == ["block 5", f"{of_a_block:,}", f"{of_a_block:,}", "1", "1"]
    assert cells[7][0] == "above the blocks"
    assert lines[-1] == "no gradient goes below block 2"
    learn = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert how_much_learns(model).startswith(f"{learn:,} of ")


def test_the_table_tells_of_a_tied_head_and_joins_blocks_that_are_alike(make_model):
    model = make_model(layers=6, tie_word_embeddings=True)
    choose_trainable(model, "head")
    lines = learning_table(model, layerwise_rates(model, 1.0, None, 10, ""))
    assert lines[1].startswith("embeddings (and head: one matrix)")
    assert lines[2].startswith("blocks 0 to 5")
    assert not any("no gradient" in line for line in lines)


def test_a_run_says_it_before_it_trains(workshop):
    choice = ("--set", "train.trainable=[last:1, norms]", "--set", "train.arms=[]")
    workshop.upto_train("out", *choice, "--set", "train.layer_lr_decay=0.9")
    text = Path("out/run.log").read_text()
    assert "distill: block 1" in text
    assert text.index("parameters learn") < text.index("lr x") < text.index("validation objective")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("train.trainable=last:3", r"`train\.trainable: last:3`: the model has 2 blocks"),
        ("train.trainable=bias", r"`train\.trainable: bias` matches no parameter"),
        ("train.reinitialize=layers:2", r"`train\.reinitialize: layers:2`: the model has 2 blocks"),
        ("train.reinitialize=head", "the head is tied to the embedding"),
        ("train.unfreeze={every: 0.5}", r"`train\.unfreeze`: 3 blocks .* 1 would never learn"),
        ("train.unfreeze={every: 0.1, blocks: 3}", r"`train\.unfreeze` has no effect"),
        ("train.unfreeze={every: 0}", r"`train\.unfreeze\.every`"),
        ("train.unfreeze={every: 1, block: 2}", "Did you mean `blocks`"),
        ("train.layer_lr_decay=1.1", r"`train\.layer_lr_decay`"),
        ("teacher.adapt={trainable: last:9}", r"`teacher\.adapt\.trainable: last:9`: the model h"),
        ("specialize={method: full, layer_lr_decay: 0.5, trainable: embeddings}", "no effect"),
        ("specialize={method: lora, targets: [q_proj], unfreeze: {every: 1, blocks: 2}}",
         r"`specialize\.unfreeze` has no effect: 2 blocks learn"),
        ("specialize={method: qlora, targets: model.layers.1.mlp.up_proj, layer_lr_decay: 0.5}",
         r"`specialize\.layer_lr_decay: 0\.5` has no effect"),
        ("export={artifacts: [merged-requantized-nf4],"
         " recover: {unfreeze: {every: 1, blocks: 3}}}",
         r"`export\.recover\.unfreeze` has no effect: 2 blocks learn"),
        ("specialize={method: prompt, unfreeze: {every: 0.1}}", "what prompt trains stands at one"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_any_work(workshop, make_model, tokenizer, change, says):
    make_model(0, width=64, layers=4, vocabulary=320, tie_word_embeddings=True).save_pretrained(
        "teacher"
    )
    result = workshop("run", "recipe.yaml", "--run-dir", "out", "--set", change, ok=False)
    assert result.exit_code == 1
    assert re.search(says, result.output), result.output
    assert not Path("out/cache").exists()


def test_a_term_on_layers_below_all_that_learns_is_refused(workshop):
    change = ("--set", "train.trainable=last:1", "--set", "train.objective.2.layers=[[1, 2]]")
    result = workshop("run", "recipe.yaml", "--run-dir", "out", *change, ok=False)
    assert "`train.objective[2]` has no effect: hidden_mse reads student layer 1" in result.output


@pytest.mark.parametrize(
    ("change", "section"),
    [
        ("train.unfreeze={every: 500}", "train"),
        ("train={max_steps: 2000, unfreeze: {every: 500}}", "train"),
        ("teacher.adapt={batch_size: 4, unfreeze: {every: 500}}", "teacher.adapt"),
        ("specialize={method: lora, unfreeze: {every: 500}}", "specialize"),
        (
            "export={artifacts: [merged-requantized-int8], recover: {unfreeze: {every: 500}}}",
            "export.recover",
        ),
    ],
)
def test_blocks_that_would_begin_after_the_last_step_are_told_once_steps_are_known(
    workshop, change, section
):
    result = workshop("run", "recipe.yaml", "--run-dir", "out", "--set", change, ok=False)
    assert result.exit_code == 1
    assert re.search(rf"`{section}\.unfreeze`: .* every 500 of \d+ steps", result.output)
    assert Path("out/data").exists()
    assert not any(Path("out", made).exists() for made in ("cache", "teacher", "arms", "student"))


def test_as_many_steps_are_counted_as_are_taken(workshop):
    change = ("--set", "train={unfreeze: {every: 500}, epochs: 2, accumulate: 2, arms: []}")
    result = workshop("run", "recipe.yaml", "--run-dir", "out", *change, ok=False)
    counted = int(re.search(r"every 500 of (\d+) steps", result.output)[1])
    recipe = yaml.safe_load(Path("recipe.yaml").read_text())
    recipe["train"] = {"epochs": 2, "accumulate": 2, "arms": []}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    workshop.upto_train("out")
    assert json.loads(Path("out/arms/distill/result.json").read_text())["steps"] == counted


def test_a_schedule_in_steps_that_is_too_long_is_refused_when_steps_are_known(
    student, examples, tmp_path
):
    job = job_of(
        attached(student, "full"), examples, tmp_path / "run", max_steps=4, unfreeze={"every": 2}
    )
    with pytest.raises(
        RecipeError, match=r"`train\.unfreeze`: .* every 2 of 4 steps: 3 would never learn"
    ):
        train(job)


def test_a_rate_that_rises_downwards_is_refused():
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        LoopConfig.model_validate({"objective": [], "layer_lr_decay": 2})
