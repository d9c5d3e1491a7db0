"""Convolutions of signals on the CPU, as products of long matrices; the backward pass is 1.6 to 3 times faster.

Formulas: docs/theory.md, §2.7.

Signals are in memory channels last: (B, C, L) with the L·C numbers of an example in the order (L, C). The convolution
is a banded matrix: input i (C numbers) and output o (C' numbers) meet in the C×C' matrix W[i + p − s·o], one for each
tap of the kernel, for stride s and padding p. It is cut into equal blocks along the band (``_Blocks``), all the same
matrix M, small and nearly dense, with one row per input number and one column per output number. With X the inputs of
all blocks, one row per block, and Y their outputs, likewise, the three products of training are

    Y = X M,    X̄ = Ȳ Mᵀ,    M̄ = Xᵀ Ȳ.

- Y: a block is one output and its k inputs (X is known as im2col).
- X̄, and M̄ with it: a block is s inputs and all outputs that depend on them.
- A short signal is a single block, and nothing is copied.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

WHOLE = 1.2  # A signal is a single block up to this multiple of the kernel size.


class Products(NamedTuple):
    """The products of a layer with padding < kernel; ``nme.derivatives.convolutions`` differentiates them."""

    stride: int
    padding: int

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """W x + b, (B, C', L')."""
        blocks = _blocks(x.shape[2], weight.shape[2], *self, of_inputs=False)
        rows, matrix = blocks.inputs.rows(x), blocks.matrix(weight)
        if bias is None:
            y = rows @ matrix
        else:
            y = torch.addmm(bias.expand(blocks.outputs.size, -1).reshape(-1), rows, matrix)
        return y.view(len(x), -1, len(weight)).transpose(1, 2)

    def pull(self, y: Tensor, x: Tensor, weight: Tensor, mask: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """x̄, W̄ and b̄ of ȳ, if selected by the mask."""
        to_x = to_weight = None
        if mask[0] or mask[1]:
            blocks = _blocks(x.shape[2], weight.shape[2], *self, of_inputs=mask[0])
            rows = blocks.outputs.rows(y)
            if mask[0]:
                to_x = (rows @ blocks.matrix(weight).t()).view(len(x), -1, x.shape[1])[:, : x.shape[2]].transpose(1, 2)
            if mask[1]:
                to_weight = blocks.to_weight(blocks.inputs.rows(x), rows, weight)
        return to_x, to_weight, y.transpose(1, 2).sum((0, 1)) if mask[2] else None


class _Cut(NamedTuple):
    """``number`` windows of a signal, ``size`` points each, every ``step`` points from ``first``, which may be < 0."""

    first: int
    size: int
    step: int
    number: int

    def rows(self, x: Tensor) -> Tensor:
        """(B·number, size·C) of x (B, C, L), with zeros beyond its ends; a view of x if the memory order allows it."""
        batch, channels, length = x.shape
        x = x.transpose(1, 2)
        beyond = self.first + self.step * (self.number - 1) + self.size - length
        if self.first or beyond or self.step != self.size:
            begin, end = -self.first, length - self.first
            wide = x.new_empty(batch, end + max(beyond, 0), channels)
            wide[:, :begin].zero_()
            wide[:, begin:end].copy_(x)
            wide[:, end:].zero_()
            x = wide.as_strided((batch, self.number, self.size * channels), (wide.stride(0), self.step * channels, 1))
        return x.reshape(batch * self.number, self.size * channels)


class _Blocks(NamedTuple):
    """Blocks of the band: inputs and outputs of each block; stride; the tap of a block's first input and output."""

    inputs: _Cut
    outputs: _Cut
    stride: int
    tap: int

    def _band(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """M, (size·C, outputs·C'), zeros, and a view of the places of W in and around it: (outputs, k, C, C')."""
        size, outputs, (width, channels, kernel) = self.inputs.size, self.outputs.size, weight.shape
        across, point = outputs * width, channels * outputs * width
        points = max(self.tap + size, (outputs - 1) * self.stride + kernel)
        band = weight.new_zeros(points * point)
        matrix = band.as_strided((size * channels, across), (across, 1), self.tap * point)
        strides = (self.stride * point + width, point, across, 1)
        return matrix, band.as_strided((outputs, kernel, channels, width), strides)

    def matrix(self, weight: Tensor) -> Tensor:
        """M."""
        matrix, places = self._band(weight)
        places.copy_(weight.permute(2, 1, 0))
        return matrix

    def to_weight(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        """W̄ of M̄ = xᵀ ȳ."""
        matrix, places = self._band(weight)
        torch.mm(x.t(), y, out=matrix)
        return places.sum(0).permute(2, 1, 0).contiguous()


@cache
def _blocks(length: int, kernel: int, stride: int, padding: int, of_inputs: bool) -> _Blocks:
    """Cheapest division: a single block for the whole band, one per ``stride`` inputs, or one per output."""
    outputs = (length + 2 * padding - kernel) // stride + 1
    if length <= WHOLE * kernel:
        return _Blocks(_Cut(0, length, length, 1), _Cut(0, outputs, outputs, 1), stride, padding)
    if not of_inputs:
        return _Blocks(_Cut(-padding, kernel, stride, outputs), _Cut(0, 1, 1, outputs), stride, 0)
    first, last, count = -((kernel - 1 - padding) // stride), (stride - 1 + padding) // stride, -(-length // stride)
    cut = _Cut(first, last - first + 1, 1, count)
    return _Blocks(_Cut(0, stride, stride, count), cut, stride, padding - stride * first)
