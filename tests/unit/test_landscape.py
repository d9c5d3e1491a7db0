"""The exact NME of two weights and one datapoint against back-propagation written by hand, and against H − G."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.special import ndtr

from nme.activations import ACTIVATIONS
from nme.curvature.landscape import Network
from nme.grid.specs import LandscapeSpec
from nme.outputs import parquet
from nme.stages.landscape import landscape

ROOT = Path(__file__).parents[2]
WIDTHS = [2, 5, 4]
SEED = 9  # where no pre-activation is near 0, and the lines through θ cross kinks of units of both layers


def numpy_phi(activation):
    """Value and slope of the activation, in numpy."""
    b = activation.values.get("beta", 1)
    if activation.name in ("relu", "augmented_relu", "leaky_relu"):
        slope = activation.values.get("slope", 0)
        return lambda x: np.where(x > 0, x, slope * x), lambda x: np.where(x > 0, 1.0, slope)
    if activation.name in ("gelu", "beta_gelu", "diminished_gelu"):
        density = lambda x: np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)  # noqa: E731
        return lambda x: x * ndtr(b * x), lambda x: ndtr(b * x) + b * x * density(b * x)
    # A new one's own value and slope, which test_activations checks: the back-propagation is still written by hand.
    return tuple(lambda x, f=f: f(torch.from_numpy(x)).numpy() for f in (activation.value, activation.first))


def layers(theta, widths):
    """Weights and biases out of the flat vector: weights (out, in) then biases, layer by layer."""
    at, sizes = 0, [*widths, 1]
    for inputs, outputs in pairwise(sizes):
        weight = theta[at : at + outputs * inputs].reshape(outputs, inputs)
        at += outputs * inputs
        yield weight, theta[at : at + outputs]
        at += outputs
    assert at == len(theta)


def by_hand(theta, x, activation, widths=WIDTHS):
    """The output z, its gradient, and the hidden pre-activations, by back-propagation in numpy."""
    value, slope = numpy_phi(activation)
    parameters = list(layers(theta, widths))
    hidden, before = [x], []
    for weight, bias in parameters:
        before.append(weight @ hidden[-1] + bias)
        hidden.append(value(before[-1]))
    gradient, backward = [], np.ones(1)
    for i in reversed(range(len(parameters))):
        gradient = [np.outer(backward, hidden[i]).ravel(), backward, *gradient]
        if i:
            backward = parameters[i][0].T @ backward * slope(before[i - 1])
    return before[-1][0], np.concatenate(gradient), np.concatenate(before[:-1])


@pytest.fixture
def network():
    return Network(WIDTHS, SEED)


@pytest.fixture
def pair(network):
    """The two weights as the seed draws them."""
    return network.theta[network.varied]


def test_output_and_preactivations_are_those_written_by_hand(network, activation):
    z, before = network.forward(network.theta, activation)
    expected, _, expected_before = by_hand(network.theta.numpy(), network.x.numpy(), activation)
    assert z.item() == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(before.numpy(), expected_before, rtol=1e-12)


def test_nme_of_a_genuine_activation_is_the_slope_of_the_gradient_with_the_residual_held(network, pair, genuine):
    theta, x, varied = network.theta.numpy(), network.x.numpy(), network.varied
    z, _, before = by_hand(theta, x, genuine)
    residual, step = z - network.y.item(), 1e-5
    assert np.abs(before).min() > 1e-3  # the steps cross no kink
    rows = []
    for along in step * np.eye(len(theta))[varied]:
        ahead, behind = (by_hand(theta + s * along, x, genuine)[1][varied] for s in (1, -1))
        rows.append(residual * (ahead - behind) / (2 * step))
    np.testing.assert_allclose(network.nme(pair, genuine).numpy(), np.stack(rows), rtol=1e-6, atol=1e-9)


def test_nme_is_the_hessian_less_the_gauss_newton_matrix(network, pair, activation):
    # H by double backward, where nme() takes forward over reverse; G is the outer product of ∇z, by hand.
    def loss(pair):
        return 0.5 * (network.forward(network.at(pair), activation)[0] - network.y) ** 2

    H = torch.autograd.functional.hessian(loss, pair)
    gradient = torch.from_numpy(by_hand(network.theta.numpy(), network.x.numpy(), activation)[1][network.varied])
    nme = network.nme(pair, activation)
    torch.testing.assert_close(nme, H - torch.outer(gradient, gradient), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(nme, nme.T, rtol=1e-12, atol=1e-13)


def test_nme_is_exactly_zero_where_the_second_derivative_is(network, activation):
    """At any two weights; so for ReLU it is 0 everywhere off its boundaries."""
    line = torch.linspace(-3, 3, 7, dtype=torch.float64)
    for pair in torch.cartesian_prod(line, line):
        _, before = network.forward(network.at(pair), activation)
        assert before.abs().min() > 1e-6
        if activation.second(before).abs().max() == 0:
            assert torch.count_nonzero(network.nme(pair, activation)) == 0


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "diminished_gelu"])
def test_activation_without_curvature_has_no_nme(network, pair, name):
    assert torch.count_nonzero(network.nme(pair, ACTIVATIONS.parse(name))) == 0


@pytest.mark.parametrize("name", ["gelu", "beta_gelu-beta=4", "augmented_relu"])
def test_activation_with_curvature_has_nme(network, pair, name):
    assert network.nme(pair, ACTIVATIONS.parse(name)).norm() > 1e-3


@pytest.mark.parametrize("varied", [0, 1])
def test_kinks_of_relu_are_where_a_preactivation_changes_sign(network, varied):
    z, on = [], []
    for weight in torch.linspace(-4, 4, 401, dtype=torch.float64):
        pair = network.theta[network.varied].index_fill(0, torch.tensor(varied), weight)
        output, before = network.forward(network.at(pair), ACTIVATIONS.parse("relu"))
        z.append(output)
        on.append(before > 0)
    z, on = torch.stack(z), torch.stack(on)
    # Over each three neighbouring points: is z bent, and which units switch?
    bent = (z[:-2] - 2 * z[1:-1] + z[2:]).abs() > 1e-12
    switched = on[:-2] != on[2:]
    assert switched[:, :5].any()
    assert switched[:, 5:].any()  # units of both layers switch on this line
    assert torch.equal(bent, switched.any(1))


def test_varied_weights_belong_to_two_units_of_the_first_layer(network):
    pair = torch.tensor([10.0, 20.0], dtype=torch.float64)
    first, _ = next(layers(network.at(pair).numpy(), WIDTHS))
    original, _ = next(layers(network.theta.numpy(), WIDTHS))
    assert [tuple(i) for i in np.argwhere(first != original)] == [(0, 0), (1, 1)]
    assert (first[0, 0], first[1, 1]) == (10, 20)
    assert len(network.at(pair)) == len(network.theta)


def test_network_is_a_function_of_its_seed():
    one, same, other = (Network(WIDTHS, seed) for seed in (1, 1, 2))
    assert torch.equal(one.theta, same.theta)
    assert torch.equal(one.x, same.x)
    assert one.y == same.y
    assert not torch.equal(one.theta, other.theta)
    assert one.y != other.y


def test_parameters_have_the_stated_spread():
    wide = Network([50, 200, 100], seed=0)
    for weight, bias in list(layers(wide.theta.numpy(), [50, 200, 100]))[:2]:
        assert weight.std() == pytest.approx(np.sqrt(2 / weight.shape[1]), rel=0.05)
        assert bias.std() == pytest.approx(0.5, rel=0.2)


class TestTable:
    SPEC = LandscapeSpec(
        activation=["relu", "beta_gelu-beta=4"], widths=WIDTHS, points=5, half_width=2.0, seed=SEED, version=1
    )

    @pytest.fixture
    def table(self, tmp_path):
        landscape(self.SPEC, tmp_path / "landscape.parquet")
        return parquet.read(tmp_path / "landscape.parquet")

    def test_has_one_row_a_grid_point(self, table):
        frame = table[0].to_pandas()
        line = np.linspace(-2, 2, 5)
        for _, part in frame.groupby("activation"):
            pairs = {(a, b) for a, b in zip(part["w_a"], part["w_b"], strict=True)}
            assert pairs == {(a, b) for a in line for b in line}
        assert list(frame["activation"].unique()) == self.SPEC.activation
        assert len(frame) == 2 * 25
        assert list(frame)[:5] == ["activation", "w_a", "w_b", "loss", "nme"]
        assert list(frame)[5:] == [f"preactivation_{u}" for u in range(9)]

    def test_rows_equal_the_calculation_point_by_point(self, table, network):
        for row in table[0].to_pandas().sample(12, random_state=0).to_dict("records"):
            activation = ACTIVATIONS.parse(row["activation"])
            theta = network.theta.numpy().copy()
            theta[0], theta[3] = row["w_a"], row["w_b"]
            z, gradient, before = by_hand(theta, network.x.numpy(), activation)
            assert row["loss"] == pytest.approx(0.5 * (z - network.y.item()) ** 2, rel=1e-12)
            np.testing.assert_allclose([row[f"preactivation_{u}"] for u in range(9)], before, rtol=1e-12)

            def loss(t, activation=activation):
                return 0.5 * (network.forward(t, activation)[0] - network.y) ** 2

            H = torch.autograd.functional.hessian(loss, torch.from_numpy(theta)).numpy()
            block = (H - np.outer(gradient, gradient))[np.ix_(network.varied, network.varied)]
            assert row["nme"] == pytest.approx(np.linalg.norm(block), rel=1e-9, abs=1e-12)

    def test_file_says_which_settings_made_it(self, table):
        assert table[1]["spec"] == self.SPEC.as_json()


BETAS = (4, 16)


@pytest.fixture(scope="module")
def planes(tmp_path_factory):
    """For each activation ‖N‖², and the distance of the nearest pre-activation from 0 among those that vary."""
    settings = yaml.safe_load((ROOT / "config/figures/fig1.yaml").read_text())["landscape"]
    assert {"relu", *(f"beta_gelu-beta={beta}" for beta in BETAS)} <= set(settings["activation"])
    path = tmp_path_factory.mktemp("landscape") / "fig1.parquet"
    landscape(LandscapeSpec(**{**settings, "points": 81, "version": 1}), path)
    found = {}
    for name, plane in parquet.read(path)[0].to_pandas().groupby("activation"):
        before = plane[[c for c in plane if c.startswith("preactivation_")]]
        moving = before.loc[:, before.max() > before.min()]
        # The first layer's two units and all units of later layers.
        assert moving.shape[1] == 2 + sum(settings["widths"][2:])
        found[name] = plane["nme"].to_numpy() ** 2, moving.abs().min(axis=1).to_numpy()
    return found


class TestFigure1:
    """The statements of its caption hold for the figure's own settings."""

    def test_nme_of_relu_is_exactly_zero_off_the_boundaries(self, planes):
        squares, distance = planes["relu"]
        assert squares[distance > 0].max() == 0

    @pytest.mark.parametrize("beta", BETAS)
    def test_nme_of_beta_gelu_is_large_only_near_the_boundaries(self, planes, beta):
        """Near: some pre-activation that the weights change is within 1/β of 0; practically all is within 3/β."""
        squares, distance = planes[f"beta_gelu-beta={beta}"]
        assert squares[distance <= 1 / beta].sum() > 0.95 * squares.sum()
        assert squares[distance <= 3 / beta].sum() > 0.99 * squares.sum()

    def test_that_is_a_small_part_of_the_plane_at_the_largest_beta(self, planes):
        _, distance = planes[f"beta_gelu-beta={BETAS[-1]}"]
        assert (distance <= 1 / BETAS[-1]).mean() < 0.15
        assert (distance <= 3 / BETAS[-1]).mean() < 0.35

    def test_nme_of_beta_gelu_grows_with_beta(self, planes):
        highest = [planes[f"beta_gelu-beta={beta}"][0].max() ** 0.5 for beta in (1, *BETAS)]
        assert highest[1] > 2 * highest[0]
        assert highest[2] > 2 * highest[1]
