"""Shards: Arrow files of about a thousand JPEG images each, with their labels; written whole or not at all.

Columns: ``jpeg`` (binary, RGB), ``label``, ``height`` and ``width`` (int64; px), in one record batch. What a shard was
made from, the sums of its pixels, and a checksum of the columns, are in the metadata of its schema.
"""

import hashlib
import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from nme.errors import NmeError
from nme.outputs.files import atomic

LONGEST = 3
"""Longer side over shorter side, at most: the ends of longer images are cut off, since all of a batch share a canvas.
"""


class Shard(NamedTuple):
    """A shard to write.

    Attributes:
        path: of the file.
        folder: where the images are.
        images: their paths below it, in the order of the rows.
        labels: numbers of their classes.
        short_side: of larger images, in px; smaller ones stay as they are.
        quality: of JPEG, 1 to 95.
    """

    path: Path
    folder: Path
    images: list[str]
    labels: list[int]
    short_side: int
    quality: int

    def identity(self) -> str:
        """A hash of what decides the content: settings, and names, sizes and labels of the image files."""
        sizes = [(self.folder / image).stat().st_size for image in self.images]
        decisive = [self.short_side, self.quality, self.images, sizes, self.labels]
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


class Written(NamedTuple):
    """A shard that is there.

    Attributes:
        file: its name.
        rows: images in it.
        sha256: of the file.
        sums: (3, 3): of each channel the number of pixels, their sum, and the sum of their squares.
        kept: whether an earlier process wrote it.
    """

    file: str
    rows: int
    sha256: str
    sums: list[list[int]]
    kept: bool


def write_shard(shard: Shard) -> Written:
    """Write the shard, or keep the one that is there if it is whole and made from the same.

    Raises:
        NmeError: an image cannot be decoded; the message names the file.
    """
    identity = shard.identity()
    sums = _sums_of(shard.path, identity)
    kept = sums is not None
    if sums is None:
        sums = _write(shard, identity)
    with shard.path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Written(shard.path.name, len(shard.images), sha256, sums, kept)


def _sums_of(path: Path, identity: str) -> list[list[int]] | None:
    """What the shard's metadata say, if it is there, is whole and has this identity."""
    try:
        with pa.memory_map(str(path)) as file:
            batch = pa.ipc.open_file(file).get_batch(0)
            metadata = batch.schema.metadata or {}
            if metadata.get(b"identity") != identity.encode() or metadata[b"content"] != _content(batch).encode():
                return None
    except (OSError, pa.ArrowInvalid):
        return None
    return json.loads(metadata[b"sums"])


def _content(batch: pa.RecordBatch) -> str:
    """A checksum of the columns."""
    batch.validate(full=True)
    checksum = hashlib.sha256(json.dumps([batch[name].to_pylist() for name in ("label", "height", "width")]).encode())
    for jpeg in batch["jpeg"]:
        checksum.update(jpeg.as_buffer())
    return checksum.hexdigest()


def _write(shard: Shard, identity: str) -> list[list[int]]:
    jpegs, heights, widths = [], [], []
    counts = np.zeros((3, 256), dtype=np.int64)
    for name in shard.images:
        jpeg, image = encoded(shard.folder / name, shard.short_side, shard.quality)
        jpegs.append(jpeg)
        heights.append(image.height)
        widths.append(image.width)
        counts += np.array(image.histogram()).reshape(3, 256)
    values = np.arange(256)
    sums = np.stack([counts.sum(1), counts @ values, counts @ values**2], axis=1).tolist()
    columns = {
        "jpeg": pa.array(jpegs, pa.binary()),
        "label": pa.array(shard.labels, pa.int64()),
        "height": pa.array(heights, pa.int64()),
        "width": pa.array(widths, pa.int64()),
    }
    batch = pa.record_batch(columns)
    metadata = {"identity": identity, "sums": json.dumps(sums), "content": _content(batch)}
    batch = batch.replace_schema_metadata(metadata)
    with (
        atomic(shard.path) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, batch.schema) as out,
    ):
        out.write_batch(batch)
    return sums


def encoded(path: Path, short_side: int, quality: int) -> tuple[bytes, Image.Image]:
    """An image as RGB JPEG, and its pixels before that; a file that needs no change is taken as it is.

    Raises:
        NmeError: it cannot be decoded.
    """
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
            as_it_is = (opened.format, opened.mode) == ("JPEG", "RGB")
    except (OSError, SyntaxError, ValueError) as error:  # PIL raises SyntaxError for some broken files
        raise NmeError(f"{path}: cannot be decoded: {error}") from None
    changed = shrunk(image, short_side)
    if as_it_is and changed is image:
        return path.read_bytes(), image
    out = io.BytesIO()
    changed.save(out, "JPEG", quality=quality)
    return out.getvalue(), changed


def shrunk(image: Image.Image, short_side: int) -> Image.Image:
    """The image with its shorter side ``short_side`` if that is smaller, and cut to ``LONGEST``; else itself."""
    width, height = image.size
    short = min(width, height)
    if max(width, height) > LONGEST * short:
        cut_width, cut_height = min(width, LONGEST * short), min(height, LONGEST * short)
        left, top = (width - cut_width) // 2, (height - cut_height) // 2
        image = image.crop((left, top, left + cut_width, top + cut_height))
        width, height = image.size
    if short <= short_side:
        return image
    # As torchvision's Resize: bilinear, over an area as large as the image shrinks.
    size = width * short_side // short, height * short_side // short
    return image.resize(size, Image.Resampling.BILINEAR)
