"""The operators H, G and N against dense float64 matrices, curvlinops, and float64 near interpolation."""

import gc
from copy import deepcopy

import curvlinops
import numpy as np
import psutil
import pytest
import torch
from curvature_reference import CLASSES, LOSSES, NETWORKS, Dense, example, relative_error, vectors_of
from registry_examples import each_activation_and_place
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torch.func import functional_call, grad, jvp, vjp
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from nme.activations import ACTIVATIONS
from nme.curvature import NME, Curvature, GaussNewton, Hessian, Probes, estimators, layers
from nme.derivatives.activate import Activate
from nme.derivatives.losses import CrossEntropy, SquaredError, loss_of
from nme.errors import NmeError

GELU = ACTIVATIONS.parse("gelu")
OPERATORS = {"H": Hessian, "G": GaussNewton, "N": NME}
CROSS_ENTROPY = LOSSES["cross-entropy"]

PLACES = [*((name, "eval") for name in NETWORKS), ("residual", "train")]
on_every_network = pytest.mark.parametrize(("network", "batch_norm"), PLACES, ids=str)
on_every_loss = pytest.mark.parametrize("loss", LOSSES)
in_both_modes = pytest.mark.parametrize("batch_norm", ["eval", "train"])


def small(network="mlp", activation=GELU, loss="cross-entropy", **options):
    """The operators of a small network on two batches, its dense matrices, and what they were made of."""
    model, batches = example(network, activation, loss)
    dense = Dense(model, batches, loss, options.get("batch_norm", "eval"))
    return Curvature(model, LOSSES[loss], batches, **options), dense, model, batches


