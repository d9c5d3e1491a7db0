"""Images a second, decoded and augmented, next to torchvision's ``ImageFolder`` and ``DataLoader`` with the same work.

    python benchmarks/loaders.py FOLDER

FOLDER has ``imagenet10/train/<class>/*.JPEG`` and ``cifar10/train/<class>/*.png``. Both tools give standardised float
batches on the CPU, with two worker processes where images are decoded; they run by turns, and medians count. The table
goes into docs/benchmarks.md.
"""

# Before torch, as the `nme` command does: PyTorch then asks for huge pages. Both tools get them here.
import os

os.environ["THP_MEM_ALLOC_ENABLE"] = "1"

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torchvision import transforms
from torchvision.datasets import ImageFolder

from nme.data.in_memory import Data
from nme.data.load import load
from nme.datasets.base import Places
from nme.stages.prepare import prepare

REPEATS = 5
WORKERS = 2
BATCH = 64
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
CPU = torch.device("cpu")


def ours(data: Data, augment: str) -> Iterator[int]:
    """An epoch of ours, as a training reads it: the sizes of its batches."""
    order = data.order(torch.Generator().manual_seed(0))
    stream = torch.Generator().manual_seed(0)
    for examples in data.fetch(order.split(BATCH)):
        yield len(data.augmented(examples, augment, stream))


def theirs(folder: Path, crop: Callable) -> Iterator[int]:
    """An epoch of torchvision's."""
    standardise = transforms.Normalize([0.5] * 3, [0.25] * 3)
    work = transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), standardise])
    loader = torch.utils.data.DataLoader(ImageFolder(folder, work), BATCH, shuffle=True, num_workers=WORKERS)
    for inputs, _ in loader:
        yield len(inputs)


def speeds(tools: dict[str, Callable[[], Iterator[int]]]) -> dict[str, float]:
    """Images a second of each, from its first batch asked for to its last."""
    found: dict[str, list[float]] = {name: [] for name in tools}
    for _ in range(REPEATS + 1):
        for name, epoch in tools.items():
            began = time.perf_counter()
            images = sum(epoch())
            found[name].append(images / (time.perf_counter() - began))
    return {name: statistics.median(values[1:]) for name, values in found.items()}  # the first warms up


def prepared(spec: dict, folder: Path, output: Path) -> Data:
    """The training split, as the prepare stage leaves it."""
    whole = {"source": spec["dataset"], "train": None, "label_noise": 0.0, "version": 1}
    prepare({**whole, **spec}, Places((folder,)), output, threads=1)
    return load(output / "manifest.json", CPU, 224, WORKERS)[0]


def main(folder: Path) -> None:
    """Measure, print and write the table."""
    torch.set_num_threads(1)
    rows = ["| images | nme | torchvision | ratio |", "| --- | --- | --- | --- |"]
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary)
        imagenet = prepared(
            {"dataset": "imagenette", "test": 10, "short_side": 224, "quality": 95}, folder, output / "i"
        )
        cifar = prepared({"dataset": "cifar10", "test": None}, folder, output / "c")
        cases = {
            "ImageNet, 224 px: JPEG decoded, random resized crop to 224, flip": {
                "nme": lambda: ours(imagenet, "resized_crop_flip"),
                "torchvision": lambda: theirs(folder / "imagenet10/train", transforms.RandomResizedCrop(224)),
            },
            "CIFAR-10, 32 px: in memory against PNG, padded crop, flip": {
                "nme": lambda: ours(cifar, "crop_flip"),
                "torchvision": lambda: theirs(folder / "cifar10/train", transforms.RandomCrop(32, 4)),
            },
        }
        for name, tools in cases.items():
            found = speeds(tools)
            ratio = found["nme"] / found["torchvision"]
            rows.append(f"| {name} | {found['nme']:,.0f}/s | {found['torchvision']:,.0f}/s | {ratio:.1f} |")
    table = "\n".join(rows)
    print(table)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- loaders -->\n")
    after = rest.partition("<!-- end -->")[2]
    note = f"PyTorch {torch.__version__}, {WORKERS} worker processes, medians of {REPEATS} epochs by turns.\n"
    PAGE.write_text(f"{before}<!-- loaders -->\n{note}\n{table}\n<!-- end -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
