"""Estimators of traces, norms, diagonals, eigenvalues and spectral densities against dense matrices."""

from math import sqrt

import pytest
import torch
from curvature_reference import LOSSES, Dense, example, relative_error, vectors_of
from hypothesis import given, settings
from hypothesis import strategies as st
from registry_examples import each_activation_and_place
from torch import nn

from nme.activations import ACTIVATIONS
from nme.curvature import (
    NME,
    Curvature,
    Estimate,
    GaussNewton,
    Hessian,
    Probes,
    SpectralDensity,
    diagonal,
    extreme_eigenpairs,
    frobenius_norm,
    frobenius_norms,
    hutch_plus_plus,
    lanczos,
    layers,
    nme_block_norms,
    nonzero_second_derivatives,
    spectral_density,
    trace,
    traces,
)
from nme.errors import NmeError
from nme.models import MODELS

GELU, RELU = ACTIVATIONS.parse("gelu"), ACTIVATIONS.parse("relu")
OPERATORS = {"H": Hessian, "G": GaussNewton, "N": NME}


class Matrix:
    """A dense symmetric matrix with the interface of an operator; counts the columns it was multiplied with."""

    device = torch.device("cpu")

    def __init__(self, matrix):
        self.matrix, self.shape, self.dtype, self.columns = matrix, tuple(matrix.shape), matrix.dtype, 0

    def __matmul__(self, vectors):
        self.columns += 1 if vectors.dim() == 1 else vectors.shape[1]
        return self.matrix @ vectors.to(self.dtype)


def rotation(size, seed=0):
    return torch.linalg.qr(vectors_of(size, size, seed))[0]


def with_spectrum(values, seed=0):
    """A dense symmetric matrix with these eigenvalues and random eigenvectors."""
    values = torch.as_tensor(values, dtype=torch.float64)
    Q = rotation(len(values), seed)
    return Q * values @ Q.T


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def network():
    """The operators of a small GELU network on one batch, whose graph they keep, and its dense matrices."""
    model, batches = example("cnn-2d", GELU, sizes=(6,))
    return Curvature(model, LOSSES["cross-entropy"], batches), Dense(model, batches)


def assert_within(estimate, exact, errors):
    assert abs(estimate.value - exact) <= errors * estimate.error + 1e-12 * abs(exact)


class TestEstimate:
    def test_is_the_mean_and_its_standard_error(self):
        estimate = Estimate.of(torch.tensor([1.0, 2.0, 6.0]))
        assert estimate.value == 3
        assert estimate.error == pytest.approx(sqrt((4 + 1 + 9) / 2 / 3))
        assert estimate.samples.tolist() == [1, 2, 6]
        assert estimate.samples.dtype == torch.float64

    def test_has_no_error_from_one_sample(self):
        assert Estimate.of(torch.tensor([5.0])).value == 5
        assert str(Estimate.of(torch.tensor([5.0])).error) == "nan"


