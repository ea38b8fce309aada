"""`distill plan`: what it says before any work, and what is then prepared and made."""

import json
import re
from pathlib import Path

import pytest
from transformers import AutoConfig, BertConfig, GPT2Config, LlamaConfig

from distill.data.examples import Examples
from distill.data.placed import DATA_PARTS, part_file
from distill.planning.estimate import Estimate, data_counts, estimates, plan_rows, unit_of
from distill.planning.model_cost import model_cost
from distill.run.context import Run
from distill.run.load import check_recipe, load_recipe
from teachers.cache.reader import SignalCache
from tests.conftest import Workshop
from tests.helpers import classifying, embedding, masking, rewarding

pytestmark = pytest.mark.usefixtures("whole_stages")

TASKS = {"classes": classifying, "vectors": embedding, "masks": masking, "rewards": rewarding}
V, H, TOPK = masking.V, 32, {"name": "topk", "k": 12}


@pytest.fixture(params=list(TASKS))
def task(request, tmp_path, monkeypatch):
    """A folder with what a task needs: its recipe is written by `write_recipe`."""
    monkeypatch.chdir(tmp_path)
    TASKS[request.param].fill_workshop()
    return TASKS[request.param]


@pytest.fixture
def masks(tmp_path, monkeypatch):
    """The same for masked tokens: a plan of the recipe with some sections changed."""
    monkeypatch.chdir(tmp_path)
    masking.fill_workshop()

    def plan(**changes) -> dict[str, Estimate]:
        return plan_of(Run(check_recipe(masking.masked_recipe(**changes)), Path("out")))

    return plan


def plan_of(run):
    return {line.stage: line for line in estimates(run)}


def test_a_plan_is_told_before_any_work(task):
    said = Workshop()("plan", "recipe.yaml", "--run-dir", "out").output
    stages = ["cache", "build", "train", "export", "evaluate"]
    assert all(stage in said for stage in stages)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"held_out": 0.2},
        {"train_tokens": 60, "held_out_tokens": 30},
        {"max_length": 8},
    ],
)
def test_what_is_planned_is_near_what_is_prepared(task, data):
    more = {"masking": {"copies": 4}} if task is masking else {}
    if task is rewarding and "max_length" in data:
        more = {"max_length": 12}  # room for an answer behind the prompt
    task.write_recipe(data={**data, **more})
    run = Run(load_recipe("recipe.yaml"), Path("out"))
    before, counted = plan_of(run), data_counts(run, run.recipe.data)
    run.prepare_data()
    after, prepared = plan_of(run), data_counts(run, run.recipe.data)
    parts = {part: Examples(part_file(Path("out/data"), part)) for part in DATA_PARTS}
    for part, examples in parts.items():
        assert getattr(prepared, part) == len(examples)
        assert getattr(counted, part) == pytest.approx(len(examples), rel=0.15)
    for stage in ("cache", "train", "evaluate"):
        assert before[stage].amount == pytest.approx(after[stage].amount, rel=0.15)
        assert before[stage].disk_bytes == pytest.approx(after[stage].disk_bytes, rel=0.15)
    texts = [len(parts[part].by_text()) for part in ("train", "validation")]  # of a pair two
    assert after["cache"].amount == sum(texts)


def test_steps_are_near_those_that_are_counted_and_a_plan_is_in_the_tasks_unit(task):
    task.write_recipe(train={"batch_size": 8, "warmup": 0.25, "epochs": 3})
    run = Run(load_recipe("recipe.yaml"), Path("out"))
    before = plan_of(run)["train"].steps
    run.prepare_data()
    after = plan_of(run)["train"].steps
    assert (before.counted, after.counted) == (False, True)
    assert before.total == pytest.approx(after.total, rel=0.15)
    assert after.warmup == round(0.25 * after.total)
    assert plan_rows([], unit_of(run))[0][1] == "texts"


