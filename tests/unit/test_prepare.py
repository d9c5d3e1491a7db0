"""The prepare stage: the same bytes each time, the same numbers as the raw data, balanced subsets."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from specs import spec_in_memory

from nme.data.load import load
from nme.data.prepared import class_balanced, with_label_noise
from nme.datasets import DATASETS
from nme.datasets.base import Dataset, LabelledArrays, Places, Raw
from nme.errors import NmeError
from nme.stages.prepare import prepare

REAL = Path(__file__).parents[3] / "shared" / "data"
CPU = torch.device("cpu")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def message(function, *arguments) -> str:
    with pytest.raises(NmeError) as caught:
        function(*arguments)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


@pytest.fixture(scope="module", params=["mnist1d", "digits"])
def prepared(request, tmp_path_factory) -> tuple[Dataset, Raw, Path]:
    """A dataset, what it is made of, and the folder where it was prepared whole."""
    folder = tmp_path_factory.mktemp("prepared") / "data"
    dataset = DATASETS[request.param]()
    raw = dataset.read(Places())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(dataset), "read", lambda self, places: raw)
        prepare(spec_in_memory(request.param), Places(), folder)
    return dataset, raw, folder


# ---------------------------------------------------------- there and back


def test_what_is_read_back_is_what_was_there(prepared):
    dataset, raw, folder = prepared
    train, test, manifest = load(folder / "manifest.json", CPU)
    for found, expected in ((train, raw.train), (test, raw.test)):
        np.testing.assert_array_equal(found.inputs.numpy(), expected.inputs)
        np.testing.assert_array_equal(found.labels.numpy(), expected.labels)
        assert found.inputs.numpy().dtype == expected.inputs.dtype
        assert found.labels.dtype == torch.int64
    assert tuple(manifest["shape"]) == dataset.shape
    assert tuple(manifest["classes"]) == dataset.classes
    assert manifest["source"] == raw.source


def test_two_preparations_are_the_same_bytes(prepared, tmp_path):
    dataset, _, folder = prepared
    prepare(spec_in_memory(dataset.name), Places(), tmp_path)
    assert contents(tmp_path) == contents(folder)


def test_two_subsets_are_the_same_bytes(tmp_path):
    for name in ("one", "other"):
        prepare(spec_in_memory("digits", 100, 55), Places(), tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_the_manifest_describes_the_files(prepared):
    _, raw, folder = prepared
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(contents(folder)) == {"manifest.json", "train.arrow", "test.arrow"}
    for name, split in (("train", raw.train), ("test", raw.test)):
        described = manifest["splits"][name]
        assert described["sha256"] == hashlib.sha256((folder / f"{name}.arrow").read_bytes()).hexdigest()
        assert described["examples"] == len(split.labels)
        assert described["per_class"] == [int((split.labels == c).sum()) for c in range(10)]
    inputs = raw.train.inputs.astype(np.float64)
    np.testing.assert_allclose(manifest["mean"], [inputs.mean()], rtol=1e-12)
    np.testing.assert_allclose(manifest["std"], [inputs.std()], rtol=1e-12)


def test_training_inputs_are_standardised_per_channel(tmp_path, monkeypatch):
    """Three channels that differ, as in colour images; the test split takes the training split's numbers."""
    random = np.random.default_rng(0)
    scale = np.array([10, 30, 60])[:, None, None]
    labels = np.arange(60, dtype=np.int64) % 10
    splits = [
        LabelledArrays((random.integers(0, 4, (60, 3, 4, 4)) * scale).astype(np.uint8), labels)
        for _ in ("train", "test")
    ]
    colour = type("Colour", (Dataset,), {"shape": (3, 4, 4), "classes": tuple("0123456789"), "name": "colour",
                                         "counts": (60, 60),
                                         "read": lambda self, places: Raw(*splits, "here")})  # fmt: skip
    monkeypatch.setitem(DATASETS, "colour", colour)
    prepare(spec_in_memory("colour"), Places(), tmp_path)
    train, test, _ = load(tmp_path / "manifest.json", CPU)
    standardised = train.batch(torch.arange(60), "none", torch.Generator()).inputs.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(standardised.mean(1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(standardised.std(1, correction=0), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-6)
    assert torch.equal(test.mean, train.mean)
    assert torch.equal(test.std, train.std)


def test_subsets_are_of_the_raw_data(tmp_path):
    prepare(spec_in_memory("digits", 100, 55), Places(), tmp_path)
    raw = DATASETS["digits"]().read(Places())
    train, test, manifest = load(tmp_path / "manifest.json", CPU)
    for name, found, split, size in (("train", train, raw.train, 100), ("test", test, raw.test, 55)):
        assert len(found.labels) == size
        chosen = class_balanced(split.labels, size, 10, "")
        np.testing.assert_array_equal(found.inputs.numpy(), split.inputs[chosen])
        np.testing.assert_array_equal(found.labels.numpy(), split.labels[chosen])
        counts = manifest["splits"][name]["per_class"]
        assert (sum(counts), max(counts) - min(counts)) == (size, size % 10 > 0)


# --------------------------------------------------------- class-balanced


@st.composite
def labels_and_sizes(draw):
    """Labels of some classes, at least three of each, in any order; and two sizes that are possible."""
    classes = draw(st.integers(1, 6))
    labels = draw(st.permutations(list(range(classes)) * 3 + draw(st.lists(st.integers(0, classes - 1), max_size=30))))
    labels = np.array(labels, dtype=np.int64)
    largest = int(np.bincount(labels).min()) * classes
    smaller, larger = sorted(draw(st.tuples(*[st.integers(1, largest)] * 2)))
    return labels, classes, smaller, larger


@given(labels_and_sizes())
def test_subsets_are_balanced_nested_and_fixed(case):
    labels, classes, smaller, larger = case
    few, many = (class_balanced(labels, size, classes, "key") for size in (smaller, larger))
    assert (len(few), len(many)) == (smaller, larger)
    for chosen in (few, many):
        assert len(set(chosen.tolist())) == len(chosen), "each example at most once"
        counts = np.bincount(labels[chosen], minlength=classes)
        assert counts.max() - counts.min() <= 1
    assert set(few.tolist()) <= set(many.tolist())
    np.testing.assert_array_equal(few, class_balanced(labels, smaller, classes, "key"))


@given(labels_and_sizes())
def test_a_subset_that_is_too_large_is_one_message(case):
    labels, classes, _, _ = case
    smallest = int(np.bincount(labels).min())
    size = smallest * classes + 1
    text = message(class_balanced, labels, size, classes, "datasets.x.train")
    assert f"datasets.x.train is {size} (allowed: up to {size - 1}, {smallest} per class" in text
    assert "null" in text


def test_a_subset_is_not_simply_the_first_examples():
    labels = np.repeat(np.arange(10), 100)
    chosen = class_balanced(labels, 100, 10, "key")
    assert len(set((chosen % 100).tolist())) > 20


def test_no_size_is_everything_in_its_order():
    np.testing.assert_array_equal(class_balanced(np.array([1, 0, 1]), None, 2, "key"), [0, 1, 2])


@settings(max_examples=20)
@given(st.integers(1, 4))
def test_no_use_is_made_of_a_global_stream(seed):
    labels = np.arange(100) % 10
    expected = class_balanced(labels, 50, 10, "key")
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        np.testing.assert_array_equal(class_balanced(labels, 50, 10, "key"), expected)
    finally:
        np.random.set_state(state)


# ------------------------------------------------------------ label noise


@pytest.mark.parametrize("fraction", [0, 0.1, 0.5, 1])
def test_a_fraction_of_the_labels_is_drawn_uniformly(fraction):
    n, classes = 20_000, 10
    labels = np.arange(n) % classes
    noisy = with_label_noise(labels, fraction, classes)
    wrong = fraction * (classes - 1) / classes  # the right label is drawn, too
    deviation = (noisy != labels).mean() - wrong
    assert abs(deviation) <= 5 * np.sqrt(wrong * (1 - wrong) / n)
    per_class = np.bincount(noisy[noisy != labels], minlength=classes)
    expected = wrong * n / classes
    assert np.abs(per_class - expected).max() <= 5 * np.sqrt(expected)
    shifts = np.bincount((noisy - labels)[noisy != labels] % classes, minlength=classes)[1:]
    assert np.abs(shifts - wrong * n / (classes - 1)).max() <= 5 * np.sqrt(wrong * n / (classes - 1))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=50), st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted))
