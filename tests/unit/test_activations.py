"""Activations against closed forms, finite differences, and every way in which autodiff sees a derivative."""

import numpy as np
import pytest
import torch
from registry_examples import ACTIVATION_NUMBERS, every
from scipy.special import ndtr
from torch.func import grad, jvp, vmap

from nme.activations import ACTIVATIONS
from nme.derivatives.activate import activate

# Away from 0, where some activations have a kink, and into both tails; in three dimensions.
_SIZES = torch.linspace(0.05, 5, 60, dtype=torch.float64)
POINTS = torch.cat([-_SIZES, _SIZES]).view(5, 4, 6)
# How exactly derivatives must agree. float32: rounding of βx in the exponent, times the height β of the bump.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-12}


def pdf(x):
    return np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


def relu(x, _):
    return np.maximum(x, 0), np.where(x > 0, 1.0, 0.0), np.zeros_like(x)


def leaky_relu(x, p):
    return np.where(x > 0, x, p["slope"] * x), np.where(x > 0, 1.0, p["slope"]), np.zeros_like(x)


def beta_gelu(x, p):
    b = p.get("beta", 1)
    return x * ndtr(b * x), ndtr(b * x) + b * x * pdf(b * x), b * pdf(b * x) * (2 - (b * x) ** 2)


def augmented_relu(x, p):
    return *relu(x, p)[:2], beta_gelu(x, p)[2]


def diminished_gelu(x, p):
    return *beta_gelu(x, p)[:2], np.zeros_like(x)


# Value, first and second derivative of docs/theory.md, §5.1, written a second time.
CLOSED_FORMS = {
    "relu": relu,
    "leaky_relu": leaky_relu,
    "gelu": beta_gelu,
    "beta_gelu": beta_gelu,
    "augmented_relu": augmented_relu,
    "diminished_gelu": diminished_gelu,
}


def central_difference(f, x, step=1e-5):
    return (f(x + step) - f(x - step)) / (2 * step)


