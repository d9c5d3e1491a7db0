"""Every model on signals and images: shapes, initial parameters, batch norm, and its formula."""

from math import sqrt

import numpy as np
import pytest
import torch
from registry_examples import each_activation_and_place
from torch import nn

from nme.activations import ACTIVATIONS
from nme.derivatives.activate import Activate
from nme.derivatives.modes import differentiated_twice
from nme.errors import NmeError
from nme.models import MODELS

# Small settings of each model; a new model needs one line here.
SETTINGS = {
    "mlp": {"widths": [6, 5]},
    "cnn": {"channels": [4, 3], "kernel": 3, "stride": 2},
    "wide_resnet": {"depth": 10, "widen": 1},
    "resnet50": {},
}
# The inputs that each model takes.
SHAPES = {
    "mlp": [(7,), (1, 40), (3, 8, 6)],
    "cnn": [(1, 40), (2, 9), (1, 8, 8), (3, 8, 6)],
    "wide_resnet": [(1, 40), (1, 8, 8), (3, 8, 6)],
    "resnet50": [(3, 32, 24)],
}
OWN_START = {"resnet50"}  # not PyTorch's
CASES = [(name, shape) for name in MODELS for shape in SHAPES.get(name, [])]
# One layer after the other, with batch norm if asked for; others are tested one by one.
CHAINS = [(name, shape) for name, shape in CASES if "batch_norm" in MODELS[name].model_fields]
# With batch norm and without, where a model has that setting; the smallest first.
PLACES = [(name, shape, False) for name, shape in CASES] + [(name, shape, True) for name, shape in CHAINS]
CLASSES = 4

on_every_model_and_input = pytest.mark.parametrize(("name", "shape"), CASES, ids=str)
in_every_place = each_activation_and_place(("name", "shape", "batch_norm"), PLACES, kinds=("gelu",))
on_every_chain_and_input = pytest.mark.parametrize(("name", "shape"), CHAINS, ids=str)


