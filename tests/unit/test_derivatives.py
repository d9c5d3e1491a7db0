"""Layers with derivatives of their own: against finite differences of each order, forward mode and PyTorch's layers."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.attention import SDPBackend, sdpa_kernel

from nme.derivatives.attention import plain_attention
from nme.derivatives.batch_norm import BatchNorm1d, BatchNorm2d
from nme.derivatives.convolutions import Conv1d, Conv2d
from nme.derivatives.modes import cotangents_only, differentiated_twice
from nme.derivatives.signals import Products

CONVOLUTIONS = {
    "plain": {"kernel_size": 3},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "without bias": {"kernel_size": 1, "bias": False},
    "grouped": {"kernel_size": (3, 2), "groups": 2, "dilation": (1, 2)},
}


def convolution(settings, kind=Conv2d, sides=(6, 5)):
    torch.manual_seed(0)
    layer = kind(4, 2, **settings).double()
    return layer, torch.randn(2, 4, *sides, dtype=torch.float64, requires_grad=True)


def normalisation(kind, shape):
    torch.manual_seed(0)
    layer = kind(shape[1]).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer, (3 * torch.randn(shape, dtype=torch.float64) + 1).requires_grad_()


LAYERS = {
    **{f"Conv2d, {name}": (convolution, settings) for name, settings in CONVOLUTIONS.items()},
    "Conv1d, strided": (convolution, CONVOLUTIONS["strided"], Conv1d, (7,)),
    "Conv1d, in many blocks": (convolution, CONVOLUTIONS["strided"], Conv1d, (12,)),
    "Conv1d, grouped": (convolution, {"kernel_size": 2, "groups": 2, "dilation": 2}, Conv1d, (7,)),
    "BatchNorm1d": (normalisation, BatchNorm1d, (5, 3)),
    "BatchNorm1d, signals": (normalisation, BatchNorm1d, (3, 2, 4)),
    "BatchNorm2d": (normalisation, BatchNorm2d, (3, 2, 2, 3)),
}


@pytest.fixture(params=LAYERS.values(), ids=LAYERS)
def layer(request):
    make, *arguments = request.param
    return make(*arguments)


def as_function(layer):
    names = [name for name, _ in layer.named_parameters()]

    def function(x, *parameters):
        # In reverse mode only: functional_call is no transform of torch.func.
        with differentiated_twice():
            return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    return function, list(layer.parameters())


def test_first_and_second_derivatives_are_those_of_finite_differences(layer):
    function, parameters = as_function(layer[0])
    assert gradcheck(function, (layer[1], *parameters))
    assert gradgradcheck(function, (layer[1], *parameters))


def test_the_slope_of_the_derivative_along_a_direction_is_that_of_finite_differences(layer):
    """As the slope of uᵀGu takes them: Ju by differentiating Jᵀw in w, then back."""
    function, parameters = as_function(layer[0])
    u = [torch.randn_like(p) for p in (layer[1], *parameters)]

    def along(*at):
        y = function(*at)
        w = torch.ones_like(y, requires_grad=True)
        pulled = torch.autograd.grad(y, at, w, create_graph=True)
        with cotangents_only():
            return torch.autograd.grad(pulled, w, u, create_graph=True)[0]

    assert gradcheck(along, (layer[1], *parameters))


def test_derivatives_along_a_direction_are_those_of_forward_mode(layer):
    layer, x = layer
    layer.track_running_stats = False  # torch.func refuses to change them
    function, parameters = as_function(layer)
    u = [torch.randn_like(p) for p in (x, *parameters)]
    y = function(x, *parameters)
    w = torch.ones_like(y, requires_grad=True)
    pulled = torch.autograd.grad(y, (x, *parameters), w, create_graph=True)
    with cotangents_only():
        (found,) = torch.autograd.grad(pulled, w, u)
    _, expected = torch.func.jvp(function, (x.detach(), *(p.detach() for p in parameters)), tuple(u))
    assert torch.allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("kind", [BatchNorm1d, BatchNorm2d])
def test_batch_norm_leaves_the_running_statistics_that_pytorch_leaves(kind):
    shape = (4, 3) if kind is BatchNorm1d else (4, 3, 2, 2)
    ours, x = normalisation(kind, shape)
    theirs = {BatchNorm1d: nn.BatchNorm1d, BatchNorm2d: nn.BatchNorm2d}[kind](3).double()
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(x), theirs(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("kind", [BatchNorm1d, nn.BatchNorm1d])
def test_a_single_value_per_channel_is_refused_as_by_pytorch(kind):
    with pytest.raises(ValueError, match=r"more than 1 value per channel .* torch.Size\(\[1, 3\]\)"):
        kind(3)(torch.ones(1, 3))


@pytest.mark.parametrize("shift", [0, 20])
def test_batch_norm_in_bfloat16_loses_its_rounding_and_no_more(shift):
    """Second derivatives too, where the mean is much larger than the deviation."""
    wide, _ = normalisation(BatchNorm2d, (4, 3, 5, 5))
    torch.manual_seed(1)
    x, u = torch.randn(4, 3, 5, 5).bfloat16() + shift, torch.randn(4, 3, 5, 5).bfloat16()

    def products(dtype):
        layer, at = wide.float() if dtype == torch.bfloat16 else wide.double(), x.to(dtype).requires_grad_()
        y = layer(at)
        w = u.flip(0).to(dtype).requires_grad_()
        (pulled,) = torch.autograd.grad(y, at, w, create_graph=True)
        return [p.double() for p in torch.autograd.grad(pulled, (w, at), u.to(dtype))]

    for found, expected in zip(products(torch.bfloat16), products(torch.float64), strict=True):
        assert (found - expected).norm() < 0.02 * expected.norm()


def test_attention_takes_the_math_kernel_alone_and_then_those_it_took_before():
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        before = allowed_kernels()
        with plain_attention():
            inside = allowed_kernels()
        assert allowed_kernels() == before == {"flash", "mem_efficient"}
    assert inside == {"math"}


def allowed_kernels():
    names = torch.nn.attention._backend_names
    return {name for name in names if getattr(torch._C, f"_get_{name}_sdp_enabled")()}


def test_batch_norm_refuses_derivatives_that_it_does_not_have():
    layer, x = normalisation(BatchNorm1d, (5, 2))
    derivative = layer(x).square().sum()
    for _ in range(2):
        (derivative,) = torch.autograd.grad(derivative, x, torch.ones_like(derivative), create_graph=True)
    with pytest.raises(NotImplementedError, match="order"):
        torch.autograd.grad(derivative.square().sum(), x)


def test_a_convolution_in_bfloat16_is_that_of_autocast():
    layer, x = Conv2d(2, 3, 3), torch.randn(2, 2, 5, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16), differentiated_twice():
        assert torch.equal(layer(x), nn.Conv2d.forward(layer.eval(), x))


# Of one block, of a block per output and per inputs of a stride; with ends that the padding and the stride cut.
SIGNALS = [
    (length, kernel, stride, padding)
    for length in (1, 2, 3, 7, 12)
    for kernel in (1, 2, 3, 5)
    for stride in (1, 2, 3)
    for padding in (0, 1, 2)
    if padding < kernel <= length + 2 * padding
]


@pytest.mark.parametrize(("length", "kernel", "stride", "padding"), SIGNALS)
def test_products_of_signals_are_those_of_pytorch(length, kernel, stride, padding):
    torch.manual_seed(0)
    layer = nn.Conv1d(3, 2, kernel, stride, padding).double()
    x = torch.randn(4, 3, length, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    to_y = torch.randn_like(y)
    expected = torch.autograd.grad(y, (x, layer.weight, layer.bias), to_y)
    products = Products(stride, padding)
    x, weight, bias = x.detach(), layer.weight.detach(), layer.bias.detach()
    torch.testing.assert_close(products.convolve(x, weight, bias), y.detach())
    for mask in ((True, True, True), (False, True, False), (True, False, True), (False, False, True)):
        found = products.pull(to_y, x, weight, mask)
        for here, pytorch, asked in zip(found, expected, mask, strict=True):
            assert (here is None) is not asked
            if asked:
                torch.testing.assert_close(here, pytorch)
