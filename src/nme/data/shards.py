"""Shards: Arrow files of about a thousand JPEG images each, with their labels, written atomically.

Columns: ``jpeg`` (binary, RGB), ``label``, ``height`` and ``width`` (int64; px), in one record batch. The metadata of
the schema contain the identity of the shard's input, the sums of its pixels, and a checksum of the columns.
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
"""Largest ratio of longer to shorter side: longer images lose their ends, since all images of a batch share a canvas.
"""


class Shard(NamedTuple):
    """A shard to write.

    Attributes:
        path: path of the file.
        folder: folder with the images.
        images: paths of the images relative to the folder, in the order of the rows.
        labels: class indices of the images.
        short_side: shorter side of stored images, px; smaller images keep their size.
        quality: JPEG quality, 1 to 95.
    """

    path: Path
    folder: Path
    images: list[str]
    labels: list[int]
    short_side: int
    quality: int

    def identity(self) -> str:
        """Hash of everything that decides the content: settings, and names, sizes and labels of the image files."""
        sizes = [(self.folder / image).stat().st_size for image in self.images]
        decisive = [self.short_side, self.quality, self.images, sizes, self.labels]
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


class Written(NamedTuple):
    """A complete shard.

    Attributes:
        file: name of the file.
        rows: number of images.
        sha256: checksum of the file.
        sums: (3, 3): for each channel, the number of pixels, their sum, and the sum of their squares.
        kept: True if an earlier process wrote the shard.
    """

    file: str
    rows: int
    sha256: str
    sums: list[list[int]]
    kept: bool


def write_shard(shard: Shard) -> Written:
    """Write the shard, or keep an existing one if it is complete and has the same identity.

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
    """Pixel sums from the metadata of a complete shard with this identity; None if there is none."""
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
    """Checksum of the columns."""
    batch.validate(full=True)
    checksum = hashlib.sha256(json.dumps([batch[name].to_pylist() for name in ("label", "height", "width")]).encode())
    for jpeg in batch["jpeg"]:
        checksum.update(jpeg.as_buffer())
    return checksum.hexdigest()


def _write(shard: Shard, identity: str) -> list[list[int]]:
    jpegs, heights, widths = [], [], []
    counts = np.zeros((3, 256), dtype=np.int64)
    for name in shard.images:
        jpeg, image = encode(shard.folder / name, shard.short_side, shard.quality)
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


def encode(path: Path, short_side: int, quality: int) -> tuple[bytes, Image.Image]:
    """Encode an image as RGB JPEG, and return its pixels too; the bytes of a file that needs no change are copied.

    Raises:
        NmeError: the image cannot be decoded.
    """
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
            as_it_is = (opened.format, opened.mode) == ("JPEG", "RGB")
    except (OSError, SyntaxError, ValueError) as error:  # PIL raises SyntaxError for some broken files
        raise NmeError(f"{path}: cannot be decoded: {error}") from None
    changed = shrink(image, short_side)
    if as_it_is and changed is image:
        return path.read_bytes(), image
    out = io.BytesIO()
    changed.save(out, "JPEG", quality=quality)
    return out.getvalue(), changed


def shrink(image: Image.Image, short_side: int) -> Image.Image:
    """Cut the image to the ratio ``LONGEST``, and reduce its shorter side to ``short_side`` if that is smaller."""
    width, height = image.size
    short = min(width, height)
    if max(width, height) > LONGEST * short:
        cut_width, cut_height = min(width, LONGEST * short), min(height, LONGEST * short)
        left, top = (width - cut_width) // 2, (height - cut_height) // 2
        image = image.crop((left, top, left + cut_width, top + cut_height))
        width, height = image.size
    if short <= short_side:
        return image
    # Same as torchvision's Resize: bilinear, averaging over an area that grows with the reduction.
    size = width * short_side // short, height * short_side // short
    return image.resize(size, Image.Resampling.BILINEAR)
