"""Wide residual networks for small images (Zagoruyko & Komodakis 2016), with any activation."""

from typing import Literal

from pydantic import Field, model_validator

from nme.errors import NmeError
from nme.models.settings import Count, ModelSettings


class WideResnet(ModelSettings):
    """WRN-depth-widen: pre-activation blocks in three groups of 16, 32 and 64 times ``widen`` channels.

    Without dropout. WRN-28-10 has 36.5 million parameters on 32×32 colour images and 10 classes.
    """

    name: Literal["wide_resnet"] = Field(description="A wide residual network, for images of 8×8 pixels and more.")
    depth: Count = Field(description="Layers; 6n + 4 for n blocks a group.")
    widen: Count = Field(description="Factor of the channels.")

    @model_validator(mode="after")
    def _whole_blocks(self) -> "WideResnet":
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"depth is {self.depth} (allowed: 10, 16, 22, 28, …: 6n + 4)")
        return self

    def build(self, shape, classes, activation):
        """See ``ModelSettings.build``.

        Raises:
            NmeError: the input is no image (channels, height, width).
        """
        from torch import nn

        from nme.models.batch_norm import BatchNorm2d
        from nme.models.convolutions import Conv2d
        from nme.models.layers import Activate

        class Block(nn.Module):
            """x + conv(φ(bn(conv(φ(bn(x)))))); where the shape changes, a 1×1 convolution of φ(bn(x)) instead of x."""

            def __init__(self, inputs: int, outputs: int, stride: int):
                super().__init__()
                self.norm1, self.act1 = BatchNorm2d(inputs), Activate(activation)
                self.conv1 = Conv2d(inputs, outputs, 3, stride, 1, bias=False)
                self.norm2, self.act2 = BatchNorm2d(outputs), Activate(activation)
                self.conv2 = Conv2d(outputs, outputs, 3, 1, 1, bias=False)
                changes = inputs != outputs or stride != 1
                self.shortcut = Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

            def forward(self, x):
                before = self.act1(self.norm1(x))
                kept = x if self.shortcut is None else self.shortcut(before)
                return kept + self.conv2(self.act2(self.norm2(self.conv1(before))))

        if len(shape) != 3:
            raise NmeError(f"model 'wide_resnet' takes images (channels, height, width), not {shape}")
        channels = 16
        layers = [Conv2d(shape[0], channels, 3, 1, 1, bias=False)]
        for group in range(3):
            width = 16 * 2**group * self.widen
            for block in range((self.depth - 4) // 6):
                layers.append(Block(channels, width, 2 if group and not block else 1))
                channels = width
        head = [BatchNorm2d(channels), Activate(activation), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, *head, nn.Linear(channels, classes))
