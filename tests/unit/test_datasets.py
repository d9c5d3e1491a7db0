"""Datasets: found, verified, read; and what is said when one is not there or damaged."""

import gzip
import hashlib
import os
import pickle
import shutil
import subprocess
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, FashionMNIST

from nme.datasets import DATASETS
from nme.datasets.base import Dataset, LabelledArrays, Places, Raw
from nme.datasets.generated import Digits, Mnist1d
from nme.datasets.torchvision_sets import Cifar10, FashionMnist
from nme.errors import NmeError

REAL = Path(__file__).parents[3] / "shared" / "data"
real_data = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real image data are not at {REAL}")

RANDOM = np.random.default_rng(0)
FASHION_FILES = [name for name, _ in FashionMNIST.resources]


@pytest.fixture(autouse=True)
def small_sets(request, monkeypatch):
    """The sets that tests write are small; the real ones keep their official counts."""
    if "real" not in request.node.name:
        monkeypatch.setattr(FashionMnist, "counts", (30, 20))
        monkeypatch.setattr(Cifar10, "counts", (50, 20))


def message(dataset: Dataset, *folders: Path, downloads: Path | None = None) -> str:
    with pytest.raises(NmeError) as caught:
        dataset.read(Places(folders, downloads))
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def snapshot(folder: Path) -> dict[str, tuple]:
    """Names, times and contents below a folder."""
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"")
        for p in folder.rglob("*")
    }


def assert_read(raw: Raw, dataset: Dataset, train: LabelledArrays, test: LabelledArrays) -> None:
    dataset.check(raw)
    for found, expected in ((raw.train, train), (raw.test, test)):
        np.testing.assert_array_equal(found.inputs, expected.inputs)
        np.testing.assert_array_equal(found.labels, expected.labels)
        assert (found.inputs.dtype, found.labels.dtype) == (np.uint8, np.int64)


def images(n: int, *shape: int) -> LabelledArrays:
    """Random images, all ten classes."""
    labels = RANDOM.permutation(np.arange(n) % 10)
    return LabelledArrays(RANDOM.integers(0, 256, (n, *shape), dtype=np.uint8), labels.astype(np.int64))


# --------------------------------------------- made or shipped by packages


@pytest.mark.parametrize(
    ("dataset", "kind", "train", "test"),
    [(Mnist1d(), np.float32, 4000, 5000), (Digits(), np.uint8, 1000, 797)],
    ids=["mnist1d", "digits"],
)
def test_shapes_and_counts(dataset, kind, train, test):
    raw = dataset.read(Places())
    dataset.check(raw)
    for split, n in ((raw.train, train), (raw.test, test)):
        assert split.inputs.shape == (n, *dataset.shape)
        assert split.inputs.dtype == kind
        assert split.labels.shape == (n,)
        assert split.labels.dtype == np.int64
        counts = np.bincount(split.labels)
        assert len(counts) == len(dataset.classes) == 10
        assert counts.min() > 0.07 * n
        assert np.isfinite(split.inputs).all()


def test_mnist1d_tests_on_the_packages_examples_and_those_of_the_next_seed(monkeypatch):
    def made(settings) -> dict[str, np.ndarray]:
        random = np.random.default_rng(settings.seed)
        splits = (("", 4000), ("_test", 1000))
        inputs = {f"x{name}": random.normal(size=(n, 40)) for name, n in splits}
        return inputs | {f"y{name}": random.integers(10, size=n) for name, n in splits}

    monkeypatch.setattr("mnist1d.data.make_dataset", made)
    raw, settings = Mnist1d().read(Places()), SimpleNamespace(seed=42)
    first = made(settings)
    settings.seed = 43
    more = made(settings)
    for found, parts in ((raw.train, [("", first)]), (raw.test, [("_test", first), ("", more)])):
        expected = np.concatenate([data[f"x{name}"] for name, data in parts])
        np.testing.assert_array_equal(found.inputs[:, 0], expected.astype(np.float32))
        np.testing.assert_array_equal(found.labels, np.concatenate([data[f"y{name}"] for name, data in parts]))


def test_digits_are_all_used_once():
    """The split is of what scikit-learn ships: no image is lost, none is in both parts."""
    from sklearn.datasets import load_digits

    raw = Digits().read(Places())
    shipped = load_digits()
    together = np.concatenate([raw.train.inputs, raw.test.inputs]).reshape(1797, 64)
    labels = np.concatenate([raw.train.labels, raw.test.labels])
    found = sorted((label, *pixels) for label, pixels in zip(labels, together.tolist(), strict=True))
    assert found == sorted((y, *x) for y, x in zip(shipped.target, shipped.data.astype(int).tolist(), strict=True))


