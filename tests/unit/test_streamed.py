"""Streamed datasets: the order of an epoch, decoding by workers, crops, resuming; against torchvision and Pillow."""

import io
import math
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from image_trees import Small, spec_of, write_tree
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as transforms

from nme.config.scale import Recipe, Scale
from nme.data import streamed
from nme.data import write_shards as prepare_shards
from nme.data.augment import DRAWS, central_boxes, random_boxes, resized_crops
from nme.data.examples import Examples
from nme.data.load import load
from nme.data.streamed import Streamed
from nme.datasets import DATASETS
from nme.datasets.base import Places
from nme.errors import NmeError
from nme.methods import METHODS
from nme.runtime.random_streams import stream
from nme.stages.prepare import prepare
from nme.training.member import Job, Member

pytestmark = pytest.mark.filterwarnings("ignore:.*capabilities of TorchVision are deprecated:DeprecationWarning")

CPU = torch.device("cpu")
RESOLUTION = 16
SETTINGS = {
    "dataset": "small",
    "model": {"name": "wide_resnet", "depth": 10, "widen": 1},
    "resolution": RESOLUTION,
    "augment": "resized_crop_flip",
    "epochs": 2,
    "batch_size": 4,
    "learning_rate": 0.1,
    "weight_decay": 0.01,
}


@pytest.fixture(autouse=True)
def small_set(monkeypatch):
    monkeypatch.setitem(DATASETS, "small", Small)
    monkeypatch.setattr(prepare_shards, "ROWS", 4)
    monkeypatch.setattr(streamed, "BUFFER_SHARDS", 2)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    """A prepared set: 21 training images in six shards of three or four, and 6 test images."""
    folder = tmp_path_factory.mktemp("streamed")
    write_tree(folder, (7, 7, 7))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "small", Small)
        patch.setattr(prepare_shards, "ROWS", 4)
        prepare(spec_of(), Places((folder,)), folder / "data")
    return folder / "data" / "manifest.json"


def splits(manifest: Path, workers: int = 0) -> tuple[Streamed, Streamed]:
    train, test, _ = load(manifest, CPU, RESOLUTION, workers)
    return train, test


def stored(split: Streamed) -> list[dict]:
    """The rows of all shards, as any reader of Arrow sees them."""
    return pa.concat_tables(pa.ipc.open_file(pa.OSFile(str(path))).read_all() for path in split.shards).to_pylist()


def same(left, right) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def identical(left, right) -> bool:
    """Two streams of batches, each a tuple of tensors."""
    left, right = list(left), list(right)
    return len(left) == len(right) > 0 and all(same(a, b) for a, b in zip(left, right, strict=True))


# ------------------------------------------------------------------ order


class TestOrder:
    @pytest.mark.parametrize("epoch", range(4))
    def test_is_a_permutation_that_depends_on_the_generator_alone(self, manifest, epoch):
        train, _ = splits(manifest)
        torch.manual_seed(epoch)
        order = train.order(stream(0, "order", epoch))
        assert sorted(order.tolist()) == list(range(21))
        assert torch.equal(order, train.order(stream(0, "order", epoch)))
        assert not torch.equal(order, train.order(stream(0, "order", epoch + 1)))
        assert not torch.equal(order, train.order(stream(1, "order", epoch)))

    @pytest.mark.parametrize("group", [1, 2, 3, 4, 100])
    def test_reads_the_shards_group_by_group(self, manifest, monkeypatch, group):
        monkeypatch.setattr(streamed, "BUFFER_SHARDS", group)
        train, _ = splits(manifest)
        shard_of = np.repeat(range(len(train.rows)), train.rows)
        for epoch in range(20):
            shards = shard_of[train.order(stream(0, "order", epoch))].tolist()
            left = list(dict.fromkeys(shards))
            while left:
                now, left = left[:group], left[group:]
                block, shards = np.split(shards, [sum(train.rows[s] for s in now)])
                assert set(block) == set(now), "a group's rows are all read before the next group's"
            assert len(shards) == 0

    def test_shards_and_rows_come_first_about_equally_often(self, manifest):
        train, _ = splits(manifest)
        firsts = [train.order(stream(0, "order", epoch))[0].item() for epoch in range(2100)]
        assert all(60 < count < 145 for count in np.bincount(firsts, minlength=21))

    def test_mixes_the_rows_of_a_group(self, manifest):
        train, _ = splits(manifest)
        shard_of = np.repeat(range(len(train.rows)), train.rows)
        changes = [(np.diff(shard_of[train.order(stream(0, "order", e))]) != 0).sum() for e in range(50)]
        assert np.mean(changes) > 8, "5 where each shard is read to its end; about 11 where pairs are mixed"


