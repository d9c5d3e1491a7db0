"""Models with ``torch.utils.checkpoint``, whose backward pass computes parts of the forward pass again."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from nme.errors import NmeError
from nme.methods import METHODS


class Checkpointed(nn.Module):
    """Batch norm inside and outside of a checkpointed part, which may have dropout and a running scale."""

    def __init__(self, drop=0.0, scaled=False):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.outside, self.inside, self.drop = nn.BatchNorm1d(6), nn.BatchNorm1d(6), nn.Dropout(drop)
        self.again, self.scaled = True, scaled
        if scaled:
            self.register_buffer("scale", torch.ones(()))

    def part(self, x):
        if self.scaled:
            self.scale.mul_(0.9)
        return self.drop(torch.tanh(self.inside(self.second(x))))

    def forward(self, x):
        h = torch.tanh(self.outside(self.first(x)))
        return self.last(checkpoint(self.part, h, use_reentrant=False) if self.again else self.part(h))


def batch(size=8):
    stream = torch.Generator().manual_seed(1)
    return torch.randn(size, 4, generator=stream, dtype=torch.float64), torch.randint(3, (size,), generator=stream)


def pair(**options):
    """The same network with checkpointing and without."""
    torch.manual_seed(0)
    model = Checkpointed(**options).double()
    plain = deepcopy(model)
    plain.again = False
    return model, plain


def step(name, model, pieces):
    torch.manual_seed(2)
    method, (x, y) = METHODS[name]() if METHODS[name].symbol is None else METHODS[name](0.1), batch()
    if pieces:
        method.accumulate(model, nn.CrossEntropyLoss(), [(x[:4], y[:4]), (x[4:], y[4:])])
    else:
        method.backward(model, nn.CrossEntropyLoss(), (x, y))


FIRST_ORDER = [name for name, method in METHODS.items() if method.order == 1]
CASES = [(name, pieces) for name in FIRST_ORDER for pieces in (False, True)]
CASES += [("grad_norm", False), ("grad_norm_gn", False)]


@pytest.mark.parametrize(("name", "pieces"), CASES)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_move_once_per_step(name, pieces, momentum):
    model, plain = pair(drop=0.2)
    for one in (model, plain):
        one.inside.momentum = one.outside.momentum = momentum
        for _ in range(2):
            step(name, one, pieces)
        assert one.inside.momentum == momentum
    assert model.inside.num_batches_tracked == 2
    for found, expected in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(found, expected)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=0)


OTHERS = [(name, pieces) for name in METHODS for pieces in (False, True) if (name, pieces) not in CASES]


@pytest.mark.parametrize(("name", "pieces"), OTHERS)
def test_what_cannot_be_computed_again_is_one_sentence(name, pieces):
    model, _ = pair()
    with pytest.raises(NmeError, match="checkpointing does not work here") as found:
        step(name, model, pieces)
    assert "\n" not in str(found.value)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_other_buffers_that_the_backward_pass_updates_are_refused(name):
    model, _ = pair(scaled=True)
    with pytest.raises(NmeError, match="updates buffer scale of Checkpointed again"):
        step(name, model, False)