# ---------------------------------------------------------- Fashion-MNIST


def idx(array: np.ndarray) -> bytes:
    """The IDX format: magic with type (8: uint8) and rank, sizes, values; big-endian."""
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


FASHION = images(30, 1, 28, 28), images(20, 1, 28, 28)


def write_fashion(folder: Path, packed: bool = True) -> Path:
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    (train, test), names = FASHION, FASHION_FILES
    parts = dict(zip(names, (train.inputs[:, 0], train.labels, test.inputs[:, 0], test.labels), strict=True))
    for name, array in parts.items():
        if packed:
            (raw / name).write_bytes(gzip.compress(idx(array), mtime=0))
        else:
            (raw / name.removesuffix(".gz")).write_bytes(idx(array))
    return raw


@pytest.fixture
def fashion(tmp_path, monkeypatch) -> Path:
    """A folder with a small Fashion-MNIST whose checksums pass as the official ones."""
    folder = tmp_path / "data"
    raw = write_fashion(folder)
    monkeypatch.setattr(FashionMNIST, "resources", [(name, md5(raw / name)) for name in FASHION_FILES])
    return folder


def test_the_fake_is_in_the_order_of_the_real_files():
    expected = ["train-images", "train-labels", "t10k-images", "t10k-labels"]
    assert [name.split("-idx")[0] for name in FASHION_FILES] == expected


def test_fashion_packed(fashion):
    raw = FashionMnist().read(Places((fashion,)))
    assert_read(raw, FashionMnist(), *FASHION)
    assert str(fashion) in raw.source


def test_fashion_unpacked(tmp_path):
    write_fashion(tmp_path, packed=False)
    assert_read(FashionMnist().read(Places((tmp_path,))), FashionMnist(), *FASHION)


def test_the_first_folder_that_has_it_is_taken(fashion, tmp_path):
    (tmp_path / "empty").mkdir()
    places = Places((tmp_path / "empty", fashion), downloads=tmp_path / "downloads")
    assert_read(FashionMnist().read(places), FashionMnist(), *FASHION)
    assert not (tmp_path / "downloads").exists()


@pytest.mark.parametrize("name", FASHION_FILES)
def test_a_truncated_archive_is_named_with_both_sums(fashion, name):
    path = fashion / "FashionMNIST" / "raw" / name
    expected = md5(path)
    path.write_bytes(path.read_bytes()[:-10])
    text = message(FashionMnist(), fashion)
    assert str(path) in text
    assert f"md5 {md5(path)}, expected {expected}" in text


@pytest.mark.parametrize("name", FASHION_FILES[1:])
def test_a_missing_file_of_four_is_named(fashion, name):
    path = fashion / "FashionMNIST" / "raw" / name
    path.unlink()
    text = message(FashionMnist(), fashion)
    assert f"{path}: missing" in text
    assert "four files" in text


def test_without_the_first_file_nothing_is_found(fashion):
    (fashion / "FashionMNIST" / "raw" / FASHION_FILES[0]).unlink()
    text = message(FashionMnist(), fashion)
    assert FASHION_FILES[0] in text
    assert str(fashion) in text


@pytest.mark.parametrize("name", FASHION_FILES)
@pytest.mark.parametrize("keep", [0, 3, 16, 20])
def test_a_truncated_unpacked_file_is_one_message(tmp_path, name, keep):
    raw = write_fashion(tmp_path, packed=False)
    path = raw / name.removesuffix(".gz")
    path.write_bytes(path.read_bytes()[:keep])
    assert str(tmp_path) in message(FashionMnist(), tmp_path)


# --------------------------------------------------------------- CIFAR-10


CIFAR = images(50, 3, 32, 32), images(20, 3, 32, 32)
CIFAR_BATCHES = [name for name, _ in CIFAR10.train_list]


def write_cifar_batches(folder: Path) -> Path:
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    train, test = CIFAR
    parts = dict(zip(CIFAR_BATCHES, np.split(np.arange(50), 5), strict=True))
    contents = {name: (train.inputs[i], train.labels[i]) for name, i in parts.items()}
    contents["test_batch"] = test.inputs, test.labels
    for name, (pixels, labels) in contents.items():
        entry = {"data": pixels.reshape(len(pixels), -1), "labels": labels.tolist()}
        (batches / name).write_bytes(pickle.dumps(entry, protocol=2))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": list(Cifar10.classes)}, protocol=2))
    return batches