# ------------------------------------------------------------------ fetch


class TestFetch:
    def test_is_what_pillow_decodes(self, manifest):
        train, _ = splits(manifest)
        rows, indices = stored(train), torch.tensor([20, 3, 3, 0, 11, 7])
        (examples,) = train.fetch([indices])
        height, width = examples.inputs.shape[2:]
        assert (height, width) == tuple(examples.sizes.amax(0).tolist())
        for index, image, label, size in zip(indices.tolist(), *examples, strict=True):
            expected = np.asarray(Image.open(io.BytesIO(rows[index]["jpeg"])), dtype=np.float64)
            assert tuple(size.tolist()) == expected.shape[:2]
            h, w = expected.shape[:2]
            found = image[:, :h, :w].permute(1, 2, 0).numpy()
            assert np.abs(found - expected).max() <= 3, "two builds of libjpeg may round differently"
            assert image[:, h:].eq(0).all()
            assert image[:, :, w:].eq(0).all()
            assert label == rows[index]["label"]

    @pytest.mark.parametrize("workers", [1, 2])
    def test_is_the_same_with_workers(self, manifest, workers):
        alone, helped = splits(manifest)[0], splits(manifest, workers)[0]
        order = alone.order(stream(0, "order", 0)).split(4)
        assert identical(alone.fetch(order), helped.fetch(order))

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("start", [1, 3, 5])
    def test_goes_on_from_the_middle_of_an_epoch(self, manifest, workers, start):
        train, _ = splits(manifest, workers)
        order = train.order(stream(0, "order", 0)).split(4)
        assert identical(train.fetch(order[start:]), list(splits(manifest)[0].fetch(order))[start:])

    @pytest.mark.parametrize("taken", [0, 1, 2, 6])
    def test_leaves_no_process_behind_wherever_it_stops(self, manifest, taken):
        train, _ = splits(manifest, 2)
        before = set(psutil.Process().children(recursive=True))
        running = train.fetch(train.order(stream(0, "order", 0)).split(4))
        for _ in range(taken):
            next(running)
        workers = set(psutil.Process().children(recursive=True)) - before
        assert len(workers) == (2 if taken else 0)
        running.close()
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive

    def test_makes_no_use_of_the_global_stream(self, manifest):
        train, test = splits(manifest, 1)
        before = torch.get_rng_state()
        list(train.fetch(torch.arange(8).split(4)))
        list(test.in_order(4))
        train.batch(torch.arange(2), "resized_crop_flip", stream(0, "augment"))
        assert torch.equal(torch.get_rng_state(), before)


class TestInOrder:
    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("size", [1, 4, 500])
    def test_is_every_row_once(self, manifest, workers, size):
        train, _ = splits(manifest, workers)
        found = list(train.in_order(size))
        assert [len(batch.labels) for batch in found[:-1]] == [size] * (len(found) - 1)
        assert torch.cat([batch.labels for batch in found]).tolist() == [row["label"] for row in stored(train)]
        one_by_one = [train.batch(torch.tensor([i]), "none", torch.Generator()).inputs for i in range(21)]
        torch.testing.assert_close(torch.cat([batch.inputs for batch in found]), torch.cat(one_by_one))
        assert len(torch.cat(one_by_one).flatten(1).unique(dim=0)) == 21, "no two images are alike"

    def test_shares_make_up_the_whole(self, manifest):
        train, _ = splits(manifest)
        parts = [b for share in (range(10), range(10, 11), range(11, 21)) for b in train.in_order(4, share)]
        (whole,) = train.in_order(21)
        assert torch.equal(torch.cat([batch.labels for batch in parts]), whole.labels)
        torch.testing.assert_close(torch.cat([batch.inputs for batch in parts]), whole.inputs)


# ------------------------------------------------------------------- load


