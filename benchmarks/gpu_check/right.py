"""Right: every method's direction and the products of H, G and N on the device, against float64 on the CPU.

A float32 result passes if its error is at most ten times that of float32 on the CPU, or 10⁻⁴: kernels of a GPU sum in a
different order. bf16 and TF32 pass by their cosine with float64. It has no bar for ResNet-50 at its initialisation in
train mode, which makes rounding errors a thousand times larger, on the CPU too.
"""

import os
from contextlib import ExitStack, contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from gpu_check import groups
from gpu_check.networks import batch_of, direction, model_of, network
from gpu_check.session import Session, products_in
from nme.curvature import Curvature
from nme.methods import METHODS

WORST, LEAST = 1e-4, {"tf32": 0.999, "bf16": 0.99}
ILL_CONDITIONED = "ResNet-50, 64 px, train mode"
MODES = {
    "MLP": ("train",),
    "CNN, 1-d": ("train",),
    "CNN, 2-d": ("train",),
    "WideResNet-16-4": ("train", "eval"),
    "ResNet-50, 64 px": ("train", "eval"),
}
DOUBLE, SINGLE = torch.float64, torch.float32


def check(session: Session) -> None:
    """Check all networks, then LSTM and attention, then processes."""
    threads = torch.get_num_threads()
    if session.cuda:  # float64 on the CPU takes most of the time
        torch.set_num_threads(os.cpu_count() or 1)
    _networks(session)
    torch.set_num_threads(threads)
    for name, (model, inputs) in sequence_models().items():
        labels = torch.arange(len(inputs)) % 3
        with session.guard("right", name):
            _curvature(session, name, "curvature", model, inputs, labels, "eval")
    with session.guard("right", "processes"):
        groups.check(session)


def _networks(session: Session) -> None:
    for name, modes in MODES.items():
        for mode in modes:
            if session.has_time("right", f"{name}, {mode} mode", 1 if session.quick else 15):
                with session.guard("right", f"{name}, {mode} mode"):
                    _methods(session, name, mode)
                    _products(session, name, mode)


def relative_error(found: Tensor, exact: Tensor) -> float:
    """‖found − exact‖/‖exact‖ in float64, on the CPU."""
    found, exact = found.double().cpu(), exact.double().cpu()
    return float((found - exact).norm() / exact.norm().clamp(min=1e-300))


def cosine(found: Tensor, exact: Tensor) -> float:
    """Cosine of two vectors, in float64, on the CPU."""
    return float(torch.cosine_similarity(found.double().cpu(), exact.double().cpu(), dim=0))


def methods_of(session: Session, name: str) -> list[str]:
    """All methods; in a rehearsal, one of them for ResNet-50."""
    return ["grad_norm"] if session.quick and name.startswith("ResNet") else list(METHODS)


def _methods(session: Session, name: str, mode: str) -> None:
    net = network(name, session.quick)
    model, (inputs, labels) = model_of(net).train(), batch_of(net)
    with torch.no_grad():
        model(inputs)  # running statistics that are not the initial ones, for eval mode
    model.train(mode == "train")
    there, here = deepcopy(model).to(session.device), (inputs.to(session.device), labels.to(session.device))

    def found(method: str, dtype: torch.dtype) -> Tensor:
        with products_in("fp32"):
            return direction(method, deepcopy(there), here[0].to(dtype), here[1])

    for method in methods_of(session, name):
        exact = direction(method, deepcopy(model).double(), inputs.double(), labels)
        single = relative_error(direction(method, deepcopy(model), inputs, labels), exact)
        where = "right", f"{name}, {mode} mode", method
        error = relative_error(found(method, SINGLE), exact)
        bar = max(WORST, 10 * single)
        session.add(*where, "fp32: error", error, bar, error <= bar, on_cpu=single)
        _short(session, where, "bf16", cosine(found(method, torch.bfloat16), exact))
        if session.cuda:
            with products_in("tf32"):
                _short(session, where, "tf32", cosine(direction(method, deepcopy(there), *here), exact))


def _short(session: Session, where: tuple[str, str, str], precision: str, value: float) -> None:
    """Add the cosine of a direction in a short precision; where rounding errors grow too much, it has no bar."""
    bar = None if where[1] == ILL_CONDITIONED else LEAST[precision]
    session.add(*where, f"{precision}: cosine", value, bar, None if bar is None else value >= bar)


def _products(session: Session, name: str, mode: str) -> None:
    net = network(name, session.quick)
    _curvature(session, name, f"{mode} mode", model_of(net), *batch_of(net), mode)


def _curvature(
    session: Session, name: str, case: str, model: nn.Module, inputs: Tensor, labels: Tensor, mode: str
) -> None:
    """Compare Hv, Gv and Nv of one vector."""
    vector = torch.randn(sum(p.numel() for p in model.parameters()), generator=torch.Generator().manual_seed(1))

    def products(device: torch.device, dtype: torch.dtype):
        own = deepcopy(model).to(device)
        with twice_differentiable(own):
            curvature = Curvature(
                own, nn.CrossEntropyLoss(), (inputs.to(device), labels.to(device)), dtype=dtype, batch_norm=mode
            )
            return curvature.products(vector)

    cpu = torch.device("cpu")
    found, exact, single = products(session.device, SINGLE), products(cpu, DOUBLE), products(cpu, SINGLE)
    for symbol, one, wanted, ours in zip("HGN", found, exact, single, strict=True):
        error, bar = relative_error(one, wanted), max(WORST, 10 * relative_error(ours, wanted))
        session.add("right", f"{name}, {case}", f"{symbol} v", "fp32: error", error, bar, error <= bar)


@contextmanager
def twice_differentiable(model: nn.Module):
    """Inside, attention and recurrent layers use kernels with second derivatives: fused ones and cuDNN's have none."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


class Recurrent(nn.Module):
    """An LSTM with a linear head on its last output."""

    def __init__(self, size: int):
        super().__init__()
        self.lstm, self.head = nn.LSTM(size, size, batch_first=True), nn.Linear(size, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 3) of x (B, T, size)."""
        return self.head(self.lstm(x)[0][:, -1])


class Attentive(nn.Module):
    """A layer of a transformer with a linear head on the mean over positions."""

    def __init__(self, size: int):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(size, 2, 2 * size, batch_first=True, activation="gelu")
        self.head = nn.Linear(size, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 3) of x (B, T, size)."""
        return self.head(self.layer(x).mean(1))


def sequence_models() -> dict[str, tuple[nn.Module, Tensor]]:
    """Models of sequences, with inputs (B, T, features)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {"LSTM": (Recurrent(16), torch.randn(8, 6, 16)), "attention": (Attentive(16), torch.randn(8, 6, 16))}