@pytest.fixture
def cifar(tmp_path, monkeypatch) -> Path:
    """A folder with the official archive in small, whose checksums pass as the official ones."""
    batches = write_cifar_batches(tmp_path / "unpacked")
    folder = tmp_path / "data"
    folder.mkdir()
    with tarfile.open(folder / CIFAR10.filename, "w:gz") as archive:
        archive.add(batches, batches.name)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(folder / CIFAR10.filename))
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5(batches / name)] for name in CIFAR_BATCHES])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5(batches / "test_batch")]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(batches / "batches.meta")})
    return folder


def test_cifar_archive(cifar):
    raw = Cifar10().read(Places((cifar,)))
    assert_read(raw, Cifar10(), *CIFAR)
    assert str(cifar) in raw.source


def test_cifar_unpacked(cifar, tmp_path):
    assert_read(Cifar10().read(Places((tmp_path / "unpacked",))), Cifar10(), *CIFAR)


def test_a_truncated_cifar_archive_is_named_with_both_sums(cifar):
    path = cifar / CIFAR10.filename
    path.write_bytes(path.read_bytes()[:1000])
    text = message(Cifar10(), cifar)
    assert f"{path}: truncated, or not official (md5 {md5(path)}, expected {CIFAR10.tgz_md5})" in text


def test_a_damaged_cifar_batch_is_one_message(cifar, tmp_path):
    folder = tmp_path / "unpacked"
    (folder / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"not it")
    assert str(folder) in message(Cifar10(), folder)


def write_cifar_images(folder: Path) -> Path:
    for part, split in zip(("train", "test"), CIFAR, strict=True):
        for i, (pixels, label) in enumerate(zip(split.inputs, split.labels, strict=True)):
            path = folder / "cifar10" / part / Cifar10.classes[label] / f"{i:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.transpose(1, 2, 0)).save(path)
    return folder


@pytest.fixture
def png(tmp_path) -> Path:
    """A folder with CIFAR-10 as images by class."""
    return write_cifar_images(tmp_path / "data")


def by_class(split: LabelledArrays) -> LabelledArrays:
    order = np.argsort(split.labels, kind="stable")
    return LabelledArrays(split.inputs[order], split.labels[order])


def test_cifar_images(png):
    assert_read(Cifar10().read(Places((png,))), Cifar10(), *map(by_class, CIFAR))


def test_a_corrupt_image_is_named(png):
    path = sorted((png / "cifar10/train/frog").iterdir())[2]
    path.write_bytes(path.read_bytes()[:200])
    assert f"{path}: cannot be decoded" in message(Cifar10(), png)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_what_is_no_image_is_named(png, content):
    path = sorted((png / "cifar10/test/ship").iterdir())[0]
    path.write_bytes(content)
    assert f"{path}: cannot be decoded" in message(Cifar10(), png)


def test_an_image_of_the_wrong_size_is_named(png):
    path = png / "cifar10/train/cat/big.png"
    Image.new("RGB", (48, 31)).save(path)
    text = message(Cifar10(), png)
    assert f"{path}: is 48×31 pixels, expected 32×32" in text


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_missing_class_folder_is_named(png, part):
    shutil.rmtree(png / "cifar10" / part / "frog")
    text = message(Cifar10(), png)
    assert str(png / "cifar10" / part) in text
    assert "dog, horse" in text, "what is there"
    assert "dog, frog, horse" in text, "what is expected"


def test_a_class_without_images_is_found(png):
    for path in (png / "cifar10/test/deer").iterdir():
        path.unlink()
    raw = Cifar10().read(Places((png,)))
    with pytest.raises(NmeError, match="test has 9 classes, expected 10"):
        Cifar10().check(raw)


def test_missing_test_images_are_named(png):
    shutil.rmtree(png / "cifar10/test")
    text = message(Cifar10(), png)
    assert f"{png / 'cifar10/test'}: " in text
    assert "airplane" in text


# ------------------------------------------------------ not there at all


