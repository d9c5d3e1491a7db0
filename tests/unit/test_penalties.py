"""Each training method against a float64 reference of its own: dense matrices, enumerated labels, finite differences.

The reference draws the same numbers from a generator with the same seed, by code of its own.
"""

from itertools import product

import numpy as np
import pytest
import torch
from dense_reference import NETWORKS, PLACES, Dense, central_differences, example, flat, relative_error, signs
from registry_examples import each_activation_and_place
from torch.func import functional_call, jacrev

from nme.activations import ACTIVATIONS
from nme.curvature import Curvature
from nme.derivatives.batch import Batch
from nme.methods import METHODS
from nme.models import MODELS
from nme.runtime.random_streams import stream

GELU = ACTIVATIONS.parse("gelu")
STRENGTH = 0.3

on_every_network = pytest.mark.parametrize("network", NETWORKS)
PLACE = ("network", "batch_norm")
with_and_without_batch_norm = pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch-norm"])


def direction(name, model, batch, strength=STRENGTH, seed=0):
    return flat(METHODS.parse(name).update(model, batch, strength, stream(seed, "noise")).direction)


def split(theta, dense):
    parts = theta.split([shape.numel() for shape in dense.shapes.values()])
    return [part.view(shape) for part, shape in zip(parts, dense.shapes.values(), strict=True)]


def logits(dense, theta):
    parameters = dict(zip(dense.shapes, split(theta, dense), strict=True))
    return functional_call(dense.model, parameters, (dense.batch.inputs,))


