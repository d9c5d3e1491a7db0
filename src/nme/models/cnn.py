"""Plain convolutional network, 1-d or 2-d by the data."""

from typing import Annotated, Literal

from pydantic import Field

from nme.errors import NmeError
from nme.models.settings import Count, ModelSettings


class Cnn(ModelSettings):
    """Strided convolutions with padding kernel // 2, each followed by (batch norm and) the activation; linear head."""

    name: Literal["cnn"] = Field(description="A convolutional network, 1-d for signals and 2-d for images.")
    channels: Annotated[list[Count], Field(min_length=1)] = Field(description="Channels of each layer.")
    kernel: Count = Field(description="Kernel size of every layer, in points or pixels.")
    stride: Count = Field(description="Stride of every layer.")
    batch_norm: bool = Field(False, description="Batch normalisation before each activation.")

    def build(self, shape, classes, activation):
        """See ``ModelSettings.build``.

        Raises:
            NmeError: the input is neither (channels, length) nor (channels, height, width).
        """
        from torch import nn

        from nme.models.batch_norm import BatchNorm1d, BatchNorm2d
        from nme.models.convolutions import Conv1d, Conv2d
        from nme.models.layers import Activate

        if len(shape) not in (2, 3):
            raise NmeError(f"model 'cnn' takes inputs (channels, length) or (channels, height, width), not {shape}")
        conv, norm = (Conv1d, BatchNorm1d) if len(shape) == 2 else (Conv2d, BatchNorm2d)
        layers = []
        channels, *sides = shape
        positions = 1
        for width in self.channels:
            layers.append(conv(channels, width, self.kernel, self.stride, self.kernel // 2))
            if self.batch_norm:
                layers.append(norm(width))
            layers.append(Activate(activation))
            sides = [(side + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1 for side in sides]
            channels = width
        for side in sides:
            positions *= side
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * positions, classes))
