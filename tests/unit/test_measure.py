"""The measure stage: second derivatives that are not zero, and what stands in a file of measurements."""

import math
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from dense_reference import NETWORKS, PLACES, example
from registry_examples import each_activation_and_place, measured_on
from scipy.optimize import brentq
from scipy.stats import norm
from specs import spec_in_memory
from torch import nn

from nme.activations import ACTIVATIONS
from nme.config.project import load_project
from nme.curvature.sparsity import largest_second_derivative, nonzero_second_derivatives
from nme.data.load import load
from nme.datasets.base import Places
from nme.derivatives.activate import Activate
from nme.errors import NmeError
from nme.grid.cells import Cell
from nme.grid.specs import MeasureSpec, TrainSpec, measure_spec
from nme.outputs import parquet
from nme.quantities import QUANTITIES, Settings, Value
from nme.stages.measure import measure
from nme.stages.prepare import prepare
from nme.stages.train import train
from nme.training.snapshots import read_snapshot

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TINY = load_project({"scale": "tiny"}, ROOT / "config")

on_every_network = pytest.mark.parametrize("network", NETWORKS)
with_and_without_batch_norm = pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "batch-norm"])


# --------------------------------------------- second derivatives that are not zero


def preactivations(model, inputs) -> list[np.ndarray]:
    """Of each activation layer, by walking through the layers."""
    found = []
    for layer in model:
        if isinstance(layer, Activate):
            found.append(inputs.detach().numpy())
        inputs = layer(inputs)
    return found


@each_activation_and_place(("network", "batch_norm"), PLACES)
def test_counts_are_those_of_the_preactivations(activation, network, batch_norm):
    model, batch = example(network, activation, batch_norm)
    model.eval()
    everywhere = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
    threshold = 1e-3 * activation.second(everywhere).abs().max().item()
    counts = nonzero_second_derivatives(model, batch.inputs)
    expected = []
    for before in preactivations(model, batch.inputs):
        second = np.abs(activation.second(torch.from_numpy(before)).numpy())
        expected.append(((second > threshold).sum() if threshold else 0, before.size))
    assert list(counts.values()) == expected
    assert [name for name, layer in model.named_modules() if isinstance(layer, Activate)] == list(counts)


def test_the_largest_second_derivative_of_gelus():
    """φ''(0) = 2β/√(2π), the largest; in float64."""
    for beta in (0.25, 1, 3, 16, 64):
        found = largest_second_derivative(ACTIVATIONS.parse(f"beta_gelu-beta={beta}"))
        assert found == pytest.approx(2 * beta / math.sqrt(2 * math.pi), rel=1e-12)


def boundaries() -> tuple[float, float, float]:
    """Where exp(−z²/2)·|1 − z²/2| = 10⁻³: twice about its zero at √2, and in its tail."""

    def excess(z: float) -> float:
        return math.exp(-z * z / 2) * abs(1 - z * z / 2) - 1e-3

    return brentq(excess, 1, math.sqrt(2)), brentq(excess, math.sqrt(2), 2), brentq(excess, 2, 10)


def one_unit(activation, dtype=torch.float64) -> nn.Module:
    """Its pre-activation is its input."""
    first = nn.Linear(1, 1)
    nn.init.ones_(first.weight)
    nn.init.zeros_(first.bias)
    return nn.Sequential(first, Activate(activation), nn.Linear(1, 2)).to(dtype)


@pytest.mark.parametrize("beta", [0.5, 1, 2, 4, 16, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fraction_of_beta_gelu_under_normal_preactivations(beta, dtype):
    """A probability in closed form; about 1/β for large β."""
    n = 20_000
    inputs = torch.from_numpy(norm.ppf((np.arange(n) + 0.5) / n)).to(dtype)[:, None]
    counts = nonzero_second_derivatives(one_unit(ACTIVATIONS.parse(f"beta_gelu-beta={beta}"), dtype), inputs)
    ((nonzero, units),) = counts.values()
    inner, outer, tail = (norm.cdf(z / beta) for z in boundaries())
    expected = 2 * ((inner - 0.5) + (tail - outer))
    assert units == n
    assert nonzero / units == pytest.approx(expected, abs=6 / n)  # a boundary may fall on either side of a point


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "diminished_gelu"])
def test_there_are_none_where_the_second_derivative_is_zero(name):
    model, batch = example("mlp", ACTIVATIONS.parse(name))
    assert set(nonzero_second_derivatives(model, batch.inputs).values()) == {(0, 4 * 6)}