@pytest.mark.parametrize(
    ("dataset", "looked_for"),
    [
        (
            FashionMnist(),
            ["FashionMNIST/raw/train-images-idx3-ubyte.gz", "FashionMNIST/raw/train-images-idx3-ubyte"],
        ),
        (Cifar10(), ["cifar-10-python.tar.gz", "cifar-10-batches-py", "cifar10/train"]),
    ],
    ids=["fashion_mnist", "cifar10"],
)
def test_what_is_not_there_is_said_with_where_and_how(tmp_path, dataset, looked_for):
    one, other = tmp_path / "one", tmp_path / "other"
    text = message(dataset, one, other)
    for part in [*looked_for, str(one), str(other), "data_dir", "NME_DATA_DIR"]:
        assert part in text
    assert "data_dir is not set" in message(dataset)


def fake_download(monkeypatch, action) -> list[Path]:
    """``action(folder)`` instead of a download of Fashion-MNIST; the folders it was called with."""
    called = []

    def download(self):
        called.append(Path(self.root))
        action(Path(self.root))

    monkeypatch.setattr(FashionMNIST, "download", download)
    return called


def test_a_download_goes_to_its_folder_and_is_verified_and_kept(tmp_path, monkeypatch, fashion):
    empty, downloads = tmp_path / "empty", tmp_path / "downloads"
    empty.mkdir()

    def download(folder):  # leaves, as torchvision does, the packed and the unpacked files
        write_fashion(folder)
        for path in (folder / "FashionMNIST" / "raw").iterdir():
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))

    called = fake_download(monkeypatch, download)
    places = Places((empty,), downloads)
    assert_read(FashionMnist().read(places), FashionMnist(), *FASHION)
    assert called == [downloads]
    assert list(empty.iterdir()) == [], "the user's folder is not written to"
    FashionMnist().read(places)
    assert called == [downloads], "once is enough"


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("Error downloading x:")])
def test_a_failed_download_is_one_message(tmp_path, monkeypatch, error):
    def fail(folder):
        raise error

    fake_download(monkeypatch, fail)
    text = message(FashionMnist(), tmp_path / "mine", downloads=tmp_path / "downloads")
    for part in ["FashionMNIST/raw/", str(tmp_path / "mine"), str(error), "NME_DATA_DIR"]:
        assert part in text


def test_an_interrupted_download_is_continued(tmp_path, monkeypatch, fashion):
    """The folder of downloads is ours: a job that was stopped there has to succeed when it runs again."""
    downloads = tmp_path / "downloads"
    raw = write_fashion(downloads)
    path = raw / FASHION_FILES[0]
    path.write_bytes(path.read_bytes()[:100])

    def download(folder):
        shutil.rmtree(folder)
        shutil.copytree(fashion, folder)
        for path in (folder / "FashionMNIST" / "raw").iterdir():
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))

    fake_download(monkeypatch, download)
    assert_read(FashionMnist().read(Places((), downloads)), FashionMnist(), *FASHION)


# ------------------------------------------------------ a read-only folder


@pytest.fixture
def read_only():
    """Makes a folder read-only: by permissions, and for root, whom they do not hold, by a mount."""
    mounted = set()

    def protect(folder: Path) -> None:
        if os.geteuid() == 0:
            for options in (["--bind"], ["-o", "remount,ro,bind"]):
                command = ["mount", *options, folder, folder]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    pytest.skip(f"root can write everywhere, and mounting is not permitted: {done.stderr.strip()}")
                mounted.add(folder)
        else:
            for path in [folder, *folder.rglob("*")]:
                path.chmod(0o555 if path.is_dir() else 0o444)
        with pytest.raises(OSError, match=r"denied|Read-only"):
            (folder / "new").touch()

    yield protect
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def test_fashion_in_a_read_only_folder(fashion, read_only):
    before = snapshot(fashion)
    read_only(fashion)
    assert_read(FashionMnist().read(Places((fashion,))), FashionMnist(), *FASHION)
    assert snapshot(fashion) == before


def test_cifar_in_a_read_only_folder(cifar, read_only):
    before = snapshot(cifar)
    read_only(cifar)
    assert_read(Cifar10().read(Places((cifar,))), Cifar10(), *CIFAR)
    assert snapshot(cifar) == before


# ------------------------------------------------------------------- check


GOOD = images(30, 1, 8, 8)