def build(name, shape, activation="relu", seed=0, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if "batch_norm" not in MODELS[name].model_fields:
            settings.pop("batch_norm", None)  # it always has it
        model = MODELS[name](name=name, **{**SETTINGS[name], **settings})
        return model.build(shape, CLASSES, ACTIVATIONS.parse(activation))


def of_kind(model, *kinds):
    return [m for m in model.modules() if isinstance(m, kinds)]


def test_every_model_is_tried_here():
    assert set(MODELS) == set(SETTINGS) == set(SHAPES)


class TestEveryModel:
    @in_every_place
    def test_maps_a_batch_to_logits(self, activation, name, shape, batch_norm):
        model = build(name, shape, str(activation), batch_norm=batch_norm)
        for batch in (2, 5):
            logits = model(torch.randn(batch, *shape))
            assert logits.shape == (batch, CLASSES)
            assert logits.isfinite().all()

    @in_every_place
    def test_starts_the_same_whatever_the_activation(self, activation, name, shape, batch_norm):
        reference = build(name, shape, "relu", batch_norm=batch_norm).state_dict()
        other = build(name, shape, str(activation), batch_norm=batch_norm).state_dict()
        assert list(other) == list(reference)
        assert all(torch.equal(other[key], reference[key]) for key in reference)

    @on_every_model_and_input
    def test_starts_differently_from_another_seed(self, name, shape):
        first, other = (of_kind(build(name, shape, seed=s), nn.Linear, nn.Conv1d, nn.Conv2d) for s in (0, 1))
        pairs = [
            pair for a, b in zip(first, other, strict=True) for pair in zip(a.parameters(), b.parameters(), strict=True)
        ]
        assert not any(torch.equal(a, b) for a, b in pairs)

    @pytest.mark.parametrize(("name", "shape"), [case for case in CASES if case[0] not in OWN_START], ids=str)
    def test_starts_uniform_within_the_fan_in(self, name, shape):
        for module in of_kind(build(name, shape), nn.Linear, nn.Conv1d, nn.Conv2d):
            bound = 1 / sqrt(module.weight[0].numel())
            for p in module.parameters():
                assert p.abs().max() <= bound
            if module.weight.numel() > 20:
                assert module.weight.std().item() == pytest.approx(bound / sqrt(3), rel=0.3)

    @on_every_chain_and_input
    def test_activation_is_the_one_asked_for_and_follows_every_hidden_layer(self, activation, name, shape):
        model = build(name, shape, str(activation))
        used = of_kind(model, Activate)
        assert len(used) == len(of_kind(model, nn.Linear, nn.Conv1d, nn.Conv2d)) - 1
        assert {str(module.activation) for module in used} == {str(activation)}
        assert str(activation) in repr(model)

    @on_every_chain_and_input
    def test_batch_norm_precedes_each_activation_and_only_where_asked_for(self, name, shape):
        norms = nn.BatchNorm1d, nn.BatchNorm2d
        assert of_kind(build(name, shape), *norms) == []
        model = build(name, shape, batch_norm=True)
        relevant = [type(m) for m in model.modules() if isinstance(m, (*norms, Activate))]
        assert len(relevant) == 2 * len(of_kind(model, Activate))
        assert all(issubclass(kind, norms) for kind in relevant[::2])
        assert set(relevant[1::2]) == {Activate}

    @on_every_model_and_input
    def test_every_parameter_has_a_gradient(self, name, shape):
        model = build(name, shape, "gelu", batch_norm=True)
        loss = nn.functional.cross_entropy(model(torch.randn(5, *shape)), torch.tensor([0, 1, 2, 3, 0]))
        assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(model.parameters())))

    @on_every_model_and_input
    def test_example_is_classified_alone_in_eval_mode(self, name, shape):
        model = build(name, shape, batch_norm=True).double().eval()
        x = torch.randn(4, *shape, dtype=torch.float64)
        one_by_one = torch.cat([model(x[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(model(x), one_by_one, rtol=1e-12, atol=1e-12)


def test_mlp_is_its_formula():
    model = build("mlp", (2, 3), "leaky_relu").double()
    W1, b1, W2, b2, W3, b3 = (p.detach().numpy() for p in model.parameters())
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    h = x.numpy().reshape(5, 6)
    for W, b in ((W1, b1), (W2, b2)):
        h = h @ W.T + b
        h = np.where(h > 0, h, 0.1 * h)
    np.testing.assert_allclose(model(x).detach().numpy(), h @ W3.T + b3, rtol=1e-12, atol=1e-14)


def test_cnn_is_its_formula():
    model = build("cnn", (2, 7), "relu", channels=[3], kernel=3, stride=2).double()
    W, b, V, c = (p.detach().numpy() for p in model.parameters())
    x = torch.randn(2, 7, dtype=torch.float64)
    padded = np.pad(x.numpy(), ((0, 0), (1, 1)))
    positions = range(0, 7, 2)
    hidden = [[max((W[k] * padded[:, i : i + 3]).sum() + b[k], 0) for i in positions] for k in range(3)]
    np.testing.assert_allclose(model(x[None]).detach().numpy()[0], V @ np.ravel(hidden) + c, rtol=1e-12)


@pytest.mark.parametrize(("depth", "widen", "millions"), [(28, 10, 36.5), (16, 2, 0.7)])
def test_wide_resnet_has_the_published_number_of_parameters(depth, widen, millions):
    with torch.device("meta"):
        model = MODELS["wide_resnet"](name="wide_resnet", depth=depth, widen=widen)
        model = model.build((3, 32, 32), 10, ACTIVATIONS.parse("relu"))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


def test_resnet50_is_that_of_torchvision():
    from torchvision.models import resnet50

    ours = build("resnet50", (3, 32, 32), "relu", seed=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        theirs = resnet50(num_classes=CLASSES)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(2, 3, 40, 32)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.eval()(x), theirs.eval()(x)), "and the running statistics"


def test_resnet50_has_the_published_number_of_parameters_and_no_relu_left(activation):
    with torch.device("meta"):
        model = MODELS["resnet50"](name="resnet50").build((3, 224, 224), 1000, activation)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 25.6
    assert of_kind(model, nn.ReLU) == []
    assert {str(module.activation) for module in of_kind(model, Activate)} == {str(activation)}


def test_wide_resnet_has_the_activation_before_every_convolution_of_a_block(activation):
    """Two a block and one before the head; the first convolution and the shortcuts have none of their own."""
    used = of_kind(build("wide_resnet", (3, 8, 8), str(activation), depth=16), Activate)
    assert len(used) == 2 * 6 + 1
    assert {str(module.activation) for module in used} == {str(activation)}


def test_a_block_of_the_wide_resnet_is_its_formula():
    """Eval mode with the initial statistics, 0 and 1; only the first block of a group changes the width."""
    conv = nn.functional.conv2d
    blocks = build("wide_resnet", (3, 8, 8), "relu", depth=16, widen=2).double().eval()[1:3]
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    for block, changes in zip(blocks, (True, False), strict=True):
        before = x.relu() / sqrt(1 + 1e-5)
        middle = conv(before, block.conv1.weight, padding=1).relu() / sqrt(1 + 1e-5)
        kept = conv(before, block.shortcut.weight) if changes else x
        expected = kept + conv(middle, block.conv2.weight, padding=1)
        torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-12)
        x = expected


def test_wide_resnet_on_signals_is_the_one_on_images_of_one_row():
    """In such an image only a kernel's middle row counts. Compare outputs in train mode and running statistics."""
    signals = build("wide_resnet", (2, 21), "gelu", widen=2).double()
    images = build("wide_resnet", (2, 1, 21), "gelu", seed=1, widen=2).double()
    values = signals.state_dict()
    for name, tensor in images.state_dict().items():
        if tensor.dim() == 4:
            tensor[:, :, tensor.shape[2] // 2] = values[name]
        else:
            tensor.copy_(values[name])
    x = torch.randn(5, 2, 21, dtype=torch.float64)
    for _ in range(2):
        torch.testing.assert_close(signals(x), images(x[:, :, None]), rtol=1e-10, atol=1e-12)
        signals, images = signals.eval(), images.eval()


def test_the_stride_of_the_stem_leaves_a_quarter_of_the_positions():
    settings = {"depth": 10, "widen": 1}
    plain, strided = (build("wide_resnet", (3, 32, 32), stem_stride=s, **settings).eval() for s in (1, 2))
    x = torch.randn(2, 3, 32, 32)
    assert plain[0](x)[..., ::2, ::2].allclose(strided[0](x), atol=1e-6), "the same convolution at every other position"
    assert [strided[:n](x).shape[2] for n in (1, 2, 3, 4)] == [16, 16, 8, 4]


@pytest.mark.parametrize("depth", [4, 9, 17])
def test_wide_resnet_has_whole_blocks(depth):
    with pytest.raises(ValueError, match=rf"depth is {depth} \(allowed: 10, 16"):
        build("wide_resnet", (3, 8, 8), depth=depth)


@pytest.mark.parametrize("shape", [(2, 10), (3, 7, 10)], ids=str)
def test_cnn_has_the_stride_of_each_layer(shape):
    model = build("cnn", shape, channels=[2, 3, 2], stride=[3, 1, 2], batch_norm=True)
    assert [set(conv.stride) for conv in of_kind(model, nn.Conv1d, nn.Conv2d)] == [{3}, {1}, {2}]
    assert model(torch.randn(2, *shape)).shape == (2, CLASSES)


def test_one_stride_is_that_of_every_layer():
    one, each = (build("cnn", (2, 10), channels=[2, 3, 2], stride=stride) for stride in (2, [2, 2, 2]))
    x = torch.randn(2, 2, 10)
    assert torch.equal(one(x), each(x))


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 1), (2, 10), (1, 11), (1, 1, 1), (3, 7, 10), (1, 28, 28)], ids=str)
def test_head_of_the_cnn_fits_every_kernel_and_stride(kernel, stride, shape):
    model = build("cnn", shape, channels=[2, 3, 2], kernel=kernel, stride=stride)
    assert model(torch.randn(2, *shape)).shape == (2, CLASSES)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 1), (2, 10), (3, 11), (3, 7, 10)], ids=str)
