"""Shares of the gradient penalty's update: against dense Hessians, a closed form, and at the edges."""

import math
from copy import deepcopy

import pytest
import torch
from curvature_reference import Dense, example
from registry_examples import each_activation_and_place
from torch import nn
from torch.nn import functional

from nme.activations import ACTIVATIONS, Activation
from nme.config.project import load_project
from nme.config.scale import Recipe
from nme.curvature.update_shares import along_gradient, diminished, mean_and_error, numbers_of
from nme.data.augment import crop_and_flip
from nme.data.in_memory import Data
from nme.data.training_batches import TrainingBatches
from nme.derivatives.activate import Activate, activate
from nme.derivatives.batch import Batch, Division
from nme.errors import NmeError
from nme.grid.plan import Estimate
from nme.methods import METHODS
from nme.quantities import QUANTITIES, Settings
from nme.runtime.random_streams import stream

GELU = ACTIVATIONS.parse("gelu")
PARTS = {"whole": (6,), "parts": (5, 5, 5)}


def problem(network: str, activation: Activation, sizes=(6,)) -> tuple[nn.Module, Batch, list]:
    """A model in train mode, a batch, and the parts of the batch as pairs."""
    model, parts = example(network, activation, sizes=sizes)
    inputs, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    split = Division(sizes[0], 0, sum(sizes)) if len(sizes) > 1 else None
    return model, Batch(inputs, labels, split), parts


class Flat(Activation):
    """The twin, written a second time."""

    name = "flat"
    genuine = False

    def __init__(self, original):
        super().__init__()
        self.value, self.first = original.value, original.first

    def second(self, x):
        return torch.zeros_like(x)


def flattened(model: nn.Module) -> nn.Module:
    model = deepcopy(model)
    for module in model.modules():
        if isinstance(module, Activate):
            module.activation = Flat(module.activation)
    return model


# ------------------------------------------------------------- what they are


@each_activation_and_place(["network"], [["residual"], ["mlp"], ["cnn-1d"]])
@pytest.mark.parametrize("sizes", PARTS.values(), ids=PARTS)
def test_shares_and_cosines_are_those_of_dense_matrices_in_train_mode(activation, network, sizes):
    """Batch norm is in ``residual``; N_phi is the difference of two dense Hessians."""
    model, batch, parts = problem(network, activation, sizes)
    dense, twin = (Dense(m, parts, batch_norm="train") for m in (model, flattened(model)))
    direction = dense.gradient / dense.gradient.norm()
    products = {symbol: matrix @ direction for symbol, matrix in dense.matrices.items()}
    products["N_phi"] = (dense.hessian - twin.hessian) @ direction
    found = along_gradient(model, batch)
    torch.testing.assert_close(found.direction, direction, rtol=1e-8, atol=1e-10)
    for symbol, expected in products.items():
        torch.testing.assert_close(found.products[symbol], expected, rtol=1e-7, atol=1e-9)
    numbers = numbers_of(model, batch)
    assert len(numbers) == 3 + 4
    for symbol, expected in products.items():
        if symbol != "H":
            share = (expected.norm() / products["H"].norm()).item()
            assert numbers["share", symbol] == pytest.approx(share, rel=1e-6, abs=1e-9)
        if expected.norm() > 1e-9:
            cosine = functional.cosine_similarity(expected, direction, dim=0).item()
            assert numbers["cosine", symbol] == pytest.approx(cosine, abs=1e-6)


@pytest.mark.parametrize("network", ["mlp", "residual"])
@pytest.mark.parametrize("sizes", PARTS.values(), ids=PARTS)
def test_it_is_the_update_of_the_gradient_penalty(network, sizes):
    """What training adds to g, in train mode and in parts."""
    model, batch, _ = problem(network, GELU, sizes)
    found = along_gradient(model, batch)
    plain, penalised = (METHODS.parse(m).update(model, batch, 0.3, stream(0, "noise")) for m in ("sgd", "grad_norm"))
    added = torch.cat([(a - b).flatten() for a, b in zip(penalised.direction, plain.direction, strict=True)])
    torch.testing.assert_close(0.3 * found.products["H"], added, rtol=1e-7, atol=1e-9)


def test_batch_norm_in_train_mode_matters():
    model, batch, parts = problem("residual", GELU)
    found, running = along_gradient(model, batch), Dense(model, parts, batch_norm="eval")
    assert (found.direction - running.gradient / running.gradient.norm()).norm() > 0.1