def gauss_newton(dense, theta):
    """G = (1/B) Σ J_iᵀ (diag p_i − p_i p_iᵀ) J_i, dense."""
    jacobian = jacrev(lambda t: logits(dense, t))(theta)  # (B, C, P)
    p = logits(dense, theta).softmax(1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("bcp,bcd,bdq->pq", jacobian, inner, jacobian) / len(p)


class TestSam:
    @each_activation_and_place(PLACE, PLACES)
    def test_is_the_gradient_uphill(self, activation, network, batch_norm):
        model, batch = example(network, activation, batch_norm)
        dense = Dense(model, batch)
        g = dense.gradient(dense.theta)
        for name, step in (("sam", STRENGTH * g / g.norm()), ("usam", STRENGTH * g)):
            assert relative_error(direction(name, model, batch), dense.gradient(dense.theta + step)) < 1e-10

    @with_and_without_batch_norm
    def test_tends_to_sgd_with_slope_hessian_times_unit_gradient(self, batch_norm):
        model, batch = example("mlp", GELU, batch_norm)
        dense = Dense(model, batch)
        g, H = dense.gradient(dense.theta), dense.hessian()
        slope = (direction("sam", model, batch, 1e-6) - g) / 1e-6
        assert relative_error(slope, H @ g / g.norm()) < 1e-4


class TestGradientPenaltyWithoutNme:
    @each_activation_and_place(PLACE, PLACES)
    def test_is_the_gradient_and_a_product_of_the_dense_gauss_newton(self, activation, network, batch_norm):
        model, batch = example(network, activation, batch_norm)
        dense = Dense(model, batch)
        g, G = dense.gradient(dense.theta), gauss_newton(dense, dense.theta)
        penalty = direction("grad_norm_gn", model, batch) - g
        assert relative_error(penalty, STRENGTH * G @ g / g.norm()) < 1e-10


class TestWeightNoise:
    @on_every_network
    @with_and_without_batch_norm
    def test_is_the_gradient_at_the_displaced_parameters(self, network, batch_norm):
        model, batch = example(network, GELU, batch_norm)
        dense = Dense(model, batch)
        generator = stream(3, "noise")
        noise = torch.randn(len(dense.theta), generator=generator).double()
        expected = dense.gradient(dense.theta + STRENGTH**0.5 * noise)
        assert relative_error(direction("weight_noise", model, batch, seed=3), expected) < 1e-10

    def test_mean_change_of_the_loss_is_half_the_variance_times_the_trace(self):
        model, batch = example("mlp", GELU)
        dense = Dense(model, batch)
        sigma2, loss, g = 1e-3, dense.loss(dense.theta), dense.gradient(dense.theta)
        method, changes = METHODS.parse("weight_noise"), []
        for seed in range(2000):
            noisy = method.update(model, batch, sigma2, stream(seed, "noise")).loss
            generator = stream(seed, "noise")
            noise = torch.randn(len(dense.theta), generator=generator).double()
            changes.append(noisy - loss - sigma2**0.5 * g @ noise)  # the first order has mean 0
        change, expected = torch.stack(changes), sigma2 / 2 * dense.hessian().trace()
        error = change.std() / len(change) ** 0.5
        assert error < abs(expected) / 10
        assert abs(change.mean() - expected) < 4 * error + 2e-2 * abs(expected)


class TestHessianTrace:
    @each_activation_and_place(PLACE, PLACES, genuine=True)
    def test_is_the_slope_of_the_probed_hessian(self, activation, network, batch_norm):
        self.assert_is_the_slope(1, *example(network, activation, batch_norm))

    @with_and_without_batch_norm
    def test_is_the_slope_of_the_mean_over_probes(self, batch_norm):
        self.assert_is_the_slope(3, *example("mlp", GELU, batch_norm))

    def assert_is_the_slope(self, k, model, batch):
        dense = Dense(model, batch)
        generator = stream(0, "noise")
        probes = [signs(len(dense.theta), generator) for _ in range(k)]

        def penalty(theta):
            return sum(u @ torch.func.hessian(dense.loss)(theta) @ u for u in probes) * STRENGTH / 2 / k

        expected = central_differences(penalty, dense.theta)
        actual = direction(f"hessian_trace-k={k}", model, batch) - dense.gradient(dense.theta)
        assert relative_error(actual, expected) < 1e-6

    @pytest.mark.parametrize("name", ["augmented_relu", "diminished_gelu"])
    def test_takes_a_prescribed_second_derivative_wherever_the_slope_is_differentiated(self, name):
        """Where φ'' is not the slope of φ', finite differences of H know nothing of it; ``torch.func`` does."""
        model, batch = example("mlp", ACTIVATIONS.parse(name))
        dense = Dense(model, batch)
        u = signs(len(dense.theta), stream(0, "noise"))
        expected = torch.func.grad(lambda t: torch.func.grad(lambda s: dense.gradient(s) @ u)(t) @ u)(dense.theta)
        actual = direction("hessian_trace", model, batch) - dense.gradient(dense.theta)
        assert relative_error(actual, STRENGTH / 2 * expected) < 1e-10


class TestGaussNewtonTrace:
    @on_every_network
    @with_and_without_batch_norm
    def test_each_draw_is_the_slope_of_its_squared_gradient(self, network, batch_norm):
        model, batch = example(network, GELU, batch_norm)
        dense = Dense(model, batch)
        p = logits(dense, dense.theta).detach().softmax(1)
        uniforms = torch.rand(len(p), generator=stream(5, "noise"), dtype=torch.float64)
        labels = torch.tensor(
            [np.searchsorted(np.cumsum(row), u) for row, u in zip(p.numpy(), uniforms.numpy(), strict=True)]
        )
        drawn = Dense(model, Batch(batch.inputs, labels))

        def penalty(theta):
            return STRENGTH / 2 * len(labels) * drawn.gradient(theta).square().sum()

        expected = central_differences(penalty, dense.theta)
        actual = direction("gauss_newton_trace", model, batch, seed=5) - dense.gradient(dense.theta)
        assert relative_error(actual, expected) < 1e-6

    def test_expectation_over_all_labels_is_the_trace(self):
        """tr G = B E‖∇(1/B)Σ ℓ(z_i, ŷ_i)‖², every combination of labels with its probability."""
        dense, combinations = small()
        value = sum(
            weight
            * len(labels)
            * Dense(dense.original, Batch(dense.batch.inputs, labels)).gradient(dense.theta).square().sum()
            for weight, labels in combinations
        )
        assert value.item() == pytest.approx(gauss_newton(dense, dense.theta).trace().item(), rel=1e-12)

    @pytest.mark.slow
    def test_is_unbiased_over_draws(self):
        dense, combinations = small()
        g = dense.gradient(dense.theta)

        def penalty(theta, labels):
            drawn = Dense(dense.original, Batch(dense.batch.inputs, labels))
            return STRENGTH / 2 * len(labels) * drawn.gradient(theta).square().sum()

        expected = sum(
            weight * central_differences(lambda t, y=labels: penalty(t, y), dense.theta)
            for weight, labels in combinations
        )
        assert_mean(lambda seed: direction("gauss_newton_trace", dense.original, dense.batch, seed=seed) - g, expected)


class TestGaussNewtonTraceByProbes:
    @each_activation_and_place(PLACE, PLACES, genuine=True)
    def test_is_the_slope_of_the_probed_gauss_newton(self, activation, network, batch_norm):
        model, batch = example(network, activation, batch_norm)
        dense = Dense(model, batch)
        u = signs(len(dense.theta), stream(0, "noise"))
        expected = central_differences(lambda t: STRENGTH / 2 * u @ gauss_newton(dense, t) @ u, dense.theta)
        actual = direction("gauss_newton_trace_probe", model, batch) - dense.gradient(dense.theta)
        assert relative_error(actual, expected) < 1e-6


@pytest.fixture(scope="module")
def wide_resnet():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS["wide_resnet"](name="wide_resnet", depth=10, widen=1).build((1, 40), 10, GELU).double()
        with torch.no_grad():
            for parameter in model.parameters():  # batch norm's too, so that none is 0 or 1
                parameter += 0.1 * torch.randn_like(parameter)
        batch = Batch(torch.randn(6, 1, 40, dtype=torch.float64), torch.randint(10, (6,)))
    dense = Dense(model, batch)
    dense.original = model
    return dense


class TestWideResnetOnSignals:
    """The small sibling of the paper's network: too large for dense matrices, so products along one direction."""

    def gauss_newton_product(self, dense, theta, v):
        z, moved = torch.func.jvp(lambda t: logits(dense, t), (theta,), (v,))
        p = z.softmax(1)
        _, pull = torch.func.vjp(lambda t: logits(dense, t), theta)
        return pull(p * (moved - (p * moved).sum(1, keepdim=True)) / len(p))[0]

    def added(self, dense, name):
        return direction(name, dense.original, dense.batch) - dense.gradient(dense.theta)

    def test_gradient_penalty_with_and_without_the_nme(self, wide_resnet):
        dense = wide_resnet
        g = dense.gradient(dense.theta)
        hessian = torch.func.jvp(dense.gradient, (dense.theta,), (g / g.norm(),))[1]
        gauss_newton = self.gauss_newton_product(dense, dense.theta, g / g.norm())
        assert relative_error(self.added(dense, "grad_norm"), STRENGTH * hessian) < 1e-9
        assert relative_error(self.added(dense, "grad_norm_gn"), STRENGTH * gauss_newton) < 1e-9
        curvature = Curvature(dense.original, torch.nn.CrossEntropyLoss(), [dense.batch[:2]], batch_norm="train")
        products = curvature.products(g / g.norm())
        assert relative_error(products.nme, hessian - gauss_newton) < 1e-9

    def test_trace_penalties(self, wide_resnet):
        dense = wide_resnet
        u = signs(len(dense.theta), stream(0, "noise"))

        def hessian_form(theta):
            return u @ torch.func.jvp(dense.gradient, (theta,), (u,))[1]

        def gauss_newton_form(theta):
            return u @ self.gauss_newton_product(dense, theta, u)

        for name, form in (("hessian_trace", hessian_form), ("gauss_newton_trace_probe", gauss_newton_form)):
            expected = STRENGTH / 2 * torch.func.grad(form)(dense.theta)
            assert relative_error(self.added(dense, name), expected) < 1e-9


class TestUnbiased:
    @pytest.mark.slow
    def test_hessian_trace(self):
        dense, _ = small()
        g = dense.gradient(dense.theta)
        expected = central_differences(lambda t: STRENGTH / 2 * torch.func.hessian(dense.loss)(t).trace(), dense.theta)
        assert_mean(lambda seed: direction("hessian_trace", dense.original, dense.batch, seed=seed) - g, expected)

    @pytest.mark.slow
    def test_gauss_newton_trace_by_probes(self):
        dense, _ = small()
        g = dense.gradient(dense.theta)
        expected = central_differences(lambda t: STRENGTH / 2 * gauss_newton(dense, t).trace(), dense.theta)
        name = "gauss_newton_trace_probe"
        assert_mean(lambda seed: direction(name, dense.original, dense.batch, seed=seed) - g, expected)

    def test_weight_noise_and_the_hessian_trace_penalty_are_matched(self):
        """At equal, small σ² their updates add the same to g in the mean, (σ²/2) ∇ tr H; the Gauss-Newton's do not.

        From each draw of weight noise σHε is taken, whose mean is 0 and which would hide the rest.
        """
        dense, _ = small()
        g, H, sigma2, draws = dense.gradient(dense.theta), dense.hessian(), 1e-6, 1000

        def added(name):
            return torch.stack([direction(name, dense.original, dense.batch, sigma2, i) for i in range(draws)]) - g

        def noise(seed):
            generator = stream(seed, "noise")
            return torch.randn(len(dense.theta), generator=generator).double()

        first_order = sigma2**0.5 * torch.stack([noise(i) for i in range(draws)]) @ H
        found = {
            "noise": (added("weight_noise") - first_order) / (sigma2 / 2),
            "hessian": added("hessian_trace") / (sigma2 / 2),
            "gauss_newton": added("gauss_newton_trace_probe") / (sigma2 / 2),
        }
        mean = {name: values.mean(0) for name, values in found.items()}
        error = {name: values.std(0) / draws**0.5 for name, values in found.items()}
        expected = central_differences(lambda t: torch.func.hessian(dense.loss)(t).trace(), dense.theta)
        for name in ("noise", "hessian"):
            assert ((mean[name] - expected).abs() < 4.5 * error[name] + 1e-2 * expected.abs().max()).all()
        both = (error["noise"].square() + error["hessian"].square()).sqrt()
        assert ((mean["noise"] - mean["hessian"]).abs() < 4.5 * both + 1e-2 * expected.abs().max()).all()
        assert ((mean["gauss_newton"] - mean["hessian"]).abs() > 10 * both).any()


def small():
    """Two examples, a tiny smooth network, and all label combinations with their probabilities under the model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.GELU(), torch.nn.Linear(2, 3)).double()
        batch = Batch(torch.randn(2, 2, dtype=torch.float64), torch.tensor([0, 2]))
    dense = Dense(model, batch)
    dense.original = model
    p = logits(dense, dense.theta).detach().softmax(1)
    combinations = [(p[0, a] * p[1, b], torch.tensor([a, b])) for a, b in product(range(3), repeat=2)]
    return dense, combinations


def assert_mean(draw, expected, draws=10_000):
    """Within 4 standard errors (4.5 where many coordinates are compared at once)."""
    values = torch.stack([draw(seed) for seed in range(draws)])
    error = values.std(0) / draws**0.5
    assert ((values.mean(0) - expected).abs() < 4.5 * error + 1e-9).all()
