"""Image sets that torchvision reads or downloads: Fashion-MNIST and CIFAR-10."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from nme.datasets.base import DATASETS, Dataset, LabelledArrays, Places, Raw
from nme.errors import NmeError


def _first_found(places: Places, layouts: dict[str, Callable[[Path], Raw]], fetch: Callable[[Path], object]) -> Raw:
    """Read the first layout that exists in the folders; download the dataset if there is none.

    Args:
        places: folders to search, and the folder for downloads.
        layouts: reader of each layout, by a path that identifies the layout, relative to a folder.
        fetch: function that downloads into a folder, in one of the layouts.
    """

    def read_from(folder: Path) -> Raw | None:
        found = next((reader for path, reader in layouts.items() if (folder / path).exists()), None)
        return found(folder) if found else None

    for folder in places.folders:
        if raw := read_from(folder):
            return raw
    folders = ", ".join(map(str, places.folders)) or "no folder (data_dir is not set)"
    looked = f"looked for {' or '.join(layouts)} in {folders}"
    advice = "put it there, or set data_dir (or NME_DATA_DIR) to the folder that contains it"
    if places.downloads is None:
        raise NmeError(f"dataset not found: {looked}; {advice}")
    try:
        if raw := read_from(places.downloads):
            return raw
    except NmeError:
        pass  # an interrupted download: torchvision completes it
    places.downloads.mkdir(parents=True, exist_ok=True)
    try:
        fetch(places.downloads)
    except (OSError, RuntimeError) as error:
        raise NmeError(f"dataset not found: {looked}; downloading it failed ({error}); {advice}") from None
    if raw := read_from(places.downloads):
        return raw
    raise NmeError(f"dataset not found: {looked}; the download left none of them; {advice}")


def _verify_md5(path: Path, expected: str) -> None:
    from torchvision.datasets.utils import calculate_md5

    found = calculate_md5(str(path))
    if found != expected:
        raise NmeError(f"{path}: truncated, or not official (md5 {found}, expected {expected}). Download it again.")


def _torchvision_splits(dataset: Callable[..., Any], root: Path) -> tuple[LabelledArrays, LabelledArrays]:
    """The training and the test split of one of torchvision's in-memory image sets, channels first."""

    def split(train: bool) -> LabelledArrays:
        try:
            read = dataset(str(root), train=train, download=False)
        except Exception as error:  # torchvision's readers raise anything on a damaged file
            raise NmeError(f"{root}: {'train' if train else 'test'} data cannot be read: {error!r}") from None
        images = np.asarray(read.data)
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        return LabelledArrays(np.ascontiguousarray(images), np.asarray(read.targets, dtype=np.int64))

    return split(True), split(False)


@DATASETS.add
class FashionMnist(Dataset):
    """Fashion-MNIST, 28×28 grey: 60,000 train and 10,000 test, from the official IDX files."""

    name = "fashion_mnist"
    counts = (60_000, 10_000)
    shape = (1, 28, 28)
    classes = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip

    def read(self, places: Places) -> Raw:
        """Read FashionMNIST/raw, packed (the md5 is checked) or unpacked."""
        from torchvision.datasets import FashionMNIST

        return _first_found(
            places,
            {
                "FashionMNIST/raw/train-images-idx3-ubyte.gz": self._packed,
                "FashionMNIST/raw/train-images-idx3-ubyte": self._unpacked,
            },
            lambda folder: FashionMNIST(str(folder), download=True),
        )

    def _packed(self, folder: Path) -> Raw:
        from torchvision.datasets import FashionMNIST
        from torchvision.datasets.utils import extract_archive

        raw = folder / "FashionMNIST" / "raw"
        for name, md5 in FashionMNIST.resources:
            if not (raw / name).exists():
                raise NmeError(f"{raw / name}: missing (Fashion-MNIST is four files)")
            _verify_md5(raw / name, md5)
        with TemporaryDirectory() as temporary:  # the user's folder may be read-only
            unpacked = Path(temporary) / "FashionMNIST" / "raw"
            unpacked.mkdir(parents=True)
            for name, _ in FashionMNIST.resources:
                extract_archive(str(raw / name), str(unpacked))
            splits = _torchvision_splits(FashionMNIST, Path(temporary))
        return Raw(*splits, source=f"{raw}, official IDX files")

    def _unpacked(self, folder: Path) -> Raw:
        from torchvision.datasets import FashionMNIST

        return Raw(
            *_torchvision_splits(FashionMNIST, folder),
            source=f"{folder}/FashionMNIST/raw, unpacked IDX files",
        )


@DATASETS.add
class Cifar10(Dataset):
    """CIFAR-10, 32×32 RGB: 50,000 train and 10,000 test; the official archive, or a folder of images by class."""

    name = "cifar10"
    counts = (50_000, 10_000)
    shape = (3, 32, 32)
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def read(self, places: Places) -> Raw:
        """Read cifar-10-python.tar.gz (the md5 is checked), its unpacked folder, or cifar10/{train,test}/<class>."""
        from torchvision.datasets import CIFAR10

        return _first_found(
            places,
            {
                "cifar-10-python.tar.gz": self._archive,
                "cifar-10-batches-py": self._batches,
                "cifar10/train": self._images,
            },
            lambda folder: CIFAR10(str(folder), download=True),
        )

    def _archive(self, folder: Path) -> Raw:
        from torchvision.datasets import CIFAR10
        from torchvision.datasets.utils import extract_archive

        archive = folder / CIFAR10.filename
        _verify_md5(archive, CIFAR10.tgz_md5)
        with TemporaryDirectory() as temporary:
            extract_archive(str(archive), temporary)
            return Raw(*_torchvision_splits(CIFAR10, Path(temporary)), source=f"{archive}, official archive")

    def _batches(self, folder: Path) -> Raw:
        from torchvision.datasets import CIFAR10

        return Raw(*_torchvision_splits(CIFAR10, folder), source=f"{folder}/cifar-10-batches-py")

    def _images(self, folder: Path) -> Raw:
        root = folder / "cifar10"
        return Raw(
            self._image_split(root / "train"),
            self._image_split(root / "test"),
            source=f"{root}, image folder",
            partial=True,
        )

    def _image_split(self, root: Path) -> LabelledArrays:
        from PIL import Image

        found = tuple(sorted(p.name for p in root.glob("*") if p.is_dir()))
        if found != self.classes:
            raise NmeError(
                f"{root}: class folders are {', '.join(found) or 'none'}; expected {', '.join(self.classes)}"
            )
        images, labels = [], []
        for label, name in enumerate(self.classes):
            for path in sorted((root / name).iterdir()):
                if path.suffix != ".png":
                    raise NmeError(f"{path}: not a *.png. Remove it: class folders hold only images.")
                try:
                    with Image.open(path) as image:
                        pixels = np.asarray(image.convert("RGB"))
                except (OSError, SyntaxError, ValueError) as error:  # PIL raises SyntaxError for a broken PNG
                    raise NmeError(f"{path}: cannot be decoded: {error}") from None
                if pixels.shape != (32, 32, 3):
                    raise NmeError(f"{path}: is {pixels.shape[1]}×{pixels.shape[0]} pixels, expected 32×32")
                images.append(pixels.transpose(2, 0, 1))
                labels.append(label)
        if not images:
            raise NmeError(f"{root}: has no *.png in its class folders")
        return LabelledArrays(np.stack(images), np.asarray(labels, dtype=np.int64))
