"""Wide residual networks for small images (Zagoruyko & Komodakis 2016) and for signals, with any activation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from nme.errors import NmeError
from nme.models.settings import Count, ModelSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nme.activations import Activation


class WideResnet(ModelSettings):
    """WRN-depth-widen: pre-activation blocks in three groups of 16, 32 and 64 times ``widen`` channels.

    No dropout. With ``stem_stride`` 2 the first convolution halves the resolution, as in networks for large images, and
    the network costs a quarter on images, half on signals. Convolutions, batch norms and pooling are 1-d or 2-d
    depending on the data. WRN-28-10 has 36.5 million parameters for 32×32 colour images and 10 classes.
    """

    name: Literal["wide_resnet"] = Field(description="A wide residual network, 1-d for signals and 2-d for images.")
    depth: Count = Field(description="Number of layers, 6n + 4 for n blocks per group.")
    widen: Count = Field(description="Factor of the number of channels.")
    stem_stride: Count = Field(default=1, description="Stride of the first convolution.")

    @model_validator(mode="after")
    def _whole_blocks(self) -> WideResnet:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"depth is {self.depth} (allowed: 10, 16, 22, 28, …: 6n + 4)")
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
            raise NmeError(
                f"model 'wide_resnet' takes inputs (channels, length) or (channels, height, width), not {shape}"
            )
        signals = len(shape) == 2
        conv, norm = (Conv1d, BatchNorm1d) if signals else (Conv2d, BatchNorm2d)
        pool = nn.AdaptiveAvgPool1d if signals else nn.AdaptiveAvgPool2d

        class Block(nn.Module):
            """x + conv(φ(bn(conv(φ(bn(x)))))); if the shape changes, a size-1 convolution of φ(bn(x)) replaces x."""

            def __init__(self, inputs: int, outputs: int, stride: int):
                super().__init__()
                self.norm1, self.act1 = norm(inputs), Activate(activation)
                self.conv1 = conv(inputs, outputs, 3, stride, 1, bias=False)
                self.norm2, self.act2 = norm(outputs), Activate(activation)
                self.conv2 = conv(outputs, outputs, 3, 1, 1, bias=False)
                changes = inputs != outputs or stride != 1
                self.shortcut = conv(inputs, outputs, 1, stride, bias=False) if changes else None

            def forward(self, x: Tensor) -> Tensor:
                before = self.act1(self.norm1(x))
                kept = x if self.shortcut is None else self.shortcut(before)
                return kept + self.conv2(self.act2(self.norm2(self.conv1(before))))

        channels = 16
        layers: list[nn.Module] = [conv(shape[0], channels, 3, self.stem_stride, 1, bias=False)]
        for group in range(3):
            width = 16 * 2**group * self.widen
            for block in range((self.depth - 4) // 6):
                layers.append(Block(channels, width, 2 if group and not block else 1))
                channels = width
        head = [norm(channels), Activate(activation), pool(1), nn.Flatten()]
        return nn.Sequential(*layers, *head, nn.Linear(channels, classes))
