"""Activations of given models replaced by registered ones."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from nme.errors import NmeError
from nme.models.replacement import replace_activations


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.GELU())


def test_relu_modules_become_the_activation():
    model, x = network().eval(), torch.randn(5, 3)
    found = replace_activations(model, "beta_gelu-beta=3", x)
    assert found == ["1", "2.1"]

    def smooth(h):
        return functional.gelu(3 * h) / 3

    expected = functional.gelu(smooth(model[2][0](smooth(model[0](x)))))
    torch.testing.assert_close(model(x), expected)
    assert not model[1].training


def test_augmented_relu_has_the_value_of_relu_and_another_second_derivative():
    x = torch.randn(5, 3).double()
    model = network().double()
    before = model(x)
    replace_activations(model, "augmented_relu")
    torch.testing.assert_close(model(x), before)
    h = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(model[1](h), h, create_graph=True)
    assert torch.autograd.grad(slope, h)[0] > 0.5


def test_other_kinds_can_be_chosen():
    assert replace_activations(network(), "relu", kinds=(nn.GELU, nn.ReLU)) == ["1", "3", "2.1"]


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.act = nn.Linear(3, 3), nn.ReLU()

    def forward(self, x):
        return self.act(self.inner(x)).relu()


def test_functions_are_named_and_nothing_is_replaced():
    model = nn.Sequential(nn.Linear(3, 3), Functional(), nn.BatchNorm1d(3)).train()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(NmeError, match=r"functions compute activations in 1 \(relu\)"):
        replace_activations(model, "gelu", torch.randn(2, 3))
    assert type(model[1].act) is nn.ReLU
    assert model.training
    assert model[1].training
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_transformers_function_is_found():
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    with pytest.raises(NmeError, match=r"the model \(relu\)"):
        replace_activations(layer, "gelu", torch.randn(2, 3, 8))


def test_a_torchvision_resnet_is_replaced_everywhere():
    models = pytest.importorskip("torchvision.models")
    model = models.resnet18()
    assert len(replace_activations(model, "gelu", torch.randn(1, 3, 32, 32))) == 9  # a block's ReLU is used twice
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())


@pytest.mark.parametrize(
    ("model", "activation", "message"),
    [(nn.Linear(2, 2), "gelu", "no module of type ReLU"), (network(), "glue", "unknown activation 'glue'")],
)
def test_what_cannot_be_replaced_is_one_sentence(model, activation, message):
    with pytest.raises(NmeError, match=message):
        replace_activations(model, activation)


def test_a_module_in_several_places_is_replaced_in_each():
    shared = nn.ReLU()
    model = nn.Sequential(nn.Linear(5, 8), shared, nn.Linear(8, 8), shared, nn.Linear(8, 3))
    assert replace_activations(model, "gelu") == ["1", "3"]
    assert not any(isinstance(module, nn.ReLU) for module in model.modules())


def test_an_encoder_layer_evaluates_with_the_replaced_activation():
    """Its fused path, in eval mode without gradients, has an activation of its own."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.ReLU(), batch_first=True, dropout=0)
    model, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(2, 3, 8)
    assert len(replace_activations(model, "gelu", inputs=x)) == 2
    expected = model(x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)


def test_inputs_by_keyword_and_other_functions_are_looked_at():
    class Clamped(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, *, x):
            return self.act(x).clamp_min(0.1)

    with pytest.raises(NmeError, match="clamp_min"):
        replace_activations(Clamped(), "gelu", inputs={"x": torch.randn(2, 3)})
