"""The pieces of ``benchmarks/steps.py``: what is counted, and the limits; no times."""

import math

import pytest
import steps
import torch
from operations import counted, forward_operations, limits
from torch import nn

from nme.methods import METHODS

# Operations of the MLP 784-256-256-10 for one example.
FIRST, FORWARD = 2 * 784 * 256, 2 * (784 * 256 + 256 * 256 + 256 * 10)


@pytest.fixture
def member():
    return steps.member_of("MLP")


def test_forward_operations_are_those_of_the_layers(member):
    inputs = member.job.train.inputs[:7]
    assert forward_operations(member.model, inputs) == (7 * FORWARD, 7 * FIRST)
    assert counted(lambda: member.model(inputs)) == 7 * FORWARD


def test_strided_convolutions_count_their_outputs():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(4 * 4 * 4, 5))
    first, head = 2 * 4 * 16 * 2 * 9, 2 * 64 * 5
    assert forward_operations(model, torch.randn(1, 2, 8, 8)) == (first + head, first)


def test_in_a_network_of_convolutions_limits_are_the_known_ones():
    found = {name: operations / 3 for name, operations in limits(1, 0).items()}
    known = {"sgd": 1, "weight_noise": 1, "sam": 2, "grad_norm_gn": 7 / 3, "grad_norm": 3, "gauss_newton_trace": 11 / 3}
    assert known.items() <= {name: pytest.approx(value) for name, value in found.items()}.items()


def test_every_method_has_a_limit():
    assert set(METHODS) == set(limits(1, 0))


SMALL, LARGE = ("MLP", "CNN, 1-d", "CNN, 2-d"), "WideResNet-16-2"


@pytest.mark.parametrize(
    ("network", "name"),
    [
        *((network, name) for network in SMALL for name in METHODS if name != "hessian_trace"),
        *((LARGE, name) for name in ("sgd", "grad_norm", "grad_norm_gn")),  # one product of each kind
    ],
)
def test_methods_run_at_their_limit(network, name):
    """F and F₁ alone predict what is multiplied. (The Hessian trace takes g for itself, beside its Taylor pass.)"""
    member = steps.member_of(network)
    inputs = member.job.train.inputs[: member.job.recipe.batch_size]
    expected = limits(*forward_operations(member.model, inputs))[name]
    found = counted(steps.step_of(member, name))
    if network == "CNN, 1-d":  # with zeros, in blocks of the band (nme.derivatives.signals)
        assert expected < found < 1.15 * expected
    else:
        assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("case", steps.cases("MLP", ["eager"]), ids=str)
def test_every_case_runs_and_costs_no_less_than_its_limit(case):
    """A product that the counter misses would come out below."""
    member = steps.member_of("MLP")
    size = member.job.recipe.batch_size
    step = steps.steps_of("MLP", [case])[case]
    assert counted(step) >= 0.995 * limits(size * FORWARD, size * FIRST)[case.method]


@pytest.mark.parametrize("name", ["sgd", "sam", "grad_norm"])
def test_straightforward_loops_make_the_same_update(name, monkeypatch):
    monkeypatch.setattr(steps, "STRENGTH", 0.1)
    monkeypatch.setattr(steps, "LEARNING_RATE", 10.0)
    monkeypatch.setattr(torch, "randperm", lambda n, generator=None: torch.arange(n))  # both take the first batch
    ours, theirs = steps.member_of("MLP"), steps.member_of("MLP")
    steps.step_of(ours, name)()
    steps.straightforward_steps(theirs)[name]()
    pairs = zip(ours.model.parameters(), theirs.model.parameters(), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)


def test_times_are_one_a_turn():
    ran = []
    cases = {steps.SGD: lambda: ran.append("a"), steps.Case("sam", "nme", "eager"): lambda: ran.append("b")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "TURN_SECONDS", 0.0)
        found = steps.timed(cases, repeats=3)
    assert "".join(ran[4:]) == "ababab"
    assert all(len(times) == 3 and all(map(math.isfinite, times)) for times in found.values())


def test_a_product_without_formula_is_noticed():
    a, b = torch.randn(3, 4), torch.randn(4)
    with pytest.raises(NotImplementedError, match="mv"):
        counted(lambda: torch.mv(a, b))
