"""Building blocks that models share."""

from torch import Tensor, nn

from nme.activations import Activation


class Activate(nn.Module):
    """Applies an activation of the registry; never in place, so that double backward works."""

    def __init__(self, activation: Activation):
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x)

    def extra_repr(self) -> str:
        return str(self.activation)