def linear_model():
    """A model that is linear in its parameters, and a batch."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    return nn.Sequential(nn.Linear(4, CLASSES)).double(), (inputs, torch.randint(CLASSES, (7,), generator=generator))


def everything_of(model):
    """All that a computation might change of a model."""
    return {
        "tensors": {name: t.detach().clone() for name, t in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "statistics": [getattr(module, "track_running_stats", None) for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "identities": [id(t) for t in (*model.parameters(), *model.buffers())],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "random": torch.get_rng_state(),
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


class TestAgainstDenseMatrices:
    @each_activation_and_place(("network", "batch_norm"), PLACES)
    def test_every_activation(self, activation, network, batch_norm):
        curvature, dense, _, _ = small(network, activation, batch_norm=batch_norm)
        products = curvature.products(torch.eye(curvature.size, dtype=torch.float64))
        assert relative_error(products.hessian, dense.hessian) < 1e-10
        assert relative_error(products.gauss_newton, dense.gauss_newton) < 1e-10
        assert relative_error(products.nme, dense.nme) < 1e-10

    @on_every_network
    @on_every_loss
    def test_every_loss_and_each_operator_alone(self, network, batch_norm, loss):
        curvature, dense, _, _ = small(network, GELU, loss, batch_norm=batch_norm)
        eye = torch.eye(curvature.size, dtype=torch.float64)
        for symbol, operator in OPERATORS.items():
            assert operator.symbol == symbol
            assert operator(curvature).shape == dense.matrices[symbol].shape
            assert relative_error(operator(curvature) @ eye, dense.matrices[symbol]) < 1e-10
        assert relative_error(curvature.gradient(), dense.gradient) < 1e-10

    @on_every_network
    @on_every_loss
    def test_quadratic_forms(self, network, batch_norm, loss):
        curvature, dense, _, _ = small(network, GELU, loss, batch_norm=batch_norm)
        probes = vectors_of(curvature.size, 4).T
        forms = curvature.quadratic_forms(list(probes))
        for actual, matrix in zip(forms, dense.matrices.values(), strict=True):
            assert actual.shape == (4,)
            assert actual.dtype == torch.float64
            expected = torch.einsum("kp,pq,kq->k", probes, matrix, probes)
            assert relative_error(actual, expected) < 1e-10
        assert torch.equal(forms.hessian, forms.gauss_newton + forms.nme)

    @in_both_modes
    def test_the_two_modes_of_batch_norm_are_different_matrices(self, batch_norm):
        other = {"eval": "train", "train": "eval"}[batch_norm]
        curvature, dense, model, batches = small("residual", batch_norm=batch_norm)
        not_asked_for = Dense(model, batches, batch_norm=other)
        v = vectors_of(curvature.size, 1)[:, 0]
        for actual, matrix, wrong in zip(
            curvature.products(v), dense.matrices.values(), not_asked_for.matrices.values(), strict=True
        ):
            assert relative_error(actual, matrix @ v) < 1e-10
            assert relative_error(actual, wrong @ v) > 0.1

    @in_both_modes
    def test_a_single_batch_as_a_pair(self, batch_norm):
        model, batches = example("residual", GELU, sizes=(6,))
        dense = Dense(model, batches, batch_norm=batch_norm)
        v = vectors_of(dense.hessian.shape[0], 1)[:, 0]
        for data in (batches[0], list(batches[0]), batches):
            curvature = Curvature(model, CROSS_ENTROPY, data, batch_norm=batch_norm)
            for _ in range(2):  # the second time from the graph that was kept
                for symbol, operator in OPERATORS.items():
                    assert relative_error(operator(curvature) @ v, dense.matrices[symbol] @ v) < 1e-10
                assert relative_error(curvature.gradient(), dense.gradient) < 1e-10

    def test_data_loader(self):
        model, [(inputs, labels)] = example("mlp", GELU, sizes=(7,))
        dense = Dense(model, [(inputs, labels)])
        loader = DataLoader(TensorDataset(inputs, labels), batch_size=3)  # the last batch has 1
        v = vectors_of(dense.hessian.shape[0], 1)[:, 0]
        curvature = Curvature(model, CROSS_ENTROPY, loader)
        for actual, matrix in zip(curvature.products(v), dense.matrices.values(), strict=True):
            assert relative_error(actual, matrix @ v) < 1e-10

    @pytest.mark.parametrize(("loss", "own"), [("cross-entropy", CrossEntropy()), ("mse", SquaredError())])
    def test_losses_of_our_own(self, loss, own):
        _, dense, model, batches = small(loss=loss)
        v = vectors_of(dense.hessian.shape[0], 1)[:, 0]
        assert relative_error(Curvature(model, own, batches).products(v).hessian, dense.hessian @ v) < 1e-10


class TestStructure:
    @each_activation_and_place(["network"], [["mlp"], ["cnn-1d"], ["cnn-2d"]])
    def test_diagonal_blocks_of_n_vanish_exactly_where_the_second_derivative_does(self, activation, network):
        curvature, dense, model, _ = small(network, activation)
        N = NME(curvature) @ torch.eye(curvature.size, dtype=torch.float64)
        vanishes = not activation.second(torch.linspace(-3, 3, 100, dtype=torch.float64)).any()
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        at, blocks = 0, []
        for names in layers(model).values():
            size = sum(sizes[name] for name in names)
            blocks.append(N[at : at + size, at : at + size].norm().item())
            at += size
        assert at == curvature.size
        assert blocks[-1] == 0  # the head is linear
        hidden = blocks[:-1]
        assert not any(hidden) if vanishes else all(block > 1e-3 for block in hidden)
        assert dense.nme.norm() > 1e-2  # the other blocks

    def test_n_of_gelu_is_indefinite(self):
        curvature, _, _, _ = small()
        values = torch.linalg.eigvalsh(NME(curvature) @ torch.eye(curvature.size, dtype=torch.float64))
        assert values[0] < -0.05
        assert values[-1] > 0.05
        assert torch.linalg.eigvalsh(GaussNewton(curvature) @ torch.eye(curvature.size).double())[0] > -1e-12

    @pytest.mark.parametrize("loss", ["cross-entropy", "label-smoothing"])
    def test_n_of_a_linear_model_is_exactly_0(self, loss):
        model, batch = linear_model()
        curvature = Curvature(model, LOSSES[loss], batch)
        eye = torch.eye(curvature.size, dtype=torch.float64)
        h, g, n = curvature.products(eye)
        assert not n.any()
        assert not (NME(curvature) @ eye).any()
        assert torch.equal(h, g)
        assert g.norm() > 0.1
        assert relative_error(Hessian(curvature) @ eye, g) < 1e-12
        forms = curvature.quadratic_forms(list(eye))
        assert not forms.nme.any()
        assert relative_error(forms.gauss_newton, g.diagonal()) < 1e-12

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("shape", [(), (3,)])
    def test_h_is_the_sum_to_the_last_bit(self, dtype, shape):
        curvature, _, _, _ = small("cnn-2d", dtype=dtype)
        h, g, n = curvature.products(vectors_of(curvature.size, 3).view(-1, 3)[:, *(() if shape else (0,))])
        assert h.shape == g.shape == n.shape == (curvature.size, *shape)
        assert h.dtype == g.dtype == n.dtype == dtype
        assert torch.equal(h, g + n)
        assert not any(t.requires_grad for t in (h, g, n))

    @pytest.mark.parametrize("sizes", [(5,), (5, 3)])
    def test_columns_are_products_with_each_vector(self, sizes):
        model, batches = example("cnn-1d", GELU, sizes=sizes)
        curvature = Curvature(model, CROSS_ENTROPY, batches)
        columns = vectors_of(curvature.size, 5)
        transposed = columns.T.contiguous().T  # the same, in another order in memory
        for symbol, operator in OPERATORS.items():
            one_by_one = torch.stack([operator(curvature) @ column for column in columns.T], 1)
            assert torch.equal(operator(curvature) @ columns, one_by_one)
            assert torch.equal(operator(curvature) @ transposed, one_by_one)
            product = dict(zip("HGN", curvature.products(columns), strict=True))[symbol]
            assert relative_error(product, one_by_one) < 1e-12

    def test_the_vector_is_cast_and_not_changed(self):
        curvature, _, _, _ = small()
        v = vectors_of(curvature.size, 2)
        before = v.clone()
        products = curvature.products(v)
        assert torch.equal(v, before)
        of_float32 = curvature.products(v.float())
        assert of_float32.hessian.dtype == torch.float64
        assert torch.equal(of_float32.hessian, curvature.products(v.float().double()).hessian)
        tracked = curvature.products(v.clone().requires_grad_())
        assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(tracked, products, strict=True))

    def test_parameters_that_the_output_does_not_depend_on(self):
        class Unused(nn.Module):
            def __init__(self):
                super().__init__()
                self.unused = nn.Linear(2, 2)
                self.used = nn.Sequential(nn.Linear(5, 3), nn.GELU(), nn.Linear(3, CLASSES))

            def forward(self, x):
                return self.used(x)

        _, batches = example("mlp", GELU)
        model = Unused().double()
        curvature = Curvature(model, CROSS_ENTROPY, batches)
        whole, part = curvature.products(vectors_of(curvature.size, 2)), Curvature(model.used, CROSS_ENTROPY, batches)
        part = part.products(vectors_of(curvature.size, 2)[6:])
        for symbol, operator in OPERATORS.items():
            a, b = (dict(zip("HGN", p, strict=True))[symbol] for p in (whole, part))
            assert not a[:6].any()
            assert relative_error(a[6:], b) < 1e-12
            assert relative_error(operator(curvature) @ vectors_of(curvature.size, 2), a) < 1e-12


class TestCurvlinops:
    @pytest.mark.parametrize("network", ["mlp", "cnn-2d"])
    @pytest.mark.parametrize("loss", ["cross-entropy", "mse"])
    def test_h_and_g_are_theirs(self, network, loss):
        model, batches = example(network, GELU, loss)
        model.eval()
        curvature = Curvature(model, LOSSES[loss], batches)
        vectors = vectors_of(curvature.size, 3)
        theirs = {"H": curvlinops.HessianLinearOperator, "G": curvlinops.GGNLinearOperator}
        for symbol, operator in theirs.items():
            built = operator(model, LOSSES[loss], list(model.parameters()), batches, check_deterministic=False)
            assert relative_error(OPERATORS[symbol](curvature) @ vectors, built @ vectors) < 1e-10


@pytest.fixture(scope="module")
def interpolating():
    """A 3-layer GELU MLP in float32 after 2,000 steps on a problem it can separate, and the data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 4))
        inputs = torch.randn(64, 8)
        labels = (inputs @ torch.randn(8, 4)).argmax(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    for _ in range(2000):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    assert functional.cross_entropy(model(inputs), labels) < 1e-4
    return model, (inputs, labels)


def textbook(model, inputs, labels, vector):
    """Hv, Gv, Nv of cross-entropy as one would write them at first, in the model's own dtype."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])

    def logits(theta):
        parts = theta.split([shape.numel() for shape in shapes.values()])
        parameters = {name: part.view(s) for part, (name, s) in zip(parts, shapes.items(), strict=True)}
        return functional_call(model, parameters, (inputs,))

    def along_vector(function):
        return jvp(grad(function), (theta,), (vector,))[1]

    z, jv = jvp(logits, (theta,), (vector,))
    p = z.softmax(1)
    (gauss_newton,) = vjp(logits, theta)[1]((p * jv - p * (p * jv).sum(1, keepdim=True)) / len(z))
    residual = p - functional.one_hot(labels, z.shape[1])
    hessian = along_vector(lambda t: functional.cross_entropy(logits(t), labels))
    return hessian, gauss_newton, along_vector(lambda t: (residual * logits(t)).sum() / len(z))


@pytest.fixture(scope="module")
def products(interpolating):
    """The operators in float32 and in float64, a vector, and textbook products with it."""
    model, data = interpolating
    exact = Curvature(model, CROSS_ENTROPY, data, dtype=torch.float64)
    vector = vectors_of(exact.size, 1, dtype=torch.float32)[:, 0]
    return Curvature(model, CROSS_ENTROPY, data), exact, vector, textbook(model, *data, vector)


class TestNearInterpolation:
    """float32 near interpolation, where softmax − onehot and Hv − Gv cancel; errors are relative to float64."""

    def test_n_is_accurate(self, products):
        rounded, exact, v, _ = products
        assert rounded.dtype == torch.float32
        assert relative_error(NME(rounded) @ v, NME(exact) @ v) < 1e-5
        assert relative_error(rounded.products(v).nme, NME(exact) @ v) < 1e-5

    def test_the_difference_of_h_and_g_is_not(self, products):
        _, exact, v, (hessian, gauss_newton, _) = products
        assert relative_error(hessian - gauss_newton, NME(exact) @ v) > 1e-4

    def test_the_residual_softmax_minus_onehot_is_not(self, products):
        _, exact, v, (_, _, nme) = products
        assert relative_error(nme, NME(exact) @ v) > 1e-4

    def test_the_textbook_is_right_in_float64(self, interpolating, products):
        _, exact, v, _ = products
        model, (inputs, labels) = interpolating
        for theirs, ours in zip(
            textbook(deepcopy(model).double(), inputs.double(), labels, v.double()), exact.products(v), strict=True
        ):
            assert relative_error(theirs, ours) < 1e-9

    def test_h_and_g_are_accurate(self, products):
        rounded, exact, v, (_, textbook_gauss_newton, _) = products
        expected = exact.products(v)
        assert relative_error(textbook_gauss_newton, expected.gauss_newton) > 5e-5
        for actual in (rounded.products(v).gauss_newton, GaussNewton(rounded) @ v):
            assert relative_error(actual, expected.gauss_newton) < 1e-5
        for actual in (rounded.products(v).hessian, Hessian(rounded) @ v):
            assert relative_error(actual, expected.hessian) < 1e-5

    def test_the_gradient_is_accurate(self, products):
        rounded, exact, _, _ = products
        assert relative_error(rounded.gradient(), exact.gradient()) < 1e-5

    def test_quadratic_forms_are_accurate(self, products):
        rounded, exact, _, _ = products
        probes = list(vectors_of(exact.size, 8, seed=1, dtype=torch.float32).T)
        for actual, expected in zip(rounded.quadratic_forms(probes), exact.quadratic_forms(probes), strict=True):
            assert relative_error(actual, expected) < 1e-5

    def test_the_loss_hessian_ignores_a_constant(self):
        # With p_0 ≈ 1, v_0 − ⟨p, v⟩ is Σ_{c≠0} p_c (v_0 − v_c), and here the v_c are large and near each other.
        logits = torch.tensor([[20.0, 0.0, 1.0]])
        vector = torch.tensor([[100.0, 101.0, 98.0]])
        p = logits.double().softmax(1)
        differences = vector.double().T - vector.double()  # v_c − v_k in row c
        expected = p * (differences * p).sum(1)
        assert relative_error(CrossEntropy().hessian_product(logits, torch.tensor([0]), vector), expected) < 1e-6


class TestOptions:
    @pytest.mark.parametrize("micro_batch", [1, 2, 5, 100])
    def test_micro_batches_change_nothing(self, micro_batch):
        whole, _, model, batches = small("residual")
        cut = Curvature(model, CROSS_ENTROPY, batches, micro_batch=micro_batch)
        seen: list[int] = []
        model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        v = vectors_of(whole.size, 2)
        found = cut.products(v)
        assert max(seen) <= max(micro_batch, 2)  # the check has two
        for actual, expected in zip(found, whole.products(v), strict=True):
            assert relative_error(actual, expected) < 1e-12
        for operator in OPERATORS.values():
            assert relative_error(operator(cut) @ v, operator(whole) @ v) < 1e-12
        for actual, expected in zip(cut.quadratic_forms(list(v.T)), whole.quadratic_forms(list(v.T)), strict=True):
            assert relative_error(actual, expected) < 1e-12
        assert relative_error(cut.gradient(), whole.gradient()) < 1e-12

    def test_micro_batches_of_a_single_batch(self):
        model, (batch,) = example("cnn-1d", GELU, sizes=(7,))
        whole, cut = (Curvature(model, CROSS_ENTROPY, batch, micro_batch=m) for m in (None, 3))
        v = vectors_of(whole.size, 1)[:, 0]
        for _ in range(2):
            assert relative_error(cut.products(v).hessian, whole.products(v).hessian) < 1e-12

    @pytest.mark.parametrize(
        ("network", "batch_norm", "patterns", "chosen"),
        [
            ("mlp", "eval", "3.*", ["3.weight", "3.bias"]),
            ("mlp", "eval", ["5.bias", "1.weight"], ["1.weight", "5.bias"]),  # in the model's order
            ("mlp", "eval", ["*.weight", "1.*"], ["1.weight", "1.bias", "3.weight", "5.weight"]),
            ("residual", "train", "norm*", ["norm0.weight", "norm0.bias", "norm1.weight", "norm1.bias"]),
            ("residual", "eval", "conv.weight", ["conv.weight"]),
        ],
    )
    def test_patterns_choose_a_block(self, network, batch_norm, patterns, chosen):
        curvature, dense, model, _ = small(network, batch_norm=batch_norm, parameters=patterns)
        assert curvature.names == chosen
        owner = [name for name, p in model.named_parameters() for _ in range(p.numel())]
        inside = torch.tensor([name in chosen for name in owner])
        assert curvature.size == inside.sum()
        eye = torch.eye(curvature.size, dtype=torch.float64)
        products = curvature.products(eye)
        for (symbol, matrix), product in zip(dense.matrices.items(), products, strict=True):
            block = matrix[inside][:, inside]
            assert (product - block).norm() < 1e-10 * matrix.norm()
            assert (OPERATORS[symbol](curvature) @ eye - block).norm() < 1e-10 * matrix.norm()
        assert relative_error(curvature.gradient(), dense.gradient[inside]) < 1e-10

    def test_layers_choose_their_blocks(self):
        model, batches = example("residual", GELU)
        found = layers(model)
        assert list(found) == ["stem", "norm0", "conv", "norm1", "head"]
        assert found["stem"] == ["stem.weight", "stem.bias"]
        assert found["conv"] == ["conv.weight"]
        assert [n for names in found.values() for n in names] == [n for n, _ in model.named_parameters()]
        assert Curvature(model, CROSS_ENTROPY, batches, parameters=found["stem"]).names == found["stem"]

    def test_frozen_parameters_take_no_part(self):
        _, dense, model, batches = small()
        model[1].requires_grad_(False)
        frozen = model[1].weight.numel() + model[1].bias.numel()
        curvature = Curvature(model, CROSS_ENTROPY, batches)
        assert curvature.size == dense.hessian.shape[0] - frozen
        assert "1" not in layers(model)
        H = Hessian(curvature) @ torch.eye(curvature.size, dtype=torch.float64)
        assert relative_error(H, dense.hessian[frozen:, frozen:]) < 1e-10
        assert not model[1].weight.requires_grad

    @in_both_modes
    def test_a_float32_model_in_float64(self, batch_norm):
        model, batches = example("residual", GELU)
        model = model.float()
        batches = [(inputs.float(), labels) for inputs, labels in batches]
        as_float64 = [(inputs.double(), labels) for inputs, labels in batches]
        dense = Dense(deepcopy(model).double(), as_float64, batch_norm=batch_norm)
        v = vectors_of(dense.hessian.shape[0], 1)[:, 0]
        curvature = Curvature(model, CROSS_ENTROPY, batches, dtype=torch.float64, batch_norm=batch_norm)
        for symbol, operator in OPERATORS.items():
            assert operator(curvature).dtype == torch.float64
            assert relative_error(operator(curvature) @ v, dense.matrices[symbol] @ v) < 1e-10
        assert all(p.dtype == torch.float32 for p in model.parameters())
        in_float32 = Curvature(model, CROSS_ENTROPY, batches, batch_norm=batch_norm)
        assert in_float32.products(v).hessian.dtype == in_float32.dtype == torch.float32
        assert 1e-10 < relative_error(in_float32.products(v).hessian, dense.hessian @ v) < 1e-4

    def test_float64_targets_for_a_float32_model(self):
        model, batches = example("mlp", GELU, "mse")
        curvature = Curvature(model.float(), LOSSES["mse"], batches)
        assert curvature.products(vectors_of(curvature.size, 1)[:, 0]).hessian.dtype == torch.float32

    def test_scipy(self):
        curvature, dense, _, _ = small()
        for symbol, operator in OPERATORS.items():
            view = operator(curvature).to_scipy()
            assert isinstance(view, LinearOperator)
            assert view.dtype == np.float64
            vectors = vectors_of(curvature.size, 3).numpy()
            expected = dense.matrices[symbol].numpy()
            for transposed in (vectors, np.asfortranarray(vectors)):
                np.testing.assert_allclose(view @ transposed, expected @ vectors, atol=1e-12)
            np.testing.assert_allclose(view.T @ vectors[:, 0], expected @ vectors[:, 0], atol=1e-12)
            for which, of in (("SA", slice(None, 2)), ("LA", slice(-2, None))):
                values = eigsh(view, k=2, which=which, v0=vectors[:, 0], return_eigenvectors=False)
                np.testing.assert_allclose(np.sort(values), np.linalg.eigvalsh(expected)[of], atol=1e-10)

    def test_scipy_in_float32(self):
        curvature, dense, _, _ = small(dtype=torch.float32)
        view = Hessian(curvature).to_scipy()
        assert view.dtype == np.float32
        product = view @ np.ones(curvature.size, dtype=np.float32)
        assert product.dtype == np.float32
        np.testing.assert_allclose(product, dense.hessian.numpy().sum(1), atol=1e-5)

    def test_operators_build_their_own_curvature(self):
        curvature, _, model, batches = small()
        v = vectors_of(curvature.size, 1)[:, 0]
        built = Hessian(model, CROSS_ENTROPY, batches, parameters="1.*", micro_batch=2)
        assert built.curvature.names == ["1.weight", "1.bias"]
        assert built.curvature.micro_batch == 2
        shared = NME(curvature)
        assert shared.curvature is curvature
        assert torch.equal(shared @ v, NME(model, CROSS_ENTROPY, batches) @ v)

    def test_on_another_device_than_the_probes(self):
        # "meta" has shapes and devices and no numbers, and mixes with no other device, like a GPU.
        model, batches = example("mlp", GELU)
        on_meta = [(inputs.to("meta"), labels) for inputs, labels in batches]
        curvature = Curvature(model.to("meta"), CROSS_ENTROPY, on_meta)
        v = vectors_of(curvature.size, 3)
        assert curvature.device.type == "meta"
        assert all(t.device.type == "meta" and t.shape == v.shape for t in curvature.products(v))
        with pytest.raises(NotImplementedError, match="no data"):  # reached the numbers, so no devices were mixed
            curvature.quadratic_forms(list(v.T))


class WithDropout(nn.Module):
    """A network with dropout and batch norm, with modules in different modes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.norm = nn.BatchNorm1d(6)
        self.act = Activate(GELU)
        self.dropout = nn.Dropout(0.5)
        self.frozen_norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.head(self.frozen_norm(self.dropout(self.act(self.norm(self.first(x))))))


@pytest.fixture
def used():
    """A model in use: some gradients, a frozen parameter, submodules in different modes; and a batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WithDropout().double()
        inputs, labels = torch.randn(8, 5, dtype=torch.float64), torch.randint(CLASSES, (8,))
        functional.cross_entropy(model(inputs + 1), labels).backward()
    model.train()
    model.frozen_norm.eval()
    model.first.bias.requires_grad_(False)
    model.head.bias.grad = None
    return model, (inputs, labels)


class TestTheModelIsLeftAlone:
    @in_both_modes
    def test_by_everything(self, used, batch_norm):
        model, batch = used
        before = everything_of(model)
        for data in (batch, [batch, batch]):
            curvature = Curvature(model, CROSS_ENTROPY, data, batch_norm=batch_norm)
            v = vectors_of(curvature.size, 2)
            curvature.products(v)
            curvature.quadratic_forms(list(v.T))
            curvature.gradient()
            for operator in OPERATORS.values():
                operator(curvature) @ v
            assert same(everything_of(model), before)
        model.eval()
        assert not same(everything_of(model), before)

    @in_both_modes
    @pytest.mark.parametrize("call", ["products", "hessian_product", "quadratic_forms", "gradient"])
    def test_by_an_exception(self, used, batch_norm, call):
        model, (inputs, labels) = used
        before = everything_of(model)
        wrong = [(inputs, labels), (inputs[:, :4], labels)]
        curvature = Curvature(model, CROSS_ENTROPY, wrong, batch_norm=batch_norm)
        v = vectors_of(curvature.size, 1)[:, 0]
        arguments = {"gradient": (), "quadratic_forms": ([v],)}.get(call, (v,))
        with pytest.raises(NmeError, match=r"forward pass fails: .*shapes cannot be multiplied"):
            getattr(curvature, call)(*arguments)
        assert same(everything_of(model), before)

    @in_both_modes
    def test_while_a_batch_is_in_use(self, used, batch_norm):
        # Between batches the data and the probes are the caller's, who may use the model.
        model, batch = used
        before = everything_of(model)
        seen = []

        class Watching(list):
            def __iter__(self):
                for element in super().__iter__():
                    seen.append(same(everything_of(model), before))
                    yield element

        curvature = Curvature(model, CROSS_ENTROPY, Watching([batch, batch]), batch_norm=batch_norm)
        curvature.quadratic_forms(Watching(vectors_of(curvature.size, 2).T))
        assert seen
        assert all(seen)

    @in_both_modes
    def test_dropout_is_inactive(self, used, batch_norm):
        model, batch = used
        without = deepcopy(model)
        without.dropout = nn.Identity()
        v = vectors_of(Curvature(model, CROSS_ENTROPY, batch).size, 1)[:, 0]
        with_dropout, expected = (
            Curvature(m, CROSS_ENTROPY, [batch, batch], batch_norm=batch_norm).products(v) for m in (model, without)
        )
        assert all(torch.equal(a, b) for a, b in zip(with_dropout, expected, strict=True))

    @pytest.mark.parametrize("sizes", [(6,), (5, 3)])
    @in_both_modes
    def test_and_changing_it_later_changes_nothing(self, sizes, batch_norm):
        model, batches = example("residual", GELU, sizes=sizes)
        curvature, untouched = (Curvature(model, CROSS_ENTROPY, batches, batch_norm=batch_norm) for _ in range(2))
        v = vectors_of(curvature.size, 1)[:, 0]
        expected = untouched.products(v)
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.add_(1)
        model.requires_grad_(False)
        assert all(torch.equal(a, b) for a, b in zip(curvature.products(v), expected, strict=True))
        assert relative_error(Hessian(curvature) @ v, expected.hessian) < 1e-12

    @pytest.mark.parametrize("sizes", [(6,), (5, 3)])
    @pytest.mark.parametrize("first", ["gradient", "hessian_product", "gauss_newton_product", "logits"])
    def test_gradients_may_be_off(self, sizes, first):
        # A graph kept from before must not be used without the part that is still to be made.
        model, batches = example("mlp", GELU, sizes=sizes)
        dense = Dense(model, batches)
        v = vectors_of(dense.hessian.shape[0], 1)[:, 0]
        curvature = Curvature(model, CROSS_ENTROPY, batches)
        getattr(curvature, first)(*{"gradient": (), "logits": (batches[0][0],)}.get(first, (v,)))
        with torch.no_grad():
            for symbol, operator in OPERATORS.items():
                assert relative_error(operator(curvature) @ v, dense.matrices[symbol] @ v) < 1e-10
            for actual, matrix in zip(curvature.products(v), dense.matrices.values(), strict=True):
                assert relative_error(actual, matrix @ v) < 1e-10
            assert relative_error(Curvature(model, CROSS_ENTROPY, batches).gradient(), dense.gradient) < 1e-10

    def test_logits_are_those_of_the_model(self):
        model, batches = example("residual", GELU)
        model.eval()
        curvature = Curvature(model, CROSS_ENTROPY, batches)
        inputs, _ = batches[0]
        assert relative_error(curvature.logits(inputs), model(inputs).detach()) < 1e-14


class TestLosses:
    """The residual is the derivative, and the product that of the Hessian, of PyTorch's losses."""

    @on_every_loss
    def test_residual_and_hessian(self, loss):
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(4, CLASSES, generator=generator, dtype=torch.float64)
        labels = torch.randint(CLASSES, (4,), generator=generator)
        targets = torch.randn(4, CLASSES, generator=generator, dtype=torch.float64)
        y = targets if loss == "mse" else labels
        v = torch.randn(4, CLASSES, generator=generator, dtype=torch.float64)
        total = lambda z: LOSSES[loss](z, y)  # noqa: E731
        ours = loss_of(LOSSES[loss])
        residual = torch.func.grad(total)(z)
        assert relative_error(ours.residual(z, y), residual) < 1e-14
        _, product = torch.autograd.functional.hvp(total, z, v)
        assert relative_error(ours.hessian_product(z, y, v), product) < 1e-14
        # differentiable, which the Hessian with the residual attached needs
        _, of_residual = torch.autograd.functional.jvp(lambda z: ours.residual(z, y), z, v)
        assert relative_error(of_residual, product) < 1e-14

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_residuals_of_float32_are_accurate_where_the_label_is_certain(self, smoothing):
        logits = torch.tensor([[15.0, 0.0, 1.0]])
        labels = torch.tensor([0])
        exact = CrossEntropy(smoothing).residual(logits.double(), labels)
        assert relative_error(CrossEntropy(smoothing).residual(logits, labels), exact) < 1e-6


class TestMemory:
    @pytest.mark.parametrize("estimate", ["quadratic_forms", "frobenius_norms"])
    def test_does_not_grow_with_the_probes(self, estimate, monkeypatch):
        # One vector has 4 MB; a few more of 64 are noise of malloc, one a probe or every other probe is not.
        model = nn.Sequential(nn.Linear(500, 500), nn.GELU(), nn.Linear(500, 500)).double()
        data = torch.randn(2, 500, dtype=torch.float64), torch.randint(500, (2,))
        curvature = Curvature(model, CROSS_ENTROPY, [data])
        resident = []

        class Watched(Probes):
            def __iter__(self):
                for probe in super().__iter__():
                    resident.append(psutil.Process().memory_info().rss)
                    yield probe

        monkeypatch.setattr(estimators, "Probes", Watched)
        peaks = []
        for count in (8, 64):
            resident.clear()
            gc.collect()
            if estimate == "quadratic_forms":
                curvature.quadratic_forms(Watched(curvature.size, count, torch.Generator(), dtype=torch.float64))
            else:
                estimators.frobenius_norms(curvature, count, torch.Generator())
            assert len(resident) == count
            peaks.append(max(resident))
        assert peaks[1] - peaks[0] < 10 * 8 * curvature.size


class TestErrors:
    def test_parameters(self):
        model, batches = example("mlp", GELU)
        with pytest.raises(NmeError, match=r"unknown parameter '1\.wieght'; did you mean '1\.weight'\? .*5\.bias"):
            Curvature(model, CROSS_ENTROPY, batches, parameters="1.wieght")
        with pytest.raises(NmeError, match=r"unknown parameter 'conv\*'.*allowed: 1\.bias, 1\.weight"):
            Curvature(model, CROSS_ENTROPY, batches, parameters=["1.*", "conv*"])
        with pytest.raises(NmeError, match=r"no parameters are chosen \(allowed: 1\.weight, 1\.bias"):
            Curvature(model, CROSS_ENTROPY, batches, parameters=[])
        model[1].requires_grad_(False)
        with pytest.raises(NmeError, match=r"unknown parameter '1\.\*'"):
            Curvature(model, CROSS_ENTROPY, batches, parameters="1.*")
        with pytest.raises(NmeError, match="no parameters that require a gradient"):
            Curvature(model.requires_grad_(False), CROSS_ENTROPY, batches)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"batch_norm": "running"}, r"batch_norm is 'running' \(allowed: eval, train\)"),
            ({"micro_batch": 0}, r"micro_batch is 0 \(allowed: 1 or more"),
            ({"micro_batch": 2, "batch_norm": "train"}, r"micro_batch is 2 .*batch_norm='eval'"),
            ({"dtype": torch.float16}, r"dtype is torch.float16 \(allowed: torch.float32, torch.float64\)"),
        ],
    )
    def test_options(self, options, message):
        model, batches = example("mlp", GELU)
        with pytest.raises(NmeError, match=message):
            Curvature(model, CROSS_ENTROPY, batches, **options)

    @pytest.mark.parametrize(
        ("loss", "message"),
        [
            ("cross_entropy", r"loss is str \(allowed: a loss module, or a function of output and target\)"),
            (nn.MSELoss(reduction="none"), r"reduction 'none' \(allowed: mean, sum\)"),
            (nn.NLLLoss(reduction="none"), r"reduction 'none' \(allowed: mean, sum\)"),
        ],
    )
    def test_loss(self, loss, message):
        model, batches = example("mlp", GELU)
        with pytest.raises(NmeError, match=message):
            Curvature(model, loss, batches)

    def test_data_that_can_be_iterated_only_once(self):
        model, batches = example("mlp", GELU)
        for data in (iter(batches), (batch for batch in batches), zip(*batches, strict=True)):
            with pytest.raises(NmeError, match=r"only once \(give a list, a DataLoader, or a pair of tensors\)"):
                Curvature(model, CROSS_ENTROPY, data)

    @pytest.mark.parametrize("call", ["products", "nme_product", "quadratic_forms", "gradient"])
    def test_no_examples(self, call):
        model, [(inputs, labels), _] = example("mlp", GELU)
        for data in ([], [(inputs[:0], labels[:0])], (inputs[:0], labels[:0])):
            curvature = Curvature(model, CROSS_ENTROPY, data)
            v = vectors_of(curvature.size, 1)[:, 0]
            with pytest.raises(NmeError, match="data has no examples"):
                getattr(curvature, call)(*{"gradient": (), "quadratic_forms": ([v],)}.get(call, (v,)))

    def test_vectors(self):
        curvature, _, _, _ = small()
        p = curvature.size
        for shape in ((p + 1,), (2, p), (p, 2, 1), ()):
            with pytest.raises(NmeError, match=rf"\(allowed: \({p},\), \({p}, K\)\)"):
                curvature.products(torch.zeros(shape))
            for operator in OPERATORS.values():
                with pytest.raises(NmeError, match="the vector has shape"):
                    operator(curvature) @ torch.zeros(shape)
            with pytest.raises(NmeError, match="the vector has shape"):
                curvature.quadratic_forms([torch.zeros(shape)])

    def test_outputs(self):
        model = nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Unflatten(1, (2, 2))).double()
        _, batches = example("mlp", GELU)
        with pytest.raises(NmeError, match=r"target has shape \(5,\) \(allowed: \(5, 2\) for outputs \(5, 2, 2\)\)"):
            Curvature(model, CROSS_ENTROPY, batches).gradient()


def test_micro_batches_of_a_summed_loss_are_read_once():
    torch.manual_seed(0)
    model = nn.Linear(3, 4).double()
    data = torch.randn(10, 3).double(), torch.randint(4, (10,))
    whole, parts = (Curvature(model, nn.CrossEntropyLoss(reduction="sum"), data, micro_batch=m) for m in (None, 4))
    v = torch.randn(whole.size).double()
    assert relative_error(Hessian(parts) @ v, Hessian(whole) @ v) < 1e-12
