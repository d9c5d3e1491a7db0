"""The loss along a line, by Taylor arithmetic, against dense Hessians; and what it has no rule for."""

from copy import deepcopy

import pytest
import torch
from dense_reference import PLACES, Dense, example, flat, interpolating, relative_error
from registry_examples import each_activation_and_place
from torch import nn

from nme.activations import ACTIVATIONS
from nme.derivatives.activate import Activate
from nme.derivatives.batch import Batch
from nme.derivatives.taylor import Taylor, quadratic_form
from nme.errors import NmeError

GELU = ACTIVATIONS.parse("gelu")


def direction(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator).double() for p in model.parameters()]


@each_activation_and_place(("network", "batch_norm"), PLACES)
def test_is_the_quadratic_form_of_the_hessian(activation, network, batch_norm):
    model, batch = example(network, activation, batch_norm)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    u = direction(model)
    hessian = Dense(model, batch).hessian()
    assert relative_error(quadratic_form(model, batch, u), flat(u) @ hessian @ flat(u)) < 1e-10
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("network", ["mlp", "cnn-1d"])
def test_near_interpolation_float32_gives_form_and_gradient(network):
    model, batch = interpolating(network, GELU)
    u = direction(model)

    def form_and_gradient(dtype):
        cast = deepcopy(model).to(dtype)
        form = quadratic_form(cast, Batch(batch.inputs.to(dtype), batch.labels), [t.to(dtype) for t in u])
        return form, flat(torch.autograd.grad(form, list(cast.parameters())))

    for found, expected in zip(form_and_gradient(torch.float32), form_and_gradient(torch.float64), strict=True):
        assert relative_error(found, expected) < 1e-5


def test_layers_are_themselves_again_after_an_error():
    model = nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 2))
    with pytest.raises(NmeError, match=r"nme\.taylor has no rule for PReLU"):
        quadratic_form(model, Batch(torch.randn(2, 3), torch.tensor([0, 1])), direction(model))
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("layer", [nn.GELU(), nn.Tanh(), nn.Softplus(), nn.LogSoftmax(1)], ids=str)
def test_layers_of_pytorch_need_no_rule(layer):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 2)).double()
        batch = Batch(torch.randn(5, 3, dtype=torch.float64), torch.randint(2, (5,)))
    dense, u = Dense(model, batch), direction(model)

    def form(theta):
        return flat(u) @ torch.func.hessian(dense.loss)(theta) @ flat(u)

    found = quadratic_form(model, batch, u)
    assert relative_error(found, form(dense.theta)) < 1e-10
    gradient = torch.autograd.grad(found, list(model.parameters()))
    assert relative_error(flat(gradient), torch.func.grad(form)(dense.theta)) < 1e-10


def test_parameters_that_do_not_move_are_constants():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), Activate(GELU), nn.Linear(4, 2)).double()
        batch = Batch(torch.randn(5, 3, dtype=torch.float64), torch.randint(2, (5,)))
    u = direction(model)
    hessian = Dense(model, batch).hessian()
    whole = torch.cat([flat(u)[:16] * 0, flat(u)[16:]])
    for p in model[0].parameters():
        p.requires_grad_(False)
    assert relative_error(quadratic_form(model, batch, u[2:]), whole @ hessian @ whole) < 1e-10


def test_products_and_sums_follow_the_product_rule():
    a, b = (Taylor(*torch.tensor(parts, dtype=torch.float64)) for parts in ([2.0, 3.0, 4.0], [5.0, 6.0, 7.0]))
    assert [float(part) for part in (a * b).parts] == [10, 2 * 6 + 3 * 5, 2 * 7 + 2 * 3 * 6 + 4 * 5]
    assert [float(part) for part in (a + b).parts] == [7, 9, 11]
    constant = Taylor(torch.tensor(2.0))
    assert (constant * constant).parts[1:] == (None, None)
    assert [float(part) for part in (constant * a).parts] == [4, 6, 8]
