"""ResNet-50 for large images (He et al. 2016), from torchvision, with any activation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from nme.errors import NmeError
from nme.models.settings import ModelSettings

if TYPE_CHECKING:
    from torch import nn

    from nme.activations import Activation


class Resnet50(ModelSettings):
    """torchvision's ResNet-50 with each ReLU replaced; 25.6 million parameters for 1,000 classes.

    Initialised as in torchvision: convolutions normal with variance 2/fan_out (He), batch norm 1 and 0, the head by
    PyTorch's default.
    """

    name: Literal["resnet50"] = Field(description="ResNet-50, for colour images of 32×32 pixels and more.")

    def build(self, shape: tuple[int, ...], classes: int, activation: Activation) -> nn.Module:
        """See ``ModelSettings.build``.

        Raises:
            NmeError: the input is not a colour image (3, height, width).
        """
        from torch import nn
        from torchvision.models import resnet50

        from nme.derivatives.activate import Activate
        from nme.derivatives.batch_norm import BatchNorm2d
        from nme.derivatives.convolutions import Conv2d

        if len(shape) != 3 or shape[0] != 3:
            raise NmeError(f"model 'resnet50' takes colour images (3, height, width), not {shape}")
        model = resnet50(num_classes=classes, norm_layer=BatchNorm2d)
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.ReLU):
                model.set_submodule(name, Activate(activation))
            elif isinstance(module, nn.Conv2d):
                module.__class__ = Conv2d  # this subclass adds no state
        return model
