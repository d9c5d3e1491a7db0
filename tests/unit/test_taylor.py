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
from nme.derivatives.losses import loss_of
from nme.derivatives.running_statistics import frozen_statistics
from nme.derivatives.taylor import Taylor, quadratic_form
from nme.derivatives.taylor_batch_norm import taylor_batch_norm
from nme.derivatives.vectors import displaced

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
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)).double()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        quadratic_form(model, Batch(torch.randn(2, 3).double(), torch.tensor([0, 1])), direction(model))
    assert not any("forward" in vars(module) for module in model.modules())


class Doubled(nn.Linear):
    """A subclass whose forward is not its parent's."""

    def forward(self, x):
        return super().forward(x).square()


class Outside(nn.Module):
    """Weights used by a function, and an operation between layers without a rule."""

    def __init__(self):
        super().__init__()
        self.first, self.scale = nn.Linear(3, 4), nn.Parameter(torch.randn(4))
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        return self.last(torch.sin(self.first(x)) * self.scale)


class Normed(nn.Module):
    """PyTorch's weight norm of old: the layer's weight is computed by a hook."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.first.register_forward_pre_hook(
            lambda layer, _: setattr(layer, "scaled", layer.weight / layer.weight.norm())
        )
        self.first.forward = lambda x: nn.functional.linear(x, self.first.scaled, self.first.bias)

    @staticmethod
    def scale(layer, _):
        layer.scaled = layer.weight / layer.weight.norm()

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


OTHERS = {
    "in-place SiLU": lambda: nn.Sequential(nn.Linear(3, 4), nn.SiLU(inplace=True), nn.Linear(4, 2)),
    "in-place Hardswish": lambda: nn.Sequential(nn.Linear(3, 4), nn.Hardswish(inplace=True), nn.Linear(4, 2)),
    "subclass": lambda: nn.Sequential(nn.Linear(3, 4), Doubled(4, 4), nn.Linear(4, 2)),
    "layer norm": lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 2)),
    "group norm": lambda: nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(1, 4), nn.Linear(4, 2)),
    "prelu": lambda: nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 2)),
    "functions": Outside,
    "hook": Normed,
    "batch norm without weights": lambda: nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.Tanh(), nn.Linear(4, 2)
    ),
    "batch norm, then a layer without a rule": lambda: nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_has_no_rule_is_right_with_its_gradient(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = OTHERS[name]().double()
        batch = Batch(torch.randn(5, 3, dtype=torch.float64), torch.randint(2, (5,)))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    u, parameters, step = direction(model), list(model.parameters()), 1e-4

    def gradient(form):
        return flat(torch.autograd.grad(form, parameters, materialize_grads=True))

    def loss_gradient():
        with frozen_statistics(model):
            return gradient(nn.functional.cross_entropy(model(batch.inputs), batch.labels))

    def difference(function, step):
        ends = []
        for sign in (1, -1):
            with displaced(parameters, u, sign * step):
                ends.append(function())
        return (ends[0] - ends[1]) / (2 * step)

    form = quadratic_form(model, batch, u)
    assert relative_error(form, flat(u) @ difference(loss_gradient, 1e-5)) < 1e-5
    middle = loss_gradient()
    with displaced(parameters, u, step):
        ahead = loss_gradient()
    with displaced(parameters, u, -step):
        behind = loss_gradient()
    assert relative_error(gradient(form), (ahead - 2 * middle + behind) / step**2) < 1e-3
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_dropout_keeps_its_mask():
    model = nn.Sequential(nn.Linear(3, 8), Activate(GELU), nn.Dropout(0.5), nn.Linear(8, 2)).double()
    batch, u = Batch(torch.randn(5, 3, dtype=torch.float64), torch.randint(2, (5,))), direction(model)
    torch.manual_seed(1)
    found = quadratic_form(model, batch, u)
    torch.manual_seed(1)
    mask = nn.functional.dropout(torch.ones(5, 8, dtype=torch.float64), 0.5)
    masked = deepcopy(model).eval()
    masked[2].register_forward_hook(lambda _, arguments, x: x * mask)
    assert relative_error(found, quadratic_form(masked, batch, u)) < 1e-12


@pytest.mark.parametrize("last", [nn.Identity(), nn.ELU()], ids=["rules", "double backward"])
def test_other_losses(last):
    model = nn.Sequential(nn.Linear(3, 4), Activate(GELU), nn.Linear(4, 2), last).double()
    batch, u = Batch(torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)), direction(model)
    parameters = list(model.parameters())
    value = nn.functional.mse_loss(model(batch.inputs), batch.labels)
    gradient = torch.autograd.grad(value, parameters, create_graph=True)
    along = sum((g * d).sum() for g, d in zip(gradient, u, strict=True))
    expected = flat(torch.autograd.grad(along, parameters)) @ flat(u)
    assert relative_error(quadratic_form(model, batch, u, loss_of(nn.MSELoss())), expected) < 1e-12


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


class InPlace(nn.Module):
    """A sum in place, which changes the value under its other name, too; then an operator without a rule."""

    def __init__(self, further):
        super().__init__()
        self.first, self.second, self.further = nn.Linear(3, 3), nn.Linear(3, 2), further

    def forward(self, x):
        a = self.first(x)
        h = a
        h += self.first(x)
        z = self.second(h + a)
        return z - x[:, :2] if self.further else z


@pytest.mark.parametrize("further", [False, True])
def test_operators_between_layers(further):
    torch.manual_seed(0)
    model = InPlace(further).double()
    batch = Batch(torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0]))
    u = [torch.randn_like(p) for p in model.parameters()]
    names = [n for n, _ in model.named_parameters()]

    def loss(*values):
        z = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (batch.inputs,))
        return nn.functional.cross_entropy(z, batch.labels)

    values = tuple(p.detach() for p in model.parameters())
    _, product = torch.autograd.functional.hvp(loss, values, tuple(u))
    expected = sum((a * b).sum() for a, b in zip(product, u, strict=True))
    assert relative_error(quadratic_form(model, batch, u), expected) < 1e-10


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_batch_norm_of_images_moves_as_forward_mode_says(memory):
    """All three parts, and their gradients, against nested forward mode of the plain formula in float64."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return (1 + 2 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()

    x, x1, x2 = (random(4, 3, 3, 2).detach().to(memory_format=memory).requires_grad_() for _ in range(3))
    w, w1, b, b1 = (random(3) for _ in range(4))
    eps = 0.3  # large, so that it counts

    def along(t):
        moved = x + t * x1 + t * t / 2 * x2
        centred = moved - moved.mean((0, 2, 3), keepdim=True)
        normal = centred / (centred.square().mean((0, 2, 3), keepdim=True) + eps).sqrt()
        return normal * (w + t * w1).view(-1, 1, 1) + (b + t * b1).view(-1, 1, 1)

    def slope(function):
        return lambda t: torch.func.jvp(function, (t,), (torch.ones_like(t),))[1]

    zero = torch.zeros((), dtype=torch.float64)
    expected = along(zero), slope(along)(zero), slope(slope(along))(zero)
    found = taylor_batch_norm(x, x1, x2, w, w1, b, b1, eps)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for _ in expected]
    inputs = [x, x1, x2, w, w1, b, b1]
    for parts in (found, expected):
        assert all(part.requires_grad for part in parts)
    gradients = [
        torch.autograd.grad(sum((part * by).sum() for part, by in zip(parts, weights, strict=True)), inputs)
        for parts in (found, expected)
    ]
    for one, other in (*zip(found, expected, strict=True), *zip(*gradients, strict=True)):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
