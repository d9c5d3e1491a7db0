"""Planning with step times measured on a GPU, from a table that is made up here."""

import json
from pathlib import Path

import pytest

from nme.config.project import load_project
from nme.grid import plan
from nme.grid.cells import Cell
from nme.grid.measured_steps import TABLE, MeasuredSteps, Row
from nme.methods import METHODS

CONFIG = Path(__file__).parents[2] / "config"
RECIPE = "cifar10_wrn_28_10"


@pytest.fixture(scope="module")
def project():
    return load_project({"scale": "paper"}, CONFIG)


def row(project, card="made up", **changes):
    recipe = project.scale.recipes[RECIPE]
    found = {"card": card, "model": recipe.model.model_dump(mode="json"), "input_shape": [3, 32, 32]}
    found |= {"precision": recipe.precision, "channels_last": recipe.channels_last, "batch_size": 64}
    return {**found, "method": "sgd", "seconds": 0.02, **changes}


def hours(project, monkeypatch, rows, method, device="cuda"):
    monkeypatch.setattr(plan, "measured_steps", lambda: MeasuredSteps(rows))
    cell = Cell(RECIPE, "gelu", method, "0.1")
    return plan.Estimate(project, device).training(cell, range(1)) / 3600


def expected(project, step, sgd):
    """Seconds per step of the recipe's batch, and of SGD, to hours of a training with its tests."""
    recipe = project.scale.recipes[RECIPE]
    steps = recipe.epochs * (50_000 // recipe.batch_size)
    tested = 10_000 * recipe.epochs // recipe.test_epochs
    return (steps * step + tested * sgd / recipe.batch_size / 3) / 3600


def test_a_measured_step_is_used_and_grows_with_the_batch(project, monkeypatch):
    rows = [row(project), row(project, method="grad_norm", seconds=0.05)]
    batches = project.scale.recipes[RECIPE].batch_size / 64
    assert batches == 2
    found = hours(project, monkeypatch, rows, "grad_norm")
    assert found == pytest.approx(expected(project, 0.1, 0.04))


def test_a_method_that_was_not_measured_costs_its_gradients(project, monkeypatch):
    found = hours(project, monkeypatch, [row(project)], "hessian_trace-k=5")
    assert found == pytest.approx(expected(project, 0.04 * METHODS.parse("hessian_trace-k=5").gradients, 0.04))


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "fp32"},
        {"input_shape": [3, 64, 64]},
        {"channels_last": False},
        {"model": {"name": "wide_resnet", "depth": 16, "widen": 4}},
        {"method": "sam"},
    ],
    ids=str,
)
def test_steps_of_anything_else_are_not_used(project, monkeypatch, changes):
    counted = hours(project, monkeypatch, [], "grad_norm")
    assert hours(project, monkeypatch, [row(project, **changes)], "grad_norm") == counted
    assert hours(project, monkeypatch, [row(project)], "grad_norm") != counted


def test_the_cpu_is_estimated_from_operations(project, monkeypatch):
    assert hours(project, monkeypatch, [row(project)], "sgd", "cpu") == hours(project, monkeypatch, [], "sgd", "cpu")


def test_one_card_counts(project):
    steps = MeasuredSteps([row(project, "first"), row(project, "second", seconds=9.0)])
    assert steps.card == "first"
    assert steps.seconds(project.scale.recipes[RECIPE], (3, 32, 32), "sgd") == 0.04
    assert MeasuredSteps([]).card is None


def test_the_table_in_the_package_can_be_used(project):
    rows = json.loads(TABLE.read_text(encoding="utf-8"))
    assert all(row.keys() == Row.__required_keys__ for row in rows)
    for one in rows:
        METHODS.parse(one["method"])
    assert MeasuredSteps(rows).seconds(project.scale.recipes[RECIPE], (1, 1, 1), "sgd") is None
