"""Gradients and Hessian products against dense Hessians, closed forms and curvlinops."""

import curvlinops
import numpy as np
import pytest
import torch
from dense_reference import PLACES, Dense, example, flat, relative_error
from registry_examples import each_activation_and_place
from torch import nn

from nme.activations import ACTIVATIONS
from nme.derivatives.batch import Batch
from nme.derivatives.cross_entropy import cross_entropy
from nme.derivatives.products import Gradient, batch_gradient, hessian_product
from nme.derivatives.single_pass import pairing
from nme.derivatives.vectors import norm

GELU = ACTIVATIONS.parse("gelu")

PLACE = ("network", "batch_norm")


def random_like(tensors, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors]


def product(model, batch, vector):
    return hessian_product(model, batch, batch_gradient(model, batch, keep_graph=True), vector)


class TestBatchGradient:
    @each_activation_and_place(PLACE, PLACES)
    def test_loss_and_gradient_are_those_of_the_mean_cross_entropy(self, activation, network, batch_norm):
        model, batch = example(network, activation, batch_norm)
        dense = Dense(model, batch)
        clean = batch_gradient(model, batch)
        assert clean.loss.item() == pytest.approx(dense.loss(dense.theta).item(), rel=1e-12)
        assert relative_error(flat(clean.gradient), dense.gradient(dense.theta)) < 1e-12

    def test_has_a_graph_only_where_asked_for(self):
        model, batch = example("mlp", GELU)
        without, kept = batch_gradient(model, batch), batch_gradient(model, batch, keep_graph=True)
        assert without.kept_gradient is None
        assert all(g.requires_grad for g in kept.kept_gradient)
        assert not any(g.requires_grad for c in (without, kept) for g in c.gradient)
        assert not any(t.requires_grad for c in (without, kept) for t in (c.loss, c.logits))
        assert torch.equal(flat(without.gradient), flat(kept.gradient))

    def test_frozen_parameters_take_no_part(self):
        model, batch = example("mlp", GELU)
        everything = batch_gradient(model, batch)
        frozen = next(model.parameters()).requires_grad_(False)
        rest = batch_gradient(model, batch, keep_graph=True)
        assert all(p is not frozen for p in rest.parameters)
        assert torch.equal(flat(rest.gradient), flat(everything.gradient[1:]))
        vector = random_like(rest.parameters)
        H = Dense(model, batch).hessian()[frozen.numel() :, frozen.numel() :]
        assert relative_error(flat(hessian_product(model, batch, rest, vector)), H @ flat(vector)) < 1e-10


