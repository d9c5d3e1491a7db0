"""Plain convolutional network, 1-d or 2-d depending on the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, WrapValidator, model_validator

from nme.errors import NmeError
from nme.models.settings import Count, ModelSettings

if TYPE_CHECKING:
    from torch import nn

    from nme.activations import Activation


def _count_or_counts(value: Any, check: Any) -> Any:
    """Raise a single message; pydantic would give one per alternative."""
    try:
        return check(value)
    except ValueError:
        raise ValueError(f"is {value!r} (allowed: an integer from 1, or a list with one for each layer)") from None


class Cnn(ModelSettings):
    """Strided convolutions with padding kernel // 2, each followed by (batch norm and) the activation; linear head."""

    name: Literal["cnn"] = Field(description="A convolutional network, 1-d for signals and 2-d for images.")
    channels: Annotated[list[Count], Field(min_length=1)] = Field(description="Channels of each layer.")
    kernel: Count = Field(description="Kernel size of every layer, in points or pixels.")
    stride: Annotated[Count | list[Count], WrapValidator(_count_or_counts)] = Field(
        description="Stride of every layer, or a list with one number for each layer."
    )
    batch_norm: bool = Field(False, description="Batch normalisation before each activation.")

    @model_validator(mode="after")
    def _a_stride_for_each_layer(self) -> Cnn:
        layers = len(self.channels)
        if isinstance(self.stride, list) and len(self.stride) != layers:
            raise ValueError(
                f"stride is {self.stride} (allowed: one number, or a list of {layers}, as many as 'channels' has)"
            )
        return self

    def build(self, shape: tuple[int, ...], classes: int, activation: Activation) -> nn.Module:
        """See ``ModelSettings.build``.

        Raises:
            NmeError: the input is neither (channels, length) nor (channels, height, width).
        """
        from torch import nn

        from nme.derivatives.activate import Activate
        from nme.derivatives.batch_norm import BatchNorm1d, BatchNorm2d
        from nme.derivatives.convolutions import Conv1d, Conv2d

        if len(shape) not in (2, 3):
            raise NmeError(f"model 'cnn' takes inputs (channels, length) or (channels, height, width), not {shape}")
        conv, norm = (Conv1d, BatchNorm1d) if len(shape) == 2 else (Conv2d, BatchNorm2d)
        layers: list[nn.Module] = []
        channels, *sides = shape
        positions = 1
        strides = self.stride if isinstance(self.stride, list) else [self.stride] * len(self.channels)
        for width, stride in zip(self.channels, strides, strict=True):
            layers.append(conv(channels, width, self.kernel, stride, self.kernel // 2))
            if self.batch_norm:
                layers.append(norm(width))
            layers.append(Activate(activation))
            sides = [(side + 2 * (self.kernel // 2) - self.kernel) // stride + 1 for side in sides]
            channels = width
        for side in sides:
            positions *= side
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * positions, classes))
