"""Models by name. To add one: write a module with a settings class and list the class in ``MODELS``.

Settings are checked without torch; ``build`` creates the ``torch.nn.Module``.
"""

from nme.models.cnn import Cnn
from nme.models.mlp import Mlp
from nme.models.resnet50 import Resnet50
from nme.models.wide_resnet import WideResnet

MODELS = {"cnn": Cnn, "mlp": Mlp, "resnet50": Resnet50, "wide_resnet": WideResnet}
