"""Loss and NME of a small MLP over two weights of its first hidden layer: Figure 1, exact, in float64.

The NME here is the 2×2 block of N that belongs to the two weights (docs/theory.md, §7.10). The whole N also has
blocks of two layers, which are large everywhere for every activation.
"""

from math import sqrt

import torch
from torch import Tensor
from torch.func import hessian

from nme.activations import Activation
from nme.derivatives.activate import activate
from nme.runtime.random_streams import stream

POINTS_AT_ONCE = 4096


class Network:
    """z = f_θ(x) ∈ R for one datapoint (x, y) with loss ℓ = ½(z − y)².

    θ is a flat vector: weights (out, in) then biases, layer by layer, drawn from N(0, 2/in) and N(0, 1/4). The two
    weights that are varied belong to different units, w_a to unit 0 and w_b to unit 1 of the first hidden layer.

    Args:
        widths: inputs, then hidden units of each layer.
        seed: of θ, x and y.
    """

    def __init__(self, widths: list[int], seed: int):
        generator = stream(seed, "landscape")
        sizes = [*widths, 1]
        self.shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
        parts = []
        for out, inputs in self.shapes:
            parts.append(torch.randn(out * inputs, generator=generator, dtype=torch.float64) * sqrt(2 / inputs))
            parts.append(torch.randn(out, generator=generator, dtype=torch.float64) * 0.5)
        self.theta = torch.cat(parts)
        self.x = torch.randn(widths[0], generator=generator, dtype=torch.float64)
        self.y = torch.randn((), generator=generator, dtype=torch.float64)
        self.varied = [0, widths[0] + 1]  # weight 0 of unit 0, weight 1 of unit 1

    def forward(self, theta: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
        """The output z, a scalar, and all hidden pre-activations, in the order of the layers."""
        hidden, seen, at = self.x, list[Tensor](), 0
        for i, (out, inputs) in enumerate(self.shapes):
            weight = theta[at : at + out * inputs].view(out, inputs)
            bias = theta[at + out * inputs : at + out * inputs + out]
            at += out * inputs + out
            before = weight @ hidden + bias
            if i == len(self.shapes) - 1:
                return before[0], torch.cat(seen)
            seen.append(before)
            hidden = activate(before, activation)
        raise AssertionError("a network has an output layer")

    def at(self, pair: Tensor) -> Tensor:
        """θ with the two varied weights set to ``pair``."""
        return self.theta.index_copy(0, torch.tensor(self.varied), pair)

    def nme(self, pair: Tensor, activation: Activation) -> Tensor:
        """The block of N that belongs to the two varied weights w, shape (2, 2), where they are ``pair``.

        N = (z − y) ∇²_w z for one datapoint under ½(z − y)² (docs/theory.md, §1.2). Both weights belong to one
        layer, so every term contains a φ''. Cost: about 8 forward passes.
        """
        z, _ = self.forward(self.at(pair), activation)
        curved: Tensor = hessian(lambda w: self.forward(self.at(w), activation)[0])(pair)
        return (z - self.y) * curved
