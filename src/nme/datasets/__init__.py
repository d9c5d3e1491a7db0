"""Datasets by name. To add one: a class with ``read``, decorated with ``@DATASETS.add``, in a module listed here."""

from nme.datasets import generated, image_folders, torchvision_sets  # noqa: F401  (they register themselves)
from nme.datasets.base import DATASETS

__all__ = ["DATASETS"]