def assert_near(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def derivative(y, x):
    """Of the sum of y, by reverse mode and with its graph; 0 where y is constant."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(y.sum(), x, create_graph=True, materialize_grads=True)[0]


def test_paper_activations_are_all_checked_against_a_closed_form():
    assert set(CLOSED_FORMS) <= set(ACTIVATIONS)


@pytest.mark.parametrize(
    "known", [a for a in every(ACTIVATIONS, ACTIVATION_NUMBERS) if a.name in CLOSED_FORMS], ids=str
)
def test_value_and_derivatives_equal_the_closed_form(known):
    expected = CLOSED_FORMS[known.name](POINTS.numpy(), known.values)
    value, first, second = (torch.from_numpy(values) for values in expected)
    assert_near(known.value(POINTS), value, 1e-13)
    assert_near(known.first(POINTS), first, 1e-13)
    assert_near(known.second(POINTS), second, 1e-13)
    assert_near(activate(POINTS, known), value, 1e-13)


def test_piecewise_linear_means_that_the_second_derivative_is_0(activation):
    """The Hessian trace penalty leaves its terms out then."""
    assert activation.piecewise_linear <= bool((activation.second(POINTS) == 0).all())


def test_first_is_the_slope_of_the_value(activation):
    # Of every activation: one that is not genuine departs from its value in the second derivative only.
    assert_near(activation.first(POINTS), central_difference(activation.value, POINTS), 1e-8)


def test_second_of_a_genuine_activation_is_the_slope_of_first(genuine):
    assert_near(genuine.second(POINTS), central_difference(genuine.first, POINTS), 1e-8)


def test_activation_that_is_not_genuine_has_another_second_derivative_than_its_value(activation):
    differs = (activation.second(POINTS) - central_difference(activation.first, POINTS)).abs().max() > 0.1
    assert differs == (not activation.genuine)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("augmented_relu", torch.relu),
        ("augmented_relu-beta=4", torch.relu),
        ("diminished_gelu", torch.nn.functional.gelu),
    ],
)
def test_replaced_second_derivative_leaves_value_and_gradient_as_they_were(name, original, dtype):
    x = torch.cat([POINTS.flatten(), torch.zeros(1)]).to(dtype).requires_grad_()
    y, expected = activate(x, ACTIVATIONS.parse(name)), original(x)
    weight = torch.linspace(-2, 2, len(x), dtype=dtype)
    (slope,), (expected_slope,) = (torch.autograd.grad((weight * f).sum(), x) for f in (y, expected))
    assert torch.equal(y, expected)
    # The mask of ReLU is exact; GELU's slope is computed in another order than in PyTorch's kernel.
    assert_near(slope, expected_slope, 0 if original is torch.relu else 10 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(("name", "slope"), [("relu", 0), ("augmented_relu", 0), ("leaky_relu", 0.1)])
def test_slope_at_the_kink_is_that_below_it(name, slope):
    zero = torch.zeros(1, requires_grad=True)
    activation = ACTIVATIONS.parse(name)
    assert torch.autograd.grad(activate(zero, activation), zero)[0] == torch.tensor(slope)
    assert activation.first(zero) == torch.tensor(slope)


def test_beta_gelu_tends_to_relu_in_value_and_slope():
    sharp, flat = ACTIVATIONS.parse("beta_gelu-beta=1000"), ACTIVATIONS.parse("relu")
    assert_near(activate(POINTS, sharp), activate(POINTS, flat), 1e-15)
    assert_near(sharp.first(POINTS), flat.first(POINTS), 1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
class TestAutodiffSeesFirstAndSecond:
    def points(self, dtype):
        return POINTS.to(dtype)

    def near(self, actual, activation, x):
        assert actual.dtype == x.dtype
        assert actual.shape == x.shape
        assert_near(actual, activation.second(x), TOLERANCE[x.dtype])

    def test_backward_and_double_backward(self, activation, dtype):
        x = self.points(dtype).requires_grad_()
        first = derivative(activate(x, activation), x)
        assert_near(first, activation.first(x), TOLERANCE[dtype])
        self.near(derivative(first, x), activation, x)

    def test_double_backward_with_weights_as_inside_a_network(self, activation, dtype):
        x = self.points(dtype).requires_grad_()
        weight = torch.linspace(-1, 1, x.numel(), dtype=dtype).view_as(x)
        # d/dx of w φ'(x) v is w v φ'': the incoming gradient must be carried through both backward passes.
        first = derivative(weight * activate(x, activation), x)
        assert_near(derivative(3 * first, x), 3 * weight * activation.second(x), 3 * TOLERANCE[dtype])

    def test_forward_mode(self, activation, dtype):
        x = self.points(dtype)
        tangent = torch.linspace(-1, 1, x.numel(), dtype=dtype).view_as(x)
        y, slope = jvp(lambda t: activate(t, activation), (x,), (tangent,))
        assert torch.equal(y, activate(x, activation))
        assert_near(slope, activation.first(x) * tangent, TOLERANCE[dtype])

    def test_forward_over_reverse(self, activation, dtype):
        x = self.points(dtype)
        _, second = jvp(grad(lambda t: activate(t, activation).sum()), (x,), (torch.ones_like(x),))
        self.near(second, activation, x)

    def test_reverse_over_reverse(self, activation, dtype):
        x = self.points(dtype)
        self.near(grad(lambda t: grad(lambda s: activate(s, activation).sum())(t).sum())(x), activation, x)

    def test_reverse_over_forward(self, activation, dtype):
        x = self.points(dtype)
        ones = torch.ones_like(x)
        self.near(grad(lambda t: jvp(lambda s: activate(s, activation), (t,), (ones,))[1].sum())(x), activation, x)

    def test_under_vmap(self, activation, dtype):
        x = self.points(dtype)

        def forward_over_reverse(row):
            return jvp(grad(lambda t: activate(t, activation).sum()), (row,), (torch.ones_like(row),))[1]

        def reverse_over_reverse(row):
            return grad(lambda t: grad(lambda s: activate(s, activation).sum())(t).sum())(row)

        assert torch.equal(vmap(lambda row: activate(row, activation))(x), activate(x, activation))
        self.near(vmap(forward_over_reverse)(x), activation, x)
        self.near(vmap(reverse_over_reverse)(x), activation, x)
        self.near(vmap(vmap(forward_over_reverse))(x), activation, x)
        # Batched along another dimension than the first.
        self.near(vmap(reverse_over_reverse, in_dims=2, out_dims=2)(x), activation, x)

    def test_vmap_over_tangents_of_one_point(self, activation, dtype):
        x = self.points(dtype)[0]
        directions = torch.eye(x.numel(), dtype=dtype).view(-1, *x.shape)

        def product(direction):
            return jvp(grad(lambda t: activate(t, activation).sum()), (x,), (direction,))[1]

        self.near(vmap(product)(directions).sum(0), activation, x)


def test_third_derivative_exists_and_is_the_slope_of_second(activation):
    x = POINTS.clone().requires_grad_()
    third = derivative(derivative(derivative(activate(x, activation), x), x), x)
    assert_near(third, central_difference(activation.second, POINTS), 1e-7)
    assert_near(activation.third(POINTS), central_difference(activation.second, POINTS), 1e-7)


def test_strided_and_empty_inputs_are_taken_as_they_are(activation):
    x = POINTS.transpose(0, 2)
    assert torch.equal(activate(x, activation), activate(x.contiguous(), activation))
    assert activate(POINTS[:0], activation).shape == POINTS[:0].shape


def test_input_is_not_changed(activation):
    x = POINTS.clone().requires_grad_()
    derivative(derivative(activate(x * 1, activation), x), x)
    assert torch.equal(x, POINTS)
