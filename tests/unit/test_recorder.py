"""Curvature along a training, against the dense matrices."""

import math
from copy import deepcopy

import pytest
import torch
from dense_reference import example
from torch import nn

from nme.activations import ACTIVATIONS
from nme.curvature import Curvature, CurvatureRecorder
from nme.errors import NmeError
from nme.models.replacement import replace_activations


def dense(curvature):
    return curvature.products(torch.eye(curvature.size, dtype=curvature.dtype))


@pytest.mark.parametrize("name", ["gelu", "relu", "augmented_relu"])
def test_rows_have_the_dense_traces_and_shares(name):
    model, batch = example("mlp", ACTIVATIONS.parse(name))
    data = [(batch.inputs, batch.labels)]
    recorder = CurvatureRecorder(model, nn.CrossEntropyLoss(), data, every=2, probes=300)
    rows = [recorder.step() for _ in range(3)]
    assert rows[1] is None
    assert [row["step"] for row in recorder.rows] == [0, 2]
    row, curvature = rows[0], Curvature(model, nn.CrossEntropyLoss(), data)
    for symbol, matrix in zip("HGN", dense(curvature), strict=True):
        assert abs(row[f"trace_{symbol}"] - matrix.trace().item()) < 4 * row[f"trace_{symbol}_error"] + 1e-12
    g = curvature.gradient()
    h, gauss_newton, n = (matrix @ g for matrix in dense(curvature))
    assert row["gradient_norm"] == pytest.approx(g.norm().item())
    assert row["share_G"] == pytest.approx((gauss_newton.norm() / h.norm()).item())
    assert row["share_N"] == pytest.approx((n.norm() / h.norm()).item())
    assert (row["share_N_phi"] == 0) == (name == "relu")


def test_share_of_the_activations_is_of_the_twin_without_second_derivative():
    model, batch = example("mlp", ACTIVATIONS.parse("gelu"))
    data, loss = [(batch.inputs, batch.labels)], nn.CrossEntropyLoss()
    twin, _ = example("mlp", ACTIVATIONS.parse("diminished_gelu"))
    twin.load_state_dict(model.state_dict())
    g = Curvature(model, loss, data).gradient()
    n, plain = (dense(Curvature(m, loss, data)).nme @ g for m in (model, twin))
    h = dense(Curvature(model, loss, data)).hessian @ g
    row = CurvatureRecorder(model, loss, data).record(0)
    assert row["share_N_phi"] == pytest.approx(((n - plain).norm() / h.norm()).item(), rel=1e-8)


def test_a_model_of_others_has_no_share_of_its_activations_until_they_are_replaced():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    data = [(torch.randn(5, 3).double(), torch.randn(5, 2).double())]
    recorder = CurvatureRecorder(model, nn.MSELoss(), data, probes=2)
    before = deepcopy(model.state_dict())
    assert math.isnan(recorder.record(0)["share_N_phi"])
    cheap = recorder.gradients
    replace_activations(model, "gelu")
    assert recorder.record(1)["share_N_phi"] > 0
    assert recorder.gradients == pytest.approx(cheap + 3)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_rows_become_a_frame_and_a_file(tmp_path):
    pandas = pytest.importorskip("pandas")
    model, batch = example("mlp", ACTIVATIONS.parse("gelu"))
    recorder = CurvatureRecorder(model, nn.CrossEntropyLoss(), [(batch.inputs, batch.labels)], probes=2)
    recorder.record(3)
    recorder.save(tmp_path / "curvature.parquet")
    pandas.testing.assert_frame_equal(pandas.read_parquet(tmp_path / "curvature.parquet"), recorder.frame())


def test_without_pandas_there_is_one_sentence(monkeypatch):
    model, batch = example("mlp", ACTIVATIONS.parse("gelu"))
    recorder = CurvatureRecorder(model, nn.CrossEntropyLoss(), [(batch.inputs, batch.labels)])
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(NmeError, match="pandas is not installed"):
        recorder.frame()


@pytest.mark.parametrize("wrong", [{"every": 0}, {"probes": 0}])
def test_numbers_below_1_are_refused(wrong):
    with pytest.raises(NmeError, match="is 0"):
        CurvatureRecorder(nn.Linear(1, 1), nn.MSELoss(), [], **wrong)


def test_the_trainings_random_numbers_stay_what_they_were():
    """An iterator of a ``DataLoader`` draws a seed, also without shuffling."""
    data = torch.utils.data.TensorDataset(torch.randn(6, 5), torch.randint(3, (6,)))
    loader = torch.utils.data.DataLoader(data, batch_size=3)
    recorder = CurvatureRecorder(nn.Linear(5, 3), nn.CrossEntropyLoss(), loader, probes=1)
    before = torch.get_rng_state()
    recorder.step()
    assert torch.equal(torch.get_rng_state(), before)