def test_a_larger_fraction_replaces_the_same_labels_and_more(labels, fractions):
    labels = np.array(labels)
    less, more, whole = (with_label_noise(labels, fraction, 5) for fraction in (*fractions, 1.0))
    assert ((less == labels) | (less == more)).all()
    assert ((more == labels) | (more == whole)).all()


def test_a_noisy_dataset_differs_in_training_labels_only(tmp_path):
    """The same labels are replaced in every subset; the manifest counts the wrong ones."""
    raw = DATASETS["digits"]().read(Places())
    noisy = with_label_noise(raw.train.labels, 0.4, 10)
    for size in (None, 100):
        spec = spec_in_memory("digits", size, 50, dataset="digits_noisy", label_noise=0.4)
        prepare(spec, Places(), tmp_path)
        chosen = class_balanced(raw.train.labels, size, 10, "")
        tested = class_balanced(raw.test.labels, 50, 10, "")
        train, test, manifest = load(tmp_path / "manifest.json", CPU)
        np.testing.assert_array_equal(train.inputs.numpy(), raw.train.inputs[chosen])
        np.testing.assert_array_equal(train.labels.numpy(), noisy[chosen])
        np.testing.assert_array_equal(test.inputs.numpy(), raw.test.inputs[tested])
        np.testing.assert_array_equal(test.labels.numpy(), raw.test.labels[tested])
        assert manifest["spec"] == spec.as_json()
        assert manifest["wrong_labels"] == (noisy != raw.train.labels)[chosen].sum() > 0.25 * len(chosen)