class TestHessianProduct:
    @each_activation_and_place(PLACE, PLACES)
    def test_equals_the_dense_hessian(self, activation, network, batch_norm):
        model, batch = example(network, activation, batch_norm)
        vector = random_like(model.parameters())
        expected = Dense(model, batch).hessian() @ flat(vector)
        assert relative_error(flat(product(model, batch, vector)), expected) < 1e-10

    @each_activation_and_place(["network"], [place[:1] for place in PLACES if not place[1]])
    def test_equals_curvlinops(self, activation, network):
        model, batch = example(network, activation)
        operator = curvlinops.HessianLinearOperator(
            model, nn.CrossEntropyLoss(), list(model.parameters()), [batch[:2]], check_deterministic=False
        )
        vector = random_like(model.parameters())
        expected = operator @ flat(vector)
        assert relative_error(flat(product(model, batch, vector)), expected) < 1e-10

    def test_equals_curvlinops_on_running_statistics(self):
        model, batch = example("cnn-2d", GELU, batch_norm=True)
        model(batch.inputs + 1)  # running statistics that are not those of the batch
        model.eval()
        operator = curvlinops.HessianLinearOperator(
            model, nn.CrossEntropyLoss(), list(model.parameters()), [batch[:2]], check_deterministic=False
        )
        vector = random_like(model.parameters())
        before = {name: b.clone() for name, b in model.named_buffers()}
        actual = flat(product(model, batch, vector))
        assert relative_error(actual, operator @ flat(vector)) < 1e-10
        assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())

    @each_activation_and_place(PLACE, [("cnn-1d", False), ("cnn-1d", True)])
    def test_is_linear_and_symmetric(self, activation, network, batch_norm):
        model, batch = example(network, activation, batch_norm)
        u, v = random_like(model.parameters(), 1), random_like(model.parameters(), 2)
        Hu, Hv, Hw = (flat(product(model, batch, w)) for w in (u, v, [2 * a - b for a, b in zip(u, v, strict=True)]))
        assert relative_error(Hw, 2 * Hu - Hv) < 1e-12
        assert (flat(v) @ Hu).item() == pytest.approx((flat(u) @ Hv).item(), rel=1e-10)

    def test_of_softmax_regression_is_the_closed_form(self):
        # A linear model: H = mean of (diag p − ppᵀ) ⊗ xxᵀ, with a constant input 1 for the bias.
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(5, 4, generator=generator, dtype=torch.float64)
        batch = Batch(inputs, torch.tensor([0, 1, 2, 1, 0]))
        model = nn.Linear(4, 3).double()
        V, b = vector = random_like(model.parameters())
        p = model(inputs).detach().softmax(1)
        Jv = inputs @ V.T + b
        residual = p * Jv - p * (p * Jv).sum(1, keepdim=True)
        expected = [residual.T @ inputs / 5, residual.mean(0)]
        assert relative_error(flat(product(model, batch, vector)), flat(expected)) < 1e-12

    def test_is_0_where_the_gradient_does_not_depend_on_a_parameter(self):
        # L = 3a + Σb², in parts and together: the gradient along a is a constant without a graph.
        a, b = (torch.tensor(t, dtype=torch.float64, requires_grad=True) for t in ([1.0], [2.0, 5.0]))
        vector = [torch.tensor([7.0]).double(), torch.tensor([1.0, -1.0]).double()]

        def of(loss, parameters, v):
            gradient = torch.autograd.grad(loss, parameters, create_graph=True)
            clean = Gradient(loss.detach(), loss.detach(), parameters, list(gradient), None, list(gradient))
            return hessian_product(None, Batch(loss, loss), clean, v)

        both = of(3 * a.sum() + b.square().sum(), [a, b], vector)
        assert [t.tolist() for t in both] == [[0.0], [2.0, -2.0]]
        assert [t.tolist() for t in of(3 * a.sum(), [a], vector[:1])] == [[0.0]]

    def test_of_a_linear_network_is_the_dense_hessian(self):
        model, batch = example("mlp", ACTIVATIONS.parse("leaky_relu-slope=1"))
        linear = nn.Sequential(nn.Flatten(), *(m for m in model if isinstance(m, nn.Linear)))
        vector = random_like(linear.parameters())
        expected = Dense(linear, batch).hessian() @ flat(vector)
        assert relative_error(flat(product(linear, batch, vector)), expected) < 1e-10
        # A slope of 1 on both sides is the same network.
        assert relative_error(flat(product(model, batch, vector)), expected) < 1e-10

    def test_vector_and_gradient_are_not_changed(self):
        model, batch = example("mlp", GELU)
        clean = batch_gradient(model, batch, keep_graph=True)
        vector = random_like(model.parameters())
        before = flat(vector), flat(clean.gradient)
        result = hessian_product(model, batch, clean, vector)
        assert torch.equal(flat(vector), before[0])
        assert torch.equal(flat(clean.gradient), before[1])
        assert not any(t.requires_grad for t in result)


