"""Crops of images of different sizes, resized to one square and flipped, for a whole batch at once on its device.

Bilinear without antialiasing, like torchvision's ``resized_crop(..., antialias=False)``: a crop larger than the square
is sampled, not averaged. torchvision's default averages, which is smoother for images much larger than the square.
Shards store images about as large as the square (``short_side``); for these sizes both methods give similar results.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import embedding_bag

from nme.runtime.transfer import send

TRIES = 10
SCALE = (0.08, 1.0)  # part of the image's area
RATIO = (3 / 4, 4 / 3)  # width over height
CENTRE = 0.875  # part of the shorter side, equivalent to Resize(256) and CenterCrop(224)
DRAWS = 4 * TRIES + 1  # random numbers per image
TOGETHER = 4  # number of images whose intermediate results fit into a processor's cache


def random_boxes(sizes: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Torchvision's ``RandomResizedCrop`` and ``RandomHorizontalFlip``, from given random numbers.

    A try is a box with 8 to 100 % of the image's area (uniform) and a ratio of width to height between 3/4 and 4/3
    (uniform in the logarithm), at a uniform position. The first of ten tries that fits into the image is used. If none
    fits, the largest central box with such a ratio is used.

    Args:
        sizes: (B, 2): heights and widths.
        draws: (B, DRAWS), uniform between 0 and 1.

    Returns:
        Boxes (B, 4): top, left, height and width, whole numbers in float64; and a mask of the images to flip, (B,).
    """
    height, width = sizes.double().unbind(1)
    area, ratio, y, x = draws[:, :-1].view(-1, TRIES, 4).double().unbind(2)
    area = (height * width)[:, None] * (SCALE[0] + (SCALE[1] - SCALE[0]) * area)
    low, high = map(math.log, RATIO)
    ratio = (low + (high - low) * ratio).exp()
    h, w = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (h >= 1) & (w >= 1) & (h <= height[:, None]) & (w <= width[:, None])
    y, x = (y * (height[:, None] - h + 1)).floor(), (x * (width[:, None] - w + 1)).floor()
    first = fits.byte().argmax(1, keepdim=True)
    tried = torch.stack([v.gather(1, first)[:, 0] for v in (y, x, h, w)], 1)
    h, w = torch.minimum(height, (width / RATIO[0]).round()), torch.minimum(width, (height * RATIO[1]).round())
    central = torch.stack([((height - h) / 2).floor(), ((width - w) / 2).floor(), h, w], 1)
    return torch.where(fits.any(1, keepdim=True), tried, central), draws[:, -1] < 0.5


def central_boxes(sizes: Tensor) -> Tensor:
    """Central square of each image, with a side of ``CENTRE`` times the shorter one: (B, 4) like ``random_boxes``."""
    sizes = sizes.double()
    side = (CENTRE * sizes.amin(1)).clamp(min=1)  # at least one pixel
    return torch.stack([(sizes[:, 0] - side) / 2, (sizes[:, 1] - side) / 2, side, side], 1)


def resized_crops(images: Tensor, boxes: Tensor, flip: Tensor, resolution: int, mean: Tensor, std: Tensor) -> Tensor:
    """Crop each image's box, resize it to a square, flip it if asked to, and standardise it.

    Args:
        images: (B, C, H, W), uint8; fastest in the memory order (B, W, C, H).
        boxes: (B, 4): top, left, height and width in px; fractions are allowed.
        flip: (B,), bool: mirror left and right.
        resolution: side of the square, px.
        mean: (C, 1, 1).
        std: (C, 1, 1).

    Returns:
        (B, C, resolution, resolution), float32.
    """
    top, left, height, width = boxes[:, :, None].unbind(1)
    centres = (torch.arange(resolution, dtype=boxes.dtype, device=boxes.device) + 0.5) / resolution
    across = torch.where(flip[:, None], 1 - centres, centres)
    rows, columns = _positions(top, height, centres), _positions(left, width, across)
    out = images.new_empty(len(images), images.shape[1], resolution, resolution, dtype=torch.float32)
    size = TOGETHER if images.device.type == "cpu" else len(images)
    parts = (tensor.split(size) for tensor in (images, rows, columns, out))
    for some, at_rows, at_columns, result in zip(*parts, strict=True):
        # Interpolate between whole columns, then between whole rows, so that memory is read contiguously.
        narrow = _interpolate(some.permute(0, 3, 1, 2).float(), at_columns)
        small = _interpolate(narrow.permute(0, 3, 2, 1).contiguous(), at_rows)
        torch.sub(small.permute(0, 2, 1, 3), mean, out=result).div_(std)
    return out


def _positions(first: Tensor, size: Tensor, centres: Tensor) -> Tensor:
    """Positions of the pixels on the image's axis, (B, resolution), clipped to the centres of the box's own pixels."""
    return torch.minimum(torch.maximum(first + size * centres - 0.5, first), first + size - 1)


def _interpolate(table: Tensor, at: Tensor) -> Tensor:
    """Linear interpolation along the second axis: (B, N, ...) at positions (B, M) between 0 and N − 1: (B, M, ...)."""
    n = table.shape[1]
    low = at.floor()
    weight = (at - low).float()
    low = low.long()
    indices = (
        torch.stack([low, (low + 1).clamp(max=n - 1)], -1) + n * torch.arange(len(at), device=at.device)[:, None, None]
    )
    weights = torch.stack([1 - weight, weight], -1)
    rows = table.reshape(len(at) * n, -1)
    means = embedding_bag(indices.view(-1, 2), rows, per_sample_weights=weights.view(-1, 2), mode="sum")
    return means.view(*at.shape, *table.shape[2:])


def crop_and_flip(images: Tensor, stream: torch.Generator, of: tuple[int, int] | None = None) -> Tensor:
    """Random crop after padding with zeros by 1/8 of the side, and random horizontal flip, for each image.

    Args:
        images: (B, C, H, W), any dtype.
        stream: random stream on the CPU, so that choices do not depend on the device.
        of: see ``Data.augmented``.
    """
    n, channels, height, width = images.shape
    total, first = of or (n, 0)
    pad = height // 8
    choices = torch.randint(2 * pad + 1, (2, total), generator=stream), torch.rand(total, generator=stream) < 0.5
    (top, left), flip = (send(c[..., first : first + n], images.device) for c in choices)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    padded = functional.pad(images, (pad, pad, pad, pad)).flatten(2)
    pixels = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]
    return padded.gather(2, pixels.view(n, 1, -1).expand(-1, channels, -1)).view_as(images)