class TestLoad:
    def test_has_the_numbers_of_the_training_split(self, manifest):
        train, test, described = load(manifest, CPU, RESOLUTION, 0)
        for split in (train, test):
            assert split.shape == (3, RESOLUTION, RESOLUTION)
            assert split.mean.flatten().tolist() == pytest.approx(described["mean"])
            assert split.std.flatten().tolist() == pytest.approx(described["std"])
        assert (len(train.labels), len(test.labels)) == (21, 6)
        assert (sum(train.rows), len(train.rows)) == (21, 6)

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("name", ["train-00000.arrow", "train-00003.arrow", "test-00001.arrow"])
    @pytest.mark.parametrize("how", ["missing", "empty", "half", "end", "a bit", "another"])
    def test_a_missing_or_damaged_shard_is_named(self, manifest, tmp_path, workers, name, how):
        shutil.copytree(manifest.parent, tmp_path / "data")
        path = tmp_path / "data" / "shards" / name
        whole = path.read_bytes()
        path.unlink()
        if how == "another":
            shutil.copy(path.with_name("train-00001.arrow"), path)
        elif how != "missing":
            middle, n = len(whole) // 2, len(whole)
            flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
            path.write_bytes({"empty": b"", "half": whole[:middle], "end": whole[: n - 1], "a bit": flipped}[how])
        with pytest.raises(NmeError) as caught:
            load(tmp_path / "data" / "manifest.json", CPU, RESOLUTION, workers)
        text = str(caught.value)
        assert text.startswith(f"{path}: ")
        assert text.endswith("Prepare the dataset again.")
        assert len(text.splitlines()) == 1

    def test_any_bit_of_a_shard_counts(self, manifest, tmp_path):
        """Those of the footer too, which says where the columns are."""
        shutil.copytree(manifest.parent, tmp_path / "data")
        path = tmp_path / "data" / "shards" / "train-00002.arrow"
        whole = path.read_bytes()
        for place in range(0, len(whole), len(whole) // 97):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
            with pytest.raises(NmeError, match=r"train-00002.arrow: .*Prepare the dataset again"):
                splits(tmp_path / "data" / "manifest.json")

    def test_a_resolution_is_needed(self, manifest):
        with pytest.raises(NmeError, match="resolution"):
            load(manifest, CPU)


# ------------------------------------------------------------------ crops

MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ([120.0, 110.0, 100.0], [70.0, 65.0, 60.0]))