@on_every_network
@with_and_without_batch_norm
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_measuring_changes_nothing(network, batch_norm, training):
    model, batch = example(network, ACTIVATIONS.parse("gelu"), batch_norm)
    model.train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    nonzero_second_derivatives(model, batch.inputs)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training == training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_measuring_leaves_no_hook_after_an_exception():
    model, batch = example("mlp", ACTIVATIONS.parse("gelu"))
    with pytest.raises(RuntimeError):
        nonzero_second_derivatives(model, batch.inputs[:, :-1])
    assert not any(module._forward_pre_hooks for module in model.modules())


NUMBERS = Settings(probes=2, spectrum_probes=1, lanczos_steps=5)


def test_a_network_without_hidden_units_has_no_fraction():
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 3)).double()
    _, batch = example("mlp", ACTIVATIONS.parse("gelu"))
    assert nonzero_second_derivatives(model, batch.inputs) == {}
    assert list(QUANTITIES["second_derivatives"](model, batch, NUMBERS, 0)) == []


# ------------------------------------------------------------------ the stage

TIMES = [0.0, 0.5, 1.0]
SEEDS = range(2)
EXAMPLES = 40  # of 50


def settings(quantities: dict[str, list[float]], **changes) -> MeasureSpec:
    """The spec of networks that are cheap to measure."""
    measurement = TINY.scale.measurement.model_copy(update={"examples": EXAMPLES})
    recipe = TINY.scale.recipes["digits_mlp"].model_copy(update={"batch_size": 16, **changes})
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"batch_norm": True, "widths": [4, 3]})})
    scale = TINY.scale.model_copy(update={"measurement": measurement, "recipes": {"digits_mlp": recipe}})
    cell = Cell.of("digits_mlp", "gelu", "sgd", 0)
    project = TINY.model_copy(update={"scale": scale})
    return measure_spec(project, cell, SEEDS, quantities)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prepare(spec_in_memory("digits", 50, 20), Places(), folder)
    return folder / "manifest.json"


def snapshots_of(data: Path, folder: Path, **changes) -> Path:
    """The networks that a training job with these settings keeps."""
    recipe = settings({}, **changes).recipe
    cell = {"activation": "gelu", "method": "sgd", "strength": "0"}
    spec = TrainSpec(recipe=recipe, **cell, seeds=[*SEEDS], snapshots=TIMES, version=1)
    train(spec, data, folder / "metrics.parquet", CPU)
    return folder / "snapshots"


@pytest.fixture(scope="module")
def kept(data, tmp_path_factory) -> Path:
    return snapshots_of(data, tmp_path_factory.mktemp("kept"))


def rows_of(path: Path) -> list[dict]:
    """Without what is nan, which equals nothing."""
    rows = parquet.read(path)[0].to_pylist()
    return [{k: v for k, v in row.items() if not (isinstance(v, float) and math.isnan(v))} for row in rows]


@pytest.fixture
def seen(monkeypatch) -> list:
    """What a quantity of ours is given, each time; it yields two values."""
    calls = []

    def spy(model, batch, settings, seed):
        calls.append((deepcopy(model), batch, settings, seed))
        yield Value(10.0 * seed)
        yield Value(0.5, "H", "2", 3)

    monkeypatch.setitem(QUANTITIES, "spy", spy)
    return calls


def test_a_quantity_is_given_the_network_in_eval_mode(data, kept, seen, tmp_path):
    spec = settings({"spy": TIMES})
    measure(spec, data, kept, tmp_path / "measured.parquet", CPU)
    assert [seed for *_, seed in seen] == [seed for seed in SEEDS for _ in TIMES]
    for (model, _, given, seed), at in zip(seen, TIMES * len(SEEDS), strict=True):
        state = read_snapshot(kept, seed, at)["model"]
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        assert not any(module.training for module in model.modules())
        assert given == Settings(spec.probes, spec.spectrum_probes, spec.lanczos_steps)