def test_a_reward_takes_four_bytes_a_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rewarding.fill_workshop()
    terms = [{"loss": "reward_kl"}]
    values = rewarding.reward_recipe(cache={"hidden": {"layers": []}}, train={"objective": terms})
    run = Run(check_recipe(values), Path("out"))
    before = plan_of(run)["cache"]
    assert before.disk_bytes / before.amount == 4 + 2
    run.prepare_data()
    after = plan_of(run)["cache"]
    assert after.disk_bytes / after.amount == 4 + 2


def test_the_cache_of_masked_tokens_holds_them_alone(masks):
    def bytes_a_text(**cache):
        line = masks(cache={"codec": TOPK, **cache})["cache"]
        return line.disk_bytes / line.amount

    Run(check_recipe(masking.masked_recipe()), Path("out")).prepare_data()
    train = Run(check_recipe(masking.masked_recipe()), Path("out")).data()[0]
    masked = train.num_tokens / len(train)
    plain = bytes_a_text(hidden={"layers": []})
    assert plain == pytest.approx(masked * (12 * 4 + 2 * 1), rel=0.1)
    layer = bytes_a_text(hidden={"layers": [3], "codec": "bf16"}) - plain
    assert layer == pytest.approx(masked * 2 * H, rel=0.1)


def test_whole_texts_have_one_outcome_and_layers_at_every_token(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    embedding.fill_workshop()

    def line(**cache):
        recipe = check_recipe(embedding.embedding_recipe(cache=cache, train={"objective": [
            {"loss": "vector_mse"}
        ]}))  # fmt: skip
        run = Run(recipe, Path("out"))
        return plan_of(run)["cache"], data_counts(run, recipe.data).length

    plain, length = line(hidden={"layers": []})
    layered, _ = line(hidden={"layers": [3], "codec": "bf16"})
    assert plain.disk_bytes / plain.amount == 2 * H + 2
    more = (layered.disk_bytes - plain.disk_bytes) / plain.amount
    assert more == pytest.approx(2 * H * length, rel=0.1)


def test_judging_and_searching_take_their_time(masks):
    seconds = {
        name: masks(student=student)["build"].seconds
        for name, student in {
            "even": {"layers": {"keep": 1, "by": "even"}},
            "greedy": {"layers": {"keep": 1, "calibration_tokens": 10**9}},
            "longer": {"layers": {"keep": 1, "calibration_tokens": 4 * 10**9}},
            "search": {"layers": None, "target": {"parameters": "60%", "tokens": 10**8}},
        }.items()
    }
    assert seconds["even"] < seconds["greedy"] < seconds["longer"]
    assert seconds["even"] < seconds["search"]


@pytest.mark.parametrize(
    ("config", "auto"),
    [
        (BertConfig(**masking.SIZES), "AutoModelForMaskedLM"),
        (LlamaConfig(**masking.SIZES, num_labels=2), "AutoModelForSequenceClassification"),
        (GPT2Config(vocab_size=V, n_embd=H, n_layer=2, n_head=4), "AutoModel"),
    ],
)
def test_tables_that_are_looked_up_take_no_time(config, auto):
    body = model_cost(config, auto)
    wider = AutoConfig.for_model(**{**config.to_dict(), "vocab_size": V + 1000})
    more = model_cost(wider, auto)
    assert more.total - body.total >= 1000 * H
    assert more.body - body.body <= 1000, "a bias of the output map at most"


def test_next_tokens_are_counted_in_the_parts_that_each_stage_reads(workshop):
    run = Run(load_recipe("recipe.yaml", ["evaluate.tokens=100000"]), Path("out"))
    before = plan_of(run)
    run.prepare_data()
    after = plan_of(run)
    parts = {part: Examples(part_file(Path("out/data"), part)) for part in DATA_PARTS}
    tokens = {part: examples.num_tokens for part, examples in parts.items()}
    assert after["train"].amount == pytest.approx(2 * tokens["train"], abs=2)
    assert after["cache"].amount == pytest.approx(tokens["train"] + tokens["validation"], rel=0.02)
    assert after["evaluate"].amount == pytest.approx(5 * tokens["held_out"], rel=0.1)
    for stage in ("cache", "train", "evaluate"):
        assert before[stage].amount == pytest.approx(after[stage].amount, rel=0.15)


def test_own_answers_take_a_process_of_each_model_that_writes(workshop):
    def evaluating(*changes):
        return plan_of(Run(load_recipe("recipe.yaml", changes), Path("out")))["evaluate"]

    without, few = evaluating(), evaluating("evaluate.own_answers={prompts: 4}")
    many = evaluating("evaluate.own_answers={prompts: 4000}")
    assert "own answers" not in without.note
    assert few.note.endswith("; own answers of 4")  # teacher, init, finetune, distill
    assert few.seconds > without.seconds + 4 * 19
    assert many.seconds > few.seconds
    assert many.seconds == evaluating("evaluate.own_answers={prompts: 90000}").seconds
    assert few.memory_bytes > without.memory_bytes


def test_the_steps_of_a_plan_are_those_of_the_training(workshop):
    changes = ["train.batch_size=2", "train.epochs=2", "specialize.method=prefix"]
    changes.append("export.artifacts=[adapter]")
    run = Run(load_recipe("recipe.yaml", changes), Path("out"))
    before = plan_of(run)
    run.prepare_data()
    after = plan_of(run)
    for stage in ("train", "specialize"):
        assert before[stage].steps.total == pytest.approx(after[stage].steps.total, rel=0.2, abs=1)
    assert [after[stage].steps.packed for stage in ("train", "specialize")] == [True, False]
    workshop.upto_train("out", "--set", changes[0], "--set", changes[1])
    result = json.loads(Path("out/arms/distill/result.json").read_text())
    assert result["steps"] == after["train"].steps.total


def test_a_cache_of_fewer_examples_grows_as_the_plan_says(workshop):
    few = ["--set", "data.train_tokens=300"]
    for where in (["--run-dir", "out"], ["--run-dir", "other", "--set", "cache.dir=out/cache"]):
        if where[1] == "out":
            workshop("cache", "build", "recipe.yaml", *where, *few)
            before = SignalCache("out/cache").keys()
        said = workshop("plan", "recipe.yaml", *where).output
        held, wanted, lacking = re.search(
            r"holds (\d+) of (\d+) examples: the teacher runs over (\d+);", said
        ).groups()
        assert int(held) <= len(before)
        assert int(wanted) - int(held) == int(lacking) > 0
    workshop("cache", "build", "recipe.yaml", "--run-dir", "out")
    after = SignalCache("out/cache").keys()
    assert set(before) < set(after)
    assert len(after) == len(before) + int(lacking)
    said = workshop("plan", "recipe.yaml", *where).output
    assert "done;" in next(line for line in said.splitlines() if line.startswith("cache"))


def test_a_shared_cache_is_done_or_in_conflict(workshop):
    shared = ["--set", "cache.dir=shared", "--set", "data.held_out=0.3"]
    workshop("cache", "build", "recipe.yaml", "--run-dir", "first", *shared)
    said = workshop("plan", "recipe.yaml", "--run-dir", "second", *shared).output
    assert "done;" in next(line for line in said.splitlines() if line.startswith("cache"))
    assert not Path("second").exists()
    for change, words in (("data.max_length=16", "max_length"), ("cache.codec.k=3", "codec")):
        other = workshop(
            "plan", "recipe.yaml", "--run-dir", "third", *shared, "--set", change, ok=False
        )
        assert other.exit_code == 1, other.output
        assert words in other.output
        assert not Path("third").exists()


def test_a_teacher_on_a_server_takes_no_memory_here(workshop):
    plain = ["cache.hidden={}", "train.objective=[{loss: forward_kl}]"]
    server = "teacher.server={url: 'http://127.0.0.1:9', kind: vllm, model: big}"  # not asked
    here, there = (
        plan_of(Run(load_recipe("recipe.yaml", tuple(changes)), Path("out")))["cache"]
        for changes in (plain, [*plain, server])
    )
    weights = Path("teacher/model.safetensors").stat().st_size
    assert here.memory_bytes - there.memory_bytes == pytest.approx(weights, rel=0.1)
    assert there.disk_bytes == here.disk_bytes
    assert "the server's is not known" in there.note
    assert "server" not in here.note
