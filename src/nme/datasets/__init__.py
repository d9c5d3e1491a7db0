"""Datasets by name. To add one: write a class with ``read``, decorate it with ``@DATASETS.add``, import it here."""

from nme.datasets import generated, image_folders, torchvision_sets  # noqa: F401  (they register themselves)
from nme.datasets.base import DATASETS

__all__ = ["DATASETS"]