def canvas(sizes: list[tuple[int, int]], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of noise, in the upper left of what is white elsewhere, and their sizes."""
    random = stream(seed, "pixels")
    height, width = np.max(sizes, axis=0)
    images = torch.full((len(sizes), 3, height, width), 255, dtype=torch.uint8)
    for image, (h, w) in zip(images, sizes, strict=True):
        image[:, :h, :w] = torch.randint(256, (3, h, w), generator=random)
    return images, torch.tensor(sizes)


def slow_crops(images, boxes, flip, resolution):
    """Crops made by torchvision, image by image."""
    crops = []
    for image, box, mirrored in zip(images, boxes.long().tolist(), flip.tolist(), strict=True):
        crop = transforms.resized_crop(image.float(), *box, [resolution, resolution], antialias=False)
        crops.append(transforms.horizontal_flip(crop) if mirrored else crop)
    return (torch.stack(crops) - MEAN) / STD


SIDES = [(40, 30), (17, 33), (25, 25), (16, 48), (24, 31), (50, 20), (9, 9), (33, 17), (20, 28)]


class TestResizedCrops:
    @pytest.mark.parametrize("flipped", ["none", "all", "some"])
    @pytest.mark.parametrize("resolution", [1, 7, 16, 60])
    @pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2)], ids=["as usual", "by column"])
    def test_equal_torchvisions(self, flipped, resolution, order):
        images, sizes = canvas(SIDES)
        boxes, flip = random_boxes(sizes, torch.rand(len(SIDES), DRAWS, generator=stream(1, "augment")))
        flip = {"none": torch.zeros_like(flip), "all": torch.ones_like(flip), "some": torch.arange(9) % 2 == 0}[flipped]
        laid = images.permute(order).contiguous().permute([order.index(i) for i in range(4)])
        found = resized_crops(laid, boxes, flip, resolution, MEAN, STD)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, slow_crops(images, boxes, flip, resolution), rtol=0, atol=1e-3)

    def test_whole_images_at_their_own_size_are_only_standardised(self):
        images, _ = canvas([(16, 16)] * 5)
        boxes = torch.tensor([[0.0, 0, 16, 16]] * 5, dtype=torch.float64)
        flip = torch.tensor([True, False, True, True, False])
        expected = torch.where(flip[:, None, None, None], images.flip(3), images)
        found = resized_crops(images, boxes, flip, 16, MEAN, STD)
        torch.testing.assert_close(found, (expected - MEAN) / STD, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("resolution", [1, 16])
    def test_the_smallest_images_are_no_exception(self, resolution):
        sides = [(1, 1), (1, 3), (3, 1), (2, 2), (1, 2)]
        images, sizes = canvas(sides)
        augmented = Streamed([], [], torch.zeros(5), MEAN, STD, resolution, 0).augmented
        for augment in ("none", "resized_crop_flip"):
            found = augmented(Examples(images, torch.zeros(5), sizes), augment, stream(0, "augment"))
            torch.testing.assert_close(found[0], ((images[0, :, :1, :1] - MEAN) / STD).expand_as(found[0]))
            assert found.amax() < (255 - MEAN.min()) / STD.min()

    def test_central_ones_are_a_resized_and_centrally_cropped_image(self):
        """Resize(32) and CenterCrop(28) of a square one, and to a pixel's part of others."""
        images, sizes = canvas([(128, 128)])
        found = resized_crops(images, central_boxes(sizes), torch.tensor([False]), 28, MEAN, STD)
        expected = transforms.center_crop(transforms.resize(images[0].float(), [32], antialias=False), [28])
        torch.testing.assert_close(found[0], (expected - MEAN) / STD, rtol=0, atol=1e-3)

    @pytest.mark.parametrize("size", [(400, 300), (300, 500), (333, 901), (512, 257)], ids=str)
    def test_central_ones_of_other_shapes_lie_where_torchvisions_do(self, size):
        """An image whose colours are its coordinates, px, tells where each pixel of the crop was taken."""
        rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in size), indexing="ij")
        image = torch.stack([rows, columns, torch.zeros(size)])
        resized = transforms.resize(image, [256], antialias=False)
        expected = transforms.center_crop(resized, [224, 224])
        zero, one = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
        boxes = central_boxes(torch.tensor([size]))
        found = resized_crops(image[None], boxes, torch.tensor([False]), 224, zero, one)[0]
        pixel = min(size) / 256  # of the resized image, whose size and crop torchvision rounds to whole ones
        assert (found - expected).abs().max() < 1.01 * pixel


