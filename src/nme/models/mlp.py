"""Multi-layer perceptron."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from nme.models.settings import Count, ModelSettings

if TYPE_CHECKING:
    from torch import nn

    from nme.activations import Activation


class Mlp(ModelSettings):
    """Linear layers of the given widths, each followed by (batch norm and) the activation; then a linear head."""

    name: Literal["mlp"] = Field(description="A multi-layer perceptron on the flattened input.")
    widths: Annotated[list[Count], Field(min_length=1)] = Field(description="Units of each hidden layer.")
    batch_norm: bool = Field(False, description="Batch normalisation before each activation.")

    def build(self, shape: tuple[int, ...], classes: int, activation: Activation) -> nn.Module:
        """See ``ModelSettings.build``."""
        from torch import nn

        from nme.derivatives.activate import Activate
        from nme.derivatives.batch_norm import BatchNorm1d

        layers: list[nn.Module] = [nn.Flatten()]
        size = prod(shape)
        for width in self.widths:
            layers.append(nn.Linear(size, width))
            if self.batch_norm:
                layers.append(BatchNorm1d(width))
            layers.append(Activate(activation))
            size = width
        return nn.Sequential(*layers, nn.Linear(size, classes))