def test_a_quantity_is_given_a_fixed_balanced_part_of_the_training_data(data, kept, seen, tmp_path):
    measure(settings({"spy": TIMES}), data, kept, tmp_path / "measured.parquet", CPU)
    inputs, labels, *_ = seen[0][1]
    assert torch.bincount(labels).tolist() == [EXAMPLES // 10] * 10
    for _, batch, *_ in seen:
        assert torch.equal(batch.inputs, inputs)
        assert torch.equal(batch.labels, labels)
    split, _, _ = load(data, CPU)
    every = split.batch(torch.arange(len(split.labels)), "none", torch.Generator()).inputs
    where = [(every - one).flatten(1).abs().amax(1).argmin().item() for one in inputs]
    assert len(set(where)) == EXAMPLES, "each example once"
    assert torch.equal(every[where], inputs)
    assert torch.equal(split.labels[where], labels)


def test_a_quantity_on_training_batches_is_given_those_of_the_recipe(data, kept, seen, tmp_path, monkeypatch):
    """For all networks of a seed the same ones, of the training data; other seeds have others."""
    monkeypatch.setattr("nme.stages.measure.ON_TRAINING_BATCHES", {"spy"})
    spec = settings({"spy": TIMES}, micro_batch=8).model_copy(update={"update_batches": 2})
    measure(spec, data, kept, tmp_path / "measured.parquet", CPU)
    split, _, _ = load(data, CPU)
    every = split.batch(torch.arange(len(split.labels)), "none", torch.Generator()).inputs
    found = {seed: [] for seed in SEEDS}
    for _, given, _, seed in seen:
        given = list(given)
        assert [len(batch.labels) for batch in given] == [16, 16]
        assert [len(part.labels) for part in given[0].parts()] == [8, 8]
        found[seed].append(torch.cat([batch.inputs for batch in given]))
        where = [(every - one).flatten(1).abs().amax(1).argmin().item() for one in found[seed][-1]]
        assert torch.equal(every[where], found[seed][-1])
        assert torch.equal(split.labels[where], torch.cat([batch.labels for batch in given]))
        assert len(set(where)) == len(where)
    for same in found.values():
        assert len(same) == len(TIMES)
        assert all(torch.equal(one, same[0]) for one in same)
    assert not torch.equal(found[0][0], found[1][0])


def test_shares_of_the_update_are_means_over_batches_with_standard_errors(data, kept, tmp_path):
    spec = settings({"update_shares": [0.0, 1.0]})
    assert spec.update_batches == 8
    measure(spec, data, kept, tmp_path / "measured.parquet", CPU)
    table = parquet.read(tmp_path / "measured.parquet")[0].to_pandas()
    places = table.groupby(["seed", "at", "statistic", "operator"])
    assert len(places) == len(SEEDS) * 2 * (3 + 4)
    for (*_, statistic, operator), rows in places:
        values, mean = rows.loc[rows["probe"] >= 0, "value"], rows[rows["probe"] == -1].iloc[0]
        assert rows["probe"].tolist() == [*range(8), -1]
        assert values.nunique() == 8, "each batch has its own"
        assert mean["value"] == pytest.approx(values.mean())
        assert mean["error"] == pytest.approx(values.std(ddof=1) / math.sqrt(8))
        assert values.min() >= 0 or statistic == "cosine"
        assert values.abs().max() <= 1 + 1e-6 or statistic == "share"
        assert operator in ("G", "N", "N_phi") or statistic == "cosine"


def test_more_examples_than_there_are_means_all(data, kept, seen, tmp_path):
    spec = settings({"spy": [0.0]}).model_copy(update={"examples": 10_000})
    measure(spec, data, kept, tmp_path / "measured.parquet", CPU)
    assert len(seen[0][1].labels) == 50


def test_each_quantity_is_measured_when_it_is_due(data, kept, seen, tmp_path):
    asked = {"second_derivatives": [0.0, 1.0], "spy": [0.5, 1.0]}
    measure(settings(asked), data, kept, tmp_path / "measured.parquet", CPU)
    found = {(row["seed"], row["at"], row["quantity"]) for row in rows_of(tmp_path / "measured.parquet")}
    assert found == {(seed, at, name) for name, times in asked.items() for seed in SEEDS for at in times}


def test_a_row_a_value(data, kept, seen, tmp_path):
    spec = settings({"spy": [0.5]})
    measure(spec, data, kept, tmp_path / "measured.parquet", CPU)
    steps = TINY.scale.recipes["digits_mlp"].epochs * (50 // 16)
    place = {"at": 0.5, "step": round(steps / 2), "quantity": "spy"}
    values = [{"operator": "", "layer": "", "probe": -1}, {"operator": "H", "layer": "2", "probe": 3, "value": 0.5}]
    place["statistic"] = ""
    expected = [
        {"value": 10.0 * seed, "seed": seed, "index": -1, **place, **value} for seed in SEEDS for value in values
    ]
    assert rows_of(tmp_path / "measured.parquet") == expected
    assert parquet.read(tmp_path / "measured.parquet")[1]["spec"] == spec.as_json()


@pytest.mark.parametrize("name", QUANTITIES)
def test_every_quantity_gives_finite_values_and_the_same_each_time(data, kept, tmp_path, name):
    for output in ("one", "other"):
        measure(settings({name: [0.0, 1.0]}), data, kept, tmp_path / f"{output}.parquet", CPU)
    one, other = (parquet.read(tmp_path / f"{output}.parquet")[0] for output in ("one", "other"))
    pandas = one.to_pandas()
    assert pandas.equals(other.to_pandas())
    assert {(row.seed, row.at) for row in pandas.itertuples()} == {(s, at) for s in SEEDS for at in (0, 1)}
    assert set(pandas["quantity"]) == {name}
    assert np.isfinite(pandas["value"]).all()
    assert not pandas.duplicated(["seed", "at", "operator", "layer", "probe", "index", "statistic"]).any(), (
        "a row a value"
    )


@pytest.mark.parametrize("name", ["traces", "squared_norms"])
def test_micro_batches_change_nothing_but_rounding(data, kept, tmp_path, name):
    found = []
    for size in (None, 7):
        spec = settings({name: [0.0, 1.0]})
        assert "micro_batch" not in spec.as_json(), "results of before stay as they are"
        measure(spec.model_copy(update={"micro_batch": size}), data, kept, tmp_path / "measured.parquet", CPU)
        found.append(parquet.read(tmp_path / "measured.parquet")[0].to_pandas()["value"].to_numpy())
    assert not np.array_equal(*found), "it was used"
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", QUANTITIES)
def test_no_quantity_changes_the_network(name):
    model, batch = example("cnn-2d", ACTIVATIONS.parse("gelu"), True, torch.float32)
    model.eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert list(QUANTITIES[name](model, measured_on(name, batch), NUMBERS, 0))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert {str(module.activation) for module in model.modules() if isinstance(module, Activate)} == {"gelu"}
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_fractions_of_second_derivatives_per_layer_and_in_all(data, kept, tmp_path):
    measure(settings({"second_derivatives": TIMES}), data, kept, tmp_path / "measured.parquet", CPU)
    rows = rows_of(tmp_path / "measured.parquet")
    assert len(rows) == len(SEEDS) * len(TIMES) * (2 + 1)
    for seed in SEEDS:
        for at in TIMES:
            here = {row["layer"]: row["value"] for row in rows if (row["seed"], row["at"]) == (seed, at)}
            # Flatten, linear, batch norm, activation, linear, batch norm, activation: layers 3 of 4 and 6 of 3 units.
            assert set(here) == {"3", "6", ""}
            assert here[""] == pytest.approx((4 * here["3"] + 3 * here["6"]) / 7)
            assert all(0 < value <= 1 for value in here.values())


def test_a_diverged_member_has_values_from_before_alone(data, seen, tmp_path):
    folder = snapshots_of(data, tmp_path, learning_rate=1e30)
    measure(settings({"spy": [0.0, 1.0]}), data, folder, tmp_path / "measured.parquet", CPU)
    assert {(row["seed"], row["at"]) for row in rows_of(tmp_path / "measured.parquet")} == {(seed, 0) for seed in SEEDS}


def test_a_diverged_job_has_a_file_without_rows(data, kept, tmp_path):
    (tmp_path / "snapshots").mkdir()
    rows, record = parquet.read(kept.with_name("metrics.parquet"))
    place = rows.schema.get_field_index("diverged")
    parquet.write(rows.set_column(place, "diverged", [[True] * len(rows)]), tmp_path / "metrics.parquet", record)
    measure(settings({"traces": [1.0]}), data, tmp_path / "snapshots", tmp_path / "none.parquet", CPU)
    measure(settings({"traces": [1.0]}), data, kept, tmp_path / "some.parquet", CPU)
    none, some = (parquet.read(tmp_path / f"{name}.parquet")[0] for name in ("none", "some"))
    assert none.num_rows == 0
    assert none.schema.remove_metadata() == some.schema.remove_metadata()


def test_missing_networks_are_one_message(data, tmp_path):
    with pytest.raises(NmeError, match=r"snapshots: missing\. Train first\."):
        measure(settings({"traces": [1.0]}), data, tmp_path / "snapshots", tmp_path / "measured.parquet", CPU)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_gone_are_one_message(data, tmp_path):
    """An archive of results has none; without a network from before training, it is not that a member diverged."""
    (tmp_path / "snapshots").mkdir()
    with pytest.raises(NmeError, match=r"the weights of seed 0 are missing \(delete .* to train it again\)"):
        measure(settings({"traces": [0.0, 1.0]}), data, tmp_path / "snapshots", tmp_path / "measured.parquet", CPU)
    assert not (tmp_path / "measured.parquet").exists()


def test_a_network_that_is_gone_is_no_divergence(data, kept, tmp_path):
    folder = tmp_path / "job"
    shutil.copytree(kept.parent, folder)
    (folder / "snapshots" / f"seed={SEEDS[0]}-at=1.pt").unlink()
    with pytest.raises(NmeError, match=rf"the weights of seed {SEEDS[0]} are missing"):
        measure(settings({"traces": [0.0, 1.0]}), data, folder / "snapshots", tmp_path / "measured.parquet", CPU)
