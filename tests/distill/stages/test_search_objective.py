"""How far a student is from its teacher while a shape is searched, and what healing does."""

from contextlib import closing
from pathlib import Path

import pytest
import torch

from attar.files import bytes_under
from distill.run.context import Run
from distill.run.load import load_recipe
from distill.stages.build import load_whole
from distill.stages.search_objective import SearchObjective
from distill.training.accelerator import OneProcess
from students.pruning.depth import cut_depth

SECTION = "student={target: {parameters: 70%}}"


@pytest.fixture
def searched(workshop):
    """(run, teacher, objective) of the workshop's teacher; half of the text heals."""
    run = Run(load_recipe("recipe.yaml", (SECTION, "data.validation=0.2")), Path("out"))
    run.folder.path.mkdir()
    run.prepare_data()
    teacher = load_whole(run)
    with closing(SearchObjective(run, teacher, 200, 200)) as objective:
        yield run, teacher, objective


def mean_kl(teacher, student, examples):
    """KL(teacher || student) in float64 at every counted token, one example at a time."""
    total = tokens = 0.0
    for example in examples:
        ids_1T = torch.from_numpy(example.input_ids)[None]
        wanted, found = (
            model(input_ids=ids_1T).logits[0, example.counted].double().log_softmax(-1)
            for model in (teacher, student)
        )
        total += float((wanted.exp() * (wanted - found)).sum())
        tokens += len(example.counted)
    return total / tokens


@torch.no_grad()
def test_divergence_is_the_mean_kl_on_validation_text(searched):
    run, teacher, objective = searched
    student = cut_depth(teacher, [0, 1, 3])
    validation = {example.key for example in run.validation_examples()}
    assert {example.key for example in objective.measured} <= validation
    assert objective.divergence(teacher) == pytest.approx(0.0, abs=1e-4)
    expected = mean_kl(teacher, student, objective.measured)
    assert objective.divergence(student) == pytest.approx(expected, rel=1e-2)  # the codec rounds


def test_healing_brings_a_copy_closer_and_changes_nothing_else(searched):
    run, teacher, objective = searched
    training = {example.key for example in run.training_examples()}
    assert {example.key for example in objective.healing} <= training
    student = cut_depth(teacher, [0, 1, 3])
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    size = bytes_under(run.folder.path)
    healed = objective.healed(student, steps=8, lr=1e-3)
    assert objective.divergence(healed) < 0.9 * objective.divergence(student)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert bytes_under(run.folder.path) == size, "a checkpoint was written"


def test_the_signals_of_a_search_are_deleted_with_it(workshop):
    run = Run(load_recipe("recipe.yaml", (SECTION,)), Path("out"))
    run.folder.path.mkdir()
    run.prepare_data()
    before = sorted(run.folder.path.iterdir())
    with closing(SearchObjective(run, load_whole(run), 100, 0)) as objective:
        assert not len(objective.healing)
        assert sorted(run.folder.path.iterdir()) != before
    assert sorted(run.folder.path.iterdir()) == before


def test_one_process_trains_alone_among_several():
    weights = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))]
    alone = OneProcess(torch.device("cpu"))
    assert alone.prepare(weights) is weights
    with alone.no_sync(None):
        alone.backward((weights[0] * 3).sum() + (weights[1] * 4).sum())
    assert float(alone.clip_grad_norm_(weights, 1.0)) == pytest.approx(75**0.5)
    assert float(sum(w.grad.square().sum() for w in weights)) == pytest.approx(1.0, rel=1e-4)
    value = torch.tensor(2.0)
    assert alone.reduce(value, "sum") is value