def interpolated(classes=10, examples=64):
    """Float32 logits at a loss of 10⁻⁶, and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (examples,), generator=generator)
    logits = torch.randn(examples, classes, generator=generator)
    return logits.scatter_add(1, labels[:, None], torch.full((examples, 1), 17.0)), labels


def with_derivatives(loss, logits, labels):
    """The loss, its gradient, and its second and third derivative along fixed directions."""
    logits = logits.clone().requires_grad_()
    found = [loss(logits, labels)]
    for direction in (None, *random_like([logits.float()] * 2)):
        along = found[-1] if direction is None else (found[-1] * direction).sum()
        found += torch.autograd.grad(along, logits, create_graph=True)
    return found


def textbook_loss(logits, labels):
    return -logits.log_softmax(1).gather(1, labels[:, None]).mean()


class TestCrossEntropy:
    @pytest.mark.parametrize("classes", [2, 5])
    @pytest.mark.parametrize("size", [1, 12, 200])
    def test_is_the_textbooks_with_three_derivatives(self, classes, size):
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(classes, (12,), generator=generator)
        logits = torch.randn(12, classes, generator=generator, dtype=torch.float64)
        if size > 1:  # right and wrong, by 24 or 400
            logits = size * logits.sign()
        for found, expected in zip(
            *(with_derivatives(loss, logits, labels) for loss in (cross_entropy, textbook_loss)), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)

    def test_near_interpolation_float32_is_right_with_three_derivatives(self):
        # PyTorch's is wrong by 0.1 to 1 % here.
        logits, labels = interpolated()
        exact = with_derivatives(textbook_loss, logits.double(), labels)
        assert 5e-7 < exact[0] < 2e-6
        for found, expected in zip(with_derivatives(cross_entropy, logits, labels), exact, strict=True):
            assert relative_error(found.double(), expected) < 1e-6

    @pytest.mark.parametrize("label", [0, 1])
    def test_float32_stays_finite_and_right_at_200(self, label):
        logits, labels = torch.tensor([[200.0, -200.0, -200.0]]), torch.tensor([label])
        found, expected = (with_derivatives(cross_entropy, z, labels) for z in (logits, logits.double()))
        for f, e in zip(found, expected, strict=True):
            torch.testing.assert_close(f.double(), e, rtol=1e-6, atol=1e-30)


class TestPairing:
    def test_its_derivative_is_the_vector_whose_own_graph_is_kept(self):
        x, v = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
        (along,) = torch.autograd.grad(pairing([x**3], [v]), x, create_graph=True)
        torch.testing.assert_close(along, 3 * x**2 * v)
        for found, expected in zip(torch.autograd.grad(along.sum(), [x, v]), [6 * x * v, 3 * x**2], strict=True):
            torch.testing.assert_close(found, expected)

    def test_vectors_have_the_shapes_of_the_outputs(self):
        with pytest.raises(ValueError, match=r"has shape \(2, 3\) \(allowed: \(3,\)\)"):
            pairing([torch.ones(3, requires_grad=True)], [torch.ones(2, 3)])


class TestNorm:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_is_that_of_all_entries_together(self, dtype):
        tensors = random_like([torch.empty(s, dtype=dtype) for s in [(3, 4), (5,), (), (2, 1, 3)]])
        expected = np.linalg.norm(np.concatenate([t.double().numpy().ravel() for t in tensors]))
        result = norm(tensors)
        assert result.shape == ()
        assert result.dtype == dtype
        assert result.item() == pytest.approx(expected, rel=4 * torch.finfo(dtype).eps)

    def test_has_no_graph(self):
        assert not norm([torch.ones(2, requires_grad=True)]).requires_grad

    def test_of_zeros_is_0(self):
        assert norm([torch.zeros(2), torch.zeros(3)]) == 0

    @pytest.mark.parametrize(
        ("tensor", "tolerance"),
        [
            (torch.full((10_000,), 1000.0, dtype=torch.float16), 1e-5),  # 1e5 is beyond float16
            (
                torch.randn(2000, 2000, generator=torch.Generator().manual_seed(0)),
                1e-5,
            ),  # as large as the largest of a WRN-28-10
            (torch.full((7,), 1.0, dtype=torch.bfloat16), 1e-6),  # √7 has no short bfloat16
        ],
    )
    def test_is_accumulated_in_float32(self, tensor, tolerance):
        expected = np.linalg.norm(tensor.double().numpy())
        assert norm([tensor]).item() == pytest.approx(expected, rel=tolerance)
