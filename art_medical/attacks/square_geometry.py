# SPDX-License-Identifier: Apache-2.0
"""Windows, bumps and stripes of the Square attack for images of any number of axes, one place for each sample.

Everything is told from coordinates by broadcasting, so that each sample of a batch can have a window of its own place
and size.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import Tensor

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries, of 10,000, after which the windows get half as large (Andriushchenko et al. 2020, section 3.2)."""


def share(p_init: float, query: int, queries: int) -> float:
    """Share ``p`` of the pixels that a window has at a query of a run of ``queries``."""
    return float(p_init / 2 ** bisect_left(HALVINGS, query * 10_000 // queries))


@dataclass(frozen=True)
class Windows:
    """One axis-parallel box of pixels for each sample.

    :param start: First pixel of each axis ``(n, d)``.
    :param side: Pixels along each axis ``(n, d)``.
    :param shape: Pixels of an image along each of the ``d`` axes.
    """

    start: Tensor
    side: Tensor
    shape: tuple[int, ...]

    def inside(self) -> Tensor:
        """True inside, ``(n, 1, *shape)``."""
        mask = torch.ones(1, dtype=torch.bool, device=self.start.device)
        for axis in range(len(self.shape)):
            place = self._place(axis)
            mask = mask & self._along(axis, (place >= 0) & (place < self.side[:, axis, None]))
        return mask

    def bumps(self, axis: Tensor) -> Tensor:
        """The paper's ``eta``: a hill and a valley that share the window, of length 1, 0 outside; ``(n, 1, *shape)``.

        At ``r`` pixels (Chebyshev distance) from the middle of its half, a bump has the height
        ``sum_{k=r}^{M} 1 / (k + 1)**2`` with ``M`` half the longest side.

        :param axis: The axis along which each window is cut in halves ``(n,)``; the paper's random rotation.
        """
        first = self.side // 2
        distance = torch.zeros(1, dtype=torch.int64, device=self.start.device)
        valley = torch.zeros(1, dtype=torch.bool, device=self.start.device)
        for number in range(len(self.shape)):
            place, half = self._place(number), first[:, number, None]
            cut = (axis == number)[:, None]
            beyond = cut & (place >= half)
            rest = self.side[:, number, None] - half
            middle = torch.where(cut, torch.where(beyond, half + rest // 2, half // 2), half)
            distance = torch.maximum(distance, self._along(number, (place - middle).abs()))
            valley = valley | self._along(number, beyond)
        most = int(self.side.max()) // 2 + 1
        steps = torch.arange(1, most + 1, dtype=torch.float32, device=self.start.device)
        sums = torch.cat([steps.new_zeros(1), (1 / steps**2).cumsum(0)])
        tops = sums[first.amax(1) + 1].view(-1, *(1,) * (distance.ndim - 1))
        height = (tops - sums[distance.clamp(max=most)]).clamp(min=0) * self.inside()
        hill, dale = _unit(height.masked_fill(valley, 0)), _unit(height.masked_fill(~valley, 0))
        return _unit(hill - dale)

    def _place(self, axis: int) -> Tensor:
        """Distance of each pixel from the first one of the window along an axis ``(n, length)``."""
        return torch.arange(self.shape[axis], device=self.start.device)[None, :] - self.start[:, axis, None]

    def _along(self, axis: int, values: Tensor) -> Tensor:
        """``(n, length)`` as ``(n, 1, 1, ..., length, ..., 1)``."""
        sizes = [1] * len(self.shape)
        sizes[axis] = self.shape[axis]
        return values.view(-1, 1, *sizes)


@dataclass(frozen=True)
class Area:
    """Where windows may lie: the smallest box around the pixels that may change, for each sample.

    :param low: First pixel of each axis ``(n, d)``.
    :param size: Pixels along each axis ``(n, d)``.
    :param shape: Pixels of an image along each axis.
    """

    low: Tensor
    size: Tensor
    shape: tuple[int, ...]

    @classmethod
    def around(cls, mask: Tensor | None, x: Tensor) -> Area:
        """The whole image where there is no mask, or an empty one."""
        shape = tuple(x.shape[2:])
        whole = torch.tensor(shape, device=x.device).expand(len(x), -1)
        if mask is None:
            return cls(torch.zeros_like(whole), whole, shape)
        allowed = (mask != 0).any(1)
        low, high = [], []
        for axis in range(len(shape)):
            others = [other + 1 for other in range(len(shape)) if other != axis]
            line = allowed.any(others) if others else allowed
            line = line | ~line.any(1, keepdim=True)
            low.append(line.int().argmax(1))
            high.append(shape[axis] - line.flip(1).int().argmax(1))
        return cls(torch.stack(low, 1), torch.stack(high, 1) - torch.stack(low, 1), shape)

    def windows(self, p: float, place: Tensor, least: int = 1) -> Windows:
        """Cubes of a share ``p`` of the area, cut where the area is thinner.

        :param place: Uniform numbers on [0, 1) that say where ``(n, d)``.
        :param least: Shortest side; above 1, sides are odd, as the two halves of the paper's bumps need it.
        """
        axes = self.size.shape[1]
        side = (p * self.size.double().prod(1)).pow(1 / axes).round().clamp(min=least).long()
        if least > 1:
            side = side + (1 - side % 2)
        sides = torch.minimum(side[:, None], self.size)
        free = self.size - sides
        offset = torch.minimum((place.double() * (free + 1)).floor().long(), free)
        return Windows(self.low + offset, sides, self.shape)

    def select(self, keep: Tensor) -> Area:
        """The same for the samples at the indices ``keep``."""
        return Area(self.low[keep], self.size[keep], self.shape)


def tiles(shape: tuple[int, ...], count: int = 5) -> list[tuple[slice, ...]]:
    """A grid of ``count`` equal boxes along each axis (fewer where an axis is shorter) in the middle of the image."""
    grid: list[tuple[slice, ...]] = [()]
    for length in shape:
        along = min(count, length)
        side = length // along
        first = (length - along * side) // 2
        line = [slice(first + place * side, first + (place + 1) * side) for place in range(along)]
        grid = [(*place, part) for place in grid for part in line]
    return grid


def _unit(values: Tensor) -> Tensor:
    """Each sample divided by its length."""
    size = values.flatten(1).norm(dim=1).clamp(min=1e-12)
    unit: Tensor = values / size.view(-1, *(1,) * (values.ndim - 1))
    return unit
