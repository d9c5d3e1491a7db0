"""Image sets with one folder per class, streamed from disk: ImageNet and Imagenette."""

from dataclasses import dataclass
from pathlib import Path

from nme.datasets.base import DATASETS, Dataset, Places
from nme.datasets.listing import Listing, list_images
from nme.errors import NmeError


@dataclass(frozen=True)
class Found:
    """An image set that was found: a description of the place, and the images of its splits."""

    source: str
    train: Listing
    test: Listing


class ImageFolders(Dataset):
    """Colour images of any size, in ``{train,val}/<class>/*.JPEG``; too many for the memory.

    Attributes:
        folders: possible names of the set in a user's folder.
    """

    streamed = True
    shape = (3,)
    folders: tuple[str, ...]

    def find(self, places: Places) -> Found:
        """Find, list and count the images; no image is opened.

        Raises:
            NmeError: the set was not found, a class or an image is missing, or there is an unexpected file; the message
                names the folder or the file.
        """
        for folder in places.folders:
            for root in (folder / name for name in self.folders):
                if root.is_dir():
                    train, test = (
                        list_images(root / split, self.classes, count)
                        for split, count in zip(("train", "val"), self.counts, strict=True)
                    )
                    whole = (len(train.images), len(test.images)) == self.counts
                    return Found(f"{root}, {'whole' if whole else 'a sample'}", train, test)
        looked = " or ".join(f"{name}/{{train,val}}/<WordNet id>/*.JPEG" for name in self.folders)
        where = ", ".join(map(str, places.folders)) or "no folder (data_dir is not set)"
        raise NmeError(
            f"dataset not found: looked for {looked} in {where}; it cannot be downloaded: put it there, or set data_dir"
            " (or NME_DATA_DIR) to the folder that contains it"
        )


@DATASETS.add
class Imagenet(ImageFolders):
    """ImageNet (ILSVRC 2012), 1,000 classes: 1,281,167 train; the test split is the validation set of 50,000."""

    name = "imagenet"
    counts = (1_281_167, 50_000)
    classes = tuple((Path(__file__).parent / "imagenet_classes.txt").read_text(encoding="ascii").split())
    folders = ("imagenet",)


@DATASETS.add
class Imagenette(ImageFolders):
    """Imagenette, version 2: ten easily distinguished classes of ImageNet; 9,469 train and 3,925 test.

    Tench, English springer, cassette player, chain saw, church, French horn, garbage truck, gas pump, golf ball,
    parachute.
    """

    name = "imagenette"
    counts = (9469, 3925)
    classes = (
        "n01440764", "n02102040", "n02979186", "n03000684", "n03028079",
        "n03394916", "n03417042", "n03425413", "n03445777", "n03888257",
    )  # fmt: skip
    folders = ("imagenette", "imagenet10")