def test_the_part_from_second_derivatives_in_closed_form():
    """One hidden layer: it is (1/B) Σ (Wᵀr)_k φ''(a_k) ⟨x̃, v_k⟩ x̃ for unit k, x̃ = (x, 1), and 0 for the head."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), Activate(ACTIVATIONS.parse("beta_gelu-beta=2")), nn.Linear(5, 3)).double()
    x, y = torch.randn(7, 4, dtype=torch.float64), torch.randint(3, (7,))
    found = along_gradient(model, Batch(x, y))
    r = model(x).softmax(1) - functional.one_hot(y, 3)
    a = model[0](x)
    z = 2 * a
    second = 2 * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi) * (2 - z * z)
    one = torch.cat([x, torch.ones(7, 1, dtype=torch.float64)], 1)
    weight, bias = found.direction[:20].view(5, 4), found.direction[20:25]
    along = one @ torch.cat([weight, bias[:, None]], 1).T
    rows = ((r @ model[2].weight) * second * along).T @ one / 7
    expected = torch.cat([rows[:, :4].flatten(), rows[:, 4], torch.zeros(18, dtype=torch.float64)])
    torch.testing.assert_close(found.products["N_phi"], expected.detach(), rtol=1e-10, atol=1e-12)
    assert expected.norm() > 1e-3


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "diminished_gelu"])
def test_where_second_derivatives_are_zero_that_part_is_exactly_zero(name):
    for dtype in (torch.float32, torch.float64):
        model, batch, _ = problem("residual", ACTIVATIONS.parse(name))
        model, batch = model.to(dtype), batch._replace(inputs=batch.inputs.to(dtype))
        numbers = numbers_of(model, batch)
        assert numbers["share", "N_phi"] == 0
        assert numbers["cosine", "N_phi"] is None, "nothing has no direction"
        assert numbers["share", "N"] > 0.01


def test_a_linear_network_has_none_and_still_has_an_nme():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    numbers = numbers_of(model, Batch(torch.randn(6, 4), torch.randint(3, (6,))))
    assert numbers["share", "N_phi"] == 0
    assert numbers["share", "N"] > 0.01


def test_near_interpolation_float32_is_float64():
    """Residuals of 10⁻⁸: p − 1 would be 0. N is 1 % of H there, so a difference H − G is off by 10⁻⁵."""
    model, batch, _ = problem("residual", GELU)
    with torch.no_grad():
        model.head.weight.mul_(60)
        batch = batch._replace(labels=model(batch.inputs).argmax(1))
        model.head.weight.mul_(18 / (model(batch.inputs).topk(2).values @ torch.tensor([1.0, -1]).double()).min())
    exact = numbers_of(model, batch)
    found = numbers_of(model.float(), batch._replace(inputs=batch.inputs.float()))
    assert (model(batch.inputs.float()).softmax(1).amax(1) == 1).any()
    assert exact["share", "N"] < 0.02
    for name, value in exact.items():
        assert found[name] == pytest.approx(value, rel=3e-6), name


# ------------------------------------------------------------------ the twin


def test_the_twin_has_the_same_value_and_slope_and_no_second_derivative(activation):
    x = torch.linspace(-4, 4, 81, dtype=torch.float64).add_(0.01).requires_grad_()
    twin = activation.diminished()
    assert torch.equal(activate(x, twin), activate(x, activation))
    (slope,) = torch.autograd.grad(activate(x, twin).sum(), x, create_graph=True)
    torch.testing.assert_close(slope, activation.first(x), rtol=1e-12, atol=1e-14)
    (second,) = torch.autograd.grad(slope.sum(), x, allow_unused=True, materialize_grads=True)
    assert not second.any()
    assert (twin is activation) == (not activation.second(x).any())


def test_the_twin_of_augmented_relu_is_relu():
    assert type(ACTIVATIONS.parse("augmented_relu-beta=4").diminished()) is ACTIVATIONS["relu"]


def test_the_model_is_itself_again_after_an_exception():
    model, *_ = problem("residual", GELU)

    def fail():
        with diminished(model) as changed:
            assert changed
            assert not any(m.activation is GELU for m in model.modules() if isinstance(m, Activate))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(m.activation is GELU for m in model.modules() if isinstance(m, Activate))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("sizes", PARTS.values(), ids=PARTS)
def test_nothing_of_the_model_is_changed_and_its_mode_does_not_matter(training, sizes):
    model, batch, _ = problem("residual", GELU, sizes)
    expected = numbers_of(model, batch)
    model.train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert numbers_of(model, batch) == expected, "the same bits, too"
    assert any(name.endswith("running_mean") for name in before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training == training for module in model.modules())
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(m.activation is GELU for m in model.modules() if isinstance(m, Activate))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


# -------------------------------------------------------- where there is none


def linear(factor: float, right: bool) -> tuple[nn.Module, Batch]:
    """A linear model that is certain of its answers, all of which are right, or wrong."""
    model = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(factor * torch.eye(3))
    return model, Batch(torch.eye(3), torch.arange(3) if right else torch.arange(3).roll(1))


def test_no_gradient_no_numbers():
    numbers = numbers_of(*linear(1e6, right=True))
    assert len(numbers) == 7
    assert set(numbers.values()) == {None}


def test_no_hessian_no_shares():
    """Certain and wrong: a gradient, and no curvature."""
    model, batch = linear(1e6, right=False)
    assert along_gradient(model, batch).direction.norm() == pytest.approx(1)
    assert set(numbers_of(model, batch).values()) == {None}


def test_a_gradient_that_is_not_finite_has_no_numbers():
    assert set(numbers_of(*linear(math.nan, right=False)).values()) == {None}


def test_what_is_not_defined_is_left_out_of_the_mean():
    assert mean_and_error([1.0, None, 3.0]) == (2.0, 1.0)
    assert str(mean_and_error([1.0, None])) == "(1.0, nan)"
    assert str(mean_and_error([None, None])) == "(None, nan)"
    model, wrong = linear(1, right=False)
    empty = wrong._replace(inputs=torch.zeros(3, 3))  # the gradient of a model without bias is 0
    values = list(QUANTITIES["update_shares"](model, [wrong, empty], Settings(1, 1, 1), 0))
    found = {(v.statistic, v.operator, v.probe): v.value for v in values}
    assert found["share", "G", 1] is None
    assert found["share", "G", -1] == found["share", "G", 0] == pytest.approx(1)


# ---------------------------------------------------------- training batches

RECIPE = load_project({"scale": "tiny"}).scale.recipes["digits_mlp"]


def data(examples: int = 20) -> Data:
    """Images 8×8 that tell which they are; standardising leaves them as they are."""
    images = torch.arange(examples * 64).remainder(251).to(torch.uint8).view(examples, 1, 8, 8)
    return Data(images, torch.arange(examples), torch.zeros(1, 1, 1), torch.ones(1, 1, 1))


def chosen(number: int = 3, seed: int = 0, split: Data | None = None, **changes) -> list[Batch]:
    recipe = Recipe.model_validate({**RECIPE.model_dump(), "batch_size": 6, **changes})
    return list(TrainingBatches(split or data(), recipe.batch_size, recipe.micro_batch, recipe.augment, seed, number))


def test_batches_are_whole_ones_of_an_epoch_in_a_random_order():
    found = chosen()
    labels = torch.cat([batch.labels for batch in found])
    assert [len(batch.labels) for batch in found] == [6, 6, 6]
    assert len(set(labels.tolist())) == 18, "no example twice"
    assert labels.tolist() != sorted(labels.tolist())
    assert torch.equal(torch.cat([batch.inputs for batch in found]), data().inputs[labels].float())
    assert all(batch.split is None for batch in found)


def test_the_same_seed_has_the_same_batches_and_another_one_others():
    one, again, other = (torch.cat([b.labels for b in chosen(seed=seed)]) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_more_batches_than_an_epoch_has_go_on_with_another_order():
    found = chosen(8)
    assert len(found) == 8
    assert torch.equal(found[2].labels, chosen(3)[2].labels), "more batches leave the first ones as they are"
    assert not torch.equal(found[3].labels, found[0].labels)
    for epoch in (found[:3], found[3:6]):
        assert len(set(torch.cat([b.labels for b in epoch]).tolist())) == 18


def test_batches_are_in_the_parts_of_the_recipe():
    (batch,) = chosen(1, micro_batch=2)
    assert [len(part.labels) for part in batch.parts()] == [2, 2, 2]


def test_augmentation_is_that_of_the_recipe_and_the_same_each_time():
    one, again, other = (chosen(augment="crop_flip", seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(one, again, strict=True))
    for batch, plain in zip(one, chosen(), strict=True):
        assert torch.equal(batch.labels, plain.labels)
        assert not torch.equal(batch.inputs, plain.inputs)
    assert not torch.equal(one[0].inputs, other[0].inputs)
    crops = [crop_and_flip(data().inputs[one[0].labels], stream(s, "any")).flatten(1) for s in range(200)]
    ours = one[0].inputs.flatten(1).to(torch.uint8)
    assert all(any(torch.equal(c[i], ours[i]) for c in crops) for i in range(6)), "shifts and flips of the images"


def test_a_batch_larger_than_the_data_is_one_message():
    with pytest.raises(NmeError, match=r"batch_size is 6 \(allowed: up to 5, the training examples\)"):
        chosen(split=data(5))


# ---------------------------------------------------------------- planning


def test_a_plan_counts_the_batches():
    project = load_project({"scale": "tiny"})
    (cell,) = {c for c in Estimate(project, "cpu").kept if (c.recipe, c.activation) == ("digits_mlp", "relu")} & {
        c for c, asked in Estimate(project, "cpu").kept.items() if "update_shares" in asked
    }

    def seconds(**changes) -> float:
        measurement = project.scale.measurement.model_copy(update=changes)
        scale = project.scale.model_copy(update={"measurement": measurement})
        estimate = Estimate(project.model_copy(update={"scale": scale}), "cpu")
        estimate.kept = {cell: {"update_shares": [0.0, 1.0]}}
        return estimate.measuring(cell, range(2))

    assert seconds(update_batches=16) == pytest.approx(2 * seconds(update_batches=8))
    assert seconds(examples=999) == pytest.approx(seconds()), "it is not measured on these"
    gradient = Estimate(project, "cpu")._gradient(cell, Estimate(project, "cpu").speed.operations)
    assert seconds(update_batches=8) == pytest.approx(2 * 2 * 8 * 22 / 3 * gradient, rel=0.05)