def test_without_noise_no_label_is_wrong(manifest):
    assert json.loads(manifest.read_text())["wrong_labels"] == 0


def test_a_named_dataset_is_named_in_mistakes(tmp_path):
    spec = spec_in_memory("digits", 10_000, dataset="digits_noisy")
    assert "datasets.digits_noisy.train is 10000" in message(prepare, spec, Places(), tmp_path)


# --------------------------------------------------------------- mistakes


@pytest.mark.parametrize(("key", "size"), [("train", 1000), ("test", 797)])
def test_prepare_names_the_key_of_a_subset_that_is_too_large(tmp_path, key, size):
    text = message(prepare, spec_in_memory("digits", **{"train": 10, "test": 10, key: size}), Places(), tmp_path)
    assert f"datasets.digits.{key} is {size} (allowed: up to " in text
    assert not (tmp_path / "manifest.json").exists(), "the manifest is last, so that none means not prepared"
    assert not list(tmp_path.glob(".partial*"))


def test_prepare_names_the_dataset_that_is_not_there(tmp_path):
    text = message(prepare, spec_in_memory("fashion_mnist"), Places((tmp_path,)), tmp_path / "data")
    assert text.startswith("fashion_mnist: dataset not found")
    assert str(tmp_path) in text
    assert not (tmp_path / "data").exists()


def test_prepare_checks_what_a_dataset_reads(tmp_path, monkeypatch):
    digits = DATASETS["digits"]
    good = digits().read(Places())
    bad = Raw(LabelledArrays(good.train.inputs, np.zeros_like(good.train.labels)), good.test, "here")
    monkeypatch.setattr(digits, "read", lambda self, places: bad)
    assert "train has 1 classes, expected 10" in message(prepare, spec_in_memory("digits"), Places(), tmp_path)


@pytest.fixture
def manifest(tmp_path) -> Path:
    prepare(spec_in_memory("digits", 50, 20), Places(), tmp_path)
    return tmp_path / "manifest.json"


def test_a_missing_manifest_is_named(manifest):
    manifest.unlink()
    assert str(manifest) in message(load, manifest, CPU)


@pytest.mark.parametrize("content", ["", "{", "\0"])
def test_a_damaged_manifest_is_named(manifest, content):
    manifest.write_text(content)
    text = message(load, manifest, CPU)
    assert f"{manifest}: cannot be read" in text
    assert "Prepare the dataset again" in text


@pytest.mark.parametrize("name", ["train.arrow", "test.arrow"])
@pytest.mark.parametrize("keep", [None, 0, 10, 500])
def test_a_missing_or_truncated_file_is_named(manifest, name, keep):
    path = manifest.with_name(name)
    if keep is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:keep])
    text = message(load, manifest, CPU)
    assert f"{path}: cannot be read" in text
    assert "Prepare the dataset again" in text


def test_a_file_of_another_preparation_is_named(manifest, tmp_path):
    prepare(spec_in_memory("digits", 40, 20), Places(), tmp_path / "other")
    (tmp_path / "other" / "train.arrow").replace(manifest.with_name("train.arrow"))
    text = message(load, manifest, CPU)
    assert "train.arrow: not the file that manifest.json describes. Prepare the dataset again" in text


def test_reading_copies_nothing(manifest):
    """The file is mapped, not read into memory: many jobs on one machine share it."""
    train, _, _ = load(manifest, CPU)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("where memory is mapped is read from /proc, which is not there")
    line = next(line for line in maps.read_text().splitlines() if line.endswith(str(manifest.with_name("train.arrow"))))
    first, last = (int(address, 16) for address in line.split()[0].split("-"))
    assert first <= train.inputs.data_ptr() < last


# --------------------------------------------------------------- real data


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real image data are not at {REAL}")
def test_real_fashion_from_its_read_only_folder(tmp_path):
    prepare(spec_in_memory("fashion_mnist", 1000, 500), Places((REAL,)), tmp_path)
    train, test, manifest = load(tmp_path / "manifest.json", CPU)
    assert train.inputs.shape == (1000, 1, 28, 28)
    assert test.inputs.shape == (500, 1, 28, 28)
    assert manifest["splits"]["train"]["per_class"] == [100] * 10
    assert str(REAL) in manifest["source"]