class TestProbes:
    @pytest.mark.parametrize("distribution", ["rademacher", "normal"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_are_the_same_in_every_iteration(self, distribution, dtype):
        probes = Probes(7, 5, generator(), distribution, dtype)
        first, second = torch.stack(list(probes)), torch.stack(list(probes))
        assert torch.equal(first, second)
        assert first.shape == (5, 7)
        assert first.dtype == dtype
        assert len(probes) == 5
        assert len(torch.unique(first, dim=0)) == 5
        half = iter(probes)  # two iterations do not disturb each other
        next(half)
        assert torch.equal(torch.stack(list(probes)), first)
        assert torch.equal(next(half), first[1])

    @pytest.mark.parametrize("distribution", ["rademacher", "normal"])
    def test_depend_on_the_state_of_the_generator_alone(self, distribution):
        stream = generator()
        first = torch.stack(list(Probes(9, 4, stream, distribution)))
        second = torch.stack(list(Probes(9, 4, stream, distribution)))
        assert not any(torch.equal(a, b) for a in first for b in second)
        torch.manual_seed(5)
        state = torch.get_rng_state()
        assert torch.equal(torch.stack(list(Probes(9, 4, generator(), distribution))), first)
        assert torch.equal(torch.get_rng_state(), state)
        assert not torch.equal(torch.stack(list(Probes(9, 4, generator(1), distribution))), first)

    def test_advance_the_generator_before_they_are_made(self):
        stream, other = generator(), generator()
        early = Probes(5, 2, stream)
        late = Probes(5, 2, stream)
        made_late = torch.stack(list(late))
        assert torch.equal(torch.stack(list(Probes(5, 2, other))), torch.stack(list(early)))
        assert torch.equal(torch.stack(list(Probes(5, 2, other))), made_late)

    @pytest.mark.parametrize("distribution", ["rademacher", "normal"])
    def test_have_mean_0_and_covariance_1(self, distribution):
        count = 20_000
        U = torch.stack(list(Probes(5, count, generator(), distribution, torch.float64)))
        assert (U.abs() == 1).all() == (distribution == "rademacher")
        assert U.mean(0).abs().max() < 5 / sqrt(count)
        assert (U.T @ U / count - torch.eye(5)).abs().max() < 5 * sqrt(2 / count)
        assert (U[1:] * U[:-1]).mean(0).abs().max() < 5 / sqrt(count)  # one probe and the next

    def test_rademacher_probes_do_not_depend_on_the_dtype(self):
        single, double = (list(Probes(6, 3, generator(), dtype=d)) for d in (torch.float32, torch.float64))
        assert all(torch.equal(a.double(), b) for a, b in zip(single, double, strict=True))

    def test_errors(self):
        with pytest.raises(NmeError, match=r"distribution is 'gauss' \(allowed: rademacher, normal\)"):
            Probes(3, 1, generator(), "gauss")
        with pytest.raises(NmeError, match=r"probes is 0 \(allowed: 1 or more\)"):
            Probes(3, 0, generator())


class TestTraces:
    @settings(max_examples=12, deadline=None, derandomize=True)
    @given(
        seed=st.integers(0, 2**32),
        probe_seed=st.integers(0, 2**32),
        network=st.sampled_from(["mlp", "cnn-2d"]),
        loss=st.sampled_from(list(LOSSES)),
        distribution=st.sampled_from(["rademacher", "normal"]),
    )
    def test_are_unbiased_and_add_up(self, seed, probe_seed, network, loss, distribution):
        model, batches = example(network, GELU, loss, sizes=(4,), seed=seed)
        found = traces(Curvature(model, LOSSES[loss], batches), 200, generator(probe_seed), distribution)
        dense = Dense(model, batches, loss)
        for symbol, matrix in dense.matrices.items():
            assert len(found[symbol].samples) == 200
            assert_within(found[symbol], matrix.trace().item(), 4)
        H, G, N = (found[symbol].samples for symbol in "HGN")
        scale = G.abs() + N.abs()
        assert ((H - G - N).abs() <= 1e-14 * scale).all()
        assert found["H"].value == pytest.approx(found["G"].value + found["N"].value, rel=1e-12, abs=1e-13)

    @pytest.mark.parametrize("distribution", ["rademacher", "normal"])
    def test_the_error_is_that_of_the_estimator(self, network, distribution):
        # Var uᵀAu is 2 Σ_{i≠j} A_ij² for Rademacher and 2‖A‖² for normal probes.
        curvature, dense = network
        found = traces(curvature, 600, generator(), distribution)
        for symbol, matrix in dense.matrices.items():
            square = matrix.square().sum()
            if distribution == "rademacher":
                square = square - matrix.diagonal().square().sum()
            assert found[symbol].error == pytest.approx(sqrt(2 * square / 600), rel=0.3)

    def test_all_operators_see_the_same_probes(self, network):
        curvature, dense = network
        found = traces(curvature, 6, generator(3))
        probes = torch.stack(list(Probes(curvature.size, 6, generator(3), dtype=torch.float64)))
        for symbol, matrix in dense.matrices.items():
            expected = torch.einsum("kp,pq,kq->k", probes, matrix, probes)
            assert relative_error(found[symbol].samples, expected) < 1e-10
            alone = trace(OPERATORS[symbol](curvature), 6, generator(3))
            assert torch.equal(alone.samples, found[symbol].samples)
            assert (alone.value, alone.error) == (found[symbol].value, found[symbol].error)

    def test_consecutive_estimates_are_independent(self, network):
        stream = generator()
        first, second = (trace(Hessian(network[0]), 4, stream).samples for _ in range(2))
        assert not torch.isin(first, second).any()


class TestRandomNetworks:
    @settings(max_examples=8, deadline=None, derandomize=True)
    @given(
        seed=st.integers(0, 2**32),
        probe_seed=st.integers(0, 2**32),
        network=st.sampled_from(["mlp", "cnn-2d"]),
        loss=st.sampled_from(list(LOSSES)),
        symbol=st.sampled_from(list(OPERATORS)),
    )
    def test_every_estimate_is_within_its_error(self, seed, probe_seed, network, loss, symbol):
        model, batches = example(network, GELU, loss, sizes=(4,), seed=seed)
        operator = OPERATORS[symbol](Curvature(model, LOSSES[loss], batches))
        matrix = Dense(model, batches, loss).matrices[symbol]
        assert_within(frobenius_norm(operator, 200, generator(probe_seed)), matrix.norm().item(), 4.5)
        spectrum = torch.linalg.eigvalsh(matrix)
        found = extreme_eigenpairs(operator, 1, 1, generator(probe_seed), 12)
        assert ((spectrum[:, None] - found.values).abs().amin(0) <= found.residuals + 1e-12).all()
        density = spectral_density(operator, 100, 6, generator(probe_seed))
        for power in (1, 2):
            exact = spectrum.pow(power).mean().item()
            assert_within(density.moment(power), exact, 4.5)


class TestHutchPlusPlus:
    def test_is_exact_up_to_the_rank_that_it_resolves(self):
        values = torch.zeros(40)
        values[:5] = torch.tensor([3.0, -2.0, 1.0, 0.5, -7.0])
        operator = Matrix(with_spectrum(values))
        for products in (15, 18, 30):
            estimate = hutch_plus_plus(operator, products, generator())
            assert estimate.value == pytest.approx(-4.5, abs=1e-10)
            assert estimate.error < 1e-10
        assert abs(hutch_plus_plus(operator, 12, generator()).value + 4.5) > 1e-6  # a third is less than the rank

    @pytest.mark.parametrize("seed", range(5))
    def test_is_within_its_error(self, network, seed):
        curvature, dense = network
        for symbol, matrix in dense.matrices.items():
            estimate = hutch_plus_plus(OPERATORS[symbol](curvature), 60, generator(seed))
            assert len(estimate.samples) == 20
            assert estimate.error > 0
            assert_within(estimate, matrix.trace().item(), 5)

    def test_spends_the_products_it_is_given(self):
        for products in (9, 10, 11):
            operator = Matrix(with_spectrum(torch.arange(20)))
            hutch_plus_plus(operator, products, generator())
            assert operator.columns == 9

    def test_varies_less_than_hutchinson_where_the_spectrum_decays_fast(self):
        values = torch.arange(1, 101, dtype=torch.float64) ** -2
        operator = Matrix(with_spectrum(values))
        plus_plus, plain = [], []
        for seed in range(60):
            plus_plus.append(hutch_plus_plus(operator, 30, generator(seed)).value)
            probes = torch.stack(list(Probes(100, 30, generator(seed), dtype=torch.float64)))
            plain.append((probes * (probes @ operator.matrix)).sum(1).mean().item())
        exact = values.sum()
        mean_square = [(torch.tensor(found) - exact).square().mean() for found in (plus_plus, plain)]
        assert mean_square[0] < mean_square[1] / 20
        # Both are unbiased.
        for found in (plus_plus, plain):
            assert_within(Estimate.of(torch.tensor(found, dtype=torch.float64)), exact.item(), 4)

    def test_errors(self):
        for products in (2, 63):
            with pytest.raises(NmeError, match=rf"products is {products} \(allowed: 3 to 60\)"):
                hutch_plus_plus(Matrix(torch.eye(20)), products, generator())


class TestFrobeniusNorm:
    def test_is_within_its_error(self, network):
        curvature, dense = network
        for symbol, matrix in dense.matrices.items():
            estimate = frobenius_norm(OPERATORS[symbol](curvature), 300, generator())
            assert_within(estimate, matrix.norm().item(), 4)
            assert 0 < estimate.error < 0.1 * estimate.value

    def test_the_joint_ones_are_those_of_the_same_probes(self, network):
        curvature, dense = network
        joint = frobenius_norms(curvature, 5, generator(2))
        probes = torch.stack(list(Probes(curvature.size, 5, generator(2), dtype=torch.float64)))
        assert list(joint) == ["H", "G", "N"]
        for symbol, estimate in joint.items():
            squares = (probes @ dense.matrices[symbol]).square().sum(1)
            assert relative_error(estimate.samples, squares) < 1e-10
            assert estimate.value == pytest.approx(sqrt(squares.mean()), rel=1e-10)
            assert estimate.error == pytest.approx(
                (squares.std() / sqrt(5) / 2 / squares.mean().sqrt()).item(), rel=1e-10
            )
            alone = frobenius_norm(OPERATORS[symbol](curvature), 5, generator(2))
            assert alone.value == pytest.approx(estimate.value, rel=1e-12)

    def test_is_exact_for_a_multiple_of_a_rotation(self):
        operator = Matrix(with_spectrum([3.0] * 4 + [-3.0] * 6))
        estimate = frobenius_norm(operator, 3, generator())
        assert estimate.value == pytest.approx(3 * sqrt(10), rel=1e-12)
        assert estimate.error < 1e-12

    def test_of_0_is_0(self):
        estimate = frobenius_norm(Matrix(torch.zeros(5, 5)), 3, generator())
        assert (estimate.value, estimate.error) == (0, 0)


class TestDiagonal:
    def test_is_within_its_errors_which_are_right(self, network):
        curvature, dense = network
        probes = 400
        for symbol, matrix in dense.matrices.items():
            mean, error = diagonal(OPERATORS[symbol](curvature), probes, generator())
            exact = matrix.diagonal()
            assert mean.shape == error.shape == exact.shape
            assert ((mean - exact).abs() <= 5 * error + 1e-12).all()
            # Var (u ⊙ Au)_i is Σ_{j≠i} A_ij².
            expected = ((matrix.square().sum(1) - exact.square()) / probes).sqrt()
            assert error.numpy() == pytest.approx(expected.numpy(), rel=0.25, abs=1e-12)

    def test_is_exact_for_a_diagonal_matrix(self):
        values = vectors_of(8, 1)[:, 0]
        mean, error = diagonal(Matrix(torch.diag(values)), 4, generator())
        assert mean.numpy() == pytest.approx(values.numpy(), rel=1e-14)
        assert error.max() < 1e-7

    def test_has_no_error_from_one_probe(self):
        mean, error = diagonal(Matrix(torch.eye(3, dtype=torch.float64)), 1, generator())
        assert mean.tolist() == [1, 1, 1]
        assert error.isnan().all()


class TestLanczos:
    def test_as_many_steps_as_dimensions_give_the_spectrum(self, network):
        curvature, dense = network
        start = vectors_of(curvature.size, 1)[:, 0]
        for symbol, matrix in dense.matrices.items():
            ritz = lanczos(OPERATORS[symbol](curvature), curvature.size, start)
            spectrum = torch.linalg.eigvalsh(matrix)
            # Eigenvalues that are equal (0, here) are found once.
            distance = (spectrum[:, None] - ritz.values).abs()
            assert distance.amin(0).max() < 1e-10 * spectrum.abs().max()
            assert distance.amin(1).max() < 1e-7 * spectrum.abs().max()
            assert (ritz.values.diff() >= 0).all()
        values = torch.linspace(-1, 2, 30, dtype=torch.float64) ** 3
        ritz = lanczos(Matrix(with_spectrum(values)), 30, vectors_of(30, 1)[:, 0])
        assert ritz.values.numpy() == pytest.approx(values.numpy(), abs=1e-12)

    @pytest.mark.parametrize("steps", [30, 100])
    def test_weights_are_the_squared_components_of_the_start(self, steps):
        values = torch.linspace(-1, 2, 30, dtype=torch.float64)
        start = 7 * vectors_of(30, 1, seed=1)[:, 0]
        ritz = lanczos(Matrix(with_spectrum(values)), steps, start)
        expected = (rotation(30).T @ start / start.norm()).square()
        assert len(ritz.values) == 30
        assert ritz.weights.numpy() == pytest.approx(expected.numpy(), abs=1e-10)
        assert ritz.vectors is None

    @pytest.mark.parametrize("steps", [1, 2, 5, 8])
    def test_residuals_are_the_true_ones(self, network, steps):
        curvature, dense = network
        for symbol, matrix in dense.matrices.items():
            start = vectors_of(curvature.size, 1, seed=steps)[:, 0]
            ritz = lanczos(OPERATORS[symbol](curvature), steps, start, keep_vectors=True)
            assert ritz.vectors.shape == (curvature.size, steps)
            assert (ritz.vectors.T @ ritz.vectors - torch.eye(steps)).norm() < 1e-12
            true = (matrix @ ritz.vectors - ritz.vectors * ritz.values).norm(dim=0)
            assert ritz.residuals.numpy() == pytest.approx(true.numpy(), abs=1e-12)
            assert ritz.residuals.max() > 1e-5 * matrix.norm()
            assert ritz.weights.sum().item() == pytest.approx(1, abs=1e-12)
            rayleigh = (ritz.vectors * (matrix @ ritz.vectors)).sum(0)
            assert ritz.values.numpy() == pytest.approx(rayleigh.numpy(), abs=1e-12)

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
    def test_ends_on_an_invariant_space(self, dtype, tolerance):
        operator = Matrix(with_spectrum(torch.arange(1, 21)).to(dtype))
        start = rotation(20)[:, [2, 7, 11]] @ torch.tensor([1.0, -2.0, 0.5]).double()
        ritz = lanczos(operator, 10, start, keep_vectors=True)
        assert operator.columns == 3
        assert ritz.values.numpy() == pytest.approx([3, 8, 12], abs=tolerance)
        assert ritz.weights.numpy() == pytest.approx([1 / 5.25, 4 / 5.25, 0.25 / 5.25], abs=tolerance)
        assert ritz.residuals.max() < tolerance
        assert ritz.vectors.shape == (20, 3)

    @pytest.mark.parametrize(("matrix", "value"), [(2.5 * torch.eye(6), 2.5), (torch.zeros(6, 6), 0)])
    def test_ends_at_once_where_every_vector_is_an_eigenvector(self, matrix, value):
        ritz = lanczos(Matrix(matrix), 4, torch.ones(6))
        assert ritz.values.tolist() == pytest.approx([value])
        assert ritz.weights.tolist() == [1]
        assert ritz.residuals.tolist() == pytest.approx([0], abs=1e-6)

    def test_float32_keeps_its_vectors_orthogonal(self):
        # Without reorthogonalisation, the first eigenvalue comes back as ghosts.
        values = torch.cat([torch.tensor([100.0, 50.0]), torch.linspace(-1, 1, 198)]).double()
        matrix = with_spectrum(values)
        ritz = lanczos(Matrix(matrix.float()), 60, vectors_of(200, 1)[:, 0], keep_vectors=True)
        assert ritz.vectors.dtype == torch.float32
        assert ritz.vectors.shape[1] == 60
        assert (ritz.vectors.T @ ritz.vectors - torch.eye(60)).abs().max() < 1e-5
        assert (ritz.values > 2).sum() == 2
        assert ritz.values[-2:].numpy() == pytest.approx([50, 100], rel=1e-6)

    def test_of_a_network_in_float32(self, network):
        _, dense = network
        model, batches = example("cnn-2d", GELU, sizes=(6,))
        curvature = Curvature(model, LOSSES["cross-entropy"], batches, dtype=torch.float32)
        ritz = lanczos(NME(curvature), 40, vectors_of(curvature.size, 1)[:, 0], keep_vectors=True)
        spectrum = torch.linalg.eigvalsh(dense.nme)
        count = len(ritz.values)
        assert count >= 20
        assert (ritz.vectors.T @ ritz.vectors - torch.eye(count)).abs().max() < 1e-5
        assert ritz.values[[0, -1]].numpy() == pytest.approx(spectrum[[0, -1]].numpy(), rel=1e-5)
        nearest = (spectrum[:, None] - ritz.values).abs().amin(0)
        assert (nearest <= ritz.residuals + 1e-5 * spectrum.abs().max()).all()

    @pytest.mark.parametrize("start", [torch.zeros(4), torch.tensor([1.0, float("nan"), 0.0, 0.0])])
    def test_errors(self, start):
        with pytest.raises(NmeError, match="start vector of Lanczos is zero or not finite"):
            lanczos(Matrix(torch.eye(4)), 2, start)


class TestExtremeEigenpairs:
    @pytest.mark.parametrize("steps", [8, 60])
    def test_values_vectors_and_residuals(self, network, steps):
        curvature, dense = network
        for symbol, matrix in dense.matrices.items():
            found = extreme_eigenpairs(OPERATORS[symbol](curvature), 2, 3, generator(), steps)
            assert found.values.shape == found.residuals.shape == (5,)
            assert found.vectors.shape == (curvature.size, 5)
            assert (found.values.diff() >= 0).all()
            assert (found.vectors.T @ found.vectors - torch.eye(5)).norm() < 1e-10
            true = (matrix @ found.vectors - found.vectors * found.values).norm(dim=0)
            assert found.residuals.numpy() == pytest.approx(true.numpy(), abs=1e-12)
            spectrum = torch.linalg.eigvalsh(matrix)
            nearest = (spectrum[:, None] - found.values).abs().amin(0)
            assert (nearest <= found.residuals + 1e-12).all()
            if steps == 60:
                assert found.residuals[[0, -1]].max() < 1e-6
                assert found.values[-3:].numpy() == pytest.approx(spectrum[-3:].numpy(), abs=1e-6)
                if symbol != "G":  # whose lower end is 0, many times
                    assert found.values[:2].numpy() == pytest.approx(spectrum[:2].numpy(), abs=1e-6)
            else:
                assert found.residuals.max() > 1e-5

    @pytest.mark.parametrize(("smallest", "largest"), [(1, 0), (0, 1), (0, 4), (3, 0)])
    def test_either_end_alone(self, smallest, largest):
        values = torch.arange(-10, 11, dtype=torch.float64)
        found = extreme_eigenpairs(Matrix(with_spectrum(values)), smallest, largest, generator(), steps=21)
        expected = values[:smallest] if smallest else values[-largest:]
        assert found.values.numpy() == pytest.approx(expected.numpy(), abs=1e-9)
        assert found.residuals.max() < 1e-9

    def test_in_float32_the_residual_is_that_of_the_rounded_vector(self):
        matrix = with_spectrum(torch.linspace(-1, 3, 50)).float()
        found = extreme_eigenpairs(Matrix(matrix), 1, 1, generator(), steps=50)
        assert found.vectors.dtype == torch.float32
        true = (matrix.double() @ found.vectors.double() - found.vectors.double() * found.values).norm(dim=0)
        assert found.residuals.numpy() == pytest.approx(true.numpy(), abs=1e-6)
        assert found.values.numpy() == pytest.approx([-1, 3], rel=1e-5)

    def test_errors(self):
        operator = Matrix(torch.eye(6))
        for smallest, largest, steps in ((0, 0, 5), (4, 3, 60), (2, 2, 3)):
            with pytest.raises(NmeError, match=rf"{smallest + largest} eigenpairs of 6 from {steps} steps"):
                extreme_eigenpairs(operator, smallest, largest, generator(), steps)


class TestSpectralDensity:
    @pytest.mark.parametrize("symbol", OPERATORS)
    def test_moments_are_traces(self, network, symbol):
        curvature, dense = network
        matrix = dense.matrices[symbol]
        density = spectral_density(OPERATORS[symbol](curvature), 60, 10, generator())
        assert density.nodes.shape == density.weights.shape == (60, 10)
        assert density.weights.sum(1).numpy() == pytest.approx(1, abs=1e-12)
        assert (density.weights >= 0).all()
        assert density.moment(0).value == pytest.approx(1, abs=1e-12)
        assert density.moment(0).error < 1e-12
        for power in (1, 2):
            exact = torch.linalg.matrix_power(matrix, power).trace().item() / len(matrix)
            estimate = density.moment(power)
            assert 0 < estimate.error < 0.5 * abs(exact) + 0.1
            assert_within(estimate, exact, 4)

    def test_a_row_has_the_moments_of_its_probe(self, network):
        # Quadrature of m nodes is exact up to degree 2m − 1.
        curvature, dense = network
        density = spectral_density(Hessian(curvature), 3, 4, generator(1))
        for i, probe in enumerate(Probes(curvature.size, 3, generator(1), "normal", torch.float64)):
            q = probe / probe.norm()
            moments = [(q @ torch.linalg.matrix_power(dense.hessian, k) @ q).item() for k in range(9)]
            row = [(density.weights[i] * density.nodes[i] ** k).sum().item() for k in range(9)]
            assert row[:8] == pytest.approx(moments[:8], rel=1e-10)
            assert row[8] != pytest.approx(moments[8], rel=1e-6)

    def test_smoothed_integrates_to_1_and_has_the_moments(self, network):
        density = spectral_density(NME(network[0]), 5, 10, generator())
        width = 0.05
        at = torch.linspace(-4, 4, 4001, dtype=torch.float64)
        assert density.nodes.abs().max() < 3
        heights = density.smoothed(at, width)
        assert heights.shape == at.shape
        assert (heights >= 0).all()
        integral = lambda f: torch.trapezoid(f * heights, at).item()  # noqa: E731
        assert integral(1) == pytest.approx(1, abs=1e-9)
        assert integral(at) == pytest.approx(density.moment(1).value, abs=1e-9)
        assert integral(at**2) == pytest.approx(density.moment(2).value + width**2, abs=1e-9)

    def test_smoothed_is_a_sum_of_gaussians(self):
        density = SpectralDensity(torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
        at = torch.tensor([0.0, 0.7, 2.0], dtype=torch.float64)
        gauss = lambda mean: torch.distributions.Normal(mean, 0.4).log_prob(at).exp()  # noqa: E731
        expected = (0.25 * gauss(0.0) + 0.75 * gauss(1.0) + gauss(2.0)) / 2
        assert density.smoothed(at, 0.4).numpy() == pytest.approx(expected.numpy(), rel=1e-6)

    def test_where_lanczos_ends_early(self):
        density = spectral_density(Matrix(2 * torch.eye(9, dtype=torch.float64)), 3, 5, generator())
        assert density.nodes.shape == (3, 5)
        assert density.weights.sum(1).tolist() == [1, 1, 1]
        assert [density.moment(k).value for k in range(4)] == pytest.approx([1, 2, 4, 8])

    def test_whole_spectrum_of_a_small_matrix(self):
        # With as many steps as dimensions every node is an eigenvalue, and the weights are 1/P in the mean.
        values = torch.tensor([-2.0, 0.5, 1.0, 3.0], dtype=torch.float64)
        density = spectral_density(Matrix(with_spectrum(values)), 400, 4, generator())
        assert density.nodes.numpy() == pytest.approx(values.expand(400, 4).numpy(), abs=1e-9)
        error = density.weights.std(0) / sqrt(400)
        assert ((density.weights.mean(0) - 0.25).abs() < 4 * error).all()


class TestBlocks:
    @each_activation_and_place(["name"], [["mlp"], ["cnn-1d"]])
    def test_norms_are_those_of_the_diagonal_blocks(self, activation, name):
        model, batches = example(name, activation, sizes=(5,))
        curvature = Curvature(model, LOSSES["cross-entropy"], batches)
        dense = Dense(model, batches)
        found = nme_block_norms(curvature, layers(model), 50, generator())
        owner = [n.rpartition(".")[0] for n, p in model.named_parameters() for _ in range(p.numel())]
        *hidden, last = layers(model)
        assert [block for block in found if block] == [*hidden, last]
        for block in hidden:
            inside = torch.tensor([o == block for o in owner])
            exact = dense.nme[inside][:, inside].norm().item()
            if activation.second(torch.tensor(0.1)) == 0:
                assert exact < 1e-12 * dense.hessian.norm()
                assert (found[block].value, found[block].error) == (0, 0)
            else:
                assert exact > 1e-3
                assert found[block].error > 0
                assert_within(found[block], exact, 5)
        assert found[last].value == 0

    def test_same_probes_for_every_block(self):
        model, batches = example("mlp", GELU)
        curvature = Curvature(model, LOSSES["cross-entropy"], batches)
        N = Dense(model, batches).nme
        found = nme_block_norms(curvature, layers(model), 3, generator(4))
        probes = torch.stack(list(Probes(curvature.size, 3, generator(4), dtype=torch.float64)))
        at = 0
        for block, names in layers(model).items():
            size = sum(p.numel() for n, p in model.named_parameters() if n in names)
            inside = slice(at, at + size)
            squares = (probes[:, inside] @ N[inside, inside]).square().sum(1)
            assert found[block].samples.numpy() == pytest.approx(squares.numpy(), rel=1e-10, abs=1e-20)
            at += size


class TestSparsity:
    def build(self, activation, batch_norm=False):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = MODELS["mlp"](name="mlp", widths=[6, 5], batch_norm=batch_norm).build((4,), 3, activation)
            return model, torch.randn(7, 4)

    def test_counts_where_the_second_derivative_is_not_small(self, activation):
        model, inputs = self.build(activation)
        found = nonzero_second_derivatives(model, inputs)
        assert list(found) == ["2", "4"]
        first = model[1](inputs)
        grid = torch.linspace(-8, 8, 16001, dtype=torch.float64)
        largest = activation.second(grid).abs().max()
        expected = (activation.second(first.double()).abs() > 1e-3 * largest).sum().item()
        assert found["2"] == (expected if largest else 0, 42)
        assert found["4"][1] == 35
        if activation.name == "beta_gelu" and activation.values["beta"] == 1:
            assert found["2"][0] == 42

    def test_of_a_narrow_bump(self):
        # |φ''| of β-GELU falls under 1e-3 of its maximum between 4.0 and 4.7 standard deviations 1/β.
        model, inputs = self.build(ACTIVATIONS.parse("beta_gelu-beta=100"))
        nonzero, units = nonzero_second_derivatives(model, inputs)["2"]
        before = model[1](inputs).abs()
        assert (before < 0.04).sum() - (((before * 100) ** 2 - 2).abs() < 0.01).sum() <= nonzero
        assert nonzero <= (before < 0.047).sum()
        assert 0 < nonzero < units

    @pytest.mark.parametrize("training", [True, False])
    def test_changes_nothing(self, training):
        model, inputs = self.build(GELU, batch_norm=True)
        model.train(training)
        before = {name: t.clone() for name, t in model.state_dict().items()}
        nonzero_second_derivatives(model, inputs + 1)
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
        assert model.training == training
        assert not any(m._forward_pre_hooks for m in model.modules())
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            nonzero_second_derivatives(model, inputs[:, :3])
        assert not any(m._forward_pre_hooks for m in model.modules())
        assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