class TestRandomBoxes:
    sizes = torch.randint(60, 400, (4000, 2), generator=stream(0, "sizes"))

    def boxes(self):
        draws = torch.rand(len(self.sizes), DRAWS, generator=stream(0, "augment"), dtype=torch.float64)
        return random_boxes(self.sizes, draws)

    def test_lie_within_the_image(self):
        boxes, _ = self.boxes()
        assert torch.equal(boxes, boxes.round())
        assert boxes[:, :2].ge(0).all()
        assert boxes[:, 2:].ge(1).all()
        assert (boxes[:, :2] + boxes[:, 2:]).le(self.sizes).all()
        assert (boxes[:, :2] + boxes[:, 2:]).eq(self.sizes).any(0).all(), "and reach its edges"

    def test_have_the_areas_and_ratios_that_they_should(self):
        boxes, _ = self.boxes()
        h, w = boxes[:, 2:].unbind(1)
        ordinary = self.sizes.amax(1) / self.sizes.amin(1) < 4 / 3  # else a box may be the largest that fits
        assert ((h + 0.5) * (w + 0.5) >= 0.08 * self.sizes.prod(1))[ordinary].all()
        assert ((w - 0.5) / (h + 0.5) <= 4 / 3).all()
        assert ((w + 0.5) / (h - 0.5) >= 3 / 4).all()
        area, ratio = h * w / self.sizes.prod(1), w / h
        assert area[ordinary].min() < 0.1
        assert area[ordinary].max() > 0.95
        assert ratio.min() < 0.77
        assert ratio.max() > 1.3

    @pytest.mark.parametrize("size", [(120, 160), (200, 200), (90, 300)], ids=str)
    def test_are_distributed_as_torchvisions(self, size):
        n = 4000
        draws = torch.rand(20_000, DRAWS, generator=stream(0, "augment"), dtype=torch.float64)
        found, flip = random_boxes(torch.tensor([size]).expand(20_000, 2), draws)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            image = torch.empty(3, *size)
            expected = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
        expected = torch.tensor(expected, dtype=torch.float64)
        limit = math.prod(size)
        quantiles = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9], dtype=torch.float64)
        for number in (
            lambda boxes: boxes[:, 2] * boxes[:, 3] / limit,
            lambda boxes: (boxes[:, 3] / boxes[:, 2]).log(),
            lambda boxes: boxes[:, 0] / size[0],
            lambda boxes: boxes[:, 1] / size[1],
        ):
            ours, theirs = number(found), number(expected)
            # Four standard errors of the difference.
            assert (ours.mean() - theirs.mean()).abs() < 4 * theirs.std() * math.sqrt(1 / n + 1 / 20_000)
            torch.testing.assert_close(ours.quantile(quantiles), theirs.quantile(quantiles), rtol=0, atol=0.04)
        assert flip.double().mean().item() == pytest.approx(0.5, abs=0.015)

    @pytest.mark.parametrize("size", [(300, 20), (20, 300), (301, 22), (21, 300), (50, 50), (100, 75), (77, 100)])
    def test_are_the_largest_central_ones_where_no_try_fits(self, size):
        draws = torch.full((1, DRAWS), 1 - 1e-9, dtype=torch.float64)  # of the whole area, at the largest ratio
        found, flip = random_boxes(torch.tensor([size]), draws)
        expected = RandomResizedCrop.get_params(torch.empty(3, *size), [50.0, 50.0], [3 / 4, 4 / 3])
        assert found.tolist() == [list(map(float, expected))]
        assert not flip.item()

    def test_take_the_first_try_that_fits(self):
        draws = torch.full((1, 10, 4), 1 - 1e-9, dtype=torch.float64)  # too wide for a square
        draws[0, 3] = torch.tensor([0.5, 0.5, 0.5, 0.5])
        draws[0, 5] = torch.tensor([0.1, 0.5, 0.5, 0.5])
        (box,), _ = random_boxes(torch.tensor([[100, 100]]), torch.cat([draws.flatten(1), torch.zeros(1, 1)], 1))
        side = round(math.sqrt(0.08 + 0.92 / 2) * 100)
        assert box.tolist() == [(101 - side) // 2, (101 - side) // 2, side, side]


class TestAugmented:
    @pytest.mark.parametrize("augment", ["none", "resized_crop_flip"])
    def test_parts_of_a_batch_are_those_of_the_whole(self, manifest, augment):
        """Processes that share a batch draw the same choices."""
        train, _ = splits(manifest)
        indices = torch.arange(12)
        (whole,) = train.fetch([indices])
        expected = train.augmented(whole, augment, stream(0, "augment"))
        for first, last in ((0, 12), (0, 5), (5, 8), (8, 12)):
            (part,) = train.fetch([indices[first:last]])
            found = train.augmented(part, augment, stream(0, "augment"), (12, first))
            torch.testing.assert_close(found, expected[first:last])

    def test_images_are_those_of_torchvision_from_the_files(self, manifest):
        train, _ = splits(manifest)
        indices = torch.tensor([4, 19, 8])
        batch = train.batch(indices, "resized_crop_flip", stream(7, "augment"))
        (examples,) = train.fetch([indices])
        assert torch.equal(batch.labels, examples.labels)
        draws = torch.rand(3, DRAWS, generator=stream(7, "augment"), dtype=torch.float64)
        boxes, flip = random_boxes(examples.sizes, draws)
        for found, index, box, mirrored in zip(batch.inputs, indices, boxes.long().tolist(), flip, strict=True):
            image = Image.open(io.BytesIO(stored(train)[index]["jpeg"]))
            image = torch.tensor(np.asarray(image)).permute(2, 0, 1).float()
            crop = transforms.resized_crop(image, *box, [RESOLUTION, RESOLUTION], antialias=False)
            crop = transforms.horizontal_flip(crop) if mirrored else crop
            torch.testing.assert_close(found * train.std + train.mean, crop, rtol=0, atol=3)

    def test_choices_are_other_ones_for_another_stream(self, manifest):
        train, _ = splits(manifest)
        one, other = (train.batch(torch.arange(5), "resized_crop_flip", stream(s, "augment")).inputs for s in (0, 1))
        assert not torch.isclose(one, other).all((1, 2, 3)).any()


# --------------------------------------------------------------- training


def job(manifest: Path, workers: int, method: str = "grad_norm", **changes: object) -> Job:
    train, test = splits(manifest, workers)
    return Job(Recipe(**SETTINGS | changes), "gelu", METHODS.parse(method), 0.1, train, test, 3, CPU)


@pytest.fixture(scope="module")
def straight(manifest: Path) -> Member:
    """A member that was never stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "small", Small)
        patch.setattr(streamed, "BUFFER_SHARDS", 2)
        member = Member(job(manifest, 0), 3)
        while not member.finished:
            member.advance()
    return member


class TestMember:
    @pytest.mark.parametrize("done", [1, 3, 5, 7])
    def test_goes_on_in_the_middle_of_an_epoch_to_the_last_bit(self, manifest, straight, done):
        """Whatever the number of workers; an epoch has five steps."""
        first = Member(job(manifest, 2), 3)
        for _ in range(done):
            first.advance()
        saved = deepcopy(first.state())
        del first
        again = Member(job(manifest, 1), 3)
        again.restore(saved)
        while not again.finished:
            again.advance()
        assert same(again.model.state_dict().values(), straight.model.state_dict().values())
        assert [{**row, "seconds": 0} for row in again.rows] == [{**row, "seconds": 0} for row in straight.rows]
        assert len(again.rows) == 2

    def test_steps_are_of_the_rows_in_the_order_of_the_epoch(self, manifest, monkeypatch):
        seen = []
        fetch = Streamed.fetch

        def watched(self, indices):
            seen.append([batch.tolist() for batch in indices])
            return fetch(self, indices)

        monkeypatch.setattr(Streamed, "fetch", watched)
        member = Member(job(manifest, 0, "sgd"), 3)
        member.advance()
        order = member.job.train.order(stream(3, "order", 0)).tolist()
        assert seen == [[order[i : i + 4] for i in range(0, 20, 4)]]

    def test_learns(self, manifest):
        member = Member(job(manifest, 0, "sgd", epochs=12, augment="none"), 0)
        losses = [row["train_loss"] for _ in range(60) if (row := member.advance())]
        assert losses[-1] < 0.7 * losses[0]


# ---------------------------------------------------------------- recipes


def scale_with(**changes) -> Scale:
    """A scale of one recipe, with a streamed dataset and two others."""
    datasets = {"small": {"short_side": 24, "quality": 90}, "cifar10": {}, "mnist1d": {}}
    return Scale(seeds=1, datasets=datasets, recipes={"r": SETTINGS | changes}, panels={}, axes={})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"resolution": None}, "resolution is null for 'small' (allowed: a number of px, as 224)"),
        ({"augment": "crop_flip"}, "augment is 'crop_flip', but 'small' has images of any size (allowed: none, resi"),
        (
            {"dataset": "cifar10", "augment": "none"},
            "resolution is 16 for 'cifar10' (allowed: null: its inputs have one size)",
        ),
        (
            {"dataset": "cifar10", "resolution": None},
            "augment is 'resized_crop_flip', but 'cifar10' has images of one size (allowed: none, crop_flip)",
        ),
        (
            {"dataset": "mnist1d", "resolution": None},
            "augment is 'resized_crop_flip', but 'mnist1d' has inputs (1, 40), not images (allowed: none)",
        ),
    ],
    ids=str,
)
def test_a_recipe_that_does_not_suit_the_dataset_is_one_sentence(changes, expected):
    with pytest.raises(ValueError, match="1 validation error") as caught:
        scale_with(**changes)
    assert f"recipes.r: {expected}" in str(caught.value)


@pytest.mark.parametrize("augment", ["none", "resized_crop_flip"])
def test_recipes_of_streamed_datasets_give_the_networks_input(augment):
    scale = scale_with(augment=augment)
    assert scale.input_shape(scale.recipes["r"]) == (3, 16, 16)