def test_convolutions_are_those_of_pytorch(kernel, stride, shape):
    conv = build("cnn", shape, channels=[4], kernel=kernel, stride=stride).double()[0]
    reference = nn.functional.conv1d if len(shape) == 2 else nn.functional.conv2d
    x = torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)
    weight, bias = conv.weight, conv.bias
    with differentiated_twice():
        y = conv(x)
    expected = reference(x, weight, bias, stride, kernel // 2)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-13)
    ahead = torch.randn_like(y)
    slopes, expected_slopes = (torch.autograd.grad((ahead * f).sum(), [x, weight, bias]) for f in (y, expected))
    for slope, expected_slope in zip(slopes, expected_slopes, strict=True):
        torch.testing.assert_close(slope, expected_slope, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["cnn", "wide_resnet"])
@pytest.mark.parametrize("shape", [(), (5,), (1, 2, 3, 4)], ids=str)
def test_convolutional_networks_refuse_what_is_neither_signal_nor_image(name, shape):
    with pytest.raises(NmeError, match=rf"'{name}' takes inputs .* not \("):
        build(name, shape)


def test_activate_is_not_in_place():
    x = torch.tensor([-1.0, 2.0])
    Activate(ACTIVATIONS.parse("relu"))(x)
    assert x.tolist() == [-1, 2]