@pytest.mark.parametrize(
    ("split", "parts"),
    [
        (LabelledArrays(GOOD.inputs[:, 0], GOOD.labels), ["(30, 8, 8)", "(30, 1, 8, 8)"]),
        (LabelledArrays(GOOD.inputs[:-1], GOOD.labels), ["(29, 1, 8, 8)", "(30, 1, 8, 8)"]),
        (LabelledArrays(GOOD.inputs, np.minimum(GOOD.labels, 8)), ["9 classes", "expected 10"]),
        (LabelledArrays(GOOD.inputs, GOOD.labels + 1), ["classes", "expected 10"]),
    ],
)
@pytest.mark.parametrize("part", ["train", "test"])
def test_check_says_what_is_not_as_it_should_be(part, split, parts, monkeypatch):
    monkeypatch.setattr(Digits, "counts", (30, 30))
    raw = Raw(**{"train": GOOD, "test": GOOD, part: split}, source="here")
    with pytest.raises(NmeError) as caught:
        Digits().check(raw)
    for text in ["here", part, *parts]:
        assert text in str(caught.value)


def test_check_passes_what_is_as_it_should_be(monkeypatch):
    monkeypatch.setattr(Digits, "counts", (30, 30))
    Digits().check(Raw(GOOD, GOOD, "here"))


def test_an_incomplete_set_is_named():
    with pytest.raises(NmeError, match="here: train has 30 examples, expected 1000"):
        Digits().check(Raw(GOOD, GOOD, "here"))


def test_a_missing_image_is_found(png):
    next((png / "cifar10/train/frog").iterdir()).unlink()
    with pytest.raises(NmeError, match=r"train classes differ in size .*frog 4"):
        Cifar10().check(Cifar10().read(Places((png,))))


def test_what_is_no_png_is_named(png):
    (png / "cifar10/test/frog/Thumbs.db").write_bytes(b"")
    assert f"{png / 'cifar10/test/frog/Thumbs.db'}: not a *.png" in message(Cifar10(), png)


def test_names():
    for name, dataset in DATASETS.items():
        assert dataset.name == name
        assert len(set(dataset.classes)) == len(dataset.classes)
        assert all(size > 0 for size in dataset.shape)


# --------------------------------------------------------------- real data


@pytest.mark.slow
@real_data
def test_real_fashion():
    raw = FashionMnist().read(Places((REAL,)))
    FashionMnist().check(raw)
    for split, per_class in ((raw.train, 6000), (raw.test, 1000)):
        assert np.bincount(split.labels).tolist() == [per_class] * 10
    # Known of the official files: the first image is an ankle boot, and the mean and deviation of all pixels.
    assert FashionMnist.classes[raw.train.labels[0]] == "Ankle boot"
    assert raw.train.inputs.mean() / 255 == pytest.approx(0.2860, abs=5e-5)
    assert raw.train.inputs.std() / 255 == pytest.approx(0.3530, abs=5e-5)


@pytest.mark.slow
@real_data
def test_real_fashion_truncated(tmp_path):
    shutil.copytree(REAL / "FashionMNIST", tmp_path / "FashionMNIST")
    path = tmp_path / "FashionMNIST" / "raw" / FASHION_FILES[0]
    path.parent.chmod(0o755)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:1_000_000])
    text = message(FashionMnist(), tmp_path)
    assert f"{path}: truncated, or not official (md5 {md5(path)}, expected 8d4fb7e6c68d591d4c3dfef9ec88bf0d" in text


@pytest.mark.slow
@real_data
def test_real_cifar_images(tmp_path):
    with tarfile.open(REAL / "cifar10-imagefolder.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    raw = Cifar10().read(Places((tmp_path,)))
    Cifar10().check(raw)
    for split, per_class in ((raw.train, 2000), (raw.test, 1000)):
        assert np.bincount(split.labels).tolist() == [per_class] * 10
        assert len(np.unique(split.inputs.reshape(len(split.labels), -1), axis=0)) == len(split.labels)
    # The images by class, read a second way.
    first = np.asarray(Image.open(tmp_path / "cifar10/train/airplane/0000.png"))
    np.testing.assert_array_equal(raw.train.inputs[0].transpose(1, 2, 0), first)
    last = np.asarray(Image.open(tmp_path / "cifar10/test/truck/0999.png"))
    np.testing.assert_array_equal(raw.test.inputs[-1].transpose(1, 2, 0), last)
    path = tmp_path / "cifar10/train/bird/0007.png"
    path.write_bytes(path.read_bytes()[:500])
    assert f"{path}: cannot be decoded" in message(Cifar10(), tmp_path)
